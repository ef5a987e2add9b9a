"""A worker that calls others as its request says, and tells what it was called with.

`calls`: a list of {type, data, timeout, method, times}; then `sleep` (seconds), `kill` (once), `fail`. MODE: serial, threads, tasks.
"""

import asyncio
import os
import time

from sandboxrun import client, worker

MODE = os.environ.get("MODE") or worker.config().get("mode", "serial")
c = client.Client()
a = client.AsyncClient()


def told(request):
    own = {"ref": request.ref, "deadline": request.deadline, "path": request.path, "method": request.method}
    return {**own, "traceparent": request.traceparent, "pid": os.getpid(), "calls": []}


def failed(error):
    hint = getattr(error, "hint", ())
    return {
        "error": type(error).__name__,
        "message": str(error),
        "hint": hint,
        "ran": getattr(error, "may_have_run", ""),
    }


def arguments(step):
    data = step.get("data", {})
    data = {"not JSON"} if data == "unserialisable" else "x" * 2_000_000 if data == "oversized" else data
    return (step["type"], data), {"timeout": step.get("timeout", 20), "method": step.get("method")}


def end(request):
    if request.data.get("kill") and request.deliveries == 1:
        os.kill(os.getpid(), 9)
    if request.data.get("fail"):
        raise ValueError(request.data["fail"])
    request.trace(seen="by " + worker.config().get("name", "me"))


def handle(request):
    found = told(request)
    for step in request.data.get("calls", ()):
        words, options = arguments(step)
        try:
            found["calls"].append(c.call(*words, **options))
        except Exception as error:
            if step.get("raise"):
                raise
            found["calls"].append(failed(error))
    time.sleep(request.data.get("sleep", 0))
    end(request)
    return found


async def handle_async(request):
    found = told(request)
    for step in request.data.get("calls", ()):
        words, options = arguments(step)
        many = [a.call(*words, **options) for _ in range(step.get("times", 1))]
        replies = await asyncio.gather(*many, return_exceptions=True)
        found["calls"] += [failed(reply) if isinstance(reply, Exception) else reply for reply in replies]
    await asyncio.sleep(request.data.get("sleep", 0))
    end(request)
    return found


worker.handler(handle_async if MODE == "tasks" else handle)
worker.run(concurrency=1 if MODE == "serial" else 50)
