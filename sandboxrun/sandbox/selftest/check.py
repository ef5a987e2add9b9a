"""Does the sandbox hold on this machine? Every protection is tried in a throw-away worker.

The same attempts run twice (attempts.py): as a plain process, to see that they can succeed here at all, and confined by
the same policy, child and supervisor as a worker of `sandboxrun`. What they are aimed at is ours, and shows what arrived.
"""

from __future__ import annotations

import enum
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from sandboxrun.errors import SandboxError
from sandboxrun.files import Kept
from sandboxrun.sandbox import surroundings
from sandboxrun.sandbox.compile import features
from sandboxrun.sandbox.compile.features import Feature, Features, Need
from sandboxrun.sandbox.selftest.trial import World, folder, outlives_supervisor


class Protection(NamedTuple):
    """`name`: of its attempt. `refused`: the right outcome, which is "works" if every worker has the right."""

    name: str
    what: str
    refused: str
    feature: Feature | None = None  # without which it does not hold
    hidden: str = ""  # the outcome where /proc does not even show the other process: hidepid= in proc(5)


# In the order of the printed table. trial.outlives_supervisor tries "outlive"; each other has an attempt of its name.
PROTECTIONS = {
    "network": (
        Protection("tcp", "a TCP connection that is not granted", "EACCES"),
        Protection("tcp_race", "an address that is changed while it is looked at", "EACCES"),
        Protection("tcp_fast_open", "a TCP connection opened by sending", "EPERM"),
        Protection("udp", "UDP", "EPERM"),
        Protection("name", "a name that is not granted", "EACCES"),
        Protection("unix", "a Unix socket by its path", "EPERM"),
        Protection("unix_abstract", "an abstract Unix socket", "EPERM"),
        Protection("netlink", "a netlink socket", "EPERM"),
        Protection("listen", "listening", "EPERM"),
        Protection("io_uring", "io_uring, past the filter", "ENOSYS"),
    ),
    "files": (
        Protection("read", "reading a file", "EACCES"),
        Protection("read_by_symlink", "reading a file through a symlink", "EACCES"),
        Protection("list_folder", "listing a folder", "EACCES"),
        Protection("write", "writing a file", "EACCES"),
        Protection("create", "making a file", "EACCES"),
        Protection("truncate", "emptying a file", "EACCES", Feature.LANDLOCK_TRUNCATE),
        Protection("truncate_readable", "emptying a file that may be read", "EACCES", Feature.LANDLOCK_TRUNCATE),
        Protection("change_mode", "changing a file's mode", "EPERM"),
        Protection("remove", "removing a file", "EACCES"),
        Protection("move", "moving a file", "EACCES"),
        Protection("hard_link", "another name for a file", "EXDEV"),
        Protection("terminal", "another program's terminal", "EACCES"),
    ),
    "other processes": (
        Protection("environment_of_another", "reading another's environment", "EACCES", hidden="ENOENT"),
        Protection("memory_of_another", "reading another's memory", "EPERM"),
        Protection("memory_of_supervisor", "reading the supervisor's memory", "EACCES", hidden="ENOENT"),
        Protection("trace", "tracing another", "EPERM"),
        Protection("kill", "ending another", "EPERM"),
        Protection("limit_another", "limiting another", "EPERM"),
        Protection("slow_down_another", "slowing another down", "EPERM"),
    ),
    "kernel": (
        Protection("execute", "running a program", "EPERM"),
        Protection("new_process", "a second process", "EPERM"),
        Protection("user_namespace", "a user namespace", "EPERM"),
        Protection("keyring", "a key in a keyring", "EPERM"),
        Protection("shared_memory", "System V shared memory", "EPERM"),
        Protection("message_queue", "a POSIX message queue", "EPERM"),
        Protection("other_table", "the system call table of 32-bit programs", "SIGSYS"),
    ),
    "what a worker starts with": (
        Protection("own_environment", "the operator's environment", "ENOENT"),
        Protection("descriptor", "files that the operator left open", "EBADF"),
        Protection("outlive", "outliving its supervisor, killed by SIGKILL", "ended"),
    ),
    "limits": (
        Protection("limit_memory", "more memory", "ENOMEM"),
        Protection("limit_threads", "more threads", "EAGAIN"),
        Protection("limit_files", "more open files", "EMFILE"),
        Protection("limit_scratch", "a longer file", "EFBIG"),
    ),
    "what is granted works": (
        Protection("granted_tcp", "a TCP connection that is granted", "works"),
        Protection("granted_file", "reading a file that is granted", "works"),
        Protection("scratch_file", "files of its own", "works"),
        Protection("thread", "threads", "works"),
    ),
}


class Status(enum.StrEnum):
    """What came of a protection."""

    HOLDS = "holds"
    FAILS = "fails"
    NOT_SHOWN = "not shown"  # this machine refuses it to everybody, so the sandbox was not needed
    FORGONE = "forgone"  # by --allow-degraded
    NOT_TRIED = "not tried"


@dataclass(frozen=True, slots=True)
class Row:
    """One protection as it was found. The outcomes are "works", the name of an errno or signal, or None: none came."""

    group: str
    name: str
    what: str
    status: Status
    unconfined: str | None = None
    confined: str | None = None
    arrived: bool = False  # on the other side, from the confined one


@dataclass(frozen=True, slots=True)
class Report:
    """What `sandboxrun check` found."""

    kernel: Features
    error: str | None  # why no worker could be confined
    hint: tuple[str, ...] = ()  # what ends it
    rows: list[Row] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def holds(self) -> bool:
        """Whether all that a default policy needs does."""
        return self.error is None and not any(row.status in (Status.FAILS, Status.NOT_TRIED) for row in self.rows)

    def as_json(self) -> dict[str, Any]:
        system = os.uname()
        return {
            "holds": self.holds,
            "error": self.error,
            "hint": list(self.hint),
            "container": surroundings.container(),
            "kernel": system.release,
            "machine": system.machine,
            "features": [
                {"name": f.label, "there": f in self.kernel, "linux": f.kernel, "for": f.what, "need": f.need.value}
                for f in Feature
            ],
            "protections": [asdict(row) for row in self.rows],
            "seconds": round(self.seconds, 2),
        }

    def text(self, *, colour: bool) -> str:
        """For people."""
        system = os.uname()
        engine = surroundings.container()
        around = f", in a {engine} container" if engine else ""
        lines = [f"Linux {system.release} on {system.machine}{around}", "", "what the kernel has"]
        for found in Feature:
            there = found in self.kernel
            sign = "ok" if there else "no" if found.need is Need.SECOND_WALL else "FAILS"
            line = f"  {_sign(sign, colour)} {found.label:19} {found.what}"
            if not there:
                line += f" ({found.need.value}" + (f"; Linux {found.kernel} has it)" if found.kernel else ")")
            lines.append(line)
        signs = {Status.HOLDS: "ok", Status.FAILS: "FAILS", Status.NOT_TRIED: "FAILS"}
        group = ""
        for row in self.rows:
            if row.group != group:
                group = row.group
                lines += ["", group]
            lines.append(f"  {_sign(signs.get(row.status, 'no'), colour)} {row.what:50} {_found(row)}".rstrip())
        count = {status: sum(row.status == status for row in self.rows) for status in (Status.HOLDS, Status.NOT_SHOWN)}
        lines.append("")
        if self.error is not None:
            lines.append(f"The sandbox cannot be made here: {self.error}")
            lines += [f"hint: {self.hint[0]}", *self.hint[1:]] if self.hint else []
        elif self.holds:
            more = f", {count[Status.NOT_SHOWN]} cannot be shown here" if count[Status.NOT_SHOWN] else ""
            lines.append(
                f"The sandbox holds: {count[Status.HOLDS]} of {len(self.rows)}{more}, in {self.seconds:.1f} s."
            )
        else:
            lines.append(f"THE SANDBOX DOES NOT HOLD: {count[Status.HOLDS]} of {len(self.rows)} do.")
        return "\n".join(lines)


def _sign(sign: str, colour: bool) -> str:
    code = {"ok": "32", "FAILS": "31;1", "no": "33"}[sign]
    return f"\x1b[{code}m{sign:5}\x1b[0m" if colour else f"{sign:5}"


def _found(row: Row) -> str:
    if row.status == Status.HOLDS:
        return row.confined or ""
    if row.status == Status.NOT_SHOWN:
        return f"not shown: this machine refuses it to everybody ({row.unconfined})"
    if row.status == Status.NOT_TRIED:
        return "not tried: the worker had ended"
    what = f"{row.confined}" + (", and it arrived" if row.arrived else "")
    return (
        f"{what}: forgone by --allow-degraded"
        if row.status == Status.FORGONE
        else f"unconfined {row.unconfined}, confined {what}"
    )


def check(kernel: Features | None = None, degraded: Sequence[str] = ()) -> Report:
    """Try everything. Call before other threads are started: it forks. Raises ConfigError for an unknown `degraded`.

    `kernel`: what the kernel is taken to have, instead of what it has.
    """
    start = time.monotonic()
    kernel = features.probe() if kernel is None else kernel
    try:
        kernel.require(degraded)
        rows = _rows(kernel, frozenset(degraded))
    except (SandboxError, OSError) as error:  # OSError: no loopback interface, no folder for temporary files
        return Report(kernel, str(error), error.hint if isinstance(error, SandboxError) else ())
    return Report(kernel, None, (), rows, time.monotonic() - start)


def seccomp_profile() -> bytes:
    """The profile for a container: Docker's default, and pidfd_getfd. deploy/ has the same, and says how it was made."""
    with open(os.path.join(os.path.dirname(__file__), "seccomp.json"), "rb") as file:
        return file.read()


def _rows(kernel: Features, degraded: frozenset[str]) -> list[Row]:
    names = [p.name for group in PROTECTIONS.values() for p in group if p.name != "outlive"]
    with folder() as filters:
        kept = Kept(filters, f"{filters}/key")
        ended = outlives_supervisor(kernel, kept)
        with World() as free:
            unconfined = free.try_all(names, free.run_free)
            free_arrived = {name: seen() for name, seen in free.arrived.items()}
        with World() as held:
            confined = held.try_all(names, lambda: held.run_confined(kernel, kept))
            held_arrived = {name: seen() for name, seen in held.arrived.items()}
    unconfined["outlive"], confined["outlive"] = "works", ended
    rows = []
    for group, protections in PROTECTIONS.items():
        for p in protections:
            arrived = held_arrived.get(p.name, False)
            status = _status(p, unconfined.get(p.name), confined.get(p.name), free_arrived.get(p.name, True), arrived)
            if status == Status.FAILS and p.feature and p.feature not in kernel and p.feature.label in degraded:
                status = Status.FORGONE
            rows.append(Row(group, p.name, p.what, status, unconfined.get(p.name), confined.get(p.name), arrived))
    return rows


def _status(p: Protection, unconfined: str | None, confined: str | None, could_arrive: bool, arrived: bool) -> Status:
    if confined is None:
        return Status.NOT_TRIED
    if p.refused == "works":
        return Status.HOLDS if confined == "works" else Status.FAILS
    if confined == "works" or arrived:
        return Status.FAILS
    if unconfined != "works" or not could_arrive:
        return Status.NOT_SHOWN
    return Status.HOLDS if confined in (p.refused, p.hidden) else Status.FAILS
