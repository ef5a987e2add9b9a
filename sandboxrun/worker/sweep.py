"""Upkeep that a worker does for all workers of its type: take over stale claims, trim, remove dead consumers."""

from __future__ import annotations

from sandboxrun.config import keys
from sandboxrun.redis.replies import ReplyError
from sandboxrun.worker.claims import Claims
from sandboxrun.worker.streams import gone, order, record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from sandboxrun.config.fields import Loop

OWN_PART = 4  # takeoverMillis / 4: a claim of our name that is idle for longer and not in hand is our predecessor's
TAKE_MOST = 25  # claims taken from others at once
LIST_MOST = 100  # claims of our name in one list, and claims that wait to be begun
PAGES_MOST = 10
GONE_TIMES = 240  # takeoverMillis * 240, an hour by default: an idle consumer with nothing pending is removed
TRIM_SLACK = 200


def look_around(claims: Claims) -> bool:
    """Look at `pid`, find stale claims, and trim. True if there are more stale claims."""
    loop = claims.loop
    own = 0 if claims.opened > 1 and claims.alone else loop.takeover_millis // OWN_PART
    stream = loop.request_stream
    pid, mine, stale, length = claims.exchange(
        claims.look_at_pid,
        _own_pending(claims, own, "-"),
        ("XPENDING", stream, loop.consumer_group, "IDLE", loop.takeover_millis, "-", "+", TAKE_MOST),
        ("XLEN", stream),
    )
    claims.looked(pid)
    if isinstance(mine, ReplyError) or isinstance(stale, ReplyError):  # NOGROUP: the next read makes it
        return False
    more = False
    if not claims.lost_pid:
        more = _suspect(claims, own, mine)
        if claims.settled and len(claims.suspects) < LIST_MOST:
            taken = _take(claims, [row for row in stale if row[1].decode("utf-8", "replace") != loop.consumer_id])
            more = more or taken == TAKE_MOST
    if loop.is_shared:
        _say_unread(claims)
    if loop.request_stream_limit and length > loop.request_stream_limit + TRIM_SLACK:
        _trim(claims, length - loop.request_stream_limit)
    return more


def nothing_pending(claims: Claims) -> bool:
    """Whether no worker has a request in hand, so that a look around would find nothing. One short command."""
    (summary,) = claims.exchange(("XPENDING", claims.loop.request_stream, claims.loop.consumer_group))
    return isinstance(summary, list) and summary[0] == 0


def _own_pending(claims: Claims, idle: int, begin: str) -> tuple[str | int, ...]:
    loop = claims.loop
    return ("XPENDING", loop.request_stream, loop.consumer_group, "IDLE", idle, begin, "+", LIST_MOST, loop.consumer_id)


def _suspect(claims: Claims, idle: int, rows: Any) -> bool:
    """Note claims of our name that are not in hand, at most LIST_MOST of them; whether there are more.

    After a lost connection all claims of a page may be in hand, so the next pages are read as well.
    """
    pages = 0
    while True:
        for xid, _, _, count in rows:
            if xid not in claims.hand and (xid in claims.suspects or len(claims.suspects) < LIST_MOST):
                claims.suspects[xid] = count
        if len(rows) < LIST_MOST:
            return False
        if len(claims.suspects) >= LIST_MOST or pages == PAGES_MOST:
            return bool(claims.suspects)
        pages += 1
        (rows,) = claims.exchange(_own_pending(claims, idle, f"({rows[-1][0].decode()}"))
        if isinstance(rows, ReplyError):
            return False


def _take(claims: Claims, rows: Sequence[tuple[bytes, bytes, int, int]]) -> int:
    """Take stale claims and break their owners' fences in one transaction; how many were taken."""
    if not rows:
        return 0
    loop = claims.loop
    owners = {row[1].decode("utf-8", "replace") for row in rows}
    xids = [row[0] for row in rows]
    # A server without memory accepts XCLAIM but refuses replies, and an owner cannot renew behind a refused reply. So
    # nothing is taken while the server is full, and afterwards owners have the time of `settled` to renew.
    results = claims.transact(
        claims.keep_fence,
        *(("DEL", key) for owner in owners for key in _fences(loop, owner)),
        ("XCLAIM", loop.request_stream, loop.consumer_group, loop.consumer_id, loop.takeover_millis, *xids, "JUSTID"),
    )
    taken = results[-1] if results is not None else []
    if isinstance(taken, ReplyError):
        return 0
    counts = {row[0]: row[3] for row in rows}
    _say_gone(claims, [xid for xid in xids if xid not in taken])
    claims.suspects.update({xid: counts[xid] for xid in taken if xid in counts})
    return len(taken)


def _say_gone(claims: Claims, xids: Sequence[bytes]) -> None:
    """Of claims that could not be taken, warn of those whose entry is deleted: Redis has dropped them. Others are renewed."""
    if not xids:
        return
    found = claims.exchange(*[("XRANGE", claims.loop.request_stream, xid, xid) for xid in xids])
    gone = [xid for xid, reply in zip(xids, found, strict=True) if reply == []]
    if gone:
        claims.say_gone(gone)


def _say_unread(claims: Claims) -> None:
    """Warn of entries that were removed before this group, which has no part in trimming by others, has read them."""
    stream = claims.loop.request_stream
    about, groups = claims.exchange(("XINFO", "STREAM", stream), ("XINFO", "GROUPS", stream))
    if not isinstance(about, list | dict) or not isinstance(groups, list):
        return
    ours = next((group for group in map(record, groups) if group["name"] == claims.loop.consumer_group.encode()), {})
    added, read = record(about).get("entries-added"), ours.get("entries-read")
    if added is None or read is None:  # Redis before 7, or it cannot tell
        return
    lost = added - record(about)["length"] - read
    if lost > claims.unread_lost:  # Redis 7.0 goes on to count those as unread
        claims.unread_lost = lost
        claims.warn(
            f"{lost} entries were removed from {stream} before group {claims.loop.consumer_group} has read them: "
            f"whoever trims it keeps too few"
        )


def _fences(loop: Loop, consumer: str) -> tuple[str, str]:
    return loop.fence_key(consumer), keys.old_fence_key(loop.request_stream, consumer)


def remove_gone(claims: Claims, idle_millis: int | None = None) -> None:
    """Remove consumers that have nothing pending and were idle for `idle_millis`.

    XGROUP DELCONSUMER also drops the consumer's pending entries, and a consumer that wakes now may be given some. So
    consumers are removed only while every entry is delivered and answered; a new entry changes the watched stream, and
    the transaction does nothing.
    """
    loop, stream = claims.loop, claims.loop.request_stream
    limit = loop.takeover_millis * GONE_TIMES if idle_millis is None else idle_millis
    (consumers,) = claims.exchange(("XINFO", "CONSUMERS", stream, loop.consumer_group))
    names = gone(consumers if isinstance(consumers, list) else [], loop.consumer_id, limit)
    if not names:
        return
    replies = claims.exchange(
        ("WATCH", stream),
        ("XINFO", "STREAM", stream),
        ("XINFO", "GROUPS", stream),
        ("XINFO", "CONSUMERS", stream, loop.consumer_group),
    )
    still = _removable(replies[1:], names, loop.consumer_group)
    if still:
        claims.transact(
            *(("XGROUP", "DELCONSUMER", stream, loop.consumer_group, name) for name in still),
            *(("DEL", key) for name in still for key in _fences(loop, name)),
        )
    claims.verify()  # stop watching the stream, because every request would break the fence's transaction


def _removable(replies: list[Any], names: Sequence[str], group_name: str) -> list[str]:
    """The names without pending entries, if replies to XINFO STREAM, GROUPS and CONSUMERS say that all is answered."""
    if any(isinstance(reply, ReplyError) for reply in replies):
        return []
    stream, groups, consumers = replies
    ours = next((group for group in map(record, groups) if group["name"] == group_name.encode()), None)
    if ours is None or ours["pending"] or ours["last-delivered-id"] != record(stream)["last-generated-id"]:
        return []
    free = {
        consumer["name"].decode("utf-8", "replace") for consumer in map(record, consumers) if not consumer["pending"]
    }
    return [name for name in names if name in free]


def _trim(claims: Claims, limit: int) -> None:
    """Remove at most `limit` of the oldest entries, and none that a group has pending or has not read."""
    stream = claims.loop.request_stream
    groups = claims.exchange(("XINFO", "GROUPS", stream))[0]
    if isinstance(groups, ReplyError) or not groups:
        return
    records = [record(group) for group in groups]
    if stream.endswith(keys.request_stream("")) and keys.GROUP.encode() not in [group["name"] for group in records]:
        return  # its own workers have not started yet
    pending = claims.exchange(*[("XPENDING", stream, group["name"]) for group in records])
    floor = min(
        (
            row[1] if isinstance(row, list) and row[0] else group["last-delivered-id"]
            for group, row in zip(records, pending, strict=True)
        ),
        key=order,
    )
    claims.exchange(("XTRIM", stream, "MINID", "~", floor, "LIMIT", limit))
