"""Types whose form in JSON is text: dates, durations, decimals, UUIDs, paths, addresses, bytes; and keys of objects."""

from __future__ import annotations

import math
import re
from binascii import a2b_base64
from collections.abc import Callable
from typing import Any

FromText = Callable[[Any, str], Any]  # the type, the text
_ZONE = r"(?:Z|[+-]\d\d:?\d\d(?::?\d\d)?)?"
_CLOCK = rf"\d\d:\d\d(?::\d\d(?:[.,]\d+)?)?{_ZONE}"
_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_TIME = re.compile(_CLOCK, re.ASCII)
_DATETIME = re.compile(rf"\d{{4}}-\d\d-\d\d(?:[T ]{_CLOCK})?", re.ASCII)
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_INTEGER = re.compile(r"0|-?[1-9]\d*", re.ASCII)
_FRACTION = re.compile(r"[+-]?\d+(?:/\d+|\.\d+)?", re.ASCII)
_DURATION = re.compile(
    r"([+-]?)P(?=[\dT])(?:(\d+)W)?(?:(\d+)D)?(?:T(?=\d)(?:(\d+)H)?(?:(\d+)M)?(?:(\d+)(?:[.,](\d+))?S)?)?", re.ASCII
)


def text_form(kind: Any) -> tuple[str, FromText] | None:
    """The expected form in words, and the function from text to a value; None for a type whose form is not text.

    Types are known by name, because a reference would import their modules.
    """
    if not isinstance(kind, type):
        return None
    if kind.__module__.partition(".")[0] == "pathlib":
        return "a path", _path
    return _BY_NAME.get(f"{kind.__module__}.{kind.__qualname__}")


def integer(text: str) -> int:
    """A key as an integer, in its one canonical text, so that no two keys are equal."""
    if not _INTEGER.fullmatch(text):
        raise ValueError
    return int(text)


def number(text: str) -> float:
    if not _NUMBER.fullmatch(text) or not math.isfinite(value := float(text)):
        raise ValueError
    return value


def _matched(form: re.Pattern[str], text: str) -> str:
    if not form.fullmatch(text):
        raise ValueError
    return text


def _duration(kind: Any, text: str) -> Any:
    found = _DURATION.fullmatch(text)
    if found is None:
        raise ValueError
    sign, weeks, days, hours, minutes, seconds, rest = found.groups()
    size = kind(
        weeks=int(weeks or 0),
        days=int(days or 0),
        hours=int(hours or 0),
        minutes=int(minutes or 0),
        seconds=int(seconds or 0),
        microseconds=int((rest or "0")[:6].ljust(6, "0")),
    )
    return -size if sign == "-" else size


def _path(kind: Any, text: str) -> Any:
    if "\0" in text:
        raise ValueError
    return kind(text)


def _decimal(kind: Any, text: str) -> Any:
    return kind(_matched(_NUMBER, text))


def _bytes(kind: Any, text: str) -> Any:
    return kind(a2b_base64(text.encode("ascii"), strict_mode=True))


def _made(kind: Any, text: str) -> Any:
    return kind(text)


_BY_NAME: dict[str, tuple[str, FromText]] = {
    "datetime.datetime": (
        "a date and time as 2026-01-02T03:04:05Z",
        lambda kind, text: kind.fromisoformat(_matched(_DATETIME, text.upper())),
    ),
    "datetime.date": ("a date as 2026-01-02", lambda kind, text: kind.fromisoformat(_matched(_DATE, text))),
    "datetime.time": ("a time as 03:04:05", lambda kind, text: kind.fromisoformat(_matched(_TIME, text.upper()))),
    "datetime.timedelta": ("a duration as P1DT2H30M or a number of seconds", _duration),
    "decimal.Decimal": ("a decimal number", _decimal),
    "fractions.Fraction": ("a fraction as 1/3", lambda kind, text: kind(_matched(_FRACTION, text))),
    "uuid.UUID": ("a UUID", _made),
    "builtins.bytes": ("base64 text", _bytes),
    "builtins.bytearray": ("base64 text", _bytes),
    **{
        f"ipaddress.IPv{version}{what}": (f"an IPv{version} {what.lower()}", _made)
        for version in (4, 6)
        for what in ("Address", "Interface", "Network")
    },
}
