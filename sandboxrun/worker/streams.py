"""Commands on streams, and the parsing of their replies. Pure."""

from __future__ import annotations

from sandboxrun.redis.connection import pack
from sandboxrun.worker.rendering import Entry

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

    from sandboxrun.config.fields import Loop


def order(xid: bytes) -> tuple[int, int]:
    """Sort key for an entry ID."""
    first, _, second = xid.partition(b"-")
    return int(first), int(second or 0)


def gone(consumers: Iterable[Any], me: str, idle_millis: int) -> list[str]:
    """Names of the consumers in a reply to XINFO CONSUMERS that have nothing pending and were idle for longer."""
    return [
        name
        for consumer in map(record, consumers)
        if (name := consumer["name"].decode("utf-8", "replace")) != me
        and consumer["pending"] == 0
        and consumer["idle"] > idle_millis
    ]


def record(flat: Any) -> dict[str, Any]:
    """A reply of names and values as a dict, from RESP2 or RESP3."""
    if isinstance(flat, dict):
        return {name.decode(): value for name, value in flat.items()}
    return {name.decode(): value for name, value in zip(flat[::2], flat[1::2], strict=True)}


def read_command(look_at_pid: Sequence[str], loop: Loop, count: int, block_millis: int) -> bytes:
    """A look at `pid`, then a read of new entries."""
    wait: tuple[str | int, ...] = ("BLOCK", block_millis) if block_millis else ()
    stream = ("STREAMS", loop.request_stream, ">")
    return pack(*look_at_pid) + pack(
        "XREADGROUP", "GROUP", loop.consumer_group, loop.consumer_id, "COUNT", count, *wait, *stream
    )


def read_entries(reply: Any) -> list[Entry]:
    return [Entry(xid, pairs(raw)) for xid, raw in entries_of(reply)]


def entries_of(reply: Any) -> list[Any]:
    """The entries in a reply to XREADGROUP on one stream, from RESP2 or RESP3."""
    if not reply:
        return []
    entries: list[Any] = next(iter(reply.values())) if isinstance(reply, dict) else reply[0][1]
    return entries


def pairs(flat: Any) -> dict[bytes, bytes]:
    pairs = iter(flat or ())
    return dict(zip(pairs, pairs, strict=True))
