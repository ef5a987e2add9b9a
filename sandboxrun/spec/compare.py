"""A key of Redis beside what a spec expects of it, and in the form in which a spec has it."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sandboxrun.spec import match
from sandboxrun.spec.match import described, shown
from sandboxrun.spec.state import Actual, Stored, kind_of_name, number_text, score_text, stored_text

TTL_SLACK_SECONDS = 2  # that a time to live may have shrunk when it is looked at
# Of an entry in a request stream: compared only where a test names them.
ENVELOPE = frozenset({"ref", "type", "time", "deadline", "path", "traceparent", "tracestate"})


def differences(key: str, expected: Stored, actual: Actual | None, slack: float) -> Iterator[str]:
    """What is not as expected, a line each. `slack`: seconds that the test has taken, for the time to live."""
    if expected.kind == "none":
        if actual is not None:
            yield f"{key}: expected no key, got {a(actual.kind)}: {shown(as_json(key, actual))}"
        return
    if actual is None:
        yield f"{key}: expected {_kind_text(expected.kind)}, got no key"
        return
    if expected.kind not in ("any", actual.kind):
        yield f"{key}: expected {a(expected.kind)}, got {a(actual.kind)}: {shown(as_json(key, actual))}"
        return
    yield from _ttl_differences(key, expected, actual, slack)
    if match.matcher_of(expected.value) == match.ANY:
        return
    yield from _COMPARE[actual.kind](key, expected.value, actual.value)


def a(kind: str) -> str:
    return f"a {kind}"


def _kind_text(kind: str) -> str:
    return "a key" if kind == "any" else a(kind)


def _ttl_differences(key: str, expected: Stored, actual: Actual, slack: float) -> Iterator[str]:
    ttl, seconds = expected.ttl, actual.ttl / 1000
    has = "no time to live" if actual.ttl < 0 else f"{seconds:g} s to live"
    if ttl is None:
        if actual.ttl >= 0 and expected.kind != "any":
            yield f"{key}: expected no time to live, got {seconds:g} s"
    elif ttl == match.ANY:
        if actual.ttl < 0:
            yield f"{key}: expected a time to live, got none"
    elif isinstance(ttl, dict):
        low, high = ttl["$between"]
        if actual.ttl < 0 or not low <= seconds <= high:
            yield f"{key}: expected {low} to {high} s to live, got {has}"
    elif actual.ttl < 0 or not ttl - TTL_SLACK_SECONDS - slack <= seconds <= ttl:
        yield f"{key}: expected {ttl:g} s to live, got {has}"


def text_differences(expected: Any, raw: bytes, place: str) -> Iterator[str]:
    """A stored text beside what was expected of it."""
    name = match.matcher_of(expected)
    if name == match.ANY:
        return
    if isinstance(expected, dict) and "$base64" in expected:
        if base64.b64decode(expected["$base64"]) != raw:
            yield f"{place}: expected the bytes {shown(expected['$base64'])} in base64, got {shown(text_json(raw))}"
        return
    if name is None:
        if stored_text(expected) != raw:
            yield f"{place}: expected {shown(_as_text(expected))}, got {shown(text_json(raw))}"
        return
    actual: Any = text_json(raw)
    if name in ("$between", "$schema") and isinstance(actual, str):
        actual = _as_number(actual, expected)
    yield from match.differences(expected, actual, place, is_open=False)


def _as_text(expected: Any) -> str:
    return match.literal(expected) if isinstance(expected, str) else number_text(expected)


def _as_number(text: str, expected: Any) -> Any:
    """A stored number as a number, unless the schema asks for a text."""
    schema = expected.get("$schema")
    if isinstance(schema, dict) and schema.get("type") == "string":
        return text
    try:
        number = float(text)
    except ValueError:
        return text
    return (int(number) if number.is_integer() else number) if math.isfinite(number) else text


def text_json(raw: bytes) -> Any:
    """A stored text as a spec would have it."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return {"$base64": base64.b64encode(raw).decode()}


def _name(raw: bytes) -> str:
    return raw.decode("utf-8", "backslashreplace")


def _string(key: str, expected: Any, actual: bytes) -> Iterator[str]:
    yield from text_differences(expected, actual, key)


def _hash(key: str, expected: Mapping[str, Any], actual: Mapping[bytes, bytes]) -> Iterator[str]:
    names = {match.literal(name).encode(): value for name, value in expected.items()}
    for raw, value in names.items():
        place = f"{key}.{_name(raw)}"
        if raw in actual:
            yield from text_differences(value, actual[raw], place)
        else:
            yield f"{place}: expected {_described(value)}, got no field"
    for raw, text in actual.items():
        if raw not in names:
            yield f"{key}.{_name(raw)}: expected no field, got {shown(text_json(text))}"


def _described(expected: Any) -> str:
    if match.matcher_of(expected) is None and not isinstance(expected, dict):
        return shown(_as_text(expected))
    return described(expected)


def _zset(key: str, expected: Mapping[str, Any], actual: Mapping[bytes, float]) -> Iterator[str]:
    names = {match.literal(name).encode(): value for name, value in expected.items()}
    for raw, value in names.items():
        place = f"{key}.{_name(raw)}"
        if raw not in actual:
            yield f"{place}: expected the score {described(value)}, got no member"
        elif match.matcher_of(value) is not None:
            yield from match.differences(value, _whole(actual[raw]), place, is_open=False)
        elif actual[raw] != float(value):
            yield f"{place}: expected the score {score_text(value)}, got {number_text(actual[raw])}"
    for raw, score in actual.items():
        if raw not in names:
            yield f"{key}.{_name(raw)}: expected no member, got the score {number_text(score)}"


def _score(score: float) -> float | str:
    return _whole(score) if math.isfinite(score) else number_text(score)


def _whole(score: float) -> float:
    return int(score) if score.is_integer() else score


def _set(key: str, expected: Sequence[Any], actual: set[bytes]) -> Iterator[str]:
    """Literals first: a matcher takes one of those members that are left."""
    left = set(actual)
    for value in expected:
        if match.matcher_of(value) is None:
            raw = stored_text(value)
            if raw in left:
                left.discard(raw)
            else:
                yield f"{key}: expected the member {_described(value)}, got none"
    for value in expected:
        if match.matcher_of(value) is not None:
            fit = next((raw for raw in sorted(left) if not any(text_differences(value, raw, key))), None)
            if fit is None:
                yield f"{key}: expected a member that is {_described(value)}, got none"
            else:
                left.discard(fit)
    for raw in sorted(left):
        yield f"{key}: expected no member {shown(text_json(raw))}, got it"


def _list(key: str, expected: Sequence[Any], actual: Sequence[bytes]) -> Iterator[str]:
    for number, (value, raw) in enumerate(zip(expected, actual, strict=False)):
        yield from text_differences(value, raw, f"{key}[{number}]")
    for number, value in enumerate(expected[len(actual) :], len(actual)):
        yield f"{key}[{number}]: expected {_described(value)}, got nothing"
    for number, raw in enumerate(actual[len(expected) :], len(expected)):
        yield f"{key}[{number}]: expected nothing, got {shown(text_json(raw))}"


def _stream(key: str, expected: Sequence[Any], actual: Sequence[tuple[bytes, dict[bytes, bytes]]]) -> Iterator[str]:
    for number, (entry, (xid, fields)) in enumerate(zip(expected, actual, strict=False)):
        place = f"{key}[{number}]"
        if entry == match.ANY:
            continue
        wanted = {name: value for name, value in entry.items() if name != "$id"}
        if "$id" in entry and entry["$id"].encode() != xid:
            yield f"{place}: expected the ID {entry['$id']}, got {xid.decode()}"
        named = {match.literal(name) for name in wanted}
        dropped = set(ENVELOPE - named) if is_request_stream(key) else set()
        yield from _hash(place, wanted, {raw: text for raw, text in fields.items() if _name(raw) not in dropped})
    for number, entry in enumerate(expected[len(actual) :], len(actual)):
        yield f"{key}[{number}]: expected {described(entry)}, got no entry"
    for number, (_, fields) in enumerate(actual[len(expected) :], len(expected)):
        yield f"{key}[{number}]: expected no entry, got {shown(entry_json(key, fields))}"


_COMPARE: Mapping[str, Any] = {
    "string": _string, "hash": _hash, "list": _list, "set": _set, "zset": _zset, "stream": _stream,
}  # fmt: skip


def is_request_stream(key: str) -> bool:
    return key.endswith(":req:x")


# --- as JSON, for messages and for recording


def entry_json(key: str, fields: Mapping[bytes, bytes]) -> dict[str, Any]:
    """An entry as a spec would have it."""
    dropped = ENVELOPE if is_request_stream(key) else frozenset()
    found = {_name(raw): text_json(text) for raw, text in fields.items() if _name(raw) not in dropped}
    data = found.get("data")
    if is_request_stream(key) and isinstance(data, str):
        try:
            return {**found, "data": {"$json": match.escaped(json.loads(data))}}
        except (ValueError, RecursionError):
            pass
    return {str(match.escaped(name)): match.escaped(text) for name, text in found.items()}


def as_json(key: str, actual: Actual) -> Any:
    """The form in which a spec has the key, with its kind and time to live where the name does not tell them."""
    value = _plain_json(key, actual)
    kind = kind_of_name(key)
    by_json = {"hash": "hash", "list": "list", "string": "string"}.get(actual.kind)
    told = kind == actual.kind or (kind is None and by_json is not None) or (kind == "set" and actual.kind == "string")
    if actual.ttl >= 0:
        return {"$value" if told else f"${actual.kind}": value, "$ttl": math.ceil(actual.ttl / 1000)}
    return value if told else {f"${actual.kind}": value}


def _plain_json(key: str, actual: Actual) -> Any:
    kind, value = actual.kind, actual.value
    if kind == "string":
        return _escaped_text(value)
    if kind == "hash":
        return {str(match.escaped(_name(raw))): _escaped_text(text) for raw, text in value.items()}
    if kind == "zset":
        return {str(match.escaped(_name(raw))): _score(score) for raw, score in value.items()}
    if kind == "set":
        return [_escaped_text(raw) for raw in sorted(value)]
    if kind == "list":
        return [_escaped_text(raw) for raw in value]
    if kind == "stream":
        return [entry_json(key, fields) for _, fields in value]
    return f"a {kind}, which a spec cannot have"


def _escaped_text(raw: bytes) -> Any:
    text = text_json(raw)
    if not isinstance(text, str):
        return text
    number = _as_number(text, {}) if len(text) < 16 else text
    return number if not isinstance(number, str) and number_text(number) == text else match.escaped(text)
