"""What a worker does for all of its type once in a while: take over what nobody holds any more, trim, tidy."""

from __future__ import annotations

from sandboxrun import keys
from sandboxrun.connection import ReplyError
from sandboxrun.worker.batch import GROUP
from sandboxrun.worker.claims import Claims
from sandboxrun.worker.streams import gone, order, record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

OWN_PART = 4  # takeoverMillis / 4: when what has our name, and is not in hand, is a predecessor's that is gone
TAKE_MOST = 25  # claims of others' at once
LIST_MOST = 100
GONE_TIMES = 240  # takeoverMillis * 240, an hour by default: an idle consumer with nothing pending is removed
TRIM_SLACK = 200


def look_around(claims: Claims) -> bool:
    """Look at `pid`, find claims that nobody holds any more, and trim. True where there is more to take at once."""
    loop = claims.loop
    own = 0 if claims.opened > 1 and claims.alone else loop.takeover_millis // OWN_PART
    stream = loop.request_stream
    pid, mine, stale, length = claims.exchange(
        claims.look_at_pid,
        ("XPENDING", stream, GROUP, "IDLE", own, "-", "+", LIST_MOST, loop.consumer_id),
        ("XPENDING", stream, GROUP, "IDLE", loop.takeover_millis, "-", "+", TAKE_MOST),
        ("XLEN", stream),
    )
    claims.looked(pid)
    if isinstance(mine, ReplyError) or isinstance(stale, ReplyError):  # NOGROUP: the next read makes it
        return False
    taken = 0
    if not claims.lost_pid:
        for xid, _, _, count in mine:
            if xid not in claims.hand:
                claims.suspects[xid] = count
        if claims.settled:
            taken = _take(claims, [row for row in stale if row[1].decode("utf-8", "replace") != loop.consumer_id])
    if loop.request_stream_limit and length > loop.request_stream_limit + TRIM_SLACK:
        _trim(claims, length - loop.request_stream_limit)
    return taken == TAKE_MOST


def _take(claims: Claims, rows: Sequence[tuple[bytes, bytes, int, int]]) -> int:
    """Take others' stale claims, and break their fences in the same moment; how many."""
    if not rows:
        return 0
    loop = claims.loop
    owners = {row[1].decode("utf-8", "replace") for row in rows}
    xids = [row[0] for row in rows]
    # A full server takes XCLAIM, and no replies: their owners could not renew behind one that it has refused. So nothing is
    # taken from anybody while it is full; once it is not, they have the time of `settled` to renew.
    results = claims.transact(
        claims.keep_fence,
        *(("DEL", keys.fence_key(loop.request_stream, owner)) for owner in owners),
        ("XCLAIM", loop.request_stream, GROUP, loop.consumer_id, loop.takeover_millis, *xids, "JUSTID"),
    )
    taken = results[-1] if results is not None else []
    if isinstance(taken, ReplyError):
        return 0
    counts = {row[0]: row[3] for row in rows}
    claims.suspects.update({xid: counts[xid] for xid in taken if xid in counts})
    return len(taken)


def remove_gone(claims: Claims, idle_millis: int | None = None) -> None:
    """Remove consumers that have nothing pending and have not been seen for `idle_millis`.

    With a consumer goes what it has pending, and one that wakes in this very moment may be given something. So it is done
    where there is nothing to give: all is delivered and answered, and what comes meanwhile changes the watched stream.
    """
    loop, stream = claims.loop, claims.loop.request_stream
    limit = loop.takeover_millis * GONE_TIMES if idle_millis is None else idle_millis
    (found,) = claims.exchange(("XINFO", "CONSUMERS", stream, GROUP))
    names = gone(found if isinstance(found, list) else [], loop.consumer_id, limit)
    if not names:
        return
    replies = claims.exchange(
        ("WATCH", stream),
        ("XINFO", "STREAM", stream),
        ("XINFO", "GROUPS", stream),
        ("XINFO", "CONSUMERS", stream, GROUP),
    )
    still = _removable(replies[1:], names)
    if still:
        claims.transact(
            *(("XGROUP", "DELCONSUMER", stream, GROUP, name) for name in still),
            *(("DEL", keys.fence_key(stream, name)) for name in still),
        )
    claims.verify()  # the stream is watched no more: every request would end the watch of the fence


def _removable(replies: list[Any], names: Sequence[str]) -> list[str]:
    """Of XINFO STREAM, GROUPS and CONSUMERS: those of the names that can be given nothing and have nothing."""
    if any(isinstance(reply, ReplyError) for reply in replies):
        return []
    stream, groups, consumers = replies
    ours = next(group for group in map(record, groups) if group["name"] == GROUP.encode())
    if ours["pending"] or ours["last-delivered-id"] != record(stream)["last-generated-id"]:
        return []
    free = {
        consumer["name"].decode("utf-8", "replace") for consumer in map(record, consumers) if not consumer["pending"]
    }
    return [name for name in names if name in free]


def _trim(claims: Claims, most: int) -> None:
    """Remove at most so many of the oldest entries, none that any group has pending or not been given yet."""
    stream = claims.loop.request_stream
    groups = claims.exchange(("XINFO", "GROUPS", stream))[0]
    if isinstance(groups, ReplyError) or not groups:
        return
    found = [record(group) for group in groups]
    pending = claims.exchange(*[("XPENDING", stream, group["name"]) for group in found])
    floor = min(
        (
            row[1] if isinstance(row, list) and row[0] else group["last-delivered-id"]
            for group, row in zip(found, pending, strict=True)
        ),
        key=order,
    )
    claims.exchange(("XTRIM", stream, "MINID", "~", floor, "LIMIT", most))
