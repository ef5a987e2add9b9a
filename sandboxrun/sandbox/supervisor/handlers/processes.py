"""How many threads a worker may start: `clone` of a thread asks the supervisor. Processes are counted by group.py."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from sandboxrun.sandbox.supervisor.dispatch import PROCEED, Answer
from sandboxrun.sandbox.supervisor.listener import Notification
from sandboxrun.sandbox.supervisor.target import Target


class Threads:
    """Answers `clone`: the decision does not depend on the worker's memory, so the kernel may perform the call.

    Exact but for those being made at the same moment. libc blocks all signals around the call, so that none ends it.
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
            from sandboxrun.sandbox.supervisor import group

            return group.tasks(self._pid)
        return os.stat(f"/proc/{self._pid}/task").st_nlink - 2  # a folder for each thread
