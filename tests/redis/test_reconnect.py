"""The connection is lost at any moment: the reply is written once, after the reconnect, and the worker goes on."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import redis
import servers
from arena import wait_for
from loop_workers import KINDS, answer, answered, pending, send, wait_for_begin
from proxy import DOWN, Proxy, word
from runner import Runner

Start = Callable[..., AbstractContextManager[subprocess.Popen[bytes]]]
WORKER = "worker"  # how the names of its connections begin; those of the supervisor begin otherwise


@pytest.fixture
def r(server: servers.Own) -> Iterator[redis.Redis]:
    """Not by the proxy."""
    with redis.Redis.from_url(server.url, decode_responses=True, socket_timeout=40) as found:
        yield found


@pytest.fixture(params=KINDS)
def start(request: pytest.FixtureRequest, r: redis.Redis, proxy: Proxy, run: Runner, tmp_path: Path) -> Start:
    """Start a worker that comes to Redis by the proxy."""
    (tmp_path / "worker.py").write_text(KINDS[request.param])

    def begin(id_: str = "1", **fields: str) -> AbstractContextManager[subprocess.Popen[bytes]]:
        settings = {"url": str(tmp_path), "version": "local", "replyExpireSeconds": "600", "responseStreamLimit": "0"}
        r.hset(f"t:{id_}:h", mapping=settings | fields)
        run.env["REDIS_URL"] = f"redis://127.0.0.1:{proxy.port}"
        return run.start("t", id_)

    return begin


def end(r: redis.Redis, process: subprocess.Popen[bytes]) -> str:
    """End a worker that is alive and has nothing left to do; what it said."""
    wait_for(lambda: pending(r) == 0, 20)
    assert process.poll() is None
    process.terminate()
    _, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    assert b"Traceback" not in err
    return err.decode()


@pytest.mark.parametrize("fault", ["cut", "refused", "half-open"])
def test_a_reply_is_written_after_an_outage_that_began_and_ended_while_its_handler_worked_or_later(
    start: Start, r: redis.Redis, proxy: Proxy, fault: str
) -> None:
    """Claims are renewed each 0.2 s, so that the fault meets a renewal; the handler ends in the midst of the outage."""
    with start(takeoverMillis="1200") as process:
        assert answer(r, send(r, n=0))["n"] == 0
        slow = send(r, n=1, sleep=1)
        wait_for_begin(r)
        time.sleep(0.3)
        if fault == "half-open":
            proxy.stall(WORKER)
        else:
            if fault == "refused":
                proxy.refuse()
            assert proxy.cut(WORKER) > 0
        waits = [send(r, n=n) for n in range(2, 12)]
        time.sleep(1.5)
        assert fault == "cut" or not r.exists(f"res:{slow}")
        proxy.resume()
        assert answer(r, slow).items() >= {"n": 1, "begun": 1, "deliveries": 1}.items()
        assert [answer(r, ref)["n"] for ref in waits] == list(range(2, 12))
        err = end(r, process)
    assert set(answered(r).values()) == {1}
    assert err.count("connecting again") == 1
    assert err.count("worker: Redis is back") == 1


@pytest.mark.parametrize(
    "moment", ["before the transaction", "before EXEC", "before the answer to EXEC", "in the answer to EXEC"]
)
def test_a_connection_that_is_lost_while_a_reply_is_written_loses_and_repeats_nothing(
    start: Start, r: redis.Redis, proxy: Proxy, moment: str
) -> None:
    """Twice, so that it happens to the second try as well. Whether Redis did what EXEC says is unknown, and found out."""
    with start() as process:
        assert answer(r, send(r, n=0))["n"] == 0
        faults = proxy.faults
        ref = send(r, n=1, sleep=0.3, size=300)
        wait_for_begin(r)
        if moment == "before the transaction":
            proxy.cut_before(word("MULTI"), times=2, prefix=WORKER)
        elif moment == "before EXEC":
            proxy.cut_before(word("EXEC"), times=2, prefix=WORKER)
        elif moment == "before the answer to EXEC":
            proxy.lose_answer(word("LPUSH"), times=2, prefix="worker:")
        else:
            proxy.cut_after(30, DOWN, times=2, prefix="worker:")
        more = [send(r, n=n) for n in range(2, 30)]
        assert answer(r, ref).items() >= {"n": 1, "begun": 1}.items()
        assert sorted(answer(r, other)["n"] for other in more) == list(range(2, 30))
        assert proxy.faults > faults
        end(r, process)
    assert set(answered(r).values()) == {1}
    assert len(answered(r)) == 30


@pytest.mark.parametrize("command", ["XCLAIM", "XREADGROUP", "XPENDING"])
def test_a_connection_that_is_lost_in_upkeep_loses_and_repeats_nothing(
    start: Start, r: redis.Redis, proxy: Proxy, command: str
) -> None:
    with start(takeoverMillis="600") as process:
        for turn in range(4):
            faults = proxy.faults
            (proxy.cut_before if turn % 2 else proxy.lose_answer)(word(command), prefix=WORKER)
            refs = [send(r, n=turn * 10 + n, sleep=0.3 if n == 0 else 0) for n in range(10)]
            assert all(answer(r, ref).items() >= {"begun": 1}.items() for ref in refs)
            wait_for(lambda faults=faults: proxy.faults > faults)
        end(r, process)
    assert set(answered(r).values()) == {1}


def test_a_proxy_that_closes_what_is_used_is_tried_with_growing_delays_and_said_once(
    start: Start, r: redis.Redis, proxy: Proxy
) -> None:
    """Each connection opens, logs in and makes its fence: none of that is a success."""
    with start() as process:
        assert answer(r, send(r, n=0))["n"] == 0
        ref = send(r, n=1, sleep=0.2)
        wait_for_begin(r)
        faults = proxy.faults
        proxy.cut_before(word("LPUSH"), times=10**9, prefix=WORKER)
        proxy.cut_before(word("XREADGROUP"), times=10**9, prefix=WORKER)
        proxy.cut(WORKER)
        time.sleep(3)
        assert proxy.faults - faults < 40  # two connections: 0.05, 0.1, 0.2 … s, with jitter
        proxy.resume()
        assert answer(r, ref)["begun"] == 1
        assert answer(r, send(r, n=2))["n"] == 2
        err = end(r, process)
    assert err.count("connecting again") == 1
    assert err.count("worker: Redis is back") == 1


def test_a_server_that_takes_connections_and_never_answers_is_waited_for(
    start: Start, r: redis.Redis, proxy: Proxy
) -> None:
    with start(takeoverMillis="3000") as process:
        assert answer(r, send(r, n=0))["n"] == 0
        proxy.stall(WORKER)
        proxy.cut(WORKER)
        slow = send(r, n=1)
        time.sleep(2)
        proxy.resume()
        assert answer(r, slow)["deliveries"] == 1
        end(r, process)


def test_a_slow_network_is_no_outage(start: Start, r: redis.Redis, proxy: Proxy) -> None:
    with start() as process:
        assert answer(r, send(r, n=0))["n"] == 0
        proxy.slow(40_000)
        refs = [send(r, n=n, size=2000) for n in range(1, 9)]
        assert sorted(answer(r, ref)["n"] for ref in refs) == list(range(1, 9))
        proxy.resume()
        err = end(r, process)
    assert "connecting again" not in err


@pytest.mark.parametrize("doing", ["idle", "in a handler", "with a reply"])
@pytest.mark.parametrize("fault", ["half-open", "refused"])
def test_the_end_is_bounded_whatever_the_connection_does(
    start: Start, r: redis.Redis, proxy: Proxy, doing: str, fault: str
) -> None:
    """SIGTERM, and Redis cannot be reached: the worker ends by itself, before sandboxrun kills it after 5 s."""
    with start() as process:
        assert answer(r, send(r, n=0))["n"] == 0
        if doing != "idle":
            send(r, n=1, sleep=1.5 if doing == "in a handler" else 0.3)
            wait_for_begin(r)
        if fault == "refused":
            proxy.refuse()
            proxy.cut("worker")
        else:
            proxy.stall("worker")
        if doing == "with a reply":
            time.sleep(0.6)
        process.terminate()
        _, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    assert b"Traceback" not in err


def test_the_end_hands_back_what_was_not_begun_over_a_connection_that_is_mended_in_time(
    start: Start, r: redis.Redis, proxy: Proxy
) -> None:
    with start(takeoverMillis="60000") as process:
        assert answer(r, send(r, n=0))["n"] == 0
        slow = send(r, n=1, sleep=1)
        wait_for_begin(r)
        refs = [send(r, n=n, sleep=0.2) for n in range(2, 30)]
        proxy.refuse()
        proxy.cut(WORKER)
        process.terminate()
        time.sleep(1.2)
        proxy.resume()
        assert process.wait(20) == 0
        assert answer(r, slow, 5)["begun"] == 1
    with start(takeoverMillis="60000"):  # at once, although the claims of one that was lost would be kept for a minute
        assert {answer(r, ref, 20)["deliveries"] for ref in refs if not answered(r)[ref]} <= {1}
    assert set(answered(r).values()) == {1}
    assert len(answered(r)) == 30
