"""Run a command with its own temporary folder; however it ends, its processes and that folder are removed.

    python contained.py [--keep NAME]… COMMAND…

The command gets the folder as TMPDIR and as SANDBOXRUN_TESTS_FOLDER, the default signal dispositions, and from the environment
PATH, HOME, CI and the variables that --keep names. Ctrl-C, SIGTERM and SIGHUP end it. The exit code is that of the command, or
128 plus the number of a signal.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import machine

PR_SET_CHILD_SUBREAPER = 36
ENDING = frozenset((signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT))
END_SECONDS = 10
INTERRUPTED_SECONDS = 10  # the terminal interrupts pytest too, which then reports how far it came
SHORT = re.compile(
    r"/[\w./+-]{1,12}", re.ASCII
)  # a short and plain name, so that the paths below it are plain too: machine.py
KEPT = ("PATH", "HOME", "CI")


def descendants() -> list[int]:
    """The descendants of this process. Orphans become its children, because it is a subreaper."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(path.read_text(errors="replace").rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(path.parent.name))
    found = list(children.get(os.getpid(), ()))
    for pid in found:
        found += children.get(pid, ())
    return found


def end_all() -> None:
    deadline = time.monotonic() + END_SECONDS
    while (pids := descendants()) and time.monotonic() < deadline:
        for pid in pids:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        reap()
        time.sleep(0.01)


def reap(pid: int = 0) -> int | None:
    """Reap all ended children. Returns the exit code of `pid` if it is one of them."""
    code = None
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            if found[0] == pid:
                code = os.waitstatus_to_exitcode(found[1])
    return code


def run(command: list[str], env: dict[str, str]) -> int:
    process = subprocess.Popen(command, env=env, preexec_fn=machine.reset_signals)
    ended_by, deadline = 0, math.inf
    while (code := reap(process.pid)) is None:
        found = signal.sigtimedwait({*ENDING, signal.SIGCHLD}, max(0, min(3600, deadline - time.monotonic())))
        number = found.si_signo if found is not None else 0
        if number == signal.SIGINT and not ended_by:
            ended_by, deadline = number, time.monotonic() + INTERRUPTED_SECONDS
        elif number in ENDING or time.monotonic() >= deadline:
            ended_by = ended_by or number
            break
    process.returncode = code if code is not None else -signal.SIGKILL
    if ended_by:
        return 128 + ended_by
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


def main() -> int:
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--keep", action="append", default=list(KEPT))
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    machine.reset_signals()
    signal.pthread_sigmask(signal.SIG_BLOCK, {*ENDING, signal.SIGCHLD})  # they wait for sigtimedwait(2)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(1), 0, 0, 0)
    above = os.environ.get("TMPDIR", "")
    folder = tempfile.mkdtemp(prefix="sandboxrun-tests-", dir=above if SHORT.fullmatch(above) else "/tmp")
    env = {name: os.environ[name] for name in options.keep if name in os.environ}
    env |= {"LANG": "C.UTF-8", "TMPDIR": folder, "SANDBOXRUN_TESTS_FOLDER": folder}
    try:
        return run(options.command, env)
    finally:
        end_all()
        subprocess.run(["chmod", "-R", "u+rwx", folder], stderr=subprocess.DEVNULL, check=False)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
