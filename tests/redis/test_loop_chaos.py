"""Everything goes wrong at once, and every request is answered once."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from runner import Runner

from sandboxrun.redis import embedded

pytestmark = pytest.mark.timeout(60 + max(240, int(os.environ.get("CHAOS_REQUESTS", "0")) // 2))
REQUESTS = int(os.environ.get("CHAOS_REQUESTS", "2000"))
WORKERS = ("1", "2", "3", "4")
POISON = (REQUESTS // 7, REQUESTS // 2)
TAKEOVER_MILLIS = 800
CODE = """
import os, time
from sandboxrun import worker

@worker.handler
def handle(request):
    if request.data.get("poison"):
        os.kill(os.getpid(), 9)
    time.sleep(request.data.get("sleep", 0))
    return {"n": request.data["n"]}

worker.run()
"""
ASYNC = (
    CODE.replace("def handle", "async def handle")
    .replace("time.sleep", "await asyncio.sleep")
    .replace("import os,", "import asyncio, os,")
)


class Server:
    """A redis-server that writes down every command, on a port of its own, and can be ended and started again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self._port = sock.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        options = f"--port {self._port} --bind 127.0.0.1 --save  --appendonly yes --appendfsync always --dir".split(" ")
        self._process = subprocess.Popen(
            [embedded.find_server(), *options, str(self._folder)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 20
        while True:
            try:
                with redis.Redis.from_url(self.url) as r:
                    r.ping()
                    return
            except redis.ConnectionError:
                assert time.monotonic() < deadline
                time.sleep(0.01)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    folder = tmp_path / "aof"
    folder.mkdir()
    made = Server(folder)
    made.start()
    yield made
    made.kill()


class Fleet:
    """The workers, each started again whenever it has ended."""

    def __init__(self, run: Runner, stack: contextlib.ExitStack) -> None:
        self._run, self._stack = run, stack
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.ends: collections.Counter[int] = collections.Counter()

    def tend(self) -> None:
        for id_ in WORKERS:
            process = self.processes.get(id_)
            if process is not None and process.poll() is None:
                continue
            if process is not None:
                self.ends[process.returncode] += 1
            log = self._stack.enter_context((self._run.home / f"log{id_}").open("ab"))
            self.processes[id_] = self._stack.enter_context(
                subprocess.Popen(
                    self._run.command("t", id_, "--quiet"), env=self._run.env, cwd=self._run.home,
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                )
            )  # fmt: skip
            self._stack.callback(self.processes[id_].kill)


def worker_pid(r: redis.Redis, id_: str) -> int | None:
    """Of a worker that lives: pid stays in the hash when all is killed."""
    pid = r.hget(f"t:{id_}:h", "pid")
    with contextlib.suppress(OSError):
        if pid is not None and f"t:{id_}:h".encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
            return int(pid)
    return None


def wreck(r: redis.Redis, fleet: Fleet, server: Server, chance: random.Random, turn: int) -> str:
    """One thing goes wrong."""
    id_ = chance.choice(WORKERS)
    if turn % 16 == 6:
        server.kill()
        server.start()
        return "redis"
    what = ("worker", "supervisor", "connections", "frozen")[turn % 4]
    if what == "connections":
        for connection in r.client_list():
            if connection["name"].startswith("worker"):
                with contextlib.suppress(redis.ResponseError):
                    r.client_kill_filter(_id=connection["id"])
    elif what == "supervisor":
        fleet.processes[id_].kill()
    elif (pid := worker_pid(r, id_)) is not None:
        if what == "worker":
            os.kill(pid, signal.SIGKILL)
        else:
            os.kill(pid, signal.SIGSTOP)
            time.sleep(TAKEOVER_MILLIS / 1000 * 1.5)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
    return what


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_chaos_loses_nothing_repeats_no_reply_and_leaves_nothing_pending(
    server: Server, run: Runner, tmp_path: Path, kind: str
) -> None:
    run.env["REDIS_URL"] = server.url
    (tmp_path / "worker.py").write_text(CODE if kind == "plain" else ASYNC)
    chance = random.Random(5)
    with (
        contextlib.ExitStack() as stack,
        redis.Redis.from_url(server.url, decode_responses=True, socket_timeout=30) as r,
    ):
        settings = {
            "url": str(tmp_path), "version": "local", "takeoverMillis": str(TAKEOVER_MILLIS), "maxDeliveries": "4",
            "replyExpireSeconds": "3600", "responseStreamLimit": "0", "requestStreamLimit": "0",
        }  # fmt: skip
        for id_ in WORKERS:
            r.hset(f"t:{id_}:h", mapping=settings)
        fleet = Fleet(run, stack)
        fleet.tend()
        sent: list[str] = []
        wrecked: collections.Counter[str] = collections.Counter()
        turn, at = 0, time.monotonic() + 0.5
        deadline = time.monotonic() + 120 + REQUESTS / 50
        while len(sent) < REQUESTS or r.xlen("t:res:x") < REQUESTS:
            assert time.monotonic() < deadline, (
                f"{r.xlen('t:res:x')} of {len(sent)} answered: {r.xpending('t:req:x', 'worker')}"
            )
            for _ in range(20):
                if len(sent) < REQUESTS:
                    n = len(sent)
                    data = {"n": n, "sleep": 0.002 if n % 10 else 0.05, "poison": n in POISON}
                    r.xadd("t:req:x", {"ref": f"r{n}", "type": "t", "data": json.dumps(data)})
                    sent.append(f"r{n}")
            time.sleep(0.02)
            fleet.tend()
            if time.monotonic() > at and (turn < 10 or turn < REQUESTS // 200):
                wrecked[wreck(r, fleet, server, chance, turn)] += 1
                turn, at = turn + 1, time.monotonic() + 0.3
        for process in fleet.processes.values():
            process.terminate()
        for process in fleet.processes.values():
            process.wait(20)

        entries = {xid: fields["ref"] for xid, fields in r.xrange("t:req:x")}
        answered = collections.Counter(fields["xid"] for _, fields in r.xrange("t:res:x"))
        codes = collections.Counter(fields["code"] for _, fields in r.xrange("t:res:x"))
        with r.pipeline(transaction=False) as pipe:
            for ref in sent:
                pipe.llen(f"res:{ref}")
            replies = pipe.execute()
        letters = [fields["ref"] for _, fields in r.xrange("t:dead:x")]
        pending = r.xpending("t:req:x", "worker")["pending"]
    print(
        f"{kind}: {len(sent)} requests, {dict(wrecked)}, exits {dict(fleet.ends)}, codes {dict(codes)}, dead {letters}"
    )
    assert dict.fromkeys(entries, 1) == answered
    assert replies == [1] * REQUESTS
    assert pending == 0
    assert {f"r{n}" for n in POISON} <= set(letters)
    assert codes == {"200": REQUESTS - len(letters), "500": len(letters)}
    # Of very many, one or another that is no poison has bad luck with its workers, maxDeliveries times.
    assert len(letters) == len(POISON) or REQUESTS > 10_000
