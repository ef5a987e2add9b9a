"""What a running worker says of itself in the page that it shares with its supervisor."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from arena import wait_for
from loop_workers import answer, send
from page import health_of
from runner import Runner

Local = Callable[..., Path]

SCRIPT = """
import asyncio, time
from sandboxrun import worker

@worker.handler
def handle(request):
    if request.data.get("fail"):
        raise ValueError("as asked")
    if request.data.get("refuse"):
        raise worker.BadRequest("as asked")
    time.sleep(request.data.get("sleep", 0))
    return {}

worker.run()
"""
KINDS = {
    "plain": SCRIPT,
    "threads": SCRIPT.replace("worker.run()", "worker.run(concurrency=2)"),
    "async": SCRIPT.replace("def handle", "async def handle").replace("time.sleep", "await asyncio.sleep"),
    "async with keys": SCRIPT.replace("def handle", "async def handle")
    .replace("time.sleep", "await asyncio.sleep")
    .replace("worker.run()", "worker.run(key=lambda request: request.type)"),
}


@contextlib.contextmanager
def started(run: Runner) -> Iterator[subprocess.Popen[bytes]]:
    """The worker t 1, as soon as it is ready."""
    with run.start("t", "1") as process:
        wait_for(lambda: (Path("/proc") / str(process.pid) / "fd").exists() and _ready(process.pid), 30, "ready")
        yield process
        process.terminate()
        process.wait(20)


def _ready(supervisor: int) -> bool:
    try:
        return health_of(supervisor).ready
    except ValueError:  # it has no page yet
        return False


@pytest.mark.parametrize("kind", KINDS)
def test_a_worker_says_what_it_does(r: redis.Redis, run: Runner, local: Local, kind: str) -> None:
    local(KINDS[kind])
    with started(run) as process:
        before = health_of(process.pid)
        assert (before.handled, before.handling_since, before.codes) == (0, 0.0, ())
        names = {int(client["id"]): (client["name"], client["user"]) for client in r.client_list()}
        name, user = names[before.client_id]
        assert name in ("worker:t:1:h", "worker-reader:t:1:h")
        assert user.startswith("sandboxrun:t:1:")

        at = time.monotonic()
        long = send(r, n=1, sleep=1)
        wait_for(lambda: health_of(process.pid).handling_since, what="the begin of the handler")
        assert at <= health_of(process.pid).handling_since <= time.monotonic()
        answer(r, long)
        refs = [send(r, n=2), send(r, n=3, fail=True), send(r, n=4, refuse=True), send(r, n=5, fail=True)]
        for ref in refs:
            answer(r, ref)
        wait_for(lambda: health_of(process.pid).handled == 5, what="the count of replies")
        wait_for(lambda: not health_of(process.pid).handling_since, what="the end of the last handler")
        after = health_of(process.pid)
        assert after.codes == ((200, 2), (400, 1), (500, 2))
        assert after.handler.count == after.wait.count == 5
        assert after.handler.sum >= 1.0
        assert after.tick >= at
        wait_for(lambda: health_of(process.pid).tick > after.tick, what="a turn of the idle loop")
