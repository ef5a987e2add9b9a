"""The script of CI names what a machine lacks, and needs neither a terminal nor a home nor an earlier run."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import postgres
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The script, with a suite that prints how it was called."""
    (tmp_path / ".ci").mkdir()
    (tmp_path / "tests").mkdir()
    shutil.copy(ROOT / ".ci/run", tmp_path / ".ci/run")
    (tmp_path / "tests/run.sh").write_text("#!/bin/sh\necho CI=$CI $PWD; exit 5\n")
    (tmp_path / "tests/run.sh").chmod(0o755)
    return tmp_path


def ci(copy: Path, **env: str) -> subprocess.CompletedProcess[str]:
    command = ["/bin/bash", ".ci/run"]
    return subprocess.run(
        command, cwd=copy, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, start_new_session=True,
        timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize("home", [{}, {"HOME": "/nonexistent"}, {"HOME": "/proc", "CDPATH": "/"}])
def test_it_runs_the_suite_and_ends_as_that_does(copy: Path, home: dict[str, str]) -> None:
    needed = ("redis-server", "openssl", "setpriv")
    if not all(map(shutil.which, needed)) or not os.path.exists("/usr/bin/python3"):
        pytest.skip(f"one of {' '.join(needed)} is not there")
    postgres.program("postgres")
    done = ci(copy, PATH=os.environ["PATH"], **home)
    assert (done.returncode, done.stdout, done.stderr) == (5, f"CI=true {copy}\n", "")


def test_what_the_machine_lacks_is_said_in_one_line(copy: Path, tmp_path: Path) -> None:
    few = tmp_path / "bin"
    few.mkdir()
    for name in ("id", "dirname", "openssl", "setpriv"):
        program = shutil.which(name)
        if program is not None:
            (few / name).symlink_to(program)
    done = ci(copy, PATH=str(few))  # without apt-get, too
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: this machine lacks redis-server")
    assert done.stderr.count("\n") == 1
    assert "apt-get install redis-server" in done.stderr
