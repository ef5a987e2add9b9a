"""Two runs of one worker in containers, whose pids are equal: one of them is cut off for longer than its lease lasts."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

from arena import wait_for
from faults.cells import Cell
from faults.world import ANSWER_SECONDS, MOMENT_SECONDS, Outcome, Play, Run, World

from sandboxrun.redis.lease import LEASE_SECONDS

# Each has its own pid namespace, as a container has: both supervisors have the same pid. unshare(1)
CONTAINER = (
    "unshare",
    *([] if os.getuid() == 0 else ["--user", "--map-current-user"]),
    "--pid",
    "--fork",
    "--mount-proc",
)
HEALED_SECONDS = 15.0  # within which one of the two ends


def can_make_containers() -> bool:
    return subprocess.run([*CONTAINER, "true"], capture_output=True, check=False).returncode == 0


class Partition(Play):
    """The first run is cut off, the second takes over the lease, and then the network heals."""

    def __call__(self) -> Outcome:
        world, outcome, first = self.world, self.outcome, self.victim
        self._begin_with_good_health()
        mark = {run.id: run.log.stat().st_size for run in world.workers()}
        self._reach_moment(mark)
        before = self._pid()
        if self.cell.what == "cut":
            first.proxy.cut(refuse=True)
        else:
            first.proxy.drop()
        first.proxy.clear_trap()
        second = self._replace(first)
        if self._pid() != before:
            outcome.without_effect += 1
            outcome.story.append(f"the numbers of both processes differ: {before}, {self._pid()}")
        first.proxy.resume()
        deadline = time.monotonic() + HEALED_SECONDS
        while first.code is None and second.code is None and time.monotonic() < deadline:
            self.sent += world.send(2, 0.005)
            time.sleep(0.05)
        alive = [run for run in (first, second) if run.code is None]
        if len(alive) != 1:
            outcome.ended += 1
            outcome.story.append(f"of two runs of one worker {len(alive)} live after {HEALED_SECONDS} s")
        wait_for(lambda: self._answered() >= len(self._expected()) and not self._pending(), ANSWER_SECONDS)
        self._count()
        for run in (first, second):
            outcome.story.append(f"log: {run.log.read_text()[-3000:]}")
        return outcome

    def _pid(self) -> tuple[str | None, ...]:
        with self.world.client() as r:
            return tuple(r.hmget("t:1:h", "pid"))

    def _replace(self, first: Run) -> Run:
        """Start another run of the same worker until it gets the lease, which the first has to lose."""
        world = self.world
        second = world.new_run("t", "1")
        second.log = Path(f"{second.log}.second")
        deadline = time.monotonic() + LEASE_SECONDS + MOMENT_SECONDS
        while True:
            second.start()
            while second.code is None and not second.said(":h runs /", 0):
                time.sleep(0.05)
            if second.code is None:
                return second
            assert first.code is None, "the run that is cut off has ended"
            assert time.monotonic() < deadline, "the lease never ended"
            self.sent += world.send(2, 0.005)
            time.sleep(1)


def play_partition(cell: Cell, folder: Path, seed: int) -> Outcome:
    with World(cell.kind, cell.transport, folder, wrapper=CONTAINER) as world:
        return Partition(world, cell, seed)()
