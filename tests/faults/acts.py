"""A class for each fault. `begin` returns once the fault is in effect, and fails if it has none."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time

from arena import wait_for
from faults.pair import state, stop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from faults.world import Play, Run

EFFECT_SECONDS = 20.0
DUTY_SECONDS = 0.08  # a slow server stops for so long, then works for a quarter of that


class Act:
    """A fault in a play."""

    server_serves = True  # during the fault, for clients that bypass the proxies

    def __init__(self, play: Play) -> None:
        self.play, self.world, self.victim = play, play.world, play.victim

    def begin(self) -> None:
        raise NotImplementedError

    def end(self) -> None:
        """Repair what was broken. Fails if the fault had no effect until then."""

    def may_end(self, run: Run, code: int | None) -> bool:
        """Whether this fault explains the end of a run."""
        return False


# --- processes


class KillWorker(Act):
    def begin(self) -> None:
        pid = self.victim.worker()
        assert pid is not None or self.victim.may_end, "the worker is not there"
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            wait_for(lambda: state(pid) in ("", "Z", "X"), EFFECT_SECONDS)

    def may_end(self, run: Run, code: int | None) -> bool:
        return run is self.victim and code == 128 + signal.SIGKILL


class StopWorker(Act):
    def begin(self) -> None:
        self._pid = self.victim.worker()
        assert self._pid is not None or self.victim.may_end, "the worker is not there"
        if self._pid is not None:
            _stop(self._pid)

    def end(self) -> None:
        if self._pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGCONT)


class KillSupervisor(Act):
    def begin(self) -> None:
        assert self.victim.process is not None
        pid = self.victim.supervisor()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: state(pid) in ("", "Z", "X"), EFFECT_SECONDS)

    def may_end(self, run: Run, code: int | None) -> bool:
        return run is self.victim and code in (-signal.SIGKILL, 128 + signal.SIGKILL)


class StopSupervisor(Act):
    def begin(self) -> None:
        self._pid = self.victim.supervisor()
        _stop(self._pid)

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGCONT)


def _stop(pid: int) -> None:
    """Unless it has ended meanwhile."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: state(pid) in ("T", "", "Z", "X"), EFFECT_SECONDS)


# --- the server


class StopServer(Act):
    server_serves = False

    def begin(self) -> None:
        stop(self.world.pair.master.pid)

    def end(self) -> None:
        os.kill(self.world.pair.master.pid, signal.SIGCONT)


class SlowServer(Act):
    server_serves = False

    def begin(self) -> None:
        self._over = threading.Event()
        self._stops = 0
        pid = self.world.pair.master.pid

        def alternate() -> None:
            while not self._over.is_set():
                stop(pid)
                self._stops += 1
                time.sleep(DUTY_SECONDS)
                os.kill(pid, signal.SIGCONT)
                time.sleep(DUTY_SECONDS / 4)

        self._thread = threading.Thread(target=alternate)
        self._thread.start()

    def end(self) -> None:
        self._over.set()
        self._thread.join()
        assert self._stops


class FullDisk(Act):
    server_serves = False

    def begin(self) -> None:
        self.world.pair.fill_disk()

    def end(self) -> None:
        self.world.pair.empty_disk()


class FullMemory(Act):
    server_serves = False

    def begin(self) -> None:
        self.world.pair.fill_memory()

    def end(self) -> None:
        self.world.pair.empty_memory()


class RestartWithFile(Act):
    server_serves = False

    def begin(self) -> None:
        with self.world.client() as r:
            self._before = r.info("server")["run_id"], r.xlen("t:req:x")
        self.world.pair.master.kill()

    def end(self) -> None:
        self.world.pair.master.start()
        with self.world.client() as r:
            after = r.info("server")["run_id"], r.xlen("t:req:x")
        assert after[0] != self._before[0]
        assert after[1] >= self._before[1], "the server has forgotten what was in its file"


class RestartEmpty(Act):
    """The operator writes the hashes again, a moment later."""

    server_serves = False

    def begin(self) -> None:
        self.world.pair.restart_empty()
        with self.world.client() as r:
            assert not r.exists("t:1:h", "t:2:h", "t:req:x")

    def end(self) -> None:
        # A fleet without a configuration ends with an error, and its process manager starts it again.
        try:
            wait_for(lambda: all(run.code is not None for run in self.world.workers()), EFFECT_SECONDS)
        finally:
            self.world.configure()

    def may_end(self, run: Run, code: int | None) -> bool:
        return code != 0


class Promotion(Act):
    """The master is lost with its last writes, which never reached its replica."""

    server_serves = False

    def begin(self) -> None:
        pair = self.world.pair
        with self.world.client() as r:
            self._before = r.info("server")["run_id"]
        if self.play.chance.random() < 0.5:
            pair.stop_following()
            self.play.sent += self.world.send(4, 0.002)  # some of them are answered on the old master alone
            time.sleep(0.05)
        pair.promote()
        self.world.aim(self.world.runs.values())
        for run in self.world.runs.values():
            run.proxy.cut(refuse=False)

    def end(self) -> None:
        with self.world.client() as r:
            info = r.info("replication") | r.info("server")
        assert info["role"] == "master"
        assert info["run_id"] != self._before
        self.world.pair.follow_again()


# --- the network


class Cut(Act):
    def begin(self) -> None:
        proxy = self.victim.proxy
        before = proxy.cut_count
        proxy.cut(refuse=self.play.chance.random() < 0.7)
        assert proxy.cut_count > before or self.victim.may_end, "there was no connection to cut"

    def end(self) -> None:
        self.victim.proxy.resume()


class HalfOpen(Act):
    def begin(self) -> None:
        self._before = self.victim.proxy.dropped_bytes
        self.victim.proxy.drop()

    def end(self) -> None:
        if not self.victim.may_end:
            wait_for(lambda: self.victim.proxy.dropped_bytes > self._before, EFFECT_SECONDS)
        self.victim.proxy.resume()


class SlowNetwork(Act):
    def begin(self) -> None:
        self._before = self.victim.proxy.slowed_bytes
        self.victim.proxy.slow()

    def end(self) -> None:
        if not self.victim.may_end:
            wait_for(lambda: self.victim.proxy.slowed_bytes > self._before, EFFECT_SECONDS)
        self.victim.proxy.resume()


# --- the administrator


class AclLoad(Act):
    """The users in the server's file, and no others."""

    def begin(self) -> None:
        with self.world.client() as r:
            users = [name for name in r.acl_users() if name != "default"]
            assert users or self.victim.may_end, "no worker has a user"
            with r.pipeline(transaction=True) as pipe:
                pipe.acl_load()
                pipe.acl_users()
                _, left = pipe.execute()
        assert left == ["default"]


ACTS: dict[tuple[str, str], type[Act]] = {
    ("worker", "SIGKILL"): KillWorker,
    ("worker", "SIGSTOP"): StopWorker,
    ("supervisor", "SIGKILL"): KillSupervisor,
    ("supervisor", "SIGSTOP"): StopSupervisor,
    ("redis", "SIGSTOP"): StopServer,
    ("redis", "slow"): SlowServer,
    ("redis", "full disk"): FullDisk,
    ("redis", "full memory"): FullMemory,
    ("redis", "restart with AOF"): RestartWithFile,
    ("redis", "restart empty"): RestartEmpty,
    ("redis", "promotion of a replica"): Promotion,
    ("network", "cut"): Cut,
    ("network", "half-open"): HalfOpen,
    ("network", "slow"): SlowNetwork,
    ("administrator", "ACL LOAD"): AclLoad,
}
