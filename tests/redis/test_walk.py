"""The walk through all of it that docs/walk.md shows, done once more at a real terminal."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
SECONDS = 120


def test_the_walk_from_an_empty_folder_to_a_debugged_worker_goes_as_it_is_shown(tmp_path: Path) -> None:
    page = tmp_path / "walk.md"
    command = [sys.executable, str(DOCS / "record_walk.py"), str(page)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    stable = [sys.executable, "-c", STABLE, str(DOCS)]
    now, shown = (
        subprocess.run([*stable, str(path)], capture_output=True, text=True, check=True).stdout.splitlines()
        for path in (page, DOCS / "walk.md")
    )
    assert now == shown


STABLE = """\
import sys
sys.path.insert(0, sys.argv[1])
from record_walk import stable
print(stable(open(sys.argv[2]).read()))
"""
