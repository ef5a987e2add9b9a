"""A stuck test fails after its limit and shows where it stood. Its processes are killed, those of fixtures live on."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from arena import wait_for

SUPPORT = Path(__file__).parents[1] / "support"
HOOKS = f"""\
import sys
sys.path.insert(0, {str(SUPPORT)!r})
import machine
machine.leave_behind()
import limit
from limit import *
limit.GRACE_SECONDS = 2
"""
HEAD = """\
import contextlib, os, pathlib, signal, subprocess, threading, time
import pytest

def sleeper(name):
    process = subprocess.Popen(["sh", "-c", "trap '' INT TERM; sleep 600 & wait; wait"], stdin=subprocess.DEVNULL)
    pathlib.Path(name).write_text(str(process.pid))
    return process

"""
STUCK = {
    "waiting for a process": "with sleeper('started') as process:\n    process.wait()  # HERE",
    "waiting for a process without end": "try:\n    sleeper('started').wait()  # HERE\nfinally:\n    sleeper('more')",
    "waiting for a reply": "sleeper('started').wait(0.1) if False else sleeper('started')\nos.read(os.pipe()[0], 1)  # HERE",
    "a loop": "sleeper('started')\nwhile True:  # HERE\n    pass",
    "a lock": "sleeper('started')\nlock = threading.Lock()\nlock.acquire()\nlock.acquire()  # HERE",
    "in a thread": "def other():\n    sleeper('started').wait()  # HERE\nthread = threading.Thread(target=other)\nthread.start()\nthread.join()",
    "where SIGINT is ignored": "signal.signal(signal.SIGINT, signal.SIG_IGN)\nsleeper('started')\ntime.sleep(600)  # HERE",
}  # fmt: skip


def pytest_of(folder: Path, code: str, *args: str) -> subprocess.CompletedProcess[str]:
    (folder / "conftest.py").write_text(HOOKS)
    (folder / "test_it.py").write_text(HEAD + textwrap.dedent(code))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--timeout=1.5",
        "--rootdir=.",
        *args,
        ".",
    ]
    env = {"PATH": os.environ["PATH"], "TMPDIR": str(folder)}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=60)


def ended(pid: int) -> bool:
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):  # ESRCH: it was reaped between open and read, proc(5)
        return True


@pytest.mark.parametrize(("how", "workers"), [*((how, "-n0") for how in STUCK), ("in a thread", "-n1")])
def test_a_stuck_test_says_where_it_stood_and_the_next_one_runs(tmp_path: Path, how: str, workers: str) -> None:
    code = f"def test_stuck():\n{textwrap.indent(STUCK[how], '    ')}\n\ndef test_next():\n    pass\n"
    begun = time.monotonic()
    done = pytest_of(tmp_path, code, workers)
    assert "1 failed, 1 passed" in done.stdout, done.stdout + done.stderr
    assert "stuck: not done after 1.5 s" in done.stdout
    assert "test_it.py" in done.stdout and "# HERE" in done.stdout
    assert time.monotonic() - begun < 50
    wait_for(lambda: ended(int((tmp_path / "started").read_text())))


@pytest.mark.parametrize("workers", ["-n0", "-n1"])
def test_one_that_cannot_be_left_ends_its_process_and_says_where_it_stood(tmp_path: Path, workers: str) -> None:
    code = """
    def test_stuck():
        sleeper("started")
        while True:
            with contextlib.suppress(BaseException):
                time.sleep(600)  # HERE

    def test_next():
        pass
    """
    done = pytest_of(tmp_path, code, workers)
    assert "Timeout (0:00:03.500000)!" in done.stderr, done.stdout + done.stderr
    assert "in test_stuck" in done.stderr
    assert done.returncode != 0
    if workers == "-n1":
        assert "1 failed, 1 passed" in done.stdout, done.stdout + done.stderr  # in another worker
    wait_for(lambda: ended(int((tmp_path / "started").read_text())))


def test_processes_of_fixtures_live_on(tmp_path: Path) -> None:
    code = """
    @pytest.fixture(scope="session")
    def server():
        with sleeper("server") as process:
            time.sleep(0.1)
            yield process
            process.kill()

    def test_stuck(server):
        sleeper("started").wait()  # HERE

    def test_next(server):
        assert server.poll() is None
    """
    done = pytest_of(tmp_path, code, "-n0")
    assert "1 failed, 1 passed" in done.stdout, done.stdout + done.stderr
    wait_for(lambda: ended(int((tmp_path / "started").read_text())))
