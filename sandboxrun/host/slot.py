"""One worker of an agent, from the order to its removal: what it does, what it waits for, and how it ended."""

from __future__ import annotations

import os
import time

from sandboxrun.config import keys
from sandboxrun.config.permissions import KINDS
from sandboxrun.fleet.status import Denied, WorkerStatus
from sandboxrun.host import usage
from sandboxrun.host.restarts import History, Until
from sandboxrun.sandbox.supervisor.health import stuck

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sandboxrun.host.pool import Running
    from sandboxrun.host.restarts import Next
    from sandboxrun.host.runplan import RunPlan

_TICKS, _PAGE = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
TARGETS_MAX = 50  # of which denials are counted


class Slot:
    """`is_wanted`: it is the agent's; if not, its run ends for good. `noted`: Redis knows how the last run ended."""

    def __init__(self, type_: str, id_: str) -> None:
        self.type, self.id, self.key = type_, id_, keys.worker_key(type_, id_)
        self.name = f"{type_} {id_}"
        self.running: Running | None = None
        self.begun = False  # the script of `running` has begun
        self.is_wanted, self.noted = True, True
        self.history = History()
        self.next: Next | None = None  # what follows the last end; None before the first
        self.due = 0.0  # time.monotonic: when it is started, or looked at
        self.wrong_until = 0.0  # until when its keys are left alone, because something is wrong with them
        self.seen = ""  # the footing on which the last start failed
        self.restarts, self.restarts_by = 0, dict[str, int]()
        self.last_exit: int | None = None
        self.last_reason, self.said = "", ""
        self.denials: dict[tuple[str, str], int] = {}
        self.version = self.stream = ""  # of the run that has begun last

    @property
    def look_at(self) -> float:
        """time.monotonic."""
        return max(self.due, self.wrong_until)

    @property
    def waits_for(self) -> Until | None:
        """None if it runs, or is started for the first time."""
        return self.next.until if self.running is None and self.next is not None else None

    @property
    def state(self) -> str:
        """One of fleet.status.STATES."""
        if self.running is not None:
            if not self.is_wanted or self.running.state == "ending":
                return "ending"
            if not self.begun:
                return "starting"
            return "stuck" if self._is_stuck(self.running) else "running"
        if self.history.is_failing:
            return "failing"
        return "waiting" if self.next is not None else "starting"

    def _is_stuck(self, running: Running) -> bool:
        limit = running.plan.limits.handler if running.plan is not None else 0
        health = running.health() if limit else None
        return health is not None and stuck(health, limit, time.monotonic())

    def begin(self, plan: RunPlan | None) -> None:
        """Its script has begun."""
        self.begun, self.said, self.seen = True, "", ""
        if plan is not None:
            self.version, self.stream = plan.worker.version, plan.worker.loop.request_stream

    def count_denials(self) -> None:
        """Keep those of the run that has ended."""
        self.denials = self._all_denials()

    def _all_denials(self) -> dict[tuple[str, str], int]:
        found = dict(self.denials)
        of_run: dict[tuple[str, str], int] = getattr(self.running, "denials", {})
        for target, count in list(of_run.items()):
            if target in found or len(found) < TARGETS_MAX:
                found[target] = found.get(target, 0) + count
        return found

    def status(self) -> WorkerStatus:
        """From any thread."""
        running = self.running
        memory, cpu = _used(running.pid if running is not None else None)
        waits = self.due - time.monotonic() if self.waits_for in (Until.TIME, Until.OUTAGE) else None
        return WorkerStatus(
            type=self.type,
            id=self.id,
            state=self.state,
            pid=running.pid if running is not None else None,
            since=running.since if running is not None and self.begun else None,
            version=self.version,
            restarts=self.restarts,
            restarts_by=tuple(sorted(self.restarts_by.items())),
            last_exit=self.last_exit,
            last_reason=self.last_reason,
            next_start=time.time() + max(0.0, waits) if waits is not None else None,
            health=running.health() if running is not None and self.begun else None,
            denials=tuple(
                Denied(kind, target, _grant(kind, target), count)
                for (kind, target), count in self._all_denials().items()
            ),
            memory=memory,
            cpu=cpu,
            lease_age=running.store.lease_age if running is not None and running.store is not None else None,
        )


def _grant(kind: str, target: str) -> str:
    return f"{KINDS[kind].field('allow')}={target}" if kind in KINDS else ""


def _used(pid: int | None) -> tuple[int | None, float | None]:
    """Resident bytes and seconds of processor time, of the worker's own process."""
    fields = usage.stat(pid) if pid is not None else None
    if fields is None:
        return None, None
    return int(fields[21]) * _PAGE, (int(fields[11]) + int(fields[12])) / _TICKS
