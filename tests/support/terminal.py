"""A command at a terminal of its own, and somebody who answers its question."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

SECONDS = 60
_CONTROLLING = "import fcntl, os, sys, termios\nfcntl.ioctl(int(sys.argv[1]), termios.TIOCSCTTY, 0)\nos.execv(sys.argv[2], sys.argv[2:])"


class Shown(NamedTuple):
    """The exit code, and all that the terminal has shown."""

    code: int
    text: str


def at_terminal(
    command: Sequence[str],
    env: dict[str, str],
    folder: Path,
    *,
    answer: bytes = b"",
    early: bytes = b"",
    without: Sequence[str] = (),
    asked: Callable[[], None] = lambda: None,
) -> Shown:
    """Run `command` with a controlling terminal as standard input, output and error.

    `answer` is typed when a question is there, `early` before; `asked` is called before the answer. `without`: which of
    stdin, stdout and stderr are not the terminal, but /dev/null.
    """
    master, slave = pty.openpty()
    null = os.open(os.devnull, os.O_RDWR)
    files = {name: null if name in without else slave for name in ("stdin", "stdout", "stderr")}
    with open(master, "rb", buffering=0), open(slave, "rb", buffering=0), open(null, "rb", buffering=0):
        os.write(master, early)
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _CONTROLLING, str(slave), *command],
            env=env,
            cwd=folder,
            start_new_session=True,
            pass_fds=(slave,),
            stdin=files["stdin"],
            stdout=files["stdout"],
            stderr=files["stderr"],
        )
        try:
            shown, is_answered, deadline = b"", False, time.monotonic() + SECONDS
            while process.poll() is None or select.select([master], [], [], 0)[0]:
                assert time.monotonic() < deadline, shown
                if select.select([master], [], [], 0.02)[0]:
                    shown += os.read(master, 65536)
                if not is_answered and b"[y/N] " in shown:
                    is_answered = True
                    asked()
                    os.write(master, answer)
        finally:
            process.kill()
            process.wait()
    return Shown(process.returncode, shown.decode().replace("\r\n", "\n"))
