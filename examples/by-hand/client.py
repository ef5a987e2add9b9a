"""A call without the SDK: the client's half of docs/protocol.md, with a plain socket and the standard library.

    python client.py by-hand '{"text": "hi"}'          # REDIS_URL, as redis://:PASSWORD@127.0.0.1:6379

It prints the reply's JSON. Exit code 0 for code 200, 1 for another code, 75 without a reply.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
import time
from datetime import UTC, datetime
from typing import Any

from resp import Redis, ReplyError

TRACE_SECONDS = 120


def call(url: str, type_: str, data: Any, seconds: float) -> dict[str, Any] | None:
    """The reply, or None if there is none in time."""
    redis = Redis(url)
    ref = secrets.token_hex(12)
    send(redis, ref, type_, data, seconds)
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        try:
            popped = redis.one("BRPOP", f"res:{ref}", f"{min(left, 5):.3f}")
            if popped is not None:
                return json.loads(popped[1])  # type: ignore[no-any-return]
        except OSError:  # Redis may have given the reply to the lost connection: the trace has it, too
            redis = Redis(url)
            reply = traced(redis, ref, type_)
            if reply is not None:
                return reply
    return None


def send(redis: Redis, ref: str, type_: str, data: Any, seconds: float) -> None:
    """One transaction: the trace, which says that the request exists, and the entry. Raises ReplyError."""
    text = json.dumps(data, allow_nan=False)
    created = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    deadline = int((time.time() + seconds) * 1000)
    trace = ("ref", ref, "type", type_, "requestData", text, "created", created)
    entry = ("ref", ref, "type", type_, "data", text, "time", created, "deadline", deadline)
    *queued, done = redis.ask(
        ("MULTI",),
        ("HSET", f"req:{ref}:h", *trace),
        ("EXPIRE", f"req:{ref}:h", max(TRACE_SECONDS, int(seconds) + 1)),
        ("XADD", f"{type_}:req:x", "*", *entry),
        ("EXEC",),
    )
    for reply in (*queued, done, *(done if isinstance(done, list) else ())):
        if isinstance(reply, ReplyError):
            raise reply


def traced(redis: Redis, ref: str, type_: str) -> dict[str, Any] | None:
    """The reply in what the worker has written into `req:REF:h`."""
    first, *rest = type_.replace("_", "-").split("-")
    story = redis.one("HGET", f"req:{ref}:h", first + "".join(part.capitalize() for part in rest) + "Trace")
    return None if story is None else json.loads(story)["res"]  # type: ignore[no-any-return]


def main() -> int:
    type_, text, *seconds = sys.argv[1:]
    reply = call(os.environ["REDIS_URL"], type_, json.loads(text), float(seconds[0]) if seconds else 10)
    if reply is None:
        print(f"no reply of {type_} in time", file=sys.stderr)
        return 75
    print(json.dumps(reply))
    return 0 if reply["code"] == 200 else 1


if __name__ == "__main__":
    sys.exit(main())
