"""One `sandboxrun TYPE ID` as a child process: the real command, a clean supervisor for each start."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

from sandboxrun.lifeline import end_with_parent
from sandboxrun.log import escape, shown_hint
from sandboxrun.redis.connection import Connection

LINE_MAX_BYTES = 64 * 1024
LAST_WORDS_SECONDS = 1.0


class Process:
    """Born in standby, where asked: it has all imported and waits for `go`, so that a start takes half the time.

    `said` is given each line, from a thread: whether it is a message of the supervisor's, which gives (level, message), or
    the worker's own, with level "" for its standard output and "worker" for its standard error; `denied` is given the
    fields of each denial first. Make it in a thread that lives as long as the program: the child ends with that.
    """

    def __init__(
        self,
        words: Sequence[str],
        *,
        env: Mapping[str, str],
        key_file: str | None,
        standby: bool,
        said: Callable[[str, str], None],
        denied: Callable[[Mapping[str, Any]], None],
        ended: Callable[[Process], None],
    ) -> None:
        command = [sys.executable, "-I", "-m", "sandboxrun", "run", *words, "--json-logs", "--no-log"]
        self.started = threading.Event()  # the supervisor has claimed the hash and lets the worker go
        self.started_at = 0.0
        self._said, self._denied, self._ended, self._go = said, denied, ended, -1
        with contextlib.ExitStack() as stack:
            stdin: IO[bytes] | int = stack.enter_context(open(key_file, "rb")) if key_file else subprocess.DEVNULL
            fds: tuple[int, ...] = ()
            if standby:
                read, self._go = os.pipe()
                stack.callback(os.close, read)
                command.append(f"--standby={read}")
                fds = (read,)
            self._process = subprocess.Popen(
                command,
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=dict(env),
                pass_fds=fds,
                process_group=0,  # what is typed at the terminal ends us, and we end it
                preexec_fn=end_with_parent,
            )
        assert self._process.stdout and self._process.stderr
        readers = [
            threading.Thread(target=self._read, args=(self._process.stdout, self._own_line), daemon=True),
            threading.Thread(target=self._read, args=(self._process.stderr, self._error_line), daemon=True),
        ]
        for reader in readers:
            reader.start()
        threading.Thread(target=self._wait, args=(readers,), daemon=True).start()

    @property
    def code(self) -> int | None:
        """Its exit code, once it has ended."""
        return self._process.poll()

    def go(self) -> None:
        """Leave the standby."""
        if self._go >= 0:
            with contextlib.suppress(BrokenPipeError):
                os.write(self._go, b"g")
            self.abandon()

    def abandon(self) -> None:
        """A standby that nobody let go ends by this."""
        if self._go >= 0:
            os.close(self._go)
            self._go = -1

    def stop(self, *, kill: bool = False) -> None:
        """SIGTERM: the worker finishes what is in hand, and hands the rest back."""
        self._process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)

    def join(self, seconds: float) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)

    def _wait(self, readers: list[threading.Thread]) -> None:
        self._process.wait()
        for reader in readers:
            reader.join(LAST_WORDS_SECONDS)
        self._ended(self)

    def _read(self, stream: IO[bytes], take: Callable[[str], None]) -> None:
        with stream:
            while raw := stream.readline(LINE_MAX_BYTES):
                take(raw.decode("utf-8", "replace").rstrip("\r\n"))

    def _own_line(self, line: str) -> None:
        self._said("", shown(line))

    def _error_line(self, line: str) -> None:
        message = parse_message(line)
        if message is None:
            self._said("worker", shown(line))
        elif message["event"] == "start":
            self.started_at = time.time()
            self.started.set()
        else:
            if message["event"] == "denied":
                self._denied(message)
            self._said(message["level"], "\n".join([escape(message["message"]), *_hint(message)]))


def parse_message(line: str) -> dict[str, Any] | None:
    """A line of --json-logs, or None for anything else."""
    if not line.startswith('{"time": '):
        return None
    try:
        found = json.loads(line)
    except ValueError:
        return None
    parts = [found.get(name) for name in ("level", "event", "message")]
    return found if all(isinstance(part, str) for part in parts) else None


def _hint(message: dict[str, Any]) -> list[str]:
    hint = message.get("hint")
    if not isinstance(hint, list) or not all(isinstance(line, str) for line in hint):
        return []
    return list(filter(None, [shown_hint(tuple(hint))]))


def unblock(connection: Connection, type_: str, id_: str) -> None:
    """Let the read return in which a worker waits for requests. Raises ReplyError for a login that may not do that.

    It is Redis's own end of a read, so no entry can be on its way.
    """
    user = f" user=sandboxrun:{type_}:{id_}:"
    clients: bytes = connection.call("CLIENT", "LIST")
    for line in clients.decode("utf-8", "replace").splitlines():
        if user in line and " cmd=xreadgroup " in line:
            connection.call("CLIENT", "UNBLOCK", line.partition(" ")[0].removeprefix("id="))


def shown(line: str) -> str:
    """What a worker printed, without anything that can drive a terminal."""
    return "\t".join(map(escape, line.split("\t")))
