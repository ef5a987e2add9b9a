"""Trims the response stream to `responseStreamLimit`, but never past an entry that a consumer group has not read.

XADD with MAXLEN cannot check for groups, and a group that was just made would lose entries that it has not read. So replies
are added without MAXLEN, and the stream is trimmed separately by ID: only entries that existed before the question for
groups are removed. However late XTRIM arrives, entries that came after a group was made stay.

Redis does not say which ID leaves `responseStreamLimit` entries. It follows from marks: the ID of a reply of ours, and an
upper bound of the number of entries up to it. Without marks, as in a new worker, the oldest entries are read.
"""

from __future__ import annotations

from sandboxrun.redis.connection import pack
from sandboxrun.redis.replies import ReplyError
from sandboxrun.worker.streams import order, record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections import deque
    from typing import Any

    from sandboxrun.worker.claims import Claims
else:
    from _collections import deque  # collections is Python, and imports more of it

LOOK_EACH = 1000  # replies between two looks, at least, beside the look each second
SLACK = 100  # entries beyond the limit that are left, as many as a node of a stream has
MARKS = 8  # within the limit, which is how finely trimming follows
OLDEST_BYTES = 256 * 1024  # of the oldest entries in one read, roughly


class Responses:
    """Trims the response stream. It never waits: commands are queued, and their replies are taken as they come."""

    def __init__(self, claims: Claims) -> None:
        loop = claims.loop
        self._claims, self._stream, self._limit = claims, loop.response_stream, loop.response_stream_limit
        self._most = max(loop.response_stream_max, self._limit) if loop.response_stream_max else 0
        self._each = max(LOOK_EACH, self._limit // 4)
        self._marks: deque[list[Any]] = deque()  # [ID, upper bound of the number of entries up to it]
        self._good = b""  # the newest ID with enough entries after it
        # Replies of ours at which a look is due before the second is over.
        self.due_at: float = self._each if self._limit else float("inf")
        self._asked = b""  # ID of our last reply at the last look
        self._oldest = 16  # entries to read
        self._told = ""  # the group of the last warning
        self._busy = False
        self._opened = 0

    def look(self) -> None:
        """Queue the questions for the stream's length and its groups."""
        claims = self._claims
        if not self._limit or (self._busy and self._opened == claims.opened):
            return
        if self._opened != claims.opened:  # perhaps another server, whose IDs may be smaller
            self._marks.clear()
            self._good = claims.last_record = b""
        self._busy, self._opened = True, claims.opened
        self.due_at, self._asked = claims.answered + self._each, claims.last_record
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
        # With ECHO there is always a reply.
        self._claims.expect([pack("ECHO", ""), *commands], len(commands) + 1, self._decide, (length, found, held))

    def _mark(self, length: int) -> None:
        """Note that there are at most `length` entries up to our last reply."""
        while self._marks and self._marks[-1][1] >= length:
            self._marks.pop()  # others have trimmed, and the new mark is sharper
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
            if isinstance(row, list) and row[0]:  # entries that are delivered and not acknowledged count as unread
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
        """The last ID of an XRANGE, if there was one: all entries before it existed at the look and are past the limit."""
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
