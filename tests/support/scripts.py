"""Worker scripts of the tests that are longer than a few lines: tests/redis/workers/NAME.py."""

from __future__ import annotations

from pathlib import Path

_WORKERS = Path(__file__).parents[1] / "redis/workers"


def script(name: str) -> str:
    return (_WORKERS / f"{name}.py").read_text()
