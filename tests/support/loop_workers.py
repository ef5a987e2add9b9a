"""A worker of each kind for the tests of the request loop, and requests to it."""

from __future__ import annotations

import collections
import json
import os
from typing import Any

import redis
from arena import wait_for

# The worker counts in its own memory how often it began each request, because Redis may be away.
PLAIN = """
import asyncio, os, time
from sandboxrun import worker

begun = {}

@worker.handler
def handle(request):
    n = request.data["n"]
    begun[n] = begun.get(n, 0) + 1
    time.sleep(request.data.get("sleep", 0))
    return {"n": n, "begun": begun[n], "deliveries": request.deliveries, "text": "x" * request.data.get("size", 0)}

worker.run()
"""
KINDS = {
    "plain": PLAIN,
    "threads": PLAIN.replace("worker.run()", "worker.run(concurrency=4)"),
    "async": PLAIN.replace("def handle", "async def handle").replace("time.sleep", "await asyncio.sleep"),
}


def send(r: redis.Redis, **data: Any) -> str:
    """Send a request as a client without the library does; its ref."""
    ref = os.urandom(8).hex()
    r.xadd("t:req:x", {"ref": ref, "type": "t", "data": json.dumps(data)})
    return ref


def answer(r: redis.Redis, ref: str, seconds: float = 30) -> dict[str, Any]:
    found = r.brpop([f"res:{ref}"], timeout=seconds)
    assert found is not None, "no reply"
    reply: dict[str, Any] = json.loads(found[1])
    return reply


def answered(r: redis.Redis) -> collections.Counter[str]:
    """How often each ref was answered."""
    return collections.Counter(fields["ref"] for _, fields in r.xrange("t:res:x"))


def pending(r: redis.Redis) -> int:
    """How many requests are delivered and not acknowledged; 0 before there is a group."""
    try:
        return int(r.xpending("t:req:x", "worker")["pending"])
    except redis.ResponseError:
        return 0


def wait_for_begin(r: redis.Redis) -> None:
    wait_for(lambda: pending(r) > 0, 20, "a request to be begun")
