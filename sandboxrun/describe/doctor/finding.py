"""The result of one examination."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Level(enum.StrEnum):
    """How serious it is."""

    OK = "ok"
    NOTE = "note"  # works, but perhaps not as it should
    FAILS = "FAILS"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line. `hint`: what to paste if it is not ok; empty if no command helps."""

    area: str
    level: Level
    text: str
    hint: tuple[str, ...] = ()


def ok(area: str, text: str) -> Finding:
    return Finding(area, Level.OK, text)


def note(area: str, text: str, *, hint: str | tuple[str, ...] = ()) -> Finding:
    return Finding(area, Level.NOTE, text, _lines(hint))


def fails(area: str, text: str, *, hint: str | tuple[str, ...] = ()) -> Finding:
    return Finding(area, Level.FAILS, text, _lines(hint))


def _lines(hint: str | tuple[str, ...]) -> tuple[str, ...]:
    if isinstance(hint, str):
        return (hint,) if hint else ()
    return hint
