"""Look at a page: its status, its title and how long it took. The hash says which hosts it may ask."""

import re
import time
from dataclasses import dataclass

import httpx

from sandboxrun import worker

PAGE_MAX_BYTES = 256 * 1024
TIMEOUT_SECONDS = 10

client = httpx.Client(timeout=TIMEOUT_SECONDS, trust_env=False)


@dataclass
class Page:
    url: str


@worker.handler
def handle(data: Page):
    began = time.monotonic()
    try:
        with client.stream("GET", data.url) as response:
            text = beginning(response).decode(response.encoding or "utf-8", "replace")
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        raise worker.BadRequest(f"url is not valid: {error}") from error
    title = re.search(r"<title[^>]*>(.*?)</title>", text, re.DOTALL | re.IGNORECASE)
    return {
        "status": response.status_code,
        "title": title[1].strip() if title else None,
        "millis": round((time.monotonic() - began) * 1000),
    }


def beginning(response):
    """At most PAGE_MAX_BYTES, so that a page of any length fits into the worker's memory."""
    body = bytearray()
    for chunk in response.iter_bytes(16 * 1024):
        body += chunk
        if len(body) >= PAGE_MAX_BYTES:
            break
    return bytes(body[:PAGE_MAX_BYTES])


worker.run()
