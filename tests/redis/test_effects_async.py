"""State that joins the replies of a concurrent worker: at its end, in an outage, and if requests become another worker's."""

from __future__ import annotations

import socket
import time
from collections import deque
from pathlib import Path
from typing import Any

import pytest
import redis
from effect_workers import Plain, plain
from loop_workers import answer, send

from sandboxrun.config.fields import parse_loop
from sandboxrun.errors import ConnectionLost
from sandboxrun.worker.aside import Aside
from sandboxrun.worker.claims import Claims
from sandboxrun.worker.context import Context
from sandboxrun.worker.handlers import Handler
from sandboxrun.worker.job import Job
from sandboxrun.worker.reader import Room
from sandboxrun.worker.rendering import Entry
from sandboxrun.worker.request import Request
from sandboxrun.worker.reruns import Reruns

LAST = """
import asyncio, signal, threading
from sandboxrun import worker
from sandboxrun.worker import base

base.GRACE_SECONDS, base.CUT_SECONDS = 30, 30  # more, because the machine may be busy
runs, others = [], worker.connect()

@worker.handler
async def handle(request):
    runs.append(1)
    state = await worker.state("a:1:h")
    if len(runs) > 1:
        return {"runs": len(runs)}
    reading = [thread for thread in threading.enumerate() if thread.name.endswith("(_run)")]
    assert len(reading) == 1
    signal.raise_signal(signal.SIGTERM)
    while reading[0].is_alive():
        await asyncio.sleep(0.01)
    others.hset("a:1:h", "n", 1)
    others.execute_command("CLIENT", "PAUSE", 200, "ALL")
    return {}

worker.run()
"""


def test_a_request_whose_state_changes_at_the_end_is_handled_again(
    r: redis.Redis, redis_url: str, tmp_path: Path
) -> None:
    """The answer of Redis about the state comes once nothing runs any more."""
    ref = send(r)
    worker = Plain(r, redis_url, tmp_path, LAST, takeoverMillis="60000")
    try:
        assert worker.process.wait(60) == 0, worker.errors.read_text()
    finally:
        worker.kill()
    left = r.xpending_range("t:req:x", "worker", "-", "+", 10)
    assert (left, r.llen(f"res:{ref}")) == ([], 1)


class Lines:
    """The worker's part of Reruns."""

    def __init__(self) -> None:
        self.claims = Claims(
            Context("t:1:h", "redis://127.0.0.1:1", None).connection, parse_loop({}, "t", "1"), "t:1:h", "7"
        )
        self.started: list[Any] = []
        self.next: list[Any] = []
        self.reruns = Reruns(self.claims, Room(4, None), self.started.append, self.next.append)

    def wait(self) -> tuple[Entry, Job]:
        """A request in hand whose reply depends on state, and is on its way."""
        entry = self.deliver()
        job = Job(entry, Handler(lambda _: None, None, None), Request("1-1", "r1", "t", {}, {}), "", None)
        self.reruns.wait(job)
        return entry, job

    def deliver(self) -> Entry:
        self.claims.hand[b"1-1"] = entry = Entry(b"1-1", {b"ref": b"r1"})
        return entry


def test_a_request_that_was_lost_and_delivered_once_more_holds_up_no_other_with_its_key() -> None:
    lines = Lines()
    entry, job = lines.wait()
    lines.reruns.look()
    assert (lines.next, lines.reruns.is_busy) == ([], True)
    lines.deliver()
    lines.reruns.look()
    assert (lines.next, lines.reruns.is_busy) == ([job], False)
    lines.reruns.changed(entry, entry.again())  # of the delivery that was lost
    assert (lines.started, lines.reruns.line) == ([], deque())


def test_a_look_before_the_loop_hears_that_a_state_has_changed_forgets_nothing() -> None:
    lines = Lines()
    entry, job = lines.wait()
    lines.claims.hand[b"1-1"] = again = entry.again()
    lines.reruns.look()
    assert lines.next == []
    lines.reruns.changed(entry, again)
    assert (lines.started, job.entry, lines.next) == ([job], again, [])


def test_whoever_has_waited_for_others_in_an_outage_does_not_begin_to_wait_anew() -> None:
    with socket.socket(socket.AF_INET) as listener:
        listener.bind(("127.0.0.1", 0))
        aside = Aside(Context("t:1:h", f"redis://127.0.0.1:{listener.getsockname()[1]}", None))
        with pytest.raises(ConnectionLost, match="cannot be reached"):
            aside.exchange([("PING",)], until=time.monotonic() - 1)
        listener.listen()
        listener.setblocking(False)
        with pytest.raises(ConnectionLost, match="cannot be reached"):
            aside.exchange([("PING",)], until=time.monotonic() - 1)
        with pytest.raises(BlockingIOError):
            listener.accept()  # nobody has tried


READ = """
import asyncio, threading
from sandboxrun import worker

async def read(n):
    return len(await worker.state(f"a:{n}:h"))

@worker.handler
async def handle(request):
    await asyncio.gather(*[read(n) for n in range(20)])
    names = [thread.name.rpartition("_")[0] for thread in threading.enumerate()]
    return {"state": names.count("state"), "default": asyncio.get_running_loop()._default_executor is not None}

worker.run()
"""


def test_states_are_read_in_one_thread_of_their_own(r: redis.Redis, redis_url: str, tmp_path: Path) -> None:
    """The default executor is the handlers'."""
    with plain(r, redis_url, tmp_path, READ):
        reply = answer(r, send(r))
    assert (reply["state"], reply["default"]) == (1, False)


def test_several_states_are_read_at_once(r: redis.Redis, redis_url: str, tmp_path: Path) -> None:
    r.hset("a:1:h", "n", 1)
    code = """
import asyncio
from sandboxrun import worker

@worker.handler
async def handle(request):
    one, two = await asyncio.gather(worker.state("a:1:h"), worker.state("b:1:h"))
    two["n"] = int(one["n"]) + 1
    return {"n": two["n"]}

worker.run()
"""
    with plain(r, redis_url, tmp_path, code):
        assert answer(r, send(r))["n"] == "2"
    assert r.hget("b:1:h", "n") == "2"
