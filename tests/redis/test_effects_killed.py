"""What a handler emits and writes to a state is there once, wherever its worker is killed or its connection is cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
import servers
from arena import wait_for
from effect_workers import KINDS, Plain, emitted, plain
from loop_workers import answer, answered, pending, send
from proxy import Link, Proxy, word

# Commands of a worker's main connection, in their order: what precedes them arrives, and they do not.
STEPS = {
    "the second reading": word("WATCH") + word("count:ann:h"),
    "the comparison": word("HGETALL") + word("count:ann:h"),
    "the transaction": word("MULTI") + b"*3\r\n" + word("LPUSH"),
    "the reply": word("LPUSH"),
    "the record": word("XADD") + word("t:res:x"),
    "the change": word("HSET") + word("count:ann:h"),
    "the emit": word("XADD") + word("log:req:x"),
    "the acknowledgement": word("XACK"),
    "EXEC": word("EXEC"),
    "the next watch": word("WATCH") + word("t:req:x:fence:1:f") + b"*3\r\n" + word("HEXISTS"),
}
FIRST = "the first reading"  # on the second connection


@pytest.fixture
def r(server: servers.Own) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server.url, decode_responses=True, socket_timeout=40) as found:
        yield found


def all_steps(r: redis.Redis, proxy: Proxy, then: Callable[[Link], None], mend: Callable[[], None]) -> None:
    """Send a request for each step, at which `then` happens; each has its effects once."""
    before = [answer(r, send(r, n=0))["total"]]
    assert before == [1]
    for n, (step, text) in enumerate([*STEPS.items(), (FIRST, word("HGETALL") + word("count:ann:h"))], 1):
        faults = proxy.faults
        proxy.before(text, then, prefix="worker-aside:" if step == FIRST else "worker:")
        ref = send(r, n=n)
        wait_for(lambda: proxy.faults > faults, 20, step)  # noqa: B023
        mend()
        reply = answer(r, ref)
        assert (reply.get("n"), reply.get("total")) == (n, n + 1), (step, reply)
        wait_for(lambda: pending(r) == 0, 20, step)
        assert emitted(r) == [{"n": number} for number in range(n + 1)], step
        assert r.hgetall("count:ann:h") == {"total": str(n + 1)}, step
    assert set(answered(r).values()) == {1}
    assert r.exists("t:dead:x") == 0


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_a_connection_that_is_cut_at_each_step_loses_and_repeats_no_effect(
    r: redis.Redis, proxy: Proxy, tmp_path: Path, kind: str
) -> None:
    with plain(r, f"redis://127.0.0.1:{proxy.port}", tmp_path, KINDS[kind]):
        all_steps(r, proxy, Link.cut, lambda: None)


def test_a_worker_that_is_killed_at_each_step_loses_and_repeats_no_effect(
    r: redis.Redis, proxy: Proxy, tmp_path: Path
) -> None:
    worker: list[Plain] = []
    with plain(r, f"redis://127.0.0.1:{proxy.port}", tmp_path, KINDS["plain"], maxDeliveries="20") as only:
        worker.append(only)
        all_steps(r, proxy, lambda _: only.kill(), only.again)


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_an_answer_to_exec_that_is_lost_repeats_no_effect(
    r: redis.Redis, proxy: Proxy, tmp_path: Path, kind: str
) -> None:
    with plain(r, f"redis://127.0.0.1:{proxy.port}", tmp_path, KINDS[kind]):
        assert answer(r, send(r, n=0))["n"] == 0
        for n in range(1, 4):
            faults = proxy.faults
            proxy.lose_answer(word("LPUSH"), prefix="worker:")
            assert answer(r, send(r, n=n)).items() >= {"n": n, "total": n + 1, "begun": 1}.items()
            wait_for(lambda: proxy.faults > faults, 20)  # noqa: B023
            wait_for(lambda: pending(r) == 0, 20)
        assert emitted(r) == [{"n": n} for n in range(4)]
        assert r.hgetall("count:ann:h") == {"total": "4"}
    assert set(answered(r).values()) == {1}


def test_a_reading_that_is_interrupted_by_a_time_out_is_no_other_requests_state(
    r: redis.Redis, proxy: Proxy, tmp_path: Path
) -> None:
    """Its reply is on its way when the handler's time is up, and would be the first one that the next handler reads."""
    code = KINDS["plain"].replace("@worker.handler", "@worker.handler(timeout=0.3)")
    r.hset("count:ann:h", "total", 100)
    with plain(r, f"redis://127.0.0.1:{proxy.port}", tmp_path, code):
        assert answer(r, send(r, n=0, user="eve"))["total"] == 1
        proxy.stall("worker-aside:")
        reply = answer(r, send(r, n=1))
        assert (reply["code"], "took longer than its timeout" in reply["err"]["message"]) == (500, True)
        proxy.resume(keep=True)
        assert answer(r, send(r, n=2, user="bob"))["total"] == 1
    assert (r.hgetall("count:ann:h"), r.hgetall("count:bob:h")) == ({"total": "100"}, {"total": "1"})
