"""Converters for single values of a payload: simple types, choices, and keys of objects."""

from __future__ import annotations

import enum
import math
import typing
from collections.abc import Callable, Sequence
from typing import Any

from sandboxrun.worker import scalars
from sandboxrun.worker.mismatch import NAMES, Mismatch, Unusable, furthest, mismatch
from sandboxrun.worker.results import Forms

Convert = Callable[[Any, int], Any]  # the data and its depth, to a value


def simple(kind: Any) -> Convert | None:
    """The converter of a type that contains no other types; None for any other type."""
    if kind is Any or kind is object:
        return lambda data, depth: data
    if kind is None or kind is type(None):
        return _null
    if kind is typing.LiteralString:
        kind = str
    if kind is float:
        return _float
    if kind in (str, bool, int):
        return lambda data, depth: data if type(data) is kind else _refuse(NAMES[kind], data)
    form = scalars.text_form(kind)
    if form is None:
        return None
    expected, make = form
    if kind.__name__ in ("timedelta", "Decimal"):
        return lambda data, depth: _of_number(kind, data, expected, make)
    return lambda data, depth: from_text(kind, data, expected, make)


def _null(data: Any, depth: int) -> None:
    if data is not None:
        raise mismatch("null", data)


def _float(data: Any, depth: int) -> float:
    if type(data) not in (int, float):
        raise mismatch(NAMES[float], data)
    try:
        value = float(data)
    except OverflowError:
        value = math.inf
    if not math.isfinite(value):
        raise mismatch("a number that is finite", data)
    return value


def _refuse(expected: str, data: Any) -> Any:
    raise mismatch(expected, data)


def from_text(kind: Any, text: Any, expected: str, make: scalars.FromText) -> Any:
    """A value from its text. Raises Mismatch."""
    if not isinstance(text, str):
        raise mismatch(expected, text)
    try:
        return make(kind, text)
    except (ValueError, ArithmeticError, TypeError):
        raise mismatch(expected, text) from None


def _of_number(kind: Any, data: Any, expected: str, make: scalars.FromText) -> Any:
    """A timedelta or a Decimal, which JSON may also have as a number."""
    if type(data) not in (int, float):
        return from_text(kind, data, expected, make)
    try:
        # From the float's repr, because its exact value has more digits than were written.
        return kind(seconds=data) if kind.__name__ == "timedelta" else kind(repr(data))
    except (ValueError, ArithmeticError):
        raise mismatch(expected, data) from None


# --- one of several values


def choice_of(pairs: Sequence[tuple[Any, Any]], forms: Forms, missing: Callable[[Any], Any] | None = None) -> Convert:
    """The converter for pairs of a JSON value and its meaning. Types count: `true` and 1.0 are not 1."""
    values = [forms.plain(value, "value") for value, _ in pairs]
    table = {_mark(value): meant for value, (_, meant) in zip(reversed(values), reversed(pairs), strict=True)}
    expected = " or ".join(dict.fromkeys(repr(value) for value in values))[:300]

    def choice(data: Any, depth: int) -> Any:
        mark = _mark(data)
        if mark in table:
            return table[mark]
        if type(data) is int and (mark := _mark(float(data) if abs(data) < 1 << 53 else None)) in table:
            return table[mark]  # JavaScript writes 1.0 as 1
        meant = missing(data) if missing is not None else None
        if meant is None:
            raise mismatch(expected, data)
        return meant

    return choice


def _mark(value: Any) -> Any:
    """A hashable key that is equal only for equal JSON."""
    if isinstance(value, dict):
        return dict, frozenset((name, _mark(item)) for name, item in value.items())
    if isinstance(value, list):
        return list, tuple(map(_mark, value))
    kind = next(kind for kind in (bool, int, float, str, type(None)) if isinstance(value, kind))
    return kind, value


def enum_of(kind: type[enum.Enum], forms: Forms, field: str) -> Convert:
    missing: Callable[[Any], Any] | None = None
    if issubclass(kind, enum.Flag):

        def missing(data: Any) -> Any:
            if type(data) is not int or data < 0:
                return None
            try:
                flags = kind(data)
            except ValueError:  # a bit that has no name
                return None
            # Python 3.11.2 returns a Flag without bits instead of raising.
            return flags if flags.value == data else None

    elif "_missing_" in {name for base in kind.__mro__ if base not in (enum.Enum, object) for name in vars(base)}:

        def missing(data: Any) -> Any:
            member = kind._missing_(data)
            return member if isinstance(member, kind) else None

    try:
        return choice_of([(member.value, member) for member in kind.__members__.values()], forms, missing)
    except (TypeError, ValueError) as error:
        raise Unusable(f"{f'its field {field} is ' if field else ''}{kind.__name__}, of which a {error}") from None


def key_choice(pairs: Sequence[tuple[Any, Any]], forms: Forms) -> Callable[[str], Any]:
    table = {forms.key_text(value): meant for value, meant in reversed(pairs)}
    expected = " or ".join(repr(name) for name in reversed(table))[:300]
    return lambda text: table[text] if text in table else _refuse(expected, text)


def any_key(keys: Sequence[Callable[[str], Any] | None]) -> Callable[[str], Any]:
    def any_key(text: str) -> Any:
        problems = []
        for key in keys:
            try:
                return text if key is None else key(text)
            except Mismatch as problem:
                problems.append(problem)
        raise furthest(problems)

    return any_key
