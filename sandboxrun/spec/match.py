"""Expected JSON beside actual JSON: equal, or as a matcher says.

`"$any"` is anything; `{"$match": REGEX}` is a text that the whole regular expression fits; `{"$between": [LOW, HIGH]}` is a
number, both ends included; `{"$schema": SCHEMA}` is what the JSON Schema accepts; `{"$json": VALUE}` is a text that is JSON,
and as VALUE. A text that begins with `$` itself is written with `$$`.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sandboxrun.errors import SpecError
from sandboxrun.spec import schemas

ANY = "$any"
MATCHERS = ("$match", "$between", "$schema", "$json")
SHOWN_MAX_CHARS = 200


def shown(value: Any) -> str:
    """A value as JSON, bounded."""
    text = json.dumps(value, ensure_ascii=False, default=repr)
    text = text if text.isprintable() else json.dumps(value, default=repr)
    return text if len(text) <= SHOWN_MAX_CHARS else f"{text[:SHOWN_MAX_CHARS]}… ({len(text)} characters)"


def matcher_of(value: Any) -> str | None:
    """The name of the matcher that this is."""
    if value == ANY and isinstance(value, str):
        return ANY
    if isinstance(value, dict) and len(value) == 1:
        name = next(iter(value))
        return name if name in MATCHERS else None
    return None


def has_matcher(value: Any) -> bool:
    """Whether a matcher is anywhere in it."""
    if matcher_of(value) is not None:
        return True
    if isinstance(value, dict):
        return any(map(has_matcher, value.values()))
    return isinstance(value, list) and any(map(has_matcher, value))


def literal(text: str) -> str:
    """The text that an expected text stands for."""
    return text[1:] if text.startswith("$$") else text


def plain(value: Any) -> Any:
    """The JSON that expected JSON without matchers stands for."""
    if isinstance(value, str):
        return literal(value)
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {literal(name): plain(item) for name, item in value.items()}
    return value


def escaped(value: Any) -> Any:
    """The expected JSON that stands for this JSON: the inverse of `plain`."""
    if isinstance(value, str):
        return f"${value}" if value.startswith("$") else value
    if isinstance(value, list):
        return [escaped(item) for item in value]
    if isinstance(value, dict):
        return {escaped(name): escaped(item) for name, item in value.items()}
    return value


def check(value: Any, place: str) -> None:
    """Raise SpecError for a malformed matcher, and for a name that begins with `$` and is no matcher."""
    if isinstance(value, str) and value.startswith("$") and value != ANY and not value.startswith("$$"):
        raise SpecError(f"{place} is {shown(value)}: expected $any, or $$ for a text that begins with $")
    if isinstance(value, list):
        for number, item in enumerate(value):
            check(item, f"{place}[{number}]")
    if not isinstance(value, dict):
        return
    name = matcher_of(value)
    if name is not None:
        _CHECKS[name](value[name], place)
        return
    for key, item in value.items():
        if key.startswith("$") and not key.startswith("$$"):
            known = f"one of {', '.join(MATCHERS)} alone, or $$ for a name that begins with $"
            raise SpecError(f"{place} has {shown(key)}: expected {known}", hint=_near_hint(key))
        check(item, f"{place}.{key}")


def _near_hint(name: str) -> str:
    import difflib

    near = difflib.get_close_matches(name[:80], MATCHERS, 1)
    return f'{{"{near[0]}": …}}' if near else ""


def _check_match(pattern: Any, place: str) -> None:
    try:
        _pattern(pattern)
    except (ValueError, TypeError):
        linear = "a regular expression without look-around and back-references"
        raise SpecError(f"{place} has $match {shown(pattern)}: expected {linear}") from None


@functools.cache
def _pattern(text: str) -> Callable[[str], bool]:
    """Whether the whole of a text fits this regular expression, in linear time. Raises ValueError, TypeError.

    Its syntax is that of `pattern` in a JSON Schema: a dot is no line break.
    """
    schemas.validator({"pattern": text})  # by itself, because of unbalanced parentheses
    fits: Callable[[str], bool] = schemas.validator({"pattern": f"^(?:{text})$"}).is_valid
    return fits


def _check_between(ends: Any, place: str) -> None:
    if not (isinstance(ends, list) and len(ends) == 2 and all(map(_is_number, ends)) and ends[0] <= ends[1]):
        raise SpecError(f"{place} has $between {shown(ends)}: expected two numbers, the lower one first")


def _check_schema(schema: Any, place: str) -> None:
    schemas.check_schema(schema, {}, f"{place}.$schema")


_CHECKS: Mapping[str, Any] = {
    ANY: lambda value, place: None,
    "$match": _check_match,
    "$between": _check_between,
    "$schema": _check_schema,
    "$json": lambda value, place: check(value, f"{place}.$json"),
}


def differences(expected: Any, actual: Any, place: str, *, is_open: bool) -> Iterator[str]:
    """What is not as expected, a line each, with its place. `is_open`: objects may have more fields than expected."""
    name = matcher_of(expected)
    if name is not None:
        yield from _matched(name, expected, actual, place, is_open=is_open)
    elif isinstance(expected, dict) and isinstance(actual, dict):
        yield from _objects(expected, actual, place, is_open=is_open)
    elif isinstance(expected, list) and isinstance(actual, list):
        yield from _lists(expected, actual, place, is_open=is_open)
    elif not _equal(expected, actual):
        yield f"{place}: expected {shown(plain(expected))}, got {shown(actual)}"


def _objects(expected: dict[str, Any], actual: dict[str, Any], place: str, *, is_open: bool) -> Iterator[str]:
    for written, value in expected.items():
        name = literal(written)
        if name not in actual:
            yield f"{place}.{name}: expected {described(value)}, got nothing"
        else:
            yield from differences(value, actual[name], f"{place}.{name}", is_open=is_open)
    if not is_open:
        known = set(map(literal, expected))
        for name, value in actual.items():
            if name not in known:
                yield f"{place}.{name}: expected nothing, got {shown(value)}"


def _lists(expected: list[Any], actual: list[Any], place: str, *, is_open: bool) -> Iterator[str]:
    for number, (one, other) in enumerate(zip(expected, actual, strict=False)):
        yield from differences(one, other, f"{place}[{number}]", is_open=is_open)
    for number, item in enumerate(expected[len(actual) :], len(actual)):
        yield f"{place}[{number}]: expected {described(item)}, got nothing"
    for number, item in enumerate(actual[len(expected) :], len(expected)):
        yield f"{place}[{number}]: expected nothing, got {shown(item)}"


def described(expected: Any) -> str:
    """An expected value in words."""
    name = matcher_of(expected)
    if name is None:
        return shown(plain(expected))
    if name == ANY:
        return "anything"
    value = expected[name]
    if name == "$match":
        return f"a text like {shown(value)}"
    if name == "$between":
        return f"a number between {value[0]} and {value[1]}"
    if name == "$json":
        return f"the JSON of {described(value)}"
    return f"what {shown(value)} accepts"


def _matched(name: str, expected: Any, actual: Any, place: str, *, is_open: bool) -> Iterator[str]:
    if name == ANY:
        return
    value = expected[name]
    if name == "$json":
        try:
            inner = json.loads(actual) if isinstance(actual, str) else None
        except (ValueError, RecursionError):
            inner = None
        if inner is None and actual != "null":
            yield f"{place}: expected {described(expected)}, got {shown(actual)}"
        else:
            yield from differences(value, inner, place, is_open=False)
    elif name == "$schema":
        for fault in schemas.faults(value, actual):
            yield f"{place}{fault}"
    else:
        number = _number(actual)
        fits = (
            isinstance(actual, str) and _pattern(value)(actual)
            if name == "$match"
            else number is not None and value[0] <= number <= value[1]
        )
        if not fits:
            yield f"{place}: expected {described(expected)}, got {shown(actual)}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(actual: Any) -> float | None:
    return actual if _is_number(actual) else None


def _equal(expected: Any, actual: Any) -> bool:
    if isinstance(expected, str):
        return isinstance(actual, str) and literal(expected) == actual
    if isinstance(expected, bool) or isinstance(actual, bool):
        return expected is actual
    return bool(expected == actual)
