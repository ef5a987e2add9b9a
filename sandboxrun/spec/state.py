"""Keys of Redis as JSON: written before a test, and compared after it.

The kind of a key is told by the end of its name (`:h` hash, `:s` set, `:z` sorted set, `:x` stream, `:q` list), else by its
JSON: an object is a hash, an array a list, a text or a number a string. `{"$set": [...]}` and the others name the kind, and
take `"$ttl"`, the time to live in seconds; `{"$value": ..., "$ttl": 60}` leaves the kind to the name.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sandboxrun.errors import SpecError
from sandboxrun.spec import match
from sandboxrun.spec.match import shown

INFINITE = ("inf", "-inf")  # scores for which JSON has no number
KINDS = ("string", "hash", "list", "set", "zset", "stream")
SUFFIXES = {"h": "hash", "s": "set", "z": "zset", "x": "stream", "q": "list"}
SHAPES: Mapping[str, tuple[type, str]] = {
    "hash": (dict, "an object of fields"),
    "zset": (dict, "an object of members and their scores"),
    "set": (list, "an array of members"),
    "list": (list, "an array of items"),
    "stream": (list, "an array of entries"),
}
_WRITTEN = ("$json", "$base64")  # the forms of a stored text that are no matcher


@dataclass(frozen=True, slots=True)
class Stored:
    """A key as a spec has it. `kind`: one of KINDS, "none" for a key that must not exist, "any" for one that must.
    `ttl`: seconds, or a matcher, or None for a key that stays."""

    kind: str
    value: Any = None
    ttl: Any = None


@dataclass(frozen=True, slots=True)
class Actual:
    """A key as Redis has it. `ttl`: milliseconds, -1 for a key that stays."""

    kind: str
    value: Any
    ttl: int = -1


def kind_of_name(key: str) -> str | None:
    """What the end of the name says."""
    _, colon, suffix = key.rpartition(":")
    return SUFFIXES.get(suffix) if colon else None


def parse(key: str, given: Any, place: str, *, before: bool) -> Stored:
    """Raises SpecError. `before`: it is to be written, so nothing may be left open."""
    if given is None:
        return Stored("none")
    kind, ttl = None, None
    if isinstance(given, dict):
        named = [name for name in given if name in ("$value", *(f"${kind}" for kind in KINDS))]
        if named or "$ttl" in given:
            kind, given, ttl = _named(given, named, place, before=before)
    if match.matcher_of(given) == match.ANY and not before:
        return Stored(kind or "any", given, ttl)
    kind = kind or _kind(key, given)
    _check(kind, given, place, before=before)
    return Stored(kind, given, ttl)


def _named(given: dict[str, Any], named: list[str], place: str, *, before: bool) -> tuple[str | None, Any, Any]:
    if len(named) != 1 or set(given) - {*named, "$ttl"}:
        raise SpecError(
            f"{place} is {shown(given)}: expected one of $value, {', '.join(f'${kind}' for kind in KINDS)}, and $ttl"
        )
    ttl = given.get("$ttl")
    if "$ttl" in given:
        number = isinstance(ttl, int | float) and not isinstance(ttl, bool) and ttl > 0
        if not number and (before or match.matcher_of(ttl) not in (match.ANY, "$between")):
            raise SpecError(
                f"{place} has $ttl {shown(ttl)}: expected seconds above 0{'' if before else ', $any or $between'}"
            )
        match.check(ttl, f"{place}.$ttl")
    kind = None if named[0] == "$value" else named[0][1:]
    return kind, given[named[0]], ttl


def _kind(key: str, given: Any) -> str:
    by_name = kind_of_name(key)
    if by_name is not None and not (by_name == "set" and isinstance(given, str | int | float)):
        return by_name
    if isinstance(given, dict) and match.matcher_of(given) is None and not _is_written(given):
        return "hash"
    return "list" if isinstance(given, list) else "string"


def _is_written(given: Any) -> bool:
    return isinstance(given, dict) and len(given) == 1 and next(iter(given)) in _WRITTEN


def _check(kind: str, given: Any, place: str, *, before: bool) -> None:
    if kind == "string":
        _check_text(given, place, before=before)
        return
    expected, words = SHAPES[kind]
    fits: bool = isinstance(given, expected)
    if not fits:
        raise SpecError(f"{place} is a {kind}, and {shown(given)}: expected {words}")
    if before and not given:
        raise SpecError(f"{place} is an empty {kind}, which Redis does not have: leave it out")
    if isinstance(given, dict):
        for name, value in given.items():
            _check_name(name, f"{place}.{name}")
            if kind == "zset":
                _check_score(value, f"{place}.{name}", before=before)
            else:
                _check_text(value, f"{place}.{name}", before=before)
        return
    for number, item in enumerate(given):
        if kind == "stream":
            _check_entry(item, f"{place}[{number}]", before=before)
        else:
            _check_text(item, f"{place}[{number}]", before=before)


def _check_name(name: str, place: str) -> None:
    if name.startswith("$") and not name.startswith("$$"):
        raise SpecError(f"{place}: {shown(name)} is no matcher alone: expected $$ for a name that begins with $")


def _check_score(value: Any, place: str, *, before: bool) -> None:
    if (isinstance(value, int | float) and not isinstance(value, bool)) or value in INFINITE:
        return
    if before or match.matcher_of(value) is None:
        raise SpecError(f'{place} is {shown(value)}: expected a score, which is a number, "inf" or "-inf"')
    match.check(value, place)


def _check_entry(item: Any, place: str, *, before: bool) -> None:
    if match.matcher_of(item) == match.ANY and not before:
        return
    if not isinstance(item, dict):
        raise SpecError(f"{place} is {shown(item)}: expected an entry, an object of fields")
    for name, value in item.items():
        if name == "$id":
            if not (
                isinstance(value, str) and all(part.isdigit() for part in value.split("-")) and value.count("-") == 1
            ):
                raise SpecError(f"{place} has $id {shown(value)}: expected an ID such as 1-1")
            continue
        _check_name(name, f"{place}.{name}")
        _check_text(value, f"{place}.{name}", before=before)
    if before and not set(item) - {"$id"}:
        raise SpecError(f"{place} has no field: Redis has no such entry")


def _check_text(given: Any, place: str, *, before: bool) -> None:
    if isinstance(given, str):
        if before and given == match.ANY:
            raise SpecError(f"{place} is $any: a matcher is for `after`, not for what is written before")
        match.check(given, place)
    elif _is_written(given):
        name = next(iter(given))
        if name == "$base64":
            _decoded(given[name], place)
        else:
            match.check(given, place)
            if before and match.has_matcher(given[name]):
                raise SpecError(f"{place} has a matcher: that is for `after`, not for what is written before")
    elif isinstance(given, dict):
        match.check(given, place)
        if match.matcher_of(given) is None:
            raise SpecError(f'{place} is {shown(given)}: expected text or a number; {{"$json": …}} stores JSON')
        if before:
            raise SpecError(f"{place} has a matcher: that is for `after`, not for what is written before")
    elif not isinstance(given, int | float) or isinstance(given, bool):
        raise SpecError(f'{place} is {shown(given)}: expected text or a number; {{"$json": …}} stores JSON')


def _decoded(text: Any, place: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, TypeError, ValueError):
        raise SpecError(f"{place} has $base64 {shown(text)}: expected bytes in base64") from None


# --- writing


def stored_text(given: Any) -> bytes:
    """The bytes that a checked text of `before` stands for."""
    if isinstance(given, str):
        return match.literal(given).encode()
    if isinstance(given, dict):
        if "$base64" in given:
            return base64.b64decode(given["$base64"])
        return json.dumps(match.plain(given["$json"]), separators=(",", ":"), ensure_ascii=False).encode()
    return number_text(given).encode()


def score_text(score: float | str) -> str:
    return score if isinstance(score, str) else number_text(score)


def number_text(number: float) -> str:
    """As Redis writes it: without a point where it has no fraction."""
    return (
        str(int(number)) if isinstance(number, float) and number.is_integer() and abs(number) < 1e17 else repr(number)
    )


def commands(key: str, stored: Stored) -> Iterator[list[str | bytes]]:
    """What writes the key."""
    value = stored.value
    if stored.kind == "string":
        yield ["SET", key, stored_text(value)]
    elif stored.kind == "hash":
        yield [
            "HSET",
            key,
            *(word for pair in value.items() for word in (match.literal(pair[0]), stored_text(pair[1]))),
        ]
    elif stored.kind == "zset":
        yield [
            "ZADD",
            key,
            *(word for name, score in value.items() for word in (score_text(score), match.literal(name))),
        ]
    elif stored.kind == "stream":
        for entry in value:
            fields = [(name, item) for name, item in entry.items() if name != "$id"]
            words = [word for name, item in fields for word in (match.literal(name), stored_text(item))]
            yield ["XADD", key, entry.get("$id", "*"), *words]
    elif stored.kind in ("list", "set"):
        yield ["RPUSH" if stored.kind == "list" else "SADD", key, *map(stored_text, value)]
    if stored.ttl is not None:
        yield ["PEXPIRE", key, str(int(stored.ttl * 1000))]
