"""A worker's output: a full disk or a closed pipe fails no request.

Output that cannot be written is dropped, with one warning. The stream objects stay the same, because a logging handler
or a library may already hold one.
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
    """The descriptor of a standard stream: every write succeeds, and `lost` is called with the first error."""

    def __init__(self, fd: int, name: str, lost: Callable[[int, OSError], None]) -> None:
        super().__init__(fd, "wb", closefd=False)
        self.name = name
        self._lost: Callable[[int, OSError], None] | None = lost

    def write(self, data: Any) -> int:
        try:
            count = super().write(data)
            while count is None:  # EAGAIN: another process made the file non-blocking
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
    """Make sys.stdout and sys.stderr drop output that cannot be written. Streams that a script replaced are left alone."""
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
        pass  # earlier output is lost; the next write reports why
    lossy = _Lossy(fd, raw.name, _say_lost)
    # A second __init__ replaces the file below the stream, for everybody who holds the stream.
    io.TextIOWrapper.__init__(stream, lossy if buffer is raw else io.BufferedWriter(lossy), newline="\n", **options)


def _say_lost(fd: int, error: OSError) -> None:
    if fd == 1:
        say(f"{_NAMES[fd]} cannot be written ({error.strerror}): what the worker prints is lost")


def say(message: str, kind: str = "worker", hint: tuple[str, ...] = ()) -> None:
    """Write a line to standard error, and the hint below it, even if the script closed sys.stderr. Never raises."""
    line = f"{kind}: {message}\n" + (f"hint: {chr(10).join(hint)}\n" if hint else "")
    try:
        sys.stderr.write(line)
        sys.stderr.flush()
    except BaseException:  # closed, None, or replaced by the script
        try:
            os.write(2, line.encode("utf-8", "backslashreplace"))
        except OSError:
            pass
