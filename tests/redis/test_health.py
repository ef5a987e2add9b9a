"""What a running worker says of itself in the page that it shares with its supervisor."""

from __future__ import annotations

import contextlib
import json
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


HOSTILE = """
import os, sys, threading, time
from sandboxrun import worker

page = sys._sandboxrun_health

def scribble():
    while True:
        page[:] = os.urandom(len(page))
        page[:8] = b"\\1" + bytes(7)

threading.Thread(target=scribble, daemon=True).start()

@worker.handler
def handle(request):
    time.sleep(1.5)  # so that the supervisor looks meanwhile
    return {}

worker.run()
"""


def ended(run: Runner) -> tuple[int, str]:
    done = run("t", "1", "--limit-handler=1")
    return done.code, done.err


def test_a_stuck_worker_is_ended_and_its_request_is_left_for_others(r: redis.Redis, run: Runner, local: Local) -> None:
    local(KINDS["plain"])
    ref = send(r, n=1, sleep=3600)
    code, said = ended(run)
    assert code == 128 + 9
    assert "a handler that stops the loop has reached its limit of 1s" in said
    assert "--limit-handler=2s (field limitHandler of t:1:h): ending the worker" in said
    assert r.xpending("t:req:x", "worker")["pending"] == 1
    assert not r.exists(f"res:{ref}")


@pytest.mark.parametrize("kind", ["async", "threads"])
def test_a_long_handler_is_not_stuck_while_the_loop_turns(r: redis.Redis, run: Runner, local: Local, kind: str) -> None:
    local(KINDS[kind], requestLimit="1")
    ref = send(r, n=1, sleep=2)
    code, said = ended(run)
    assert code == 0, said
    assert answer(r, ref)["code"] == 200


def test_a_worker_with_threads_is_stuck_when_they_take_every_place(r: redis.Redis, run: Runner, local: Local) -> None:
    local(KINDS["threads"])
    for n in range(2):
        send(r, n=n, sleep=3600)
    code, said = ended(run)
    assert code == 128 + 9
    assert "a handler that stops the loop has reached its limit of 1s" in said


def test_a_page_full_of_nonsense_ends_nothing_but_the_worker(r: redis.Redis, run: Runner, local: Local) -> None:
    local(HOSTILE, requestLimit="1")
    ref = send(r, n=1)
    code, said = ended(run)
    assert "Traceback" not in said
    assert code in (0, 128 + 15), said  # it may say that it is stuck
    assert answer(r, ref)["code"] == 200


def test_info_says_how_old_a_request_is_who_has_it_and_since_when(r: redis.Redis, run: Runner, local: Local) -> None:
    local(KINDS["plain"], takeoverMillis="600")  # so that the claim is renewed each 0.1 s
    with started(run) as process:
        for n in range(2):
            answer(r, send(r, n=n, fail=n))
        r.xadd("t:req:x", {"ref": "long", "type": "t", "data": '{"n": 3, "sleep": 3600}'})
        wait_for(lambda: health_of(process.pid).handled == 2 and _claimed(r) == 1)
        wait_for(lambda: health_of(process.pid).handling_since)
        wait_for(lambda: time.monotonic() - health_of(process.pid).handling_since > 1.5)
        found = json.loads(run("info", "t", "--json").out)
        shown = run("info", "t").out
        process.kill()
    assert found["pending"][0]["age"] >= 1500 and found["pending"][0]["consumer"] == "1"
    (consumer,) = found["consumers"]
    assert consumer["handling_seconds"] >= 1.5
    assert consumer["codes"] == {"200": 1, "500": 1}
    assert ", handling for " in shown and ", answered 1 with 200, 1 with 500" in shown
    assert " ago, with 1 for " in shown


def _claimed(r: redis.Redis) -> int:
    return int(r.xpending("t:req:x", "worker")["pending"])
