"""Ask many servers at once, and answer with what each of them said, or why it said nothing."""

import asyncio
import time
from dataclasses import dataclass

import httpx

from sandboxrun import worker

URLS_MAX = 50
AT_ONCE = 10
TIMEOUT_SECONDS = 10

client = httpx.AsyncClient(timeout=TIMEOUT_SECONDS, trust_env=False)
turns = asyncio.Semaphore(AT_ONCE)  # of all requests together


@dataclass
class Servers:
    urls: list[str]


@worker.handler
async def handle(data: Servers):
    if len(data.urls) > URLS_MAX:
        raise worker.BadRequest(f"urls has {len(data.urls)} entries: at most {URLS_MAX} are asked")
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(ask(url)) for url in data.urls]
    return {"servers": [task.result() for task in tasks]}


async def ask(url):
    """One failure is one entry of the reply: the other servers are asked all the same."""
    async with turns:
        began = time.monotonic()
        try:
            async with client.stream("GET", url) as response:
                status = response.status_code  # the page itself is not read
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return {"url": url, "error": str(error) or type(error).__name__}
        return {"url": url, "status": status, "millis": round((time.monotonic() - began) * 1000)}


worker.run()
