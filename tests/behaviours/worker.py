"""A worker that behaves as a row of the table says; the field `mode` of its hash is plain, threads or async."""

import asyncio
import inspect
import os

import rows

from sandboxrun import worker
from sandboxrun.redis.connection import Connection

TABLE = rows.load()
URL = os.environ["REDIS_URL"]
MODE = worker.config()["mode"]


def begin(request):
    """Count the run, so that the test sees that each row ran, and how often."""
    name = request.data["row"]
    counter = Connection(URL)
    counter.open()
    counter.call("RPUSH", "began", name)
    counter.close()
    return TABLE[name].run


def handle(request):
    if "ping" in request.data:
        return {"pid": os.getpid()}
    run = begin(request)
    return asyncio.run(run(request)) if inspect.iscoroutinefunction(run) else run(request)


async def handle_async(request):
    if "ping" in request.data:
        return {"pid": os.getpid()}
    run = begin(request)
    return await run(request) if inspect.iscoroutinefunction(run) else run(request)


worker.handler(handle_async if MODE == rows.ASYNC else handle)
worker.run(concurrency=8 if MODE != rows.PLAIN else None)
