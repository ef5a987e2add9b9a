"""What a look has found."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Level(enum.StrEnum):
    """How it is."""

    OK = "ok"
    NOTE = "note"  # works, and may not be what is wanted
    FAILS = "FAILS"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line. `do`: what helps, where it is not ok."""

    area: str
    level: Level
    text: str
    do: str = ""


def ok(area: str, text: str) -> Finding:
    return Finding(area, Level.OK, text)


def note(area: str, text: str, do: str) -> Finding:
    return Finding(area, Level.NOTE, text, do)


def fails(area: str, text: str, do: str) -> Finding:
    return Finding(area, Level.FAILS, text, do)
