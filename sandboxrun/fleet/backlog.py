"""How much work of a type waits, is in hand, and was given up, from its streams. Changes nothing."""

from __future__ import annotations

from sandboxrun.config import keys
from sandboxrun.fleet.queues import read_fields
from sandboxrun.records import record
from sandboxrun.redis.connection import Connection
from sandboxrun.redis.replies import ReplyError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import Any

STREAMS_MAX = 8  # of one type
REPLY_MAX_BYTES = 256 * 1024
ENTRY_MAX_BYTES = 1024 * 1024  # of the oldest request that waits; of a larger one the age is not known


@record
class Backlog:
    """Numbers of requests, and ages in seconds by Redis's clock; None if Redis does not say."""

    lag: int | None = None
    pending: int | None = None
    oldest_waiting: float | None = None
    oldest_handling: float | None = None
    dead: int | None = None


def backlog(connection: Connection, type_: str, streams: Collection[str] = ()) -> Backlog:
    """Of the streams that the workers of a type read, together; if none is named, of the type's. Raises ConnectionLost."""
    stream, group = source_of(connection, type_)
    names = sorted(streams)[:STREAMS_MAX] or [stream]
    found = [_of_stream(connection, name, group) for name in names]
    dead = connection.pipeline([("XLEN", keys.dead_stream(type_))])[0]
    return Backlog(
        lag=_together(sum, [each.lag for each in found]),
        pending=_together(sum, [each.pending for each in found]),
        oldest_waiting=_together(max, [each.oldest_waiting for each in found]),
        oldest_handling=_together(max, [each.oldest_handling for each in found]),
        dead=dead if isinstance(dead, int) else None,
    )


def source_of(connection: Connection, type_: str) -> tuple[str, str]:
    """The stream that workers of the type read, and their group, unless their own hash names others. Raises ConnectionLost,
    ReplyError."""
    values = read_fields(connection, [keys.type_key(type_)], ["requestStream", "consumerGroup"])[0] or [None, None]
    stream, group = (value.decode("utf-8", "replace") if value else "" for value in values)
    return stream or keys.request_stream(type_), group or keys.GROUP


def _together(combine: Any, values: list[Any]) -> Any:
    known = [value for value in values if value is not None]
    return combine(known) if known else None


def _of_stream(connection: Connection, stream: str, name: str) -> Backlog:
    """Without dead letters, which are the type's."""
    commands = [("XINFO", "GROUPS", stream), ("XPENDING", stream, name), ("TIME",)]
    replies = connection.pipeline_within(commands, REPLY_MAX_BYTES, reopen=True)
    if replies is None:
        return Backlog()
    groups, summary, time = replies
    now = int(time[0]) + int(time[1]) / 1e6 if isinstance(time, list) else 0.0
    group = _group(groups, name)
    lag = group.get(b"lag")
    pending = group.get(b"pending")
    oldest = summary[1] if isinstance(summary, list) and len(summary) > 1 else None
    return Backlog(
        lag=lag if isinstance(lag, int) else None,
        pending=pending if isinstance(pending, int) else None,
        oldest_waiting=_first_after(connection, stream, group.get(b"last-delivered-id"), now) if lag else None,
        oldest_handling=_age(oldest, now),
    )


def _group(groups: Any, name: str) -> dict[bytes, Any]:
    for each in groups if isinstance(groups, list) else ():
        found = dict(zip(each[::2], each[1::2], strict=True))
        if found.get(b"name") == name.encode():
            return found
    return {}


def _first_after(connection: Connection, stream: str, xid: Any, now: float) -> float | None:
    if not isinstance(xid, bytes):
        return None
    command = ("XRANGE", stream, b"(" + xid, "+", "COUNT", 1)
    replies = connection.pipeline_within([command], ENTRY_MAX_BYTES, reopen=True)
    if not replies or isinstance(replies[0], ReplyError) or not replies[0]:
        return None
    return _age(replies[0][0][0], now)


def _age(xid: Any, now: float) -> float | None:
    """An entry's ID begins with the time at which it was added, in milliseconds."""
    millis = xid.partition(b"-")[0] if isinstance(xid, bytes) else b""
    return max(0.0, now - int(millis) / 1000) if millis.isdigit() and len(millis) < 16 else None
