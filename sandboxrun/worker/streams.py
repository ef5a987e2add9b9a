"""What the commands on streams look like, and what Redis answers to them: pure."""

from __future__ import annotations

from sandboxrun.protocol import GROUP
from sandboxrun.redis.connection import pack
from sandboxrun.worker.batch import Entry

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

    from sandboxrun.config.fields import Loop


def order(xid: bytes) -> tuple[int, int]:
    """What entries' ids are sorted by."""
    first, _, second = xid.partition(b"-")
    return int(first), int(second or 0)


def gone(consumers: Iterable[Any], me: str, idle_millis: int) -> list[str]:
    """Of XINFO CONSUMERS, the names of those with nothing pending that were idle for longer."""
    found = [record(consumer) for consumer in consumers]
    return [
        name
        for consumer in found
        if (name := consumer["name"].decode("utf-8", "replace")) != me
        and consumer["pending"] == 0
        and consumer["idle"] > idle_millis
    ]


def record(flat: Any) -> dict[str, Any]:
    """A reply of names and values, in either protocol's shape."""
    if isinstance(flat, dict):
        return {name.decode(): value for name, value in flat.items()}
    return {name.decode(): value for name, value in zip(flat[::2], flat[1::2], strict=True)}


def read_command(look_at_pid: Sequence[str], loop: Loop, count: int, block_millis: int) -> bytes:
    """A read of new entries, and before it a look at `pid`."""
    wait: tuple[str | int, ...] = ("BLOCK", block_millis) if block_millis else ()
    where = ("STREAMS", loop.request_stream, ">")
    return pack(*look_at_pid) + pack("XREADGROUP", "GROUP", GROUP, loop.consumer_id, "COUNT", count, *wait, *where)


def read_entries(found: Any) -> list[Entry]:
    return [Entry(xid, pairs(raw)) for xid, raw in entries_of(found)]


def entries_of(found: Any) -> list[Any]:
    """The entries of an XREADGROUP on one stream, in either protocol's shape."""
    if not found:
        return []
    entries: list[Any] = next(iter(found.values())) if isinstance(found, dict) else found[0][1]
    return entries


def pairs(flat: Any) -> dict[bytes, bytes]:
    pairs = iter(flat or ())
    return dict(zip(pairs, pairs, strict=True))
