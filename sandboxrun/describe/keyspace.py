"""Keys of Redis as lines of text, for `redish`. Only reads.

Anybody who can write to Redis chooses names and values, so these are escaped, and their size and number are bounded.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator

from sandboxrun.errors import ConfigError
from sandboxrun.log import escape
from sandboxrun.protocol.request import iso
from sandboxrun.records import record
from sandboxrun.redis.connection import Connection
from sandboxrun.redis.pages import ENTRY_MAX_BYTES, ask, entries

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

VALUE_MAX_CHARS = 2000
PAGE = 100  # fields or members that are asked for at once
SCAN_COUNT = 1000
SCAN_SECONDS = 20.0
NAMES_MAX = 100_000  # fields of a hash whose names are asked for at once
NEAR_SECONDS = 0.5
_NEAR_NAMES_MAX = 5000
_RESEMBLES = 0.7  # difflib's ratio
_MILLIS = re.compile(rb"[0-9]{13}")
_GLOB = re.compile(rb"[*?\[]")
_UNREAD = f"(more than {ENTRY_MAX_BYTES >> 20} MiB, so not read)"
WITH_FIELDS = ("hash", "zset", "stream")


class Note(str):
    """A line about a part of the key that is not shown. A type of its own, because a field may have any name."""


@record
class Matches:
    """The keys that match a pattern. `rest`: why there may be more, empty if these are all."""

    names: tuple[bytes, ...]
    rest: str


def is_pattern(text: bytes) -> bool:
    """Whether Redis would match it against more than one name."""
    return _GLOB.search(text) is not None


def matching(connection: Connection, pattern: bytes, limit: int, seconds: float = SCAN_SECONDS) -> Matches:
    """At most `limit` keys, by name. A key that is called like the pattern is among them."""
    until = time.monotonic() + seconds
    names = {pattern} if connection.call("EXISTS", pattern) else set()
    cursor: bytes | None = b"0"
    while cursor is not None and len(names) <= limit:
        if time.monotonic() > until:
            return Matches(tuple(sorted(names)), f"the search ended after {seconds:g} s")
        cursor, page = _scan(connection, cursor, pattern)
        names |= set(page)
    rest = f"more than {limit} keys match" if len(names) > limit else ""
    return Matches(tuple(sorted(names)[:limit]), rest)


def _scan(connection: Connection, cursor: bytes, pattern: bytes) -> tuple[bytes | None, list[bytes]]:
    """The next page and its cursor, which is None after the last one."""
    count = SCAN_COUNT
    while (reply := ask(connection, "SCAN", cursor, "MATCH", pattern, "COUNT", count)) is None:
        if count == 1:
            raise ConfigError(f"a key that matches has a name of more than {ENTRY_MAX_BYTES >> 20} MiB")
        count = max(1, count // 10)
    following: bytes = reply[0]
    return (None if following == b"0" else following), reply[1]


def kind_of(connection: Connection, key: bytes) -> str:
    """The type of a key, `none` if there is no such key."""
    kind: bytes = connection.call("TYPE", key)
    return kind.decode()


def resembling(connection: Connection, key: bytes) -> bytes | None:
    """An existing key whose name is near `key`."""
    from difflib import get_close_matches

    head = re.sub(rb"[:].*", b"", key, flags=re.DOTALL)
    names: dict[str, bytes] = {}
    for prefix in (head, head[:1]):  # the type may be misspelt, but hardly its first letter
        matches = matching(connection, _literal(prefix) + b"*", _NEAR_NAMES_MAX, NEAR_SECONDS)
        names |= {text(name): name for name in matches.names}
        near = get_close_matches(text(key), names, 1, _RESEMBLES)
        if near:
            return names[near[0]]
    return None


def _literal(text: bytes) -> bytes:
    return re.sub(rb"([\\*?\[\]^-])", rb"\\\1", text)


def lines(connection: Connection, key: bytes, kind: str, fields: Iterable[bytes], limit: int) -> Iterator[str]:
    """`field value` a line, escaped: at most `limit` fields, members or entries, or the named `fields` that there are.
    After them a Note if the key has more."""
    wanted = tuple(fields)
    if kind == "string":
        yield _string(connection, key)
    elif kind == "hash":
        yield from _hash(connection, key, wanted, limit)
    elif kind == "stream":
        yield from _stream(connection, key, wanted, limit)
    elif kind == "zset" and wanted:
        for member in wanted:
            score = connection.call("ZSCORE", key, member)
            if score is not None:
                yield _line(member, score)
    elif kind in _PAGED:
        yield from _PAGED[kind](connection, key, limit)
    else:
        yield Note(f"{shown(key)} is of type {escape(kind[:80])}, which is not shown")


def _string(connection: Connection, key: bytes) -> str:
    value: bytes = connection.call("GETRANGE", key, 0, VALUE_MAX_CHARS * 4)
    return shown(value, connection.call("STRLEN", key))


def _hash(connection: Connection, key: bytes, wanted: tuple[bytes, ...], limit: int) -> Iterator[str]:
    count = 0 if wanted else connection.call("HLEN", key)
    if wanted:
        names: list[bytes] | None = list(wanted)
    elif count <= NAMES_MAX:
        names = ask(connection, "HKEYS", key)
    else:
        page = ask(connection, "HSCAN", key, 0, "COUNT", limit)
        names = None if page is None else page[1][::2]
    if names is None:
        yield Note(f"{shown(key)} has {count} fields {_UNREAD}: name those to show")
        return
    names = names if wanted else sorted(names)[:limit]  # a large hash has no order of its own
    for at in range(0, len(names), PAGE):
        yield from _fields(connection, key, names[at : at + PAGE])
    yield from _rest(key, count, limit, "fields")


def _fields(connection: Connection, key: bytes, names: list[bytes]) -> Iterator[str]:
    """Fields and values. A value that is too large is not fetched."""
    sizes = connection.pipeline([("HSTRLEN", key, name) for name in names])
    for name, size in zip(names, map(connection.checked, sizes), strict=True):
        if size > ENTRY_MAX_BYTES:
            yield f"{shown(name)} ({size} bytes, so not read)"
            continue
        value = connection.call("HGET", key, name)
        if value is not None:
            yield _line(name, value)


def _stream(connection: Connection, key: bytes, wanted: tuple[bytes, ...], limit: int) -> Iterator[str]:
    """The newest entry first."""
    for number, entry in enumerate(entries(connection, key, newest_first=True)):
        if number == limit:
            yield from _rest(key, connection.call("XLEN", key), limit, "entries")
            return
        millis = entry.xid.partition("-")[0].encode()
        yield f"{entry.xid} {shown(millis)}" if _MILLIS.fullmatch(millis) else entry.xid
        if entry.fields is None:
            yield f"  {_UNREAD}"
        for name, value in zip((entry.fields or ())[::2], (entry.fields or ())[1::2], strict=True):
            if not wanted or name in wanted:
                yield f"  {_line(name, value)}"


def _list(connection: Connection, key: bytes, limit: int) -> Iterator[str]:
    count = connection.call("LLEN", key)
    for at, values in _ranges(connection, ("LRANGE", key), min(count, limit)):
        for index, value in enumerate(values, at):
            yield f"{index} {shown(value)}"
    yield from _rest(key, count, limit, "elements")


def _sorted_set(connection: Connection, key: bytes, limit: int) -> Iterator[str]:
    count = connection.call("ZCARD", key)
    for _, flat in _ranges(connection, ("ZRANGE", key), min(count, limit), "WITHSCORES"):
        for member, score in zip(flat[::2], flat[1::2], strict=True):
            yield _line(member, score)
    yield from _rest(key, count, limit, "members")


def _ranges(
    connection: Connection, command: tuple[str, bytes], count: int, *options: str
) -> Iterator[tuple[int, list[bytes]]]:
    """The first `count` elements in pages that fit into memory, each with the index of its first element."""
    at, size = 0, PAGE
    while at < count:
        page = ask(connection, *command, at, min(at + size, count) - 1, *options)
        if page is None and size > 1:
            size = max(1, size // 10)
            continue
        if page is None:
            page = [_UNREAD.encode(), *(b"" for _ in options)]
        yield at, page
        if page == []:  # it became shorter
            return
        at += size


def _set(connection: Connection, key: bytes, limit: int) -> Iterator[str]:
    cursor: Any = 0
    seen: set[bytes] = set()
    while len(seen) < limit:
        page = ask(connection, "SSCAN", key, cursor, "COUNT", PAGE)
        if page is None:
            yield _UNREAD
            return
        cursor = page[0]
        new = [member for member in dict.fromkeys(page[1]) if member not in seen][: limit - len(seen)]
        seen.update(new)
        yield from map(shown, new)
        if cursor == b"0":
            break
    yield from _rest(key, connection.call("SCARD", key), limit, "members")


_PAGED: dict[str, Callable[[Connection, bytes, int], Iterator[str]]] = {
    "list": _list,
    "set": _set,
    "zset": _sorted_set,
}


def _rest(key: bytes, count: int, limit: int, name: str) -> Iterator[str]:
    if count > limit:
        yield Note(f"{shown(key)} has {count} {name}, of which {limit} are shown: -n {count} shows them all")


def _line(name: bytes, value: bytes) -> str:
    return f"{shown(name)} {shown(value)}"


def text(value: bytes) -> str:
    return value.decode("utf-8", "backslashreplace")


def shown(value: bytes, size: int | None = None) -> str:
    """Escaped and bounded; a number of 13 digits is a time in milliseconds, and shown as one. `size`: of the whole value
    in bytes, if `value` is its beginning."""
    if _MILLIS.fullmatch(value):
        return iso(int(value))
    whole = escape(text(value))
    if len(whole) <= VALUE_MAX_CHARS and size in (None, len(value)):
        return whole
    return f"{whole[:VALUE_MAX_CHARS]}... ({len(value) if size is None else size} bytes)"
