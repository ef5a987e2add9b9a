"""What Redis says of the requests of a type: how many wait and for how long, how many are in hand, how many were given up.

No payload is kept, and of one that is large none is read.
"""

from __future__ import annotations

from sandboxrun.config import keys
from sandboxrun.protocol import GROUP
from sandboxrun.records import record
from sandboxrun.redis.connection import Connection
from sandboxrun.redis.pages import ask_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

REPLY_MAX_BYTES = 256 * 1024  # a larger one is not read, and its figure is unknown


@record
class Figures:
    """Of one type; None for what is unknown. `oldest_waiting`, `oldest_pending`: seconds since it was sent."""

    lag: int | None = None
    pending: int | None = None
    oldest_waiting: float | None = None
    oldest_pending: float | None = None
    dead: int | None = None


def figures(connection: Connection, types: Iterable[str]) -> dict[str, Figures]:
    """By type. Raises StoreError, ReplyError."""
    seconds, micros = map(int, connection.call("TIME"))
    now = seconds * 1000 + micros // 1000
    return {type_: _of(connection, type_, now) for type_ in types}


def _of(connection: Connection, type_: str, now: int) -> Figures:
    stream = keys.request_stream(type_)
    commands = [("XINFO", "GROUPS", stream), ("XPENDING", stream, GROUP), ("XLEN", keys.dead_stream(type_))]
    groups, summary, dead = ask_all(connection, commands, REPLY_MAX_BYTES)
    group = _group(groups)
    lag = group.get(b"lag") if group is not None else None
    pending = summary[0] if isinstance(summary, list) and len(summary) == 4 else None
    return Figures(
        lag=lag if isinstance(lag, int) else None,
        pending=pending if isinstance(pending, int) else None,
        oldest_waiting=_oldest_waiting(connection, stream, group, now) if lag != 0 else None,
        oldest_pending=_age(summary[1], now) if pending else None,
        dead=dead if isinstance(dead, int) else None,
    )


def _group(reply: Any) -> dict[bytes, Any] | None:
    for words in reply if isinstance(reply, list) else ():
        found = dict(zip(words[::2], words[1::2], strict=False))
        if found.get(b"name") == GROUP.encode():
            return found
    return None


def _oldest_waiting(connection: Connection, stream: str, group: dict[bytes, Any] | None, now: int) -> float | None:
    """The age of the entry after the one that was delivered last."""
    last = group.get(b"last-delivered-id") if group is not None else None
    if not isinstance(last, bytes):
        return None
    command = ("XRANGE", stream, f"({last.decode('ascii', 'replace')}", "+", "COUNT", 1)
    rows = ask_all(connection, [command], REPLY_MAX_BYTES)[0]
    return _age(rows[0][0], now) if isinstance(rows, list) and rows else None


def _age(xid: Any, now: int) -> float | None:
    """Of an entry, from its id."""
    millis = xid.partition(b"-")[0] if isinstance(xid, bytes) else b""
    return max(0, now - int(millis)) / 1000 if millis.isdigit() and len(millis) < 16 else None
