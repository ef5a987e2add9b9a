"""What the processes of this host use, from proc_pid_stat(5): for a worker, of all processes in its session."""

from __future__ import annotations

import os
from dataclasses import dataclass

_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")  # a second


@dataclass(frozen=True, slots=True)
class Usage:
    """Of one session: resident bytes (what is shared counts for each process) and seconds of CPU."""

    memory: int
    cpu: float
    processes: int


def by_session() -> dict[int, Usage]:
    """In one pass over /proc; a worker's pid is the number of its session."""
    found: dict[int, Usage] = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        fields = stat(int(name))
        if fields is None:
            continue
        session, cpu, memory = int(fields[3]), (int(fields[11]) + int(fields[12])) / _TICKS, int(fields[21]) * _PAGE
        before = found.get(session, Usage(0, 0.0, 0))
        found[session] = Usage(before.memory + memory, before.cpu + cpu, before.processes + 1)
    return found


def stat(pid: int) -> list[bytes] | None:
    """From the third field on: state, parent, group, session, …; None if there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()
    except OSError:
        return None


def parent(pid: int) -> int | None:
    """The pid of its parent: a worker's is its supervisor."""
    fields = stat(pid)
    return int(fields[1]) if fields is not None else None


def age_seconds(started_ticks: int) -> float:
    """How long ago a process was started, from its start time in ticks after boot."""
    with open("/proc/uptime", encoding="ascii") as file:
        return max(0.0, float(file.read().split()[0]) - started_ticks / _TICKS)
