"""The audit log: every decision that matters, as one JSON line each, in a file that is only appended to, or in the journal.

A line holds names, targets and digests, never a value of the environment, a key, or a password. What cannot be written before
the worker runs keeps it from running; later it is said once, and the worker goes on.
"""

from __future__ import annotations

import json
import os
import pwd
import stat
import time
from collections.abc import Callable, Iterable

from sandboxrun.errors import ConfigError, SandboxrunError

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
    """Where decisions go: `places` are files, or JOURNAL; none is no audit. Raises ConfigError where one cannot be written.

    As a context manager it writes down the error that ends the block.
    """

    def __init__(
        self, places: Iterable[str], *, worker: str, warn: Callable[[str], None], journal: str = JOURNAL_SOCKET
    ) -> None:
        self._sinks: list[_File | _Journal] = [
            _Journal(journal) if place == JOURNAL else _File(place) for place in places
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
                self._strict = False  # the error itself is what has to be reported
                code = error.exit_code if isinstance(error, SandboxrunError) else None
                self.record("error", "refused", message=str(error) or type(error).__name__, exit_code=code)
        finally:
            for sink in self._sinks:
                sink.close()

    def about(self, **known: object) -> None:
        """What every further line says: version, sha256."""
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
                    raise ConfigError(f"{what}: make room or change its mode, or leave --audit out") from error
                if not sink.failed:
                    sink.failed = True
                    self._warn(f"{what}: decisions are missing in it from now on")

    def logged(self, level: str, event: str, message: str, fields: dict[str, object]) -> None:
        """One of our messages to the operator (Log.observer): written down where it tells of a decision."""
        if event in _LOGGED:
            self.record("denial" if event == "denied" else event, _LOGGED[event], message=message, **fields)
        if event == "start":
            self._strict = False


class _File:
    """One write(2) a line with O_APPEND, which Linux never mixes with another's on a local file. Not locked: whoever can read
    the file could hold a lock, and with it our supervisor."""

    def __init__(self, name: str) -> None:
        self.name, self.failed, self._torn = name, False, False
        try:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
            self._fd = os.open(name, flags, 0o600)
        except OSError as error:
            raise ConfigError(f"the audit log {name} cannot be opened: {error.strerror}") from error
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):
            os.close(self._fd)
            raise ConfigError(f"the audit log {name} is not a file: name a file, or write --audit {JOURNAL}")

    def write(self, line: bytes, event: str) -> None:
        data = b"\n" * self._torn + line + b"\n"
        written = os.write(self._fd, data)
        self._torn = written < len(data)
        if self._torn:
            raise OSError("no room for a whole line")

    def close(self) -> None:
        os.close(self._fd)


class _Journal:
    """systemd's journal, by its native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL): a datagram of FIELD=VALUE lines."""

    name = JOURNAL

    def __init__(self, path: str) -> None:
        import socket

        self.failed = False
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            self._socket.connect(path)
        except OSError as error:
            self._socket.close()
            raise ConfigError(
                f"there is no journal at {path} ({error.strerror}): name a file with --audit FILE"
            ) from error

    def write(self, line: bytes, event: str) -> None:
        # JSON is one line, and so is an event's name: no field needs the protocol's binary form.
        fields = b"PRIORITY=5\nSYSLOG_IDENTIFIER=sandboxrun\nSANDBOXRUN_EVENT=%b\nMESSAGE=%b\n"
        self._socket.send(fields % (event.encode(), line))

    def close(self) -> None:
        self._socket.close()


def _line(always: dict[str, Any], details: dict[str, object]) -> bytes:
    """JSON in ASCII, so that no byte of it drives a terminal; details that are too long are cut, and say so."""
    line = json.dumps({**always, "details": details}, default=str).encode()
    if len(line) <= LINE_MAX_BYTES:
        return line
    text = json.dumps(details, default=str)
    while len(line) > LINE_MAX_BYTES:
        text = text[: len(text) // 2]
        line = json.dumps({**always, "details": {"cut": text}}).encode()
    return line


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
