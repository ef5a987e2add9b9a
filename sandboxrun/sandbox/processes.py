"""Threads and processes of the sandbox: how many there may be, and that none outlives its end.

All of them stay in the session that the child was started in, since the filter has no setsid(2): so they can be found.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from collections.abc import Callable, Iterator

from sandboxrun.sandbox.calls import PROCEED, Answer
from sandboxrun.sandbox.notify import Notification
from sandboxrun.sandbox.target import Target

_STAT_STATE, _STAT_SESSION, _STAT_THREADS = 0, 3, 17  # fields of /proc/PID/stat after the name, proc(5)


class Processes:
    """Answers `clone`, `fork` and `vfork`: how many there are does not hang on the worker's memory, so the kernel may go on.

    Exact but for those being made at the same moment.
    """

    def __init__(self, pid: int, *, limit: int, many: bool, reached: Callable[[], None]) -> None:
        """`limit`: threads and processes together, 0 for none. `many`: there may be more processes than `pid`."""
        self._pid, self._limit, self._many, self._reached = pid, limit, many, reached

    def clone(self, target: Target, notification: Notification) -> Answer:
        if self._limit and self._count() >= self._limit:
            self._reached()
            return errno.EAGAIN
        return PROCEED

    def _count(self) -> int:
        if self._many:
            return sum(threads for _, threads in _of_session(self._pid))
        return os.stat(f"/proc/{self._pid}/task").st_nlink - 2  # a folder for each thread


def session_pids(session: int) -> list[int]:
    """The processes of a session that live."""
    return [pid for pid, _ in _of_session(session)]


def kill_session(session: int, seconds: float = 5.0) -> None:
    """Kill every process of a session until none is left, or the time is over."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = session_pids(session)
        if not found:
            return
        for pid in found:
            _kill(pid, session)
        time.sleep(0.002)


def _kill(pid: int, session: int) -> None:
    with contextlib.suppress(OSError):  # it has ended
        pidfd = os.pidfd_open(pid)
        try:
            if os.getsid(pid) == session:  # asked after it was pinned, so not of a stranger with the same number
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        finally:
            os.close(pidfd)


def _of_session(session: int) -> Iterator[tuple[int, int]]:
    """(pid, number of threads) of those that live, zombies left out."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
                if int(fields[_STAT_SESSION]) == session and fields[_STAT_STATE] not in (b"Z", b"X"):
                    yield int(name), int(fields[_STAT_THREADS])
