"""Where the time of a start goes: SANDBOXRUN_TRACE_STARTUP=FILE makes the supervisor append `NANOSECONDS NAME` lines to FILE.

Nanoseconds of CLOCK_MONOTONIC, as clock_gettime(2) gives them. The operator's environment alone says so: the variable is
taken out of it at once, so that no `allowEnv` of a hash can pass it on, and no descriptor of FILE reaches the worker.
"""

import os
import time

_MARKS_MAX = 64  # a worker that connects for ever must not fill the disk


def _nothing(name: str, at: int | None = None) -> None:
    pass


class _Trace:
    """Opened at the first mark: before that, a standard descriptor may be missing, and FILE would get its number."""

    def __init__(self, path: str) -> None:
        self._path, self._fd, self._left = path, -1, _MARKS_MAX
        self._loaded = time.monotonic_ns()

    def mark(self, name: str, at: int | None = None) -> None:
        """Append one line; `at` where it was somebody else who looked at the clock."""
        now = time.monotonic_ns() if at is None else at
        if self._fd < 0 and self._left:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
            try:
                self._fd = os.open(self._path, flags, 0o600)
            except OSError as error:
                from sandboxrun.errors import ConfigError

                self._left = 0
                raise ConfigError(
                    f"SANDBOXRUN_TRACE_STARTUP is {self._path!r}, which cannot be written: {error.strerror}"
                ) from error
            self._write(b"%d interpreter is up\n" % self._loaded)
        if self._left:
            self._left -= 1
            self._write(b"%d %s\n" % (now, name.encode()))

    def _write(self, line: bytes) -> None:
        try:
            os.write(self._fd, line)
        except OSError:
            pass  # a full disk is no reason to end a worker, nor to refuse its connect


_path = os.environ.pop("SANDBOXRUN_TRACE_STARTUP", "")
mark = _Trace(_path).mark if _path else _nothing
