"""The response stream's upkeep: it is trimmed to `responseStreamLimit`, but never past what a group has not read.

XADD with MAXLEN cannot ask whether there is a group, and one that was made a moment ago would lose what it has not read. So
replies are added without it, and the stream is trimmed apart, by id: only entries that were there before it was asked for
groups are removed. However late the XTRIM arrives, what came after a group was made stays.

Which id leaves `responseStreamLimit` entries, Redis does not say. It follows from marks: an id of our own, and how many entries
there were up to it at most. Where there is none yet, as in a worker that has just begun, the oldest few are looked at.
"""

from __future__ import annotations

from collections import deque

from sandboxrun.redis.connection import pack
from sandboxrun.redis.replies import ReplyError
from sandboxrun.worker.streams import order, record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sandboxrun.worker.claims import Claims

LOOK_EACH = 1000  # replies at least between two looks, beside the one each second
SLACK = 100  # entries past the limit, as many as a node of a stream has
MARKS = 8  # for one limit: how finely trimming follows
OLDEST_BYTES = 256 * 1024  # of the oldest entries that are looked at, roughly


class Responses:
    """Trims the response stream. Nothing here waits: commands are queued, and their replies taken as they come."""

    def __init__(self, claims: Claims) -> None:
        loop = claims.loop
        self._claims, self._stream, self._limit = claims, loop.response_stream, loop.response_stream_limit
        self._most = max(loop.response_stream_max, self._limit) if loop.response_stream_max else 0
        self._each = max(LOOK_EACH, self._limit // 4)
        self._marks: deque[list[Any]] = deque()  # [id, how many entries there are up to it at most]
        self._good = b""  # the newest id known to have enough entries behind it
        self._seen = 0  # of the replies that were recorded
        self._asked = b""  # the id of our last reply when we asked
        self._oldest = 16  # how many are looked at
        self._told = ""  # the group that was named last
        self._busy = False
        self._opened = 0

    @property
    def due(self) -> bool:
        """Whether so many replies were recorded that the stream is to be looked at before the second is over."""
        return self._limit > 0 and self._claims.recorded - self._seen >= self._each

    def look(self) -> None:
        """Queue the question how long the stream is, and for its groups."""
        claims = self._claims
        if not self._limit or (self._busy and self._opened == claims.opened):
            return
        if self._opened != claims.opened:  # perhaps another server, whose ids need not be beyond those of the last
            self._marks.clear()
            self._good = claims.last_record = b""
        self._busy, self._opened = True, claims.opened
        self._seen, self._asked = claims.recorded, claims.last_record
        claims.expect((pack("XLEN", self._stream), pack("XINFO", "GROUPS", self._stream)), 2, self._answered)

    def _answered(self, replies: list[Any], _: Any) -> None:
        length, groups = replies
        self._busy = False
        if isinstance(length, ReplyError):
            return
        self._mark(length)
        if length <= self._limit + SLACK:
            return
        found = [] if isinstance(groups, ReplyError) else [record(group) for group in groups]
        held = [group for group in found if group["pending"]]
        commands = [pack("XPENDING", self._stream, group["name"]) for group in held]
        fresh = not self._good and len(self._marks) < 2
        if fresh or length > self._limit + 4 * self._each:
            count = min(self._oldest, length - self._limit)
            commands.append(pack("XRANGE", self._stream, "-", "+", "COUNT", count))
        self._busy = True
        # ECHO: so that there always is a reply.
        self._claims.expect([pack("ECHO", ""), *commands], len(commands) + 1, self._decide, (length, found, held))

    def _mark(self, length: int) -> None:
        """Keep what is known now: up to our last reply there are no more than `length` entries."""
        while self._marks and self._marks[-1][1] >= length:
            self._marks.pop()  # others have trimmed, and the new one says more
        step = max(1, self._limit // MARKS)
        if self._asked and (not self._marks or length >= self._marks[-1][1] + step):
            self._marks.append([self._asked, length])
        while self._marks and length - self._marks[0][1] >= self._limit:
            self._good = self._marks.popleft()[0]

    def _decide(self, replies: list[Any], detail: tuple[int, list[dict[str, Any]], list[dict[str, Any]]]) -> None:
        self._busy = False
        length, groups, held = detail
        unread = {group["name"]: group["last-delivered-id"] for group in groups}
        for group, row in zip(held, replies[1:], strict=False):
            if isinstance(row, list) and row[0]:  # what was delivered and not acknowledged is not read
                unread[group["name"]] = min(row[1], unread[group["name"]], key=order)
        ids = [self._good, *self._ids_of_oldest(replies[1 + len(held) :])]
        target = max(filter(None, ids), key=order, default=b"")
        slowest = min(unread, key=lambda name: order(unread[name]), default=None)
        if target and slowest is not None:
            target = min(target, unread[slowest], key=order)
        if target:
            self._claims.expect((pack("XTRIM", self._stream, "MINID", target),), 1, self._trimmed)
        if slowest is not None and self._most and length > self._most + SLACK:
            self._tell(slowest.decode("utf-8", "replace"))
            self._claims.expect((pack("XTRIM", self._stream, "MAXLEN", "~", self._most),), 1, self._trimmed)

    def _ids_of_oldest(self, replies: list[Any]) -> list[bytes]:
        """Of an XRANGE, if there was one: the last id. All before it was there when we asked, and is past the limit."""
        if not replies or not isinstance(replies[0], list) or not replies[0]:
            return []
        size = sum(len(word) for _, fields in replies[0] for word in fields or ())
        self._oldest = min(1000, self._oldest * 2) if size < OLDEST_BYTES else max(2, self._oldest // 2)
        return [replies[0][-1][0]]

    def _trimmed(self, replies: list[Any], _: Any) -> None:
        if isinstance(replies[0], int):
            for mark in self._marks:
                mark[1] = max(0, mark[1] - replies[0])

    def _tell(self, group: str) -> None:
        if self._told != group:
            self._told = group
            self._claims.warn(
                f"{self._stream} has more than {self._most} entries that group {group} has not read or acknowledged: the "
                f"oldest are removed (responseStreamMax); delete the group with XGROUP DESTROY {self._stream} {group} "
                f"if nobody reads it"
            )
