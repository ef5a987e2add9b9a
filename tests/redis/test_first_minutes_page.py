"""What docs/first-minutes.md shows, typed once more: Debian's Redis, a raw host by name and certificate, and a folder."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
SECONDS = 120


@pytest.fixture
def stable(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    monkeypatch.syspath_prepend(str(DOCS))
    import record_walk

    return record_walk.stable  # type: ignore[no-any-return]


@pytest.mark.timeout(SECONDS + 30)
def test_a_newcomer_sees_what_the_page_shows(tmp_path: Path, stable: Callable[[str], str]) -> None:
    page = tmp_path / "page.md"
    command = [sys.executable, str(DOCS / "record_first_minutes.py"), "--installed", str(page)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    assert stable(page.read_text()).splitlines() == stable((DOCS / "first-minutes.md").read_text()).splitlines()
