"""The process group of a worker that may run programs: who is in it, how many, and how all of it ends at once.

The filter allows neither setsid(2) nor setpgid(2), so every process of the sandbox stays in the group that the worker
leads. One signal to the group ends all of them, however fast they fork: the kernel delivers it to a child that is being
made, or makes none if its parent has a fatal signal pending (copy_process in kernel/fork.c).

Forks are not trapped: a trapped system call fails with EINTR if a signal arrives, which no program expects of fork(2).
So `Watch` counts the processes from outside. It runs in a process of its own (guard.py), which imports this file alone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import namedtuple
from collections.abc import Callable, Iterable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NamedTuple

    class Member(NamedTuple):
        started: int  # clock ticks since boot
        pid: int
        parent: int
        threads: int
        state: str

        @property
        def is_zombie(self) -> bool: ...

else:

    class Member(namedtuple("Member", "started pid parent threads state")):
        __slots__ = ()

        @property
        def is_zombie(self):
            return self.state in "ZX"


LOOK_SECONDS = 0.02
_SCAN_SECONDS = 1.0  # at the latest, if anything was started on this machine
_SCAN_SHARE = 4  # a scan that took T seconds is followed by none for T times this
_BURST_MAX = 2000  # beyond the limit between two looks: then the worker is ended, not the newest processes
_REFUSED_MIN = 4000  # members, ended ones too: RLIMIT_NPROC has refused more, see backstop() in compile/policy.py
_ZOMBIES_SECONDS = 1.0  # how long there may be more of them than the limit
_PIDFD_SIGNAL_PROCESS_GROUP = 1 << 2  # linux/pidfd.h, since Linux 6.9
_STATE, _PARENT, _GROUP, _THREADS, _STARTED = 0, 1, 2, 17, 19  # fields of /proc/PID/stat after the name, proc(5)


def kill(group: int, pidfd: int) -> None:
    """SIGKILL to every member. `pidfd` is of the leader, which may have ended; before Linux 6.9 its number is used."""
    _signal(group, pidfd, signal.SIGKILL)


def _signal(group: int, pidfd: int, number: int) -> None:
    try:
        signal.pidfd_send_signal(pidfd, number, None, _PIDFD_SIGNAL_PROCESS_GROUP)
    except ProcessLookupError:
        pass
    except OSError:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, number)


def pids(group: int, enough: int = 0) -> list[int]:
    """Of all members, zombies too; no more than `enough` of them, if it is not 0."""
    found: list[int] = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):  # it has ended
                if os.getpgid(int(name)) == group:  # much cheaper than to read about every process of the machine
                    found.append(int(name))
                    if len(found) == enough:
                        break
    return found


def members(group: int, found: Iterable[int] | None = None) -> list[Member]:
    """All of them, the oldest first; `found`: their pids, if they are known."""
    known = []
    for pid in pids(group) if found is None else found:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
            if int(fields[_GROUP]) == group:
                started, parent, threads = int(fields[_STARTED]), int(fields[_PARENT]), int(fields[_THREADS])
                known.append(Member(started, pid, parent, threads, fields[_STATE].decode()))
    return sorted(known)


def living(group: int) -> list[int]:
    """Pids of the members that have not ended."""
    return [member.pid for member in members(group) if not member.is_zombie]


def tasks(group: int) -> int:
    """How many threads and processes there are; a zombie that its parent can reap counts as one."""
    living, zombies = _count(members(group))
    return living + zombies


def _count(found: list[Member]) -> tuple[int, int]:
    """Threads of the living members, and zombies; not those that wait for process 1 to reap them."""
    alive = {member.pid for member in found if not member.is_zombie}
    zombies = sum(1 for member in found if member.is_zombie and member.parent in alive)
    return sum(member.threads for member in found if not member.is_zombie), zombies


def wait_until_gone(group: int, *, seconds: float) -> list[int]:
    """Wait until no member lives, at most so long; pids of those that still do."""
    deadline, pause = time.monotonic() + seconds, 0.001
    while (left := living(group)) and time.monotonic() < deadline:
        time.sleep(pause)
        pause = min(2 * pause, 0.05)
    return left


def reap_orphans(leader: int) -> None:
    """Reap the ended members whose parent is now this process, because it is process 1 or a subreaper; not the leader."""
    with contextlib.suppress(ChildProcessError):
        while found := os.waitid(os.P_PGID, leader, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if found.si_pid == leader:
                return
            os.waitid(os.P_PID, found.si_pid, os.WEXITED | os.WNOHANG)


class Watch:
    """Holds the number of threads and processes of a group to a limit.

    The newest processes beyond it are killed, while the group is stopped. The whole group is killed if its zombies alone
    pass the limit for longer than _ZOMBIES_SECONDS, because only their parents can remove them, or if it grows by more than
    _BURST_MAX between two looks.
    """

    def __init__(self, group: int, pidfd: int, *, limit: int, say: Callable[[bytes], None]) -> None:
        """`say` is called with REACHED or ENDED."""
        self._group, self._pidfd, self._limit, self._say = group, pidfd, limit, say
        self._load = os.open("/proc/loadavg", os.O_RDONLY | os.O_CLOEXEC)
        self._newest_pid = self._machine = self._tasks = 0  # at the last scan; machine: threads of all users
        self._is_bounded = os.geteuid() != 0  # root is exempt from RLIMIT_NPROC, setrlimit(2)
        self._next = self._latest = 0.0
        self._zombies_since: float | None = None

    def look(self) -> None:
        """Cheap unless something was started on this machine since the last scan. Raises OSError."""
        # proc(5): "… RUNNABLE/TOTAL NEWEST_PID"
        _, _, total, newest = os.pread(self._load, 128, 0).replace(b"/", b" ").rsplit(None, 3)
        now = time.monotonic()
        if int(newest) == self._newest_pid or now < self._next:
            return
        if now < self._latest and self._tasks + int(total) - self._machine <= self._limit:
            return
        self._newest_pid, self._machine = int(newest), int(total)
        found = pids(self._group, self._limit + 1)
        known = members(self._group, found) if len(found) <= self._limit else []
        self._tasks = sum(_count(known)) if known else len(found)
        if self._tasks > self._limit:
            self._reduce()
        else:
            self._zombies_since = None
        after = time.monotonic()
        self._next, self._latest = after + (after - now) * _SCAN_SHARE, after + _SCAN_SECONDS

    def _reduce(self) -> None:
        _signal(self._group, self._pidfd, signal.SIGSTOP)
        now, found = time.monotonic(), members(self._group)
        living, zombies = _count(found)
        if zombies <= self._limit:
            self._zombies_since = None
        elif self._zombies_since is None:
            self._zombies_since = now
        late = self._zombies_since is not None and now - self._zombies_since > _ZOMBIES_SECONDS
        if late or living > 2 * self._limit + _BURST_MAX:
            self._say(ENDED)  # first: once the worker is dead, its supervisor asks for the reason and ends
            kill(self._group, self._pidfd)
            return
        if living > self._limit or (len(found) > _REFUSED_MIN and self._is_bounded):
            self._say(REACHED)
            self._kill_newest(found, living - self._limit)
        _signal(self._group, self._pidfd, signal.SIGCONT)
        self._newest_pid = self._latest = 0  # look again soon, also if nothing is started

    def _kill_newest(self, found: list[Member], excess: int) -> None:
        for member in reversed(found):
            if excess <= 0:
                return
            if not member.is_zombie and member.pid != self._group:
                self._kill(member.pid)
                excess -= member.threads

    def _kill(self, pid: int) -> None:
        with contextlib.suppress(OSError):  # it has ended
            pidfd = os.pidfd_open(pid)
            try:
                if (
                    os.getpgid(pid) == self._group
                ):  # asked after it was pinned, so not of a stranger with the same number
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            finally:
                os.close(pidfd)


REACHED, ENDED = b"r", b"e"
