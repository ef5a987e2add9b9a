"""`worker.state`: what a handler reads and writes joins its reply, and a change by others in between runs it again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import redis
from effect_workers import KINDS, plain
from loop_workers import answer, answered, send

HEAD = """
import asyncio, os, threading, time
import redis
from sandboxrun import worker

@worker.handler
"""
RUN = "\nworker.run()\n"


OTHERS = (
    HEAD
    + """
def handle(request):
    state = worker.state("a:1:h")
    runs.append(int(state.get("n", 0)))
    if len(runs) <= request.data["times"]:
        others.hincrby("a:1:h", "n", 10)
    state["n"] = runs[-1] + 1
    state["data"] = {"b": [1]}
    del state["gone"]
    return {"runs": len(runs), "deliveries": request.deliveries}

runs, others = [], worker.connect()
"""
    + RUN
)


@pytest.mark.parametrize("kind", KINDS)
def test_a_handler_runs_again_if_others_change_its_state_meanwhile(
    r: redis.Redis, redis_url: str, tmp_path: Path, kind: str
) -> None:
    r.hset("a:1:h", mapping={"n": 1, "gone": 1, "other": 1})
    code = OTHERS if kind == "plain" else OTHERS.replace("worker.run()", "worker.run(concurrency=4)")
    if kind == "async":
        code = code.replace("def handle", "async def handle").replace("worker.state", "await worker.state")
    with plain(r, redis_url, tmp_path, code):
        reply = answer(r, send(r, times=3))
    assert (reply["runs"], reply["deliveries"]) == (4, 1)
    assert r.hgetall("a:1:h") == {"n": "32", "other": "1", "data": '{"b":[1]}'}
    assert set(answered(r).values()) == {1}


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_a_state_that_others_fill_before_the_second_reading_is_not_read_whole(
    r: redis.Redis, redis_url: str, tmp_path: Path, kind: str
) -> None:
    """Whoever may write the key must not fill the worker's memory."""
    code = OTHERS.replace('hincrby("a:1:h", "n", 10)', 'hset("a:1:h", "x", "x" * 20_000_000)')
    if kind == "async":
        code = code.replace("def handle", "async def handle").replace("worker.state", "await worker.state")
    r.hset("a:1:h", mapping={"n": 1, "gone": 1})
    with plain(r, redis_url, tmp_path, code) as worker:
        reply = answer(r, send(r, times=1))
        assert (reply["code"], reply["err"]["message"]) == (500, "the state 'a:1:h' has more than 2097152 bytes")
        r.hdel("a:1:h", "x")
        assert answer(r, send(r, times=0))["runs"] == 2
        assert worker.errors.read_text().count("connecting again") == 1  # the rest was not read
    assert r.hgetall("a:1:h") == {"n": "2", "data": '{"b":[1]}'}
    assert set(answered(r).values()) == {1}


def test_a_state_that_changes_for_ever_is_answered_500_and_nothing_is_written(
    r: redis.Redis, redis_url: str, tmp_path: Path
) -> None:
    r.hset("a:1:h", mapping={"n": 0, "gone": 1})
    with plain(r, redis_url, tmp_path, OTHERS):
        ref, other = send(r, times=100000), send(r, times=0)
        reply = answer(r, ref)
        assert (
            reply["code"],
            "was changed by others 100 times, so nothing was written" in reply["err"]["message"],
        ) == (500, True)
        assert answer(r, other)["runs"] == 101
    assert r.hget("a:1:h", "n") == "1001"


def test_a_state_that_was_only_read_must_still_be_true_as_well(r: redis.Redis, redis_url: str, tmp_path: Path) -> None:
    code = OTHERS.replace('    state["n"] = runs[-1] + 1\n    state["data"] = {"b": [1]}\n    del state["gone"]\n', "")
    with plain(r, redis_url, tmp_path, code):
        assert answer(r, send(r, times=2))["runs"] == 3
    assert r.hgetall("a:1:h") == {"n": "20"}


def test_an_emptied_state_is_removed_and_a_time_to_live_stays(r: redis.Redis, redis_url: str, tmp_path: Path) -> None:
    code = HEAD + "def handle(request):\n    worker.state('a:1:h').clear()\n    worker.state('a:2:h')['n'] = 2\n" + RUN
    r.hset("a:1:h", mapping={"n": 1, "m": 2})
    r.hset("a:2:h", mapping={"n": 1})
    r.expire("a:2:h", 1000)
    with plain(r, redis_url, tmp_path, code):
        assert answer(r, send(r))["code"] == 200
    assert not r.exists("a:1:h")
    assert (r.hget("a:2:h", "n"), r.ttl("a:2:h") > 900) == ("2", True)


def test_an_async_handler_is_told_to_await_its_state(r: redis.Redis, redis_url: str, tmp_path: Path) -> None:
    with plain(r, redis_url, tmp_path, KINDS["async"].replace("await worker.state", "worker.state")):
        reply: dict[str, Any] = answer(r, send(r, n=1))
    assert reply["err"]["message"] == (
        "the state 'count:ann:h' was not read yet: expected state = await worker.state('count:ann:h')"
    )


def test_requests_with_equal_keys_change_a_state_in_their_order(r: redis.Redis, redis_url: str, tmp_path: Path) -> None:
    code = (
        HEAD
        + """
def handle(request):
    state = worker.state("a:1:h")
    time.sleep(0.002)
    state["order"] = state.get("order", "") + f" {request.data['n']}"
    runs.append(1)
    return {"runs": len(runs)}

runs = []
worker.run(concurrency=8, key=lambda request: "same")
"""
    )
    with plain(r, redis_url, tmp_path, code):
        replies = [answer(r, ref) for ref in [send(r, n=n) for n in range(20)]]
    assert r.hget("a:1:h", "order") == "".join(f" {n}" for n in range(20))
    assert replies[-1]["runs"] == 20  # none of them met the change of another
