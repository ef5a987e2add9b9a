"""The keys that tests are about: all in Redis but those of the protocol."""

from __future__ import annotations

import fnmatch
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sandboxrun.config import keys
from sandboxrun.errors import SpecError
from sandboxrun.redis.connection import Connection
from sandboxrun.redis.replies import ReplyError
from sandboxrun.spec.state import Actual, Stored, commands

SCAN_COUNT = 1000
MARK = "sandboxrun:test"  # in a database that tests use: database.py
REQUEST_STREAM_END = b":req:x"
COPY = b"sandboxrun:test:copy"  # of a key as it was before, for a moment
TTL_SLACK_MILLIS = 1500  # by which the time to live of an unchanged key may seem to differ
READS: Mapping[str, Sequence[str]] = {
    "string": ("GET", "%"),
    "hash": ("HGETALL", "%"),
    "list": ("LRANGE", "%", "0", "-1"),
    "set": ("SMEMBERS", "%"),
    "zset": ("ZRANGE", "%", "0", "-1", "WITHSCORES"),
    "stream": ("XRANGE", "%", "-", "+"),
}


@dataclass(frozen=True, slots=True)
class Glance:
    """A key at one moment. `dump`: its value, as DUMP has it. `ttl`: milliseconds, negative for a key that stays."""

    dump: bytes
    ttl: int
    at: float

    def is_as(self, before: Glance) -> bool:
        """Whether nothing has changed since."""
        return self.dump == before.dump and self.lives_as(before)

    def lives_as(self, before: Glance) -> bool:
        """Whether the time to live was not changed since."""
        if (self.ttl < 0) != (before.ttl < 0):
            return False
        passed = (self.at - before.at) * 1000
        return self.ttl < 0 or abs(before.ttl - passed - self.ttl) <= TTL_SLACK_MILLIS


class Keyspace:
    """Of one worker's Redis."""

    def __init__(self, connection: Connection, type_: str, id_: str, ignore: Sequence[str] = ()) -> None:
        """`ignore`: patterns of keys that nobody asks about."""
        self._connection, self._ignore = connection, ignore
        stream = keys.request_stream(type_)
        self._own = {
            name.encode()
            for name in (
                keys.type_key(type_),
                keys.worker_key(type_, id_),
                stream,
                keys.response_stream(type_),
                keys.dead_stream(type_),
                MARK,
            )
        }
        self._prefixes = (b"res:", b"req:", f"{stream}:fence".encode())

    def look(self) -> dict[bytes, Glance]:
        """All keys that are not the protocol's, nor the empty stream of a service whose requests were all answered."""
        names = [name for name in self._scan() if not self._is_own(name) and not self._is_ignored(name)]
        asked = [command for name in names for command in (("DUMP", name), ("PTTL", name), ("TYPE", name))]
        at = time.monotonic()
        replies = self._connection.pipeline(asked)
        found = {}
        empty = self._empty_streams(names, replies[2::3])
        for name, dump, ttl in zip(names, replies[::3], replies[1::3], strict=True):
            if isinstance(dump, bytes) and isinstance(ttl, int) and name not in empty:
                found[name] = Glance(dump, ttl, at)
        return found

    def _empty_streams(self, names: Sequence[bytes], kinds: Sequence[Any]) -> set[bytes]:
        streams = [
            name
            for name, kind in zip(names, kinds, strict=True)
            if kind == b"stream" and name.endswith(REQUEST_STREAM_END)
        ]
        if not streams:
            return set()
        lengths = self._connection.pipeline([("XLEN", name) for name in streams])
        return {name for name, length in zip(streams, lengths, strict=True) if length == 0}

    def _scan(self) -> Iterable[bytes]:
        cursor, names = b"0", set[bytes]()
        while True:
            cursor, found = self._connection.call("SCAN", cursor, "COUNT", SCAN_COUNT)
            names.update(found)
            if cursor == b"0":
                return sorted(names)

    def _is_own(self, name: bytes) -> bool:
        return name in self._own or name.startswith(self._prefixes)

    def _is_ignored(self, name: bytes) -> bool:
        text = name.decode("utf-8", "backslashreplace")
        return any(fnmatch.fnmatchcase(text, pattern) for pattern in self._ignore)

    def check(self, names: Iterable[str], place: str) -> None:
        """Raise SpecError for a key that tests do not see."""
        for key in names:
            if self._is_own(key.encode()):
                raise SpecError(f"{place}.{key} is a key of the protocol itself, which a test cannot have")

    def write(self, before: Mapping[str, Stored]) -> None:
        """Raises SpecError for what Redis refuses."""
        written = [(key, command) for key, stored in before.items() for command in commands(key, stored)]
        replies = self._connection.pipeline([command for _, command in written])
        for (key, _), reply in zip(written, replies, strict=True):
            if isinstance(reply, ReplyError):
                raise SpecError(f"before.{key} is refused by Redis: {str(reply)[:200]}")

    def read(self, names: Sequence[bytes]) -> dict[bytes, Actual]:
        """The values of those that exist."""
        asked = [command for name in names for command in (("TYPE", name), ("PTTL", name))]
        told = self._connection.pipeline(asked) if asked else []
        kinds = {
            name: (told[at].decode(), told[at + 1]) for at, name in zip(range(0, len(told), 2), names, strict=True)
        }
        there = [name for name in names if kinds[name][0] != "none"]
        known = [name for name in there if kinds[name][0] in READS]
        reads = [[name if word == "%" else word for word in READS[kinds[name][0]]] for name in known]
        values = dict(zip(known, self._connection.pipeline(reads) if reads else [], strict=True))
        return {
            name: Actual(kinds[name][0], _value(kinds[name][0], values.get(name)), kinds[name][1]) for name in there
        }

    def changed(self, before: Mapping[bytes, Glance], after: Mapping[bytes, Glance]) -> set[bytes]:
        """The names of the keys that differ. A dump may differ although the value is the same: fields have an order in it."""
        found = {name for name in {*before, *after} if not _is_same(before.get(name), after.get(name))}
        return {name for name in found if not self._is_equal(name, before.get(name), after.get(name))}

    def _is_equal(self, name: bytes, before: Glance | None, after: Glance | None) -> bool:
        if before is None or after is None or not after.lives_as(before):
            return False
        if self._connection.call("RESTORE", COPY, 0, before.dump, "REPLACE") != b"OK":
            return False
        values = self.read([name, COPY])
        self.remove([COPY])
        found, copy = values.get(name), values.get(COPY)
        return found is not None and copy is not None and (found.kind, found.value) == (copy.kind, copy.value)

    def remove(self, names: Iterable[bytes]) -> None:
        given = list(names)
        if given:
            self._connection.call("DEL", *given)

    def reset(self) -> None:
        """Forget the requests of a worker that has ended."""
        stays = (b":h", MARK.encode())
        names = [name for name in self._scan() if self._is_own(name) and not name.endswith(stays)]
        self.remove(names)


def _is_same(before: Glance | None, after: Glance | None) -> bool:
    if before is None or after is None:
        return before is after
    return after.is_as(before)


def _value(kind: str, reply: Any) -> Any:
    if kind == "hash":
        return dict(zip(reply[::2], reply[1::2], strict=True))
    if kind == "zset":
        return {name: float(score) for name, score in zip(reply[::2], reply[1::2], strict=True)}
    if kind == "set":
        return set(reply)
    if kind == "stream":
        return [(xid, dict(zip(words[::2], words[1::2], strict=True))) for xid, words in reply]
    return reply
