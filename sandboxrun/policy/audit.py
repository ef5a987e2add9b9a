"""The audit log: one JSON line for each decision, appended to a file or sent to the systemd journal.

A line has names, targets and digests, never a value of the environment, a key, or a password. If a line cannot be written
before the worker runs, the worker does not run. Later, a warning says so once, and the worker goes on.
"""

from __future__ import annotations

import os
import pwd
import stat
import time
from collections.abc import Callable, Iterable

from sandboxrun.config import keys
from sandboxrun.errors import ConfigError, SandboxrunError
from sandboxrun.plainjson import dumps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

LINE_MAX_BYTES = 32 * 1024
JOURNAL = "journal"  # instead of a file's name
JOURNAL_SOCKET = "/run/systemd/journal/socket"
_LOGGED = {  # events of our messages that are decisions, with their outcome
    "denied": "refused",
    "degraded": "allowed",
    "limit": "refused",
    "stop": "ended",
    "start": "running",
}


class Audit:
    """The audit log. `sinks`: file names or JOURNAL; empty disables it. Raises ConfigError if one cannot be written.

    As a context manager, it records the error that ends the block.
    """

    def __init__(
        self, sinks: Iterable[str], *, worker: str, warn: Callable[[str], None], journal: str = JOURNAL_SOCKET
    ) -> None:
        self._sinks: list[_File | _Journal] = [
            _Journal(journal, worker) if sink == JOURNAL else _File(sink) for sink in sinks
        ]
        self._warn, self._strict = warn, True
        uid = os.getuid()
        self._always = {
            "host": os.uname().nodename,
            "user": _user(uid) if self._sinks else "",
            "uid": uid,
            "pid": os.getpid(),
            "worker": worker,
        }

    def __enter__(self) -> Audit:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        try:
            if error is not None:
                self._strict = False  # the user has to see this error, not one of the log
                code = error.exit_code if isinstance(error, SandboxrunError) else None
                self.record("error", "refused", message=str(error) or type(error).__name__, exit_code=code)
        finally:
            for sink in self._sinks:
                sink.close()

    def about(self, **known: object) -> None:
        """Add to every further line: version, sha256."""
        self._always |= known

    def record(self, event: str, outcome: str, **details: object) -> None:
        """Raises ConfigError before the worker runs. From any thread."""
        if not self._sinks:
            return
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now * 1000) % 1000:03}Z"
        line = _line({"time": stamp, **self._always, "event": event, "outcome": outcome}, details)
        for sink in self._sinks:
            try:
                sink.write(line, event)
            except OSError as error:
                what = f"the audit log {sink.name} cannot be written ({error.strerror or error})"
                if self._strict:
                    raise ConfigError(what) from error
                if not sink.failed:
                    sink.failed = True
                    self._warn(f"{what}: decisions are missing in it from now on")

    def logged(self, level: str, event: str, message: str, fields: dict[str, object]) -> None:
        """Record a message to the operator if it tells of a decision. It is the Log's observer."""
        if event in _LOGGED:
            self.record("denial" if event == "denied" else event, _LOGGED[event], message=message, **fields)
        if event == "start":
            self._strict = False


class _File:
    """A file, written by one write(2) for each line with O_APPEND: on a local file, Linux never mixes two of them. There is no
    lock, because whoever can read the file could hold it, and would stop the supervisor."""

    def __init__(self, name: str) -> None:
        self.name, self.failed, self._torn = name, False, False
        try:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
            self._fd = os.open(name, flags, 0o600)
        except OSError as error:
            raise ConfigError(f"the audit log {name} cannot be opened: {error.strerror}") from error
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):
            os.close(self._fd)
            raise ConfigError(f"the audit log {name} is neither a file nor {JOURNAL!r}")

    def write(self, line: bytes, event: str) -> None:
        data = b"\n" * self._torn + line + b"\n"
        written = os.write(self._fd, data)
        self._torn = written < len(data)
        if self._torn:
            raise OSError("no room for a whole line")

    def close(self) -> None:
        fd, self._fd = self._fd, -1  # a late message must not be written into another file's number
        os.close(fd)


class _Journal:
    """systemd's journal, by its native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL): a datagram of FIELD=VALUE lines."""

    name = JOURNAL

    def __init__(self, path: str, worker: str) -> None:
        import socket

        self.failed = False
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            self._socket.connect(path)
        except OSError as error:
            self._socket.close()
            raise ConfigError(
                f"there is no systemd journal at {path} for --audit {JOURNAL} ({error.strerror})",
                hint=f"sandboxrun {keys.in_words(worker)} --audit FILE",
            ) from error

    def write(self, line: bytes, event: str) -> None:
        # JSON is one line, and so is an event's name: no field needs the protocol's binary form.
        fields = b"PRIORITY=5\nSYSLOG_IDENTIFIER=sandboxrun\nSANDBOXRUN_EVENT=%b\nMESSAGE=%b\n"
        self._socket.send(fields % (event.encode(), line))

    def close(self) -> None:
        self._socket.close()


def _line(always: dict[str, Any], details: dict[str, object]) -> bytes:
    """JSON in ASCII, so that no byte of it drives a terminal. Details that are too long become the field `cut`."""
    line = dumps({**always, "details": details}, default=str).encode()
    if len(line) <= LINE_MAX_BYTES:
        return line
    text = dumps(details, default=str)
    while len(line) > LINE_MAX_BYTES:
        text = text[: len(text) // 2]
        line = dumps({**always, "details": {"cut": text}}).encode()
    return line


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
