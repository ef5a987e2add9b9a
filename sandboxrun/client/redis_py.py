"""For programs that have a redis-py connection already."""

from __future__ import annotations

import json
import math
import os
import time

from sandboxrun.client.request import TRACE_EXPIRE_SECONDS, decoded, seconds_of
from sandboxrun.config import keys
from sandboxrun.errors import CallError, RemoteError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from redis import Redis

    from sandboxrun.client.request import Timeout

WAIT_SECONDS = 1.0  # of one BRPOP


def send(redis: Redis, type_: str, data: Any, *, now: str) -> str:
    """Put a request on the worker type's stream and make its trace hash; the `ref` to wait for."""
    keys.check_type(type_)
    ref = os.urandom(12).hex()
    text = json.dumps(data, allow_nan=False)
    with redis.pipeline(transaction=True) as pipe:
        pipe.hset(keys.trace_key(ref), mapping={"ref": ref, "type": type_, "requestData": text, "created": now})
        pipe.expire(keys.trace_key(ref), TRACE_EXPIRE_SECONDS)
        pipe.xadd(keys.request_stream(type_), {"ref": ref, "type": type_, "data": text, "time": now})
        pipe.execute()
    return ref


def wait(redis: Redis, ref: str, *, timeout_seconds: Timeout) -> dict[str, Any] | None:
    """The reply as parsed JSON, or None if none came in time. None or inf as time-out waits without limit.

    `redis` needs a socket time-out above one second. Raises CallError for a reply that is not a JSON object.
    """
    limit = seconds_of(timeout_seconds)
    until = math.inf if limit is None else time.monotonic() + limit
    key = keys.reply_key(ref)
    while (left := until - time.monotonic()) > 0:
        popped = redis.brpop([key], timeout=max(0.001, min(left, WAIT_SECONDS)))
        if popped is None:
            continue
        if popped[0] not in (key, key.encode()):
            redis.connection_pool.disconnect()
            raise CallError(f"the connection to Redis is out of step: asked for {key}, got {popped[0]!r:.80}")
        try:
            reply = decoded(popped[1])
        except ValueError as error:
            raise RemoteError(f"the reply to {ref} is not JSON: {error}") from None
        if not isinstance(reply, dict):
            raise RemoteError(f"the reply to {ref} is not a JSON object")
        return reply
    return None
