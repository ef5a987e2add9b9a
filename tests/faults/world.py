"""A world of the fault matrix: a server with a replica, two workers, each behind a proxy, and counted requests."""

from __future__ import annotations

import collections
import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import certificates
import redis
from arena import wait_for
from faults.acts import ACTS, Act
from faults.cells import Cell
from faults.pair import Pair
from faults.proxy import DOWN, UP, Proxy
from runner import Runner

HERE = Path(__file__).parent
STREAM, RESPONSES, GROUP = "t:req:x", "t:res:x", "worker"
MOMENT_SECONDS = 30.0  # until the moment of a cell has come
ANSWER_SECONDS = 40.0  # until all is answered after a fault
ALREADY_RUNNING = 73
GHOST_CLAIMS = 400
TRAPS = {
    "reading": (b"\r\n$3\r\nref\r\n", DOWN),  # an entry arrives
    "renewing": (b"\r\nXCLAIM\r\n", UP),
    "answering": (b"\r\nXACK\r\n", UP),
}


@dataclass
class Outcome:
    """The outcome of one cell. Every count but `forgotten` is 0 if all is well."""

    cell: Cell
    sent: int = 0
    lost: int = 0
    twice: int = 0
    failed: int = 0  # answered with a code other than 200
    pending: int = 0
    ended: int = 0  # workers that ended but should live, and orderly ends that failed
    starved: int = 0  # new requests that waited for all old claims
    without_effect: int = 0  # the fault, or its moment
    forgotten: int = 0  # requests that the server lost: it came back without them
    story: list[str] = field(default_factory=list)

    def wrong(self) -> dict[str, int]:
        names = ("lost", "twice", "failed", "pending", "ended", "starved", "without_effect")
        return {name: getattr(self, name) for name in names if getattr(self, name)}


class Run:
    """`sandboxrun t ID` behind its own proxy; `tend` starts it again."""

    def __init__(self, world: World, type_: str, id_: str, proxy: Proxy) -> None:
        self.world, self.type, self.id, self.proxy = world, type_, id_, proxy
        self.log = world.folder / f"{type_}-{id_}.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.may_end = False

    def start(self) -> None:
        runner = self.world.runner
        url = self.proxy.address.format(password=self.world.pair.password) + self.world.query
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.world.wrapper, *runner.command(self.type, self.id)], env={**runner.env, "REDIS_URL": url},
                cwd=runner.home, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    @property
    def code(self) -> int | None:
        """None while it runs."""
        return self.process.poll() if self.process is not None else -1

    def supervisor(self) -> int:
        assert self.process is not None
        return next(iter(children(self.process.pid))) if self.world.wrapper else self.process.pid

    def worker(self) -> int | None:
        """The pid of the confined child in our own pid namespace."""
        key = f"{self.type}:{self.id}:h".encode()
        for pid in descendants(self.supervisor()):
            with contextlib.suppress(OSError):
                if key in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                    return pid
        return None

    def ready(self) -> bool:
        """Whether its connections are at the server."""
        with self.world.client() as r, contextlib.suppress(redis.RedisError):
            names = [one["name"] for one in r.client_list()]
            return any(name.startswith("worker") and name.endswith(f":{self.type}:{self.id}:h") for name in names)
        return False

    def said(self, text: str, since: int) -> bool:
        with self.log.open("rb") as file:
            file.seek(since)
            return text.encode() in file.read()

    def kill(self) -> None:
        if self.process is not None:
            for pid in [*descendants(self.process.pid), self.process.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.wait()


def children(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                found += map(int, (task / "children").read_text().split())
    return found


def descendants(pid: int) -> list[int]:
    found = children(pid)
    return found + [one for child in found for one in descendants(child)]


class World:
    """Two workers of one kind over one transport. It plays cell after cell, as long as all is well."""

    def __init__(
        self, kind: str, transport: str, folder: Path, *, takeover_millis: int = 900, hostile: bool = False,
        wrapper: Iterable[str] = (),
    ) -> None:  # fmt: skip
        """`hostile`: a worker of another type attacks all the time. `wrapper`: a command that starts each run."""
        self.kind, self.transport, self.folder = kind, transport, folder
        self.takeover_millis, self.hostile, self.wrapper = takeover_millis, hostile, list(wrapper)
        folder.mkdir(parents=True, exist_ok=True)
        home = folder / "home"
        home.mkdir()
        self.runner = Runner("", home)
        self.pair = Pair(folder)
        self.query, tls = "", None
        if transport == "tls":
            made = certificates.make(folder)
            self.query, tls = f"?ssl_ca_certs={made.authority}", server_context(made)
        self._tls = tls
        self.runs: dict[str, Run] = {}
        self._refs = itertools.count()
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> World:
        self._stack.callback(self.pair.close)
        self.pair.start()
        self.configure()
        for id_ in ("1", "2"):
            self.runs[id_] = self.new_run("t", id_)
        if self.hostile:
            self.runs["hostile"] = self.new_run("u", "1")
        for run in self.runs.values():
            run.start()
        self.wait_until_ready()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def new_run(self, type_: str, id_: str) -> Run:
        # Not below `self.folder`: the path of a Unix socket has 107 characters at most.
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="proxy-")))
        proxy = Proxy(self.transport, self.pair.master.port, folder, self._tls)
        self._stack.callback(proxy.close)
        run = Run(self, type_, id_, proxy)
        self._stack.callback(run.kill)
        return run

    def client(self) -> redis.Redis:
        """A client of the operator, which bypasses the proxies."""
        return self.pair.master.client()

    def configure(self) -> None:
        """Write the hashes of the operator, also again after the server lost them."""
        limits = {
            "version": "local", "takeoverMillis": self.takeover_millis, "maxDeliveries": 20, "replyExpireSeconds": 3600,
            "responseStreamLimit": 0, "requestStreamLimit": 0,
        }  # fmt: skip
        with self.client() as r:
            for id_ in ("1", "2"):
                r.hset(f"t:{id_}:h", mapping={"url": str(HERE / "workers" / self.kind), **limits})
            r.hset("u:1:h", mapping={"url": str(HERE / "workers/hostile"), "version": "local"})

    def workers(self) -> list[Run]:
        return [run for run in self.runs.values() if run.type == "t"]

    def wait_until_ready(self) -> None:
        for run in self.workers():
            wait_for(run.ready, MOMENT_SECONDS)
        if self.hostile:
            wait_for(lambda: self.runs["hostile"].said("begun", 0), MOMENT_SECONDS)

    def send(self, count: int, seconds: float, *, tell: bool = False) -> list[str]:
        """Send requests whose handlers take `seconds` each; their entry ids."""
        with self.client() as r, r.pipeline(transaction=True) as pipe:
            for _ in range(count):
                data = json.dumps({"seconds": seconds, "tell": tell})
                pipe.xadd(STREAM, {"ref": f"r{next(self._refs)}", "type": "t", "data": data})
            return list(pipe.execute())

    def aim(self, targets: Iterable[Run]) -> None:
        """Point the proxies to the server that serves now."""
        for run in targets:
            run.proxy.server_port = self.pair.master.port


def server_context(made: certificates.Certificates):  # type: ignore[no-untyped-def]  # ssl.SSLContext
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.certificate, made.key)
    return context


class Play:
    """One cell in a world."""

    def __init__(self, world: World, cell: Cell, seed: int, *, seconds: float = 0.0, hold: float = 0.0) -> None:
        """`seconds`: of a handler that runs during the fault; `hold`: how long the fault lasts. 0: as suits the cell."""
        self.world, self.cell, self.chance = world, cell, random.Random(f"{cell} {seed}")
        self.outcome = Outcome(cell)
        self.victim = world.runs["1"]
        self.sent: list[str] = []
        self._seconds = seconds or (0.6 if cell.when == "renewing" else 0.3)
        self.hold = hold or self.chance.choice((0.05, 0.5, world.takeover_millis / 1000 * 1.6))
        self._ghosts: list[str] = []

    def __call__(self) -> Outcome:
        world, outcome = self.world, self.outcome
        self._begin_with_good_health()
        mark = {run.id: run.log.stat().st_size for run in world.workers()}
        try:
            self._reach_moment(mark)
        except AssertionError:
            outcome.without_effect += 1
            outcome.story.append(f"the moment {self.cell.when} did not come")
        act: Act = ACTS[self.cell.who, self.cell.what](self)
        try:
            act.begin()
            self.victim.proxy.clear_trap()
            if act.server_serves:
                self.sent += world.send(4, 0.002)
            time.sleep(self.hold)
            act.end()
        except AssertionError as error:
            outcome.without_effect += 1
            outcome.story.append(f"the fault had no effect: {error}")
        finally:
            self.victim.proxy.clear_trap()
        if world.hostile:
            outcome.story.append("a neighbour attacks")
        self._settle(act)
        self._count()
        for run in world.workers():
            with run.log.open("rb") as file:
                file.seek(mark[run.id])
                outcome.story.append(f"log of {run.id}:\n{file.read()[-3000:].decode('utf-8', 'replace')}")
        return outcome

    def _begin_with_good_health(self) -> None:
        world = self.world
        for run in world.workers():
            run.may_end = False
        self._first = "0-0"
        with world.client() as r:
            last = r.xrevrange(RESPONSES, count=1)
            self._first = last[0][0] if last else "0-0"
        self.sent += world.send(4, 0.001)
        self._wait_until(lambda: self._answered() >= len(self.sent), "healthy before the fault")
        if self.cell.who in ("worker", "supervisor") and self.chance.random() < 0.5:
            self._make_ghosts()

    def _make_ghosts(self) -> None:
        """Claims of a consumer that died long ago."""
        world = self.world
        with world.client() as r, r.pipeline(transaction=True) as pipe:  # nobody else is given them
            for _ in range(GHOST_CLAIMS):
                data = json.dumps({"seconds": 0.005, "tell": False})
                pipe.xadd(STREAM, {"ref": f"r{next(world._refs)}", "type": "t", "data": data})
            pipe.xreadgroup(GROUP, "ghost", {STREAM: ">"}, count=GHOST_CLAIMS)
            *self._ghosts, _ = pipe.execute()
        self.sent += self._ghosts
        ghosts = set(self._ghosts)  # which nobody renews
        self._wait_until(lambda: any(one["xid"] in ghosts for one in self._records()), "old claims are taken over")

    # --- the moment

    def _reach_moment(self, mark: dict[str, int]) -> None:
        world, when = self.world, self.cell.when
        if when == "idle":
            if not self._ghosts:
                time.sleep(self.chance.uniform(0.05, 0.3))
            return
        if when in TRAPS:
            pattern, direction = TRAPS[when]
            trap = self.victim.proxy.set_trap(pattern, direction, after=self.chance.random() < 0.5)
            self._send_until(trap.sprung.is_set, self._seconds if when == "renewing" else 0.005)
            return
        if when == "in a handler":
            self._send_until(lambda: self.victim.said("begun", mark["1"]), self._seconds, tell=True)
            return
        assert when == "ending"
        self.sent += world.send(12, 0.05)
        self.victim.may_end = True
        if self.chance.random() < 0.5:
            os.kill(self.victim.supervisor(), signal.SIGTERM)
        else:
            with world.client() as r:
                r.hdel("t:1:h", "pid")
        time.sleep(self.chance.uniform(0, 0.15))

    def _send_until(self, reached: Callable[[], bool], seconds: float, *, tell: bool = False) -> None:
        """Send requests until the victim is at the moment of the cell."""
        deadline = time.monotonic() + MOMENT_SECONDS
        while not reached():
            assert time.monotonic() < deadline
            # More than one worker takes at once, and out of step with its reads, or the other worker may take them all.
            self.sent += self.world.send(6, seconds, tell=tell)
            until = time.monotonic() + self.chance.uniform(1, 4) * seconds + 0.1
            while time.monotonic() < until and not reached():
                time.sleep(0.002)

    # --- afterwards

    def _settle(self, act: Act) -> None:
        """Restart ended workers, as a process manager does, until all requests are answered."""
        world = self.world
        self.sent += world.send(4, 0.002)
        deadline = time.monotonic() + ANSWER_SECONDS + self._seconds * len(self.sent) / 2
        restarted: set[str] = set()
        while time.monotonic() < deadline:
            for run in world.workers():
                if run.code is not None:
                    self._restart(run, act, restarted)
            if self._answered() >= len(self._expected()) and not self._pending() and self._ended_as_asked():
                break
            time.sleep(0.02)
        else:
            if not self._ended_as_asked():
                self.outcome.ended += 1
                self.outcome.story.append("the victim did not end, though it was asked to")
        for run in world.workers():
            self._wait_until(lambda run=run: run.code is None and run.ready(), f"{run.id} is there again", run)

    def _ended_as_asked(self) -> bool:
        return self.cell.when != "ending" or self._was_restarted

    _was_restarted = False

    def _restart(self, run: Run, act: Act, restarted: set[str]) -> None:
        code, again = run.code, run.id in restarted
        if not (again and code == ALREADY_RUNNING):  # the one before it is about to end
            self.outcome.story.append(f"run {run.id} ended with {code}")
            if again or not (run.may_end or act.may_end(run, code)):
                self.outcome.ended += 1
        else:
            time.sleep(0.1)
        restarted.add(run.id)
        if run is self.victim:
            self._was_restarted = True
        run.start()

    def _wait_until(self, reached: Callable[[], bool], what: str, run: Run | None = None) -> None:
        deadline = time.monotonic() + MOMENT_SECONDS
        while not reached():
            if run is not None and run.code is not None:
                run.start()
                time.sleep(0.2)
            if time.monotonic() > deadline:
                self.outcome.ended += 1
                self.outcome.story.append(f"never: {what}")
                return
            time.sleep(0.01)

    # --- counting

    def _expected(self) -> list[str]:
        """The requests that were sent and that the server has not lost."""
        with self.world.client() as r, contextlib.suppress(redis.RedisError):
            there = {xid for xid, _ in r.xrange(STREAM, min=min(self.sent, key=_order))}
            return [xid for xid in self.sent if xid in there]
        return self.sent

    def _records(self) -> list[dict[str, str]]:
        with self.world.client() as r:
            mine = set(self.sent)
            return [fields for _, fields in r.xrange(RESPONSES, min=f"({self._first}") if fields["xid"] in mine]

    def _answered(self) -> int:
        with contextlib.suppress(redis.RedisError):
            return len({fields["xid"] for fields in self._records()})
        return 0

    def _pending(self) -> int:
        with self.world.client() as r, contextlib.suppress(redis.RedisError):
            return int(r.xpending(STREAM, GROUP)["pending"])
        return -1

    def _count(self) -> None:
        outcome = self.outcome
        expected = self._expected()
        records = self._records()
        answers = collections.Counter(fields["xid"] for fields in records)
        with self.world.client() as r:
            refs = {fields["ref"] for fields in records}
            with r.pipeline(transaction=False) as pipe:
                for ref in refs:
                    pipe.llen(f"res:{ref}")
                lengths = pipe.execute()
        outcome.sent = len(self.sent)
        outcome.forgotten = len(self.sent) - len(expected)
        outcome.lost = sum(not answers[xid] for xid in expected)
        outcome.twice = sum(count > 1 for count in answers.values()) + sum(length > 1 for length in lengths)
        outcome.failed = sum(fields["code"] != "200" for fields in records)
        outcome.pending = self._pending()
        if self._ghosts and not outcome.forgotten:
            order = [fields["xid"] for fields in records]
            old = set(self._ghosts)
            new = set(self.sent[self.sent.index(self._ghosts[-1]) + 1 :])
            first = next((at for at, xid in enumerate(order) if xid in new), len(order))
            behind = sum(xid in old for xid in order[first:])
            outcome.starved = int(behind < GHOST_CLAIMS / 10)


def _order(xid: str) -> tuple[int, int]:
    first, _, second = xid.partition("-")
    return int(first), int(second)
