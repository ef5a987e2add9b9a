"""An agent in a process of its own (tests/kernel/forking.py), which runs code and tells results."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

FORKING = Path(__file__).parents[1] / "kernel" / "forking.py"


class SmallAgent:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def __call__(self, code: str) -> Any:
        """Run it there; what it has assigned to `result`."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(textwrap.dedent(code)) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, f"the agent ended with {self.process.wait()}"
        return json.loads(line)


@contextlib.contextmanager
def small_agent(env: Mapping[str, str] | None = None, *, under: tuple[str, ...] = ()) -> Iterator[SmallAgent]:
    """It and all its children are gone afterwards. `under`: a command that runs its arguments."""
    command = [*under, sys.executable, str(FORKING)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=env, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            yield SmallAgent(process)
        finally:
            process.kill()
