"""Points in time as people write them. Pure."""

from __future__ import annotations

import datetime

EXPECTED = "a time from 1970 on with its zone, as in 2026-01-31T12:00:00Z"


def seconds(text: str) -> float | None:
    """Since 1970, of a time in ISO 8601 that has a zone; None for anything else."""
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        return None
    if moment.tzinfo is None or moment.timestamp() < 0:
        return None
    return moment.timestamp()
