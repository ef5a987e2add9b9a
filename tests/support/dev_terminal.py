"""`sandboxrun dev …` at a real terminal."""

from __future__ import annotations

import pexpect
from runner import Runner

SECONDS = 30


class Terminal:
    """Typed at and read, line by line."""

    def __init__(self, run: Runner, *args: str) -> None:
        command, *words = run.command("dev", *args)
        self.spawned = pexpect.spawn(
            command, words, cwd=str(run.home), env=run.env, encoding="utf-8", timeout=SECONDS, dimensions=(40, 200)
        )

    def until(self, text: str) -> str:
        """What stands before `text`, which comes."""
        self.spawned.expect_exact(text)
        return str(self.spawned.before)

    def type(self, line: str) -> None:
        self.spawned.sendline(line)

    def left(self) -> str:
        """What comes until the end, which must be one without an error."""
        self.spawned.expect(pexpect.EOF)
        self.spawned.close()
        assert self.spawned.exitstatus == 0
        return str(self.spawned.before)


def close(spawned: pexpect.spawn) -> None:
    """End it, whatever it does."""
    try:
        spawned.close(force=True)
    except pexpect.ExceptionPexpect:  # it was killed, and on a busy machine takes longer than that waits
        spawned.wait()
