"""A short, bounded run of fuzz_syscalls.py; a long one is for people (see there)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from arena import needs_ipv6

FUZZ = Path(__file__).parent / "fuzz_syscalls.py"


@pytest.mark.timeout(330)
def test_random_system_calls_reach_nobody_outside() -> None:
    needs_ipv6()
    done = subprocess.run(
        [sys.executable, str(FUZZ), "7", "12", "2500"], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    # It must have run, and got somewhere, for that to mean anything.
    assert figures["calls"] > 5000
    assert figures["distinct"] > 400
    assert figures["distinct not refused"] > 100
    assert figures["calls succeeded"] > 500
    assert figures["granted connections"] > 0
    assert figures["ends"].get("broken", 0) == 0, done.stderr
