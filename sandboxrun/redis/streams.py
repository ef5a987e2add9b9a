"""What others can do to a stream by XADD alone, and its repair.

A worker that may add requests to a stream can add one with the largest possible ID, after which XADD fails, or one with an ID
far ahead of the clock; and `XADD … MAXLEN 1` removes requests that nobody has read. Removed requests are lost, so that is only
reported. `repair` makes the stream again, with IDs by the clock.

Source: redis.io/docs/latest/commands/xadd, xinfo-stream, xclaim.
"""

from __future__ import annotations

import bisect
import time

from sandboxrun.errors import ConfigError, StoreError
from sandboxrun.records import record
from sandboxrun.redis.connection import Connection
from sandboxrun.redis.pages import Entry, ask, entries
from sandboxrun.redis.replies import ReplyError, raise_errors
from sandboxrun.redis.transaction import optimistic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    Id = tuple[int, int]
    Commands = list[tuple[str | bytes | int, ...]]

LAST_ID = (2**64 - 1, 2**64 - 1)  # XADD has no id after it
AHEAD_MILLIS = 60_000  # so far may clocks differ
ENTRIES_MAX = 1_000_000  # of a stream that is repaired
PAGE, PAGE_BYTES = 500, 1024 * 1024  # of entries that are copied at once
PENDING_PAGE = 500
HELD_MILLIS = 60_000  # a worker renews its claims more often
WAIT_SECONDS = 3.0  # for requests that are being handled
TRIES = 100  # while workers read from the stream
STATE_MAX_BYTES = 64 * 1024 * 1024  # with the first and the last entry


@record
class Group:
    name: bytes
    last: Id  # delivered
    read: int | None  # entries read since the stream was made; None if Redis does not know
    oldest: Id | None  # pending


@record
class Stream:
    """A stream, as XINFO describes it."""

    length: int
    last: Id  # ever added
    first: Id | None  # that is there
    added: int | None  # since it was made; None before Redis 7
    groups: tuple[Group, ...]


@record
class Fault:
    """`kind`: "exhausted", "ahead" or "dropped". `text`: without the name of the stream."""

    kind: str
    text: str


def look(connection: Connection, stream: str, *, reopen: bool = True) -> Stream | None:
    """None if there is no stream of this name, or it cannot be read. Raises ConnectionLost."""
    commands = [("XINFO", "STREAM", stream), ("XINFO", "GROUPS", stream)]
    replies = connection.pipeline_within(commands, STATE_MAX_BYTES, reopen=reopen)
    if replies is None or any(isinstance(reply, ReplyError) for reply in replies):
        return None
    about = _named(replies[0])
    summaries = connection.pipeline([("XPENDING", stream, _named(flat)[b"name"]) for flat in replies[1]])
    groups = []
    for flat, summary in zip(replies[1], summaries, strict=True):
        found = _named(flat)
        oldest = summary[1] if isinstance(summary, list) and summary[0] else None
        last = found[b"last-delivered-id"]
        groups.append(Group(found[b"name"], _id(last), found.get(b"entries-read"), oldest and _id(oldest)))
    first = about.get(b"first-entry")
    return Stream(
        about[b"length"],
        _id(about[b"last-generated-id"]),
        _id(first[0]) if first else None,
        about.get(b"entries-added"),
        tuple(groups),
    )


def faults(found: Stream, now: int) -> Iterator[Fault]:
    """`now`: Redis's clock in milliseconds. Pure."""
    if found.last == LAST_ID:
        yield Fault("exhausted", "is exhausted: its last ID is the largest possible one, so XADD fails")
    elif (ahead := found.last[0] - now) > AHEAD_MILLIS:
        yield Fault("ahead", f"has a last ID {ahead // 1000} s ahead of Redis's clock, and new IDs will follow it")
    for group in found.groups:
        name = group.name.decode("utf-8", "backslashreplace")[:80]
        if found.added is not None and group.read is not None:
            waiting = found.added - group.read
            there = 0 if group.last >= found.last else found.length
            if waiting > there:
                yield Fault("dropped", f"lost {waiting - there} entries that group {name} had not read")
        if group.oldest is not None and (found.first is None or group.oldest < found.first):
            yield Fault("dropped", f"lost entries that are pending in group {name}")


def can_be_repaired(kind: str) -> bool:
    """Whether a fault of this kind can be: what was removed is gone."""
    return kind != "dropped"


def examine(connection: Connection, stream: str) -> list[Fault]:
    """The faults of a stream; none if there is no stream. Raises ConnectionLost."""
    found = look(connection, stream)
    return list(faults(found, now_of(connection))) if found is not None else []


def now_of(connection: Connection) -> int:
    seconds, micros = map(int, connection.call("TIME"))
    return seconds * 1000 + micros // 1000


def repair(connection: Connection, stream: str) -> int:
    """Make the stream again, in one transaction, and return how many of its entries got another ID.

    It keeps all entries, groups and their last delivered IDs, consumers, and pending entries with their consumer, time and
    number of deliveries. An entry that is not ahead of the clock keeps its ID, so that the worker that has it can answer it.
    Entries ahead of the clock get new IDs, in their order; if a worker handles one, this waits until it is answered. It loses
    the counters of XINFO and the idle times of consumers.

    Raises ConfigError if it cannot be done now, StoreError, ReplyError.
    """
    copy = _Copy(connection, stream)
    connection.call("DEL", copy.name)
    try:
        for _ in range(TRIES):
            _wait(connection, stream)
            copy.take()
            if optimistic(connection, [stream], copy.finish, tries=1) and copy.complete:
                return len(copy.moved)
        raise StoreError(
            f"{stream} changes so often that it cannot be repaired", hint=f"sandboxrun stop {_type(stream)} ID"
        )
    finally:
        if connection.is_open:
            connection.pipeline([("DEL", copy.name)])


class _Copy:
    """The stream that takes the place of the other."""

    def __init__(self, connection: Connection, stream: str) -> None:
        self.name = f"{stream}:repair"
        self.moved: list[Id] = []  # old ids of those that got new ones, ascending
        self.complete = False  # whether the last transaction had everything
        self._connection, self._stream = connection, stream
        self._limit = now_of(connection)  # ids from this millisecond on are new ones
        self._at: Id | None = None  # the last that was copied
        self._count = 0

    def take(self) -> None:
        """Copy the entries that are not copied yet."""
        start = "-" if self._at is None else f"({_text(self._at)}"
        commands: Commands = []
        size = 0
        for entry in entries(self._connection, self._stream, start=start):
            commands.append(self._command(entry))
            size += entry.size
            if len(commands) == PAGE or size > PAGE_BYTES:
                raise_errors(self._connection.pipeline(commands))
                commands, size = [], 0
        if commands:
            raise_errors(self._connection.pipeline(commands))

    def _command(self, entry: Entry) -> tuple[str | bytes | int, ...]:
        stream = self._stream
        if entry.fields is None:
            raise ConfigError(
                f"entry {entry.xid} of {stream} is too large to be copied", hint=_remove_hint(stream, entry.xid)
            )
        self._count += 1
        if self._count > ENTRIES_MAX:
            raise ConfigError(
                f"{stream} has more than {ENTRIES_MAX} entries", hint=f"sandboxrun stream {_type(stream)} trim"
            )
        self._at = _id(entry.xid.encode())
        if self._at[0] >= self._limit:
            self.moved.append(self._at)
        return "XADD", self.name, _text(self._new(self._at)), *entry.fields

    def finish(self, _: list[Any]) -> Commands:
        """The commands of the transaction; none if it is too early. While the stream is watched, no connection is opened."""
        self.complete = False
        found = look(self._connection, self._stream, reopen=False)
        if found is None:
            raise StoreError(f"{self._stream} was removed meanwhile, or its first and last entry are too large")
        if self._has_more() or _held(self._connection, self._stream, found) is not None:
            return []
        ids = [self._new(group.last) for group in found.groups]
        ids += [
            self._new(at) for at in (self._at, found.last) if at is not None and (at == self._at or at[0] < self._limit)
        ]
        commands: Commands = []
        for group in found.groups:
            commands.append(("XGROUP", "CREATE", self.name, group.name, _text(self._new(group.last)), "MKSTREAM"))
            commands += self._consumers(group)
        if not found.groups and self._at is None:
            commands += [("XADD", self.name, "0-1", "", ""), ("XDEL", self.name, "0-1")]
        last = max([*ids, (0, 1)])
        self.complete = True
        return [*commands, ("XSETID", self.name, _text(last)), ("RENAME", self.name, self._stream)]

    def _has_more(self) -> bool:
        """Whether there are entries after the last that was copied."""
        start = "-" if self._at is None else f"({_text(self._at)}"
        rows = [] if self._at == LAST_ID else ask(self._connection, "XRANGE", self._stream, start, "+", "COUNT", 1)
        return rows is None or bool(rows)

    def _consumers(self, group: Group) -> Commands:
        commands: Commands = []
        for flat in self._connection.call("XINFO", "CONSUMERS", self._stream, group.name):
            commands.append(("XGROUP", "CREATECONSUMER", self.name, group.name, _named(flat)[b"name"]))
        now = now_of(self._connection)
        for xid, consumer, idle, count in _pending(self._connection, self._stream, group.name):
            if self._is_gone(_id(xid)):
                continue  # the id that it would get is another entry's
            claim = ("XCLAIM", self.name, group.name, consumer, 0, _text(self._new(_id(xid))))
            commands.append((*claim, "TIME", max(0, now - idle), "RETRYCOUNT", count, "FORCE", "JUSTID"))
        return commands

    def _is_gone(self, old: Id) -> bool:
        """Whether the entry with this id, which cannot be kept, was deleted."""
        at = bisect.bisect_left(self.moved, old)
        return old[0] >= self._limit and self.moved[at : at + 1] != [old]

    def _new(self, old: Id) -> Id:
        """The id in the copy; of an entry that is gone, that of the last one before it."""
        if old[0] < self._limit:
            return old
        return self._limit, bisect.bisect_right(self.moved, old)


def _wait(connection: Connection, stream: str) -> None:
    """Until no worker has an entry whose id cannot be kept. Raises ConfigError."""
    until = time.monotonic() + WAIT_SECONDS
    while True:
        found = look(connection, stream)
        held = _held(connection, stream, found) if found is not None else None
        if held is None:
            return
        if time.monotonic() > until:
            xid, consumer = (text.decode("utf-8", "backslashreplace")[:128] for text in held)
            raise ConfigError(
                f"entry {xid} of {stream} is with {consumer!r}, and its id cannot be kept: it would be handled twice",
                hint=f"sandboxrun stop {_type(stream)} ID",
            )
        time.sleep(0.1)


def _held(connection: Connection, stream: str, found: Stream) -> tuple[bytes, bytes] | None:
    """The first entry ahead of the clock that a worker has, and its name. A worker that is gone renews no claim."""
    now = now_of(connection)
    for group in found.groups:
        for xid, consumer, idle, _ in _pending(connection, stream, group.name, f"{now}-0"):
            if idle < HELD_MILLIS:
                return xid, consumer
    return None


def _pending(
    connection: Connection, stream: str, group: bytes, start: str = "-"
) -> Iterator[tuple[bytes, bytes, int, int]]:
    """Id, consumer, milliseconds since its delivery, and deliveries, of each pending entry."""
    while True:
        rows = connection.call("XPENDING", stream, group, start, "+", PENDING_PAGE)
        for row in rows:
            yield tuple(row)
        if len(rows) < PENDING_PAGE or _id(rows[-1][0]) == LAST_ID:
            return
        start = f"({rows[-1][0].decode()}"


def _named(flat: list[Any]) -> dict[bytes, Any]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _id(raw: bytes) -> Id:
    millis, _, number = raw.decode().partition("-")
    return int(millis), int(number)


def _text(xid: Id) -> str:
    return f"{xid[0]}-{xid[1]}"


def _type(stream: str) -> str:
    return stream.partition(":")[0]


def _remove_hint(stream: str, xid: str) -> str:
    from shlex import quote

    return f'redis-cli -u "$REDIS_URL" XDEL {quote(stream)} {xid}'
