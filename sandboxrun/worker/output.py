"""What a worker prints, so that a full disk or a reader that has gone fails no request.

Output that cannot be written is dropped, and one line says so. The streams keep their identity, because a logging
handler or a library may hold one of them already.
"""

from __future__ import annotations

import io
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_NAMES = {1: "standard output", 2: "standard error"}


class _Lossy(io.FileIO):
    """A standard stream's descriptor: every write succeeds, and `lost` is called with the first error."""

    def __init__(self, fd: int, name: str, lost: Callable[[int, OSError], None]) -> None:
        super().__init__(fd, "wb", closefd=False)
        self.name = name
        self._lost: Callable[[int, OSError], None] | None = lost

    def write(self, data: Any) -> int:
        try:
            count = super().write(data)
            while count is None:  # EAGAIN: somebody else made the file non-blocking
                _wait(self.fileno())
                count = super().write(data)
            return count
        except OSError as error:
            tell, self._lost = self._lost, None
            if tell is not None:
                tell(self.fileno(), error)
            return memoryview(data).nbytes


def _wait(fd: int) -> None:
    import select

    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    poll.poll()


def keep_writable() -> None:
    """Let sys.stdout and sys.stderr drop what cannot be written. Streams that a script has replaced stay as they are."""
    for fd, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            _keep_writable(fd, stream)
        except (AttributeError, ValueError, OSError):
            continue  # closed, or not a stream of Python's own


def _keep_writable(fd: int, stream: Any) -> None:
    buffer = stream.buffer
    raw = getattr(buffer, "raw", buffer)
    if type(stream) is not io.TextIOWrapper or type(raw) is not io.FileIO or raw.fileno() != fd:
        return
    options = {name: getattr(stream, name) for name in ("encoding", "errors", "line_buffering", "write_through")}
    try:
        stream.flush()
    except OSError:
        pass  # what was printed before is lost, and the next line says why
    lossy = _Lossy(fd, raw.name, _say_lost)
    # A second __init__ gives the stream another file below it; whoever holds the stream already prints there as well.
    io.TextIOWrapper.__init__(stream, lossy if buffer is raw else io.BufferedWriter(lossy), newline="\n", **options)


def _say_lost(fd: int, error: OSError) -> None:
    if fd == 1:
        say(f"{_NAMES[fd]} cannot be written ({error.strerror}): what the worker prints is lost")


def say(message: str, kind: str = "worker", hint: tuple[str, ...] = ()) -> None:
    """One line on standard error, whatever a script has made of sys.stderr. Never raises."""
    line = f"{kind}: {message}\n" + (f"hint: {chr(10).join(hint)}\n" if hint else "")
    try:
        sys.stderr.write(line)
        sys.stderr.flush()
    except BaseException:  # closed, None, or an object of the script's
        try:
            os.write(2, line.encode("utf-8", "backslashreplace"))
        except OSError:
            pass
