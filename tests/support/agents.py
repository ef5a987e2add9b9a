"""A process `sandboxrun agent`, for tests."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable

from arena import wait_for as wait_at_most
from runner import Runner


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
