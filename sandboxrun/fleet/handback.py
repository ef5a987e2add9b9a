"""Requests of a worker that has ended without handing them back: others may take them at once, not after takeoverMillis."""

from __future__ import annotations

from sandboxrun.fleet.queues import read_fields
from sandboxrun.protocol import HANDED_BACK_MILLIS
from sandboxrun.redis.connection import Connection
from sandboxrun.redis.lease import PID_FIELDS, holder, is_alive
from sandboxrun.redis.replies import ReplyError
from sandboxrun.redis.transaction import optimistic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PAGE, PAGES_MOST = 100, 10


def hand_back(connection: Connection, key: str, stream: str, group: str, consumer: str) -> int:
    """Let others take what this consumer has begun; how many requests. They stay delivered as often as they were.

    Nothing is done if the worker `key` runs again, because its requests are in hand then. Raises ConnectionLost, ReplyError.
    """
    count = 0

    def decide(_: list[Any]) -> list[tuple[str | bytes | int, ...]]:
        nonlocal count
        values = read_fields(connection, [key], PID_FIELDS, reopen=False)[0]
        if values is None or is_alive(holder(values), key, int(connection.call("TIME")[0])):
            return []
        ids = _pending(connection, stream, group, consumer)
        count = len(ids)
        claims = (ids[at : at + PAGE] for at in range(0, count, PAGE))
        return [("XCLAIM", stream, group, consumer, 0, *part, "IDLE", HANDED_BACK_MILLIS, "JUSTID") for part in claims]

    return count if optimistic(connection, [key], decide, reopen=True) else 0


def _pending(connection: Connection, stream: str, group: str, consumer: str) -> list[bytes]:
    found: list[bytes] = []
    begin = "-"
    for _ in range(PAGES_MOST):
        (rows,) = connection.pipeline([("XPENDING", stream, group, begin, "+", PAGE, consumer)])
        if isinstance(rows, ReplyError):  # NOGROUP, or no stream
            return found
        found += [row[0] for row in rows]
        if len(rows) < PAGE:
            return found
        begin = f"({rows[-1][0].decode()}"
    return found
