"""Everything that Redis still has of one request: bounded reads of its trace, its reply and the streams of its type."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from sandboxrun.config import keys
from sandboxrun.errors import ConfigError, UsageError
from sandboxrun.protocol import GROUP
from sandboxrun.records import field, record, replace
from sandboxrun.redis.connection import Connection
from sandboxrun.redis.pages import ENTRY_MAX_BYTES, ask_all, entries, one
from sandboxrun.redis.replies import ReplyError, TooManyBytes, Within

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

ENTRIES_MAX = 20_000  # looked at, in each search of a stream
SEARCH_MAX_BYTES = 32 * 1024 * 1024
LARGE_COUNTS_BYTES = 1024 * 1024  # a few entries that are too large must not end a search
READ_MAX_BYTES = 512 * 1024 * 1024  # in all
VALUE_MAX_BYTES = 9 * 1024 * 1024  # a reply has 8 MiB at most
FIELDS_MAX = 512
BEFORE_MILLIS = 5000  # clients' clocks may be ahead of Redis's
KEYS_MAX = 100_000  # looked at for a request whose type is not known
TYPES_MAX = 100


@record
class Letter:
    """An entry of a stream."""

    xid: str
    fields: Mapping[str, str]

    @property
    def millis(self) -> int:
        return int(self.xid.partition("-")[0])


@record
class Facts:
    """What was found of a request at Redis's time `now` (milliseconds); None for what does not exist, or not any more."""

    ref: str
    type: str | None
    now: int
    trace: Mapping[str, str] = field(default_factory=dict)
    trace_millis: int | None = None  # until req:REF:h expires; -1 is never
    reply: str | None = None
    reply_millis: int | None = None
    entry: Letter | None = None
    again: Letter | None = None  # after it was a dead letter
    response: Letter | None = None
    dead: Letter | None = None
    pending: tuple[str, int, int] | None = None  # consumer, milliseconds of silence, deliveries
    delivered: bool | None = None  # None: there is no group
    notes: tuple[str, ...] = ()


def check_ref(ref: str) -> str:
    """Raises UsageError."""
    if not keys.is_ref(ref):
        raise UsageError(
            f"{ref[:80]!r} is not a ref: expected 1 to {keys.REF_MAX_CHARS} characters, none of them a control character"
        )
    return ref


def gather(connection: Connection, ref: str, type_: str | None) -> Facts:
    """`type_`: of the workers that it was for, where it is known. Raises ConfigError where there is more than can be read."""
    try:
        with Within(connection, READ_MAX_BYTES):
            return _gather(connection, ref, type_)
    except TooManyBytes as error:
        raise ConfigError(
            f"what is found of request {ref} has more than {READ_MAX_BYTES >> 20} MiB: look with redis-cli at "
            f"{keys.trace_key(ref)}, {keys.reply_key(ref)} and the streams"
        ) from error


def _gather(connection: Connection, ref: str, type_: str | None) -> Facts:
    notes: list[str] = []
    trace = read_trace(connection, keys.trace_key(ref), notes)
    reply, reply_millis = _reply(connection, keys.reply_key(ref), notes)
    kept = _expiry(connection, keys.trace_key(ref))
    now = _millis(connection.call("TIME"))
    known = type_ or trace.get("type") or _source(reply)
    known = known if known is not None and _is_type(known) else None
    found = Facts(ref, known, now, trace, kept, reply, reply_millis)
    created = parse_millis(trace.get("created", ""))
    for name in [known] if known is not None else _types(connection, notes):
        parts = _in_streams(connection, name, ref, created, notes)
        if parts:
            found = replace(found, type=name, **parts)
            break
    return replace(found, notes=tuple(dict.fromkeys(notes)))


def _is_type(name: str) -> bool:
    try:
        return bool(keys.check_type(name))
    except ConfigError:
        return False


def read_trace(connection: Connection, key: str, notes: list[str]) -> dict[str, str]:
    """The fields of a trace, without those that are too long."""
    kind, count = connection.pipeline([("TYPE", key), ("HLEN", key)])
    if kind != b"hash":
        if kind != b"none":
            notes.append(f"{key} is not a hash, and was not read")
        return {}
    if count > FIELDS_MAX:
        notes.append(f"{key} has {count} fields, and was not read: at most {FIELDS_MAX} are")
        return {}
    names = connection.call("HKEYS", key)[:FIELDS_MAX]
    sizes = connection.pipeline([("HSTRLEN", key, name) for name in names])
    found, total = {}, 0
    for name, size in zip(names, sizes, strict=True):
        total += size if isinstance(size, int) else 0
        if isinstance(size, int) and size <= VALUE_MAX_BYTES and total <= SEARCH_MAX_BYTES:
            value = connection.call("HGET", key, name)
            if value is not None:
                found[_text(name)] = _text(value)
        else:
            notes.append(f"field {_text(name)[:80]} of {key} has {size} bytes, and was not read")
    return found


def _reply(connection: Connection, key: str, notes: list[str]) -> tuple[str | None, int | None]:
    found, millis = ask_all(connection, [("LRANGE", key, 0, 0), ("PTTL", key)])
    if found is None:
        notes.append(f"{key} has more than {ENTRY_MAX_BYTES >> 20} MiB, and was not read")
    if isinstance(found, ReplyError) or not found:
        return None, None
    return _text(found[0]), millis


def _expiry(connection: Connection, key: str) -> int | None:
    millis = connection.call("PTTL", key)
    return None if millis == -2 else int(millis)


def _source(reply: str | None) -> str | None:
    try:
        found = json.loads(reply or "{}")
    except (ValueError, RecursionError):
        return None
    source = found.get("source") if isinstance(found, dict) else None
    return source if isinstance(source, str) else None


def _types(connection: Connection, notes: list[str]) -> Iterator[str]:
    """The types that have streams, as far as keys are searched."""
    found: set[str] = set()
    cursor, looked = b"0", 0
    suffix = keys.request_stream("")
    while looked < KEYS_MAX and len(found) < TYPES_MAX:
        cursor, names = connection.call("SCAN", cursor, "MATCH", f"*{suffix}", "COUNT", 1000)
        looked += 1000
        for name in map(_text, names):
            type_ = name.removesuffix(suffix)
            if type_ not in found and _is_type(type_):
                found.add(type_)
        if cursor == b"0":
            break
    else:
        notes.append(f"only {looked} keys were searched for the type of the request: name it with --type")
    yield from sorted(found)


def _in_streams(connection: Connection, type_: str, ref: str, created: int | None, notes: list[str]) -> dict[str, Any]:
    """What the streams of a type have, under the names of Facts; empty if they have nothing."""
    names = connection.call("HMGET", keys.type_key(type_), "requestStream", "responseStream")
    requests = _text(names[0] or keys.request_stream(type_))
    responses = _text(names[1] or keys.response_stream(type_))

    def matches(fields: Mapping[str, str]) -> bool:
        return fields.get("ref") == ref

    entry = _search(connection, requests, matches, created and created - BEFORE_MILLIS, notes)
    since = entry.millis if entry is not None else created and created - BEFORE_MILLIS
    response = _search(connection, responses, matches, since, notes)
    dead = _search(connection, keys.dead_stream(type_), matches, since, notes)
    again = None
    if entry is None and (xid := (response or dead)) is not None:
        entry = _at(connection, requests, xid.fields.get("xid", ""))
    if dead is not None:
        again = _search(connection, requests, matches, dead.millis, notes, backward=False)
        if again is not None and (entry is None or entry.xid == again.xid):
            first = dead.fields.get("xid", "")
            entry = _at(connection, requests, first) if first != again.xid else None
        if again is not None:
            response = _search(connection, responses, matches, again.millis, notes, backward=False) or response
    if not any((entry, response, dead)):
        return {}
    parts: dict[str, Any] = {"entry": entry, "again": again, "response": response, "dead": dead}
    last = again or entry
    return parts | (_delivery(connection, requests, last.xid) if last is not None else {})


def _delivery(connection: Connection, stream: str, xid: str) -> dict[str, Any]:
    groups, rows = connection.pipeline([("XINFO", "GROUPS", stream), ("XPENDING", stream, GROUP, xid, xid, 1)])
    if isinstance(groups, ReplyError):
        return {}
    records = [dict(zip(map(_text, group[::2]), group[1::2], strict=True)) for group in groups]
    ours = next((one for one in records if one["name"] == GROUP.encode()), None)
    if ours is None:
        return {}
    pending = None
    if not isinstance(rows, ReplyError) and rows:
        pending = (_text(rows[0][1]), rows[0][2], rows[0][3])
    return {"pending": pending, "delivered": _order(xid) <= _order(_text(ours["last-delivered-id"]))}


def _search(
    connection: Connection, stream: str, matches: Any, since: int | None, notes: list[str], *, backward: bool = True
) -> Letter | None:
    """The first entry that matches since this moment (milliseconds), else, if `backward`, the newest one of all; bounded."""
    if since is not None:
        found = _walk(connection, stream, matches, str(max(0, since)), notes)
        if found is not None or not backward:
            return found
    return _walk(connection, stream, matches, None, notes)


def _walk(connection: Connection, stream: str, matches: Any, start: str | None, notes: list[str]) -> Letter | None:
    """Forward from `start`, or backward from the end."""
    looked = size = 0
    try:
        for entry in entries(connection, stream, start=start or "-", newest_first=start is None):
            if looked >= ENTRIES_MAX or size > SEARCH_MAX_BYTES:
                notes.append(f"only {looked} entries of {stream} were looked at")
                return None
            looked, size = looked + 1, size + min(entry.size, LARGE_COUNTS_BYTES)
            if entry.fields is None:
                notes.append(f"{entry.xid} of {stream} has more than {ENTRY_MAX_BYTES >> 20} MiB, and was not read")
            elif matches(found := entry.text()):
                return Letter(entry.xid, found)
    except ReplyError as error:  # another type of key
        notes.append(f"{stream} could not be read: {str(error)[:100]}")
    return None


def _at(connection: Connection, stream: str, xid: str) -> Letter | None:
    try:
        entry = one(connection, stream, xid)
    except ReplyError:
        return None
    return Letter(entry.xid, entry.text()) if entry is not None else None


def parse_millis(text: str) -> int | None:
    """An ISO 8601 time with a zone, in milliseconds since 1970; None for what is none."""
    from datetime import datetime

    try:
        return int(datetime.fromisoformat(text[:40]).timestamp() * 1000)
    except (ValueError, OverflowError, OSError):
        return None


def _millis(time: Any) -> int:
    return int(time[0]) * 1000 + int(time[1]) // 1000


def _order(xid: str) -> tuple[int, int]:
    first, _, second = xid.partition("-")
    return int(first), int(second or 0)


def _text(value: Any) -> str:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
