"""The response stream: trimmed to its limit, and never past what a group has not read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from arena import wait_for
from loop_workers import answer, send
from runner import Runner

FAST = "from sandboxrun import worker\nworker.handler(lambda request: {'n': request.data['n']})\nworker.run()\n"
ASYNC = "from sandboxrun import worker\n@worker.handler\nasync def handle(request):\n    return {'n': request.data['n']}\nworker.run()\n"
CODE = pytest.mark.parametrize("code", [FAST, ASYNC], ids=["plain", "async"])


def send_many(r: redis.Redis, count: int) -> str:
    """The last one's ref."""
    ref = ""
    with r.pipeline(transaction=False) as pipe:
        for n in range(count):
            ref = os.urandom(8).hex()
            pipe.xadd("t:req:x", {"ref": ref, "type": "t", "data": f'{{"n": {n}}}'})
        pipe.execute()
    return ref


def added(r: redis.Redis) -> int:
    return int(r.xinfo_stream("t:res:x")["entries-added"]) if r.exists("t:res:x") else 0


def read(r: redis.Redis, group: str, count: int) -> list[Any]:
    found: Any = r.xreadgroup(group, "c", {"t:res:x": ">"}, count=count)
    return found[0][1] if found else []


@CODE
def test_without_a_group_it_is_kept_near_its_limit_at_any_speed(
    r: redis.Redis, run: Runner, local: Callable[..., Path], code: str
) -> None:
    local(code)
    longest = 0
    with run.start("t", "1"):
        send_many(r, 20_000)
        while added(r) < 20_000:
            longest = max(longest, r.xlen("t:res:x"))
        wait_for(lambda: r.xlen("t:res:x") < 2500)
        assert r.xlen("t:res:x") >= 1000
    assert longest < 6000


@pytest.mark.parametrize("limit", ["0", "1000"])
def test_workers_that_end_after_few_requests_trim_what_others_have_left(
    r: redis.Redis, run: Runner, local: Callable[..., Path], limit: str
) -> None:
    local(FAST, requestLimit="1", responseStreamLimit=limit)
    for _ in range(1500):
        r.xadd("t:res:x", {"ref": "x"})
    for n in range(3):
        send(r, n=n)
        assert run("t", "1").code == 0
    assert (r.xlen("t:res:x") < 1495) == (limit == "1000")


@CODE
def test_what_a_group_has_not_read_or_not_acknowledged_stays(
    r: redis.Redis, run: Runner, local: Callable[..., Path], code: str
) -> None:
    local(code, responseStreamLimit="100")
    r.xgroup_create("t:res:x", "audit", id="0", mkstream=True)
    r.xgroup_create("t:res:x", "fast", id="$")
    with run.start("t", "1"):
        send_many(r, 5000)
        wait_for(lambda: added(r) == 5000, 30)
        read(r, "fast", 5000)
        answer(r, send(r, n=0))
        answer(r, send(r, n=0))
        assert r.xlen("t:res:x") == 5002
        found = read(r, "audit", 3000)
        assert len(found) == 3000
        r.xack("t:res:x", "audit", *[xid for xid, _ in found[:1000]])
        r.xack("t:res:x", "fast", *[row["message_id"] for row in r.xpending_range("t:res:x", "fast", "-", "+", 5000)])
        wait_for(lambda: r.xlen("t:res:x") <= 4002)
        answer(r, send(r, n=0))
        assert r.xrange("t:res:x", count=1)[0][0] == found[1000][0]  # pending: not a single one of them is gone
        r.xgroup_destroy("t:res:x", "audit")
        wait_for(lambda: r.xlen("t:res:x") < 4000)


@CODE
def test_a_group_that_lags_while_replies_arrive_reads_every_one_of_them(
    r: redis.Redis, run: Runner, local: Callable[..., Path], code: str
) -> None:
    """As an exporter of traces does, which acknowledges what it has sent."""
    local(code, responseStreamLimit="100")
    r.xgroup_create("t:res:x", "export", id="0", mkstream=True)
    seen: list[str] = []
    with run.start("t", "1"):
        refs = {send_many(r, 1000) for _ in range(5)}
        while len(seen) < 5000:
            lags = added(r) < 5000
            found = read(r, "export", 10 if lags else 1000)
            assert found or lags, f"only {len(seen)} of 5000 are left"
            seen += [fields["ref"] for _, fields in found]
            if found:
                r.xack("t:res:x", "export", *[xid for xid, _ in found])
        assert len(set(seen)) == 5000 and refs <= set(seen)


def test_a_group_that_is_made_at_full_speed_loses_nothing_from_then_on(
    r: redis.Redis, run: Runner, local: Callable[..., Path]
) -> None:
    """It may be made at any moment, and be heard of later."""
    for id_ in "12":
        local(FAST, key=f"t:{id_}:h", responseStreamLimit="10")
    with run.start("t", "1"), run.start("t", "2"):
        send_many(r, 20_000)
        made = []
        for n in range(5):
            wait_for(lambda n=n: added(r) > 3000 * (n + 1), 30)
            with r.pipeline() as pipe:
                pipe.xgroup_create("t:res:x", f"g{n}", id="$")
                pipe.xinfo_stream("t:res:x")
                made.append(int(pipe.execute()[1]["entries-added"]))
        wait_for(lambda: added(r) == 20_000, 30)
        for n, before in enumerate(made):
            assert len(read(r, f"g{n}", 30_000)) == 20_000 - before


@CODE
def test_a_group_that_nobody_reads_is_named_once_the_stream_has_its_most(
    r: redis.Redis, run: Runner, local: Callable[..., Path], code: str
) -> None:
    local(code, responseStreamLimit="100", responseStreamMax="2000")
    r.xgroup_create("t:res:x", "forgotten", id="0", mkstream=True)
    with run.start("t", "1") as process:
        send_many(r, 8000)
        wait_for(lambda: added(r) == 8000, 30)
        wait_for(lambda: 1900 < r.xlen("t:res:x") < 2400)
        process.terminate()
        _, err = process.communicate(timeout=20)
    assert err.count(b"group forgotten has not read") == 1
    assert b"XGROUP DESTROY t:res:x forgotten" in err
