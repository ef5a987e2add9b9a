"""A cgroup for the worker, if one is delegated to the supervisor (cgroups(7), "Cgroups delegation"): the kernel limits
memory and the number of threads and processes exactly, for all processes of the worker together.

Below a delegated cgroup D, supervisors move into D/sandboxrun, because a cgroup with members cannot give controllers to
those below it; each worker has D/sandboxrun-PID. If D has members that are not sandboxrun's, nothing is changed.
`systemd-run --user --scope -p Delegate=yes sandboxrun …` starts in a D of its own.
"""

from __future__ import annotations

import contextlib
import os
import time

from sandboxrun.config.limits import Limits

_SUPERVISORS = "sandboxrun"
_REMOVE_SECONDS = 2.0  # for the last of its processes to be gone
_living: set[str] = set()  # of the workers of this process: one that has just been reaped is still asked for its limits


class Cgroup:
    """The cgroup of one worker. `close` kills what is left in it."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.counts_tasks = False  # whether the kernel holds the number of threads and processes

    @classmethod
    def make(cls, pid: int, limits: Limits) -> Cgroup | None:
        """For the process `pid`, our child, which is moved there; None if no cgroup is delegated."""
        delegated = _delegated({os.getpid(), pid})
        if delegated is None:
            return None
        path = f"{delegated}/{_SUPERVISORS}-{pid}"
        made = cls(path)
        _living.add(path)
        try:
            _set_up(delegated, pid)
            os.mkdir(path, 0o700)
            if limits.memory and os.path.exists(f"{path}/memory.max"):
                _write(f"{path}/memory.max", str(limits.memory))
                _write(f"{path}/memory.oom.group", "1")  # not some of its processes: none of them would know
                if os.path.exists(f"{path}/memory.swap.max"):
                    _write(f"{path}/memory.swap.max", "0")
            if limits.threads and os.path.exists(f"{path}/pids.max"):
                _write(f"{path}/pids.max", str(limits.threads))
                made.counts_tasks = True
            _write(f"{path}/cgroup.procs", str(pid))
        except OSError:  # another manager's rules; the limits of each process hold without it
            made.close()
            return None
        return made

    def reached(self) -> list[str]:
        """The limits that have been reached: "memory" (something was killed for it), "threads"."""
        events = (("memory", "memory.events", "oom_kill"), ("threads", "pids.events", "max"))
        return [name for name, file, event in events if self._count(file, event)]

    def close(self) -> None:
        """Kill every process in it and remove it."""
        _living.discard(self._path)
        with contextlib.suppress(OSError):  # cgroup.kill is of Linux 5.14
            _write(f"{self._path}/cgroup.kill", "1")
        deadline = time.monotonic() + _REMOVE_SECONDS
        while True:
            try:
                os.rmdir(self._path)
                return
            except FileNotFoundError:
                return
            except OSError:
                if time.monotonic() > deadline:
                    return  # swept by the next start
            time.sleep(0.002)

    def _count(self, file: str, event: str) -> int:
        with contextlib.suppress(OSError):
            for line in _read(f"{self._path}/{file}").splitlines():
                name, _, count = line.partition(" ")
                if name == event:
                    return int(count)
        return 0


def set_up(*children: int) -> None:
    """Make room for the workers of a process that will have many, before the first one. `children`: all that it has now.

    Later it cannot tell those that wait for a plan from a stranger's.
    """
    delegated = _delegated({os.getpid(), *children})
    if delegated is not None:
        with contextlib.suppress(OSError):  # as in Cgroup.make
            _set_up(delegated, *children)


def oom_kills() -> int:
    """How many processes of this machine the kernel has ended because no memory was left (proc(5), /proc/vmstat)."""
    with contextlib.suppress(OSError, ValueError):
        for line in _read("/proc/vmstat").splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def _delegated(ours: set[int]) -> str | None:
    """The folder of the cgroup that is delegated to us, if any; `ours` are the processes that may be in it."""
    try:
        mount = _mount(_read("/proc/self/mountinfo"))
        path = next(line[3:] for line in _read("/proc/self/cgroup").splitlines() if line.startswith("0::"))
        if mount is None or mount[0] != "/":
            return None
        here = mount[1] + path
        is_set_up = os.path.basename(here) == _SUPERVISORS
        delegated = os.path.dirname(here) if is_set_up else here
        if path == "/" or not _is_delegated(delegated):
            return None
        if is_set_up:  # by an earlier start
            return delegated
        return delegated if set(map(int, _read(f"{here}/cgroup.procs").split())) <= ours else None
    except (OSError, StopIteration):
        return None


def _mount(mounts: str) -> tuple[str, str] | None:
    """Root and place of the first mount of cgroup2 in the text of /proc/PID/mountinfo (proc(5))."""
    for line in mounts.split("\n"):
        words, _, rest = line.partition(" - ")
        if rest.startswith("cgroup2 "):
            _, _, _, root, place, *_ = words.split(" ")
            return root, place
    return None


def _is_delegated(folder: str) -> bool:
    """For root, who may write everywhere, the manager's mark counts (systemd.resource-control(5), "Delegate=")."""
    if os.geteuid() == 0:
        return any(_mark(folder, name) == b"1" for name in ("user.delegate", "trusted.delegate"))
    return all(os.access(f"{folder}/{name}", os.W_OK) for name in (".", "cgroup.procs", "cgroup.subtree_control"))


def _mark(folder: str, name: str) -> bytes:
    try:
        return os.getxattr(folder, name)
    except OSError:
        return b""


def _set_up(delegated: str, *children: int) -> None:
    """Make room for workers, and remove what killed supervisors have left. Raises OSError."""
    supervisors = f"{delegated}/{_SUPERVISORS}"
    with contextlib.suppress(FileExistsError):
        os.mkdir(supervisors, 0o700)
    for member in (os.getpid(), *children):
        _write(f"{supervisors}/cgroup.procs", str(member))
    there = _read(f"{delegated}/cgroup.controllers").split()
    for controller in ("memory", "pids"):
        if controller in there:
            _write(f"{delegated}/cgroup.subtree_control", f"+{controller}")
    for name in os.listdir(delegated):
        prefix, _, worker = name.partition("-")
        path = f"{delegated}/{name}"
        is_worker = prefix == _SUPERVISORS and worker.isdigit() and path not in _living
        if is_worker and not os.path.exists(f"/proc/{worker}"):
            with contextlib.suppress(OSError):  # its programs are still ending
                os.rmdir(path)


def _read(path: str) -> str:
    with open(path) as file:
        return file.read()


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)
