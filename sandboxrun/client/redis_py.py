"""Calls over an existing connection of redis-py."""

from __future__ import annotations

import math
import os
import time

from sandboxrun.client.request import seconds_of
from sandboxrun.config import keys
from sandboxrun.protocol import TRACE_EXPIRE_SECONDS
from sandboxrun.protocol.call import CallError, RemoteError
from sandboxrun.protocol.calling import check_path, current
from sandboxrun.protocol.reply import decoded
from sandboxrun.protocol.request import encode, entry, trace_fields

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from redis import Redis

    from sandboxrun.client.request import Payload, Timeout

WAIT_SECONDS = 1.0  # of one BRPOP


def send(redis: Redis, type_: str, data: Payload, *, now: str) -> str:
    """Put a request on the stream of the type, with its trace, and return the `ref` for `wait`.

    `data`: what json.dumps accepts, without NaN. `now`: the time in ISO 8601, as 2026-01-02T03:04:05.000Z. In a handler, the
    request inherits deadline, path and trace of the one that is handled.
    """
    keys.check_type(type_)
    text, calling = encode(data), current.get()
    ref = os.urandom(12).hex()
    fields: dict[Any, Any]  # redis-py's type of keys is invariant
    if calling is None:
        ref = os.environ.get(keys.CALL_NONCE, "") + ref
        words, fields = entry(ref, type_, text, now), {**trace_fields(ref, type_, text, now)}
    else:
        path, ref = check_path(calling, type_), calling.nonce + ref
        parent = calling.traceparent
        words = entry(ref, type_, text, now, calling.deadline, traceparent=parent, path=path)
        fields = {**trace_fields(ref, type_, text, now, traceparent=parent, caller=calling)}
    with redis.pipeline(transaction=True) as pipe:
        pipe.hset(keys.trace_key(ref), mapping=fields)
        pipe.expire(keys.trace_key(ref), TRACE_EXPIRE_SECONDS)
        pipe.xadd(keys.request_stream(type_), dict(zip(words[::2], words[1::2], strict=True)))
        pipe.execute()
    return ref


def wait(redis: Redis, ref: str, *, timeout_seconds: Timeout) -> dict[str, Any] | None:
    """The reply as parsed JSON, whatever its code, or None without a reply in time. None or inf waits without limit.

    The socket time-out of `redis` must be longer than one second. Raises CallError for a reply that is no JSON object.
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
