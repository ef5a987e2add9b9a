"""The command `sandboxrun` in a process of its own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SECONDS = 60
ALLOW_ALL = """\
[worker."*"]
open-redis = true
allow-net = ["*", "localhost", "*.localhost", "0.0.0.0/0", "::/0"]
allow-read = ["*"]
allow-write = ["*"]
allow-run = ["*"]
allow-listen = ["*"]
allow-env = ["*"]
allow-redis = ["*", "+pubsub:*", "+*"]
"""


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


class Runner:
    """The command `sandboxrun` with its own home folder. `policy`: the operator's policy file; None: the default policy."""

    def __init__(self, redis_url: str, home: Path, *, policy: str | None = ALLOW_ALL) -> None:
        self.home = home
        self.policy = home / ".config/sandboxrun/policy.toml"
        self.set_policy(policy)
        self.env = {"PATH": os.environ["PATH"], "HOME": str(home), "REDIS_URL": redis_url, "LANG": "C.UTF-8"}

    def set_policy(self, text: str | None) -> None:
        """Replace the policy file for later runs."""
        self.policy.unlink(missing_ok=True)
        if text is not None:
            self.policy.parent.mkdir(parents=True, exist_ok=True)
            self.policy.write_text(text)
            self.policy.chmod(0o600)

    def __call__(self, *args: str, stdin: str | bytes = b"") -> Done:
        data = stdin.encode() if isinstance(stdin, str) else stdin
        done = subprocess.run(
            self.command(*args), env=self.env, cwd=self.home, input=data, capture_output=True, timeout=SECONDS
        )
        return Done(done.returncode, done.stdout.decode(), done.stderr.decode())

    def command(self, *args: str) -> list[str]:
        return [str(Path(sys.executable).with_name("sandboxrun")), *args]

    @contextlib.contextmanager
    def start(self, *args: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run it in the background without standard input; it is killed at the end."""
        pipe = subprocess.PIPE
        command = self.command(*args)
        with subprocess.Popen(
            command, env=self.env, cwd=self.home, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe
        ) as process:
            try:
                yield process
            finally:
                process.kill()
