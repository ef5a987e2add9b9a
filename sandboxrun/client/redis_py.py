"""For programs that have a redis-py connection already."""

from __future__ import annotations

import json
import os

from sandboxrun import keys
from sandboxrun.client.request import TRACE_EXPIRE_SECONDS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from redis import Redis


def send(redis: Redis, type_: str, data: Any, *, now: str) -> str:
    """Put a request on the worker type's stream and make its trace hash; the `ref` to wait for."""
    ref = os.urandom(12).hex()
    text = json.dumps(data)
    with redis.pipeline(transaction=True) as pipe:
        pipe.hset(keys.trace_key(ref), mapping={"ref": ref, "type": type_, "requestData": text, "created": now})
        pipe.expire(keys.trace_key(ref), TRACE_EXPIRE_SECONDS)
        pipe.xadd(keys.request_stream(type_), {"ref": ref, "type": type_, "data": text, "time": now})
        pipe.execute()
    return ref


def wait(redis: Redis, ref: str, *, timeout_seconds: float) -> dict[str, Any] | None:
    """The reply as parsed JSON, or None if none came in time. `redis` needs a socket time-out above it."""
    found = redis.brpop([keys.reply_key(ref)], timeout=timeout_seconds)
    if found is None:
        return None
    reply = json.loads(found[1])
    return reply if isinstance(reply, dict) else None
