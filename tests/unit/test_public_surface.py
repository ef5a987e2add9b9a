"""The names that users import, and their signatures, are those of the kept list: a change is seen in review."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TOOL = Path(__file__).parents[1] / "tools" / "public_surface.py"
KEPT = Path(__file__).with_name("public_surface.txt")


def test_the_public_names_and_signatures_are_the_kept_ones() -> None:
    done = subprocess.run([sys.executable, str(TOOL)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == KEPT.read_text().splitlines(), (
        f"the API has changed: if that is meant, write the list again, and say in the commit who has to do what:\n"
        f"python {TOOL} > {KEPT}"
    )


def test_star_import_brings_what_is_documented() -> None:
    code = "from sandboxrun.worker import *; from sandboxrun.client import *; handler, run, call, Client, AsyncClient"
    subprocess.run([sys.executable, "-c", code], check=True)
