"""Who holds a worker's `pid`: what tells a process that lives from one that has left its number behind."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from sandboxrun.records import record

# What stands beside `pid` while a worker runs, so that a left-over pid can be told from a living one, and what says to
# people where and what it is: the host's name, since when (Redis's clock, in seconds), and the version that runs.
_LEASE_FIELDS = ("pid", "pidHost", "pidStarted", "pidSeen")
# The token is random and new for each run: pid numbers are equal in containers.
PID_FIELDS = (*_LEASE_FIELDS, "pidName", "pidSince", "pidVersion", "pidToken")
# What an agent keeps beside them, which outlasts a run: the token of the agent that has the worker, how its last run ended
# and why, how often it was started again, and since when it is stopped.
AGENT_FIELDS = ("pidAgent", "pidExit", "pidReason", "pidRestarts", "pidStopped")
LEASE_SECONDS = 20  # a worker on another host that was not seen for so long counts as dead
AHEAD_SECONDS = 300  # as far may a time be ahead of Redis's clock, which after a failover is another host's


def new_token() -> str:
    """A token that no other run has: 128 random bits in hexadecimal."""
    return os.urandom(16).hex()


@record
class Run:
    """One run of a worker, as its `pid` fields name it. `stands_on`: the hashes that its configuration came from."""

    key: str
    pid: int
    token: str
    stands_on: tuple[str, ...] = ()


def holder(values: Sequence[bytes | None]) -> dict[str, str | None]:
    """The values of PID_FIELDS as text."""
    text = (value.decode("utf-8", "replace") if value is not None else None for value in values)
    return dict(zip(PID_FIELDS, text, strict=True))


def this_host() -> str:
    """What makes a pid unique: this boot of this kernel, and the pid namespace we are in."""
    with open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as file:
        return f"{file.read().strip()}/{os.stat('/proc/self/ns/pid').st_ino}"


def start_time(pid: int) -> int | None:
    """When a process was started, in clock ticks after boot (proc_pid_stat(5), field 22); None if it is not there."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    # A process whose first thread has ended shows as a zombie while its others go on.
    if fields[0] in (b"Z", b"X") and _threads(pid) <= 1:
        return None
    return int(fields[19])


def _threads(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/task"))
    except OSError:
        return 0


def _is_number(text: str, most: int) -> bool:
    """Whether int takes it, which refuses "²" and thousands of digits. Anybody may have written it."""
    return text.isascii() and text.isdigit() and len(text) <= most


def is_recent(seen: int, now: int) -> bool:
    """Whether what was seen then still counts as alive. A time far ahead is nobody's: it would count so for ever."""
    return -AHEAD_SECONDS < now - seen < LEASE_SECONDS


def is_alive(found: Mapping[str, str | None], key: str, now: int) -> bool:
    """Whether the process that `pid` and the fields beside it name still lives. `now`: Redis's clock, in seconds."""
    pid, host, started, seen = (found[name] for name in _LEASE_FIELDS)
    if pid is None:
        return False
    if host is not None and host != this_host():
        return seen is not None and _is_number(seen, 16) and is_recent(int(seen), now)
    if not _is_number(pid, 10):
        return False
    if host is not None:
        return started is not None and str(start_time(int(pid))) == started
    # Set by a worker without us: its only argument is its key, so a stranger with the same pid is told apart.
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return key.encode() in file.read(65536).split(b"\0")
    except OSError:
        return False
