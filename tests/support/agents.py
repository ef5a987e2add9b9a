"""A process `sandboxrun agent`, for tests."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable

from arena import wait_for as wait_at_most
from runner import Runner

SAID_SECONDS = 20.0


def wait_for(condition: Callable[[], object]) -> None:
    wait_at_most(condition, 60)


class Agent:
    """A process `sandboxrun agent`, and the lines that it has printed."""

    def __init__(self, run: Runner, *args: str) -> None:
        self.process = subprocess.Popen(
            run.command("agent", *args), env=run.env, cwd=run.home, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        self.lines: list[str] = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.decode().rstrip("\n"))

    def says(self, text: str, count: int = 1) -> bool:
        """Whether it does within SAID_SECONDS: what it does shows elsewhere before its words have come."""
        until = time.monotonic() + SAID_SECONDS
        while not (said := self.has_said(text, count)) and time.monotonic() < until:
            time.sleep(0.02)
        return said

    def has_said(self, text: str, count: int = 1) -> bool:
        return sum(text in line for line in self.lines) >= count

    def ends(self) -> int:
        code = self.process.wait(30)
        self._thread.join(10)
        return code

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(30)
        self._thread.join(10)
        assert self.process.stderr is not None
        self.process.stderr.close()
        print(*self.lines, sep="\n")  # for a test that has failed
