"""Entries of a stream, page by page: however large somebody made them, a page has at most ENTRY_MAX_BYTES in memory."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from sandboxrun.records import record
from sandboxrun.redis.connection import Connection, pack
from sandboxrun.redis.replies import ReplyError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

ENTRY_MAX_BYTES = 16 * 1024 * 1024  # a request or a reply has 8 MiB at most, and JSON in JSON takes more
PAGE_FIRST, PAGE_MOST, PAGE_BYTES = 16, 500, 1024 * 1024
LAST_ID = "18446744073709551615-18446744073709551615"  # Redis refuses it as the excluded end of a range
_FIRST_BYTES = 64  # of a reply with one entry: enough for its id
_ID = re.compile(rb"\*1\r\n\*2\r\n\$\d+\r\n(\d+-\d+)\r\n")


@record
class Entry:
    """`fields`: names and values in turn; None if they are too large to be read."""

    xid: str
    fields: list[bytes] | None

    @property
    def size(self) -> int:
        """In bytes; ENTRY_MAX_BYTES if it was not read."""
        return ENTRY_MAX_BYTES if self.fields is None else sum(map(len, self.fields))

    def text(self) -> dict[str, str]:
        """Names and values; empty if they were not read."""
        words = [word.decode("utf-8", "backslashreplace") for word in self.fields or ()]
        return dict(zip(words[::2], words[1::2], strict=True))


def entries(
    connection: Connection, stream: str | bytes, *, start: str = "-", end: str = "+", newest_first: bool = False
) -> Iterator[Entry]:
    """From `start` to `end`, or backward. Raises ReplyError for a key of another type."""
    if start == f"({LAST_ID}":
        return
    at, count = (end if newest_first else start), PAGE_FIRST
    while True:
        span = ("XREVRANGE", stream, at, start) if newest_first else ("XRANGE", stream, at, end)
        before = connection.received
        rows = ask(connection, *span, "COUNT", count)
        if rows is None and count > 1:
            count = max(1, count // 4)
            continue
        if rows is None:
            xid = _first_id(connection, span)
            if xid is None:  # it was removed in between
                continue
            found = [Entry(xid, None)]
        else:
            found = [Entry(xid.decode(), fields or []) for xid, fields in rows]
        yield from found
        if len(found) < count or found[-1].xid == LAST_ID:
            return
        at = f"({found[-1].xid}"
        mean = max(1, (connection.received - before) // len(found))
        count = max(1, min(PAGE_MOST, PAGE_BYTES // mean, count * 4))


def one(connection: Connection, stream: str, xid: str) -> Entry | None:
    """The entry of this id; None if there is none."""
    return next(entries(connection, stream, start=xid, end=xid), None)


def ask(connection: Connection, *words: str | bytes | int, most: int = ENTRY_MAX_BYTES) -> Any:
    """The reply to one command; None if it has more bytes than `most`, and then the connection is a new one."""
    replies = connection.pipeline_within([words], most, reopen=True)
    return None if replies is None else connection.checked(replies[0])


def ask_all(connection: Connection, commands: Sequence[Sequence[str | int]], most: int = ENTRY_MAX_BYTES) -> list[Any]:
    """The replies to several commands, errors of Redis among them; None for each that has too many bytes."""
    replies: list[Any] = []
    for command in commands:
        try:
            replies.append(ask(connection, *command, most=most))
        except ReplyError as error:
            replies.append(error)
    return replies


def _first_id(connection: Connection, span: Sequence[str | bytes]) -> str | None:
    """The id of an entry that is too large to be read, from the first bytes of the reply."""
    connection.send(pack(*span, "COUNT", 1))
    match = _ID.match(connection.first_bytes(_FIRST_BYTES))
    connection.open()
    return match[1].decode() if match else None
