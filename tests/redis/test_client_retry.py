"""Calls through an outage: they try again until their time-out, and no request is in the stream twice."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
import servers
from answering import Answering
from arena import wait_for
from tcp_relay import Relay

from sandboxrun import client
from sandboxrun.errors import LoginRefused, StoreError

Call = Callable[..., list[Any]]  # url, items, options of the call: outcomes in the order of the items


def blocking(url: str, items: list[Any], **options: Any) -> list[Any]:
    with client.Client(url) as c:
        return [_outcome(lambda item=item: c.call("t", item, **options)) for item in items]


def many(url: str, items: list[Any], **options: Any) -> list[Any]:
    with client.Client(url) as c:
        return [outcome for _, outcome, _ in sorted(c.call_many("t", items, **options), key=lambda row: row[0])]


def awaiting(url: str, items: list[Any], **options: Any) -> list[Any]:
    async def main() -> list[Any]:
        async with client.AsyncClient(url) as c:
            return await asyncio.gather(*(c.call("t", item, **options) for item in items), return_exceptions=True)

    return asyncio.run(main())


def _outcome(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:
        return error


ALL = pytest.mark.parametrize("call", [blocking, many, awaiting])


@pytest.fixture
def relay(server: servers.Own) -> Iterator[Relay]:
    with Relay(server.port) as found:
        yield found


@pytest.fixture
def r(server: servers.Own) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server.url, decode_responses=True, socket_timeout=30) as found:
        yield found


class Background:
    """`function()` in a thread; `result` waits for it."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._box: list[Any] = []
        self._thread = threading.Thread(target=lambda: self._box.append(function()))
        self._thread.start()

    def result(self) -> Any:
        self._thread.join(60)
        assert self._box, "it did not end"
        return self._box[0]


def data_of(outcomes: list[Any]) -> list[Any]:
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome
    return [outcome["data"] for outcome in outcomes]


@ALL
def test_a_call_goes_through_a_restart(server: servers.Own, call: Call) -> None:
    server.kill()
    calls = Background(lambda: call(server.url, [1, 2, 3], timeout=30))
    time.sleep(1)
    server.start()
    with Answering(server.url):
        assert data_of(calls.result()) == [1, 2, 3]


@ALL
def test_without_retry_it_is_not_sent_at_once(server: servers.Own, call: Call) -> None:
    server.kill()
    began = time.monotonic()
    for outcome in call(server.url, [1, 2], timeout=60, retry=False):
        assert isinstance(outcome, client.NotSent) and not outcome.may_have_run
        assert "cannot be reached" in str(outcome)
    assert time.monotonic() - began < 30


@ALL
def test_what_can_take_nothing_at_the_moment_is_tried_again(server: servers.Own, r: redis.Redis, call: Call) -> None:
    for begin, end in (
        (lambda: r.config_set("maxmemory", 1), lambda: r.config_set("maxmemory", 0)),
        (lambda: r.replicaof("127.0.0.1", 1), lambda: r.replicaof("NO", "ONE")),
        (lambda: r.config_set("maxclients", 1), lambda: r.config_set("maxclients", 1000)),
    ):
        r.delete("t:req:x")
        begin()
        calls = Background(lambda: call(server.url, [1, 2], timeout=30))
        time.sleep(0.5)
        assert r.xlen("t:req:x") == 0
        end()
        with Answering(server.url):
            assert data_of(calls.result()) == [1, 2]
        assert r.xlen("t:req:x") == 2


def test_calls_through_a_promotion_are_answered_once(server: servers.Own, relay: Relay) -> None:
    with (
        servers.Own(f"replicaof 127.0.0.1 {server.port}") as other,
        redis.Redis.from_url(other.url, decode_responses=True) as replica,
    ):
        wait_for(lambda: replica.info("replication")["master_link_status"] == "up")
        with Answering(relay.url) as worker:
            counts = iter(range(10**6))
            over = threading.Event()

            def caller() -> list[Any]:
                outcomes = []
                with client.Client(relay.url) as c:
                    while not over.is_set():
                        outcomes.append(_outcome(lambda: c.call("t", next(counts), timeout=40)))
                return outcomes

            callers = [Background(caller) for _ in range(4)]
            wait_for(lambda: len(worker.seen) > 200)
            server.kill()
            relay.target = other.port
            time.sleep(1)
            replica.replicaof("NO", "ONE")
            count = len(worker.seen)
            wait_for(lambda: len(worker.seen) > count + 200)
            over.set()
            numbers = sorted(number for calls in callers for number in data_of(calls.result()))
        assert numbers == list(range(len(numbers)))  # each has a reply, and its own
        entries = [fields["data"] for _, fields in replica.xrange("t:req:x")]
        assert len(entries) == len(set(entries))


@ALL
def test_a_request_that_arrives_after_it_was_sent_again_does_nothing(
    server: servers.Own, relay: Relay, r: redis.Redis, call: Call
) -> None:
    """It may stay in a proxy that is suspended, say. Nobody knows whether it arrives; so it is made harmless."""
    relay.hold_at = b"XADD"
    calls = Background(lambda: call(relay.url, ["x"], timeout=40))
    wait_for(lambda: relay.held)
    assert r.xlen("t:req:x") == 0
    relay.cut()
    with Answering(server.url) as worker:
        assert data_of(calls.result()) == ["x"]
        relay.release()
        time.sleep(0.3)
        assert worker.seen == ["x"]
    assert r.xlen("t:req:x") == 1


@ALL
def test_a_request_that_was_taken_is_not_sent_again(
    server: servers.Own, relay: Relay, r: redis.Redis, call: Call
) -> None:
    relay.drop_at = b"XADD"
    calls = Background(lambda: call(relay.url, ["x"], timeout=40))
    wait_for(lambda: relay.dropped)
    relay.cut()
    with Answering(server.url):
        assert data_of(calls.result()) == ["x"]
    assert r.xlen("t:req:x") == 1


@ALL
def test_a_server_that_is_silent_and_goes_on_has_the_request_once(
    server: servers.Own, r: redis.Redis, call: Call
) -> None:
    """It is given up before it goes on: what was written to it and what is sent again are there at the same time."""
    server.freeze()
    calls = Background(lambda: call(server.url, ["x"], timeout=60))
    time.sleep(7)
    server.thaw()
    with Answering(server.url):
        assert data_of(calls.result()) == ["x"]
    assert r.xlen("t:req:x") == 1


@ALL
def test_a_reply_that_was_popped_for_a_lost_connection_is_found(
    server: servers.Own, relay: Relay, r: redis.Redis, call: Call
) -> None:
    relay.drop_at = b"res:"
    items = ["x"] if call is blocking else list(range(20))
    calls = Background(lambda: call(relay.url, items, timeout=40))
    wait_for(lambda: r.xlen("t:req:x") == len(items))
    with Answering(server.url) as worker:
        wait_for(lambda: relay.dropped and len(worker.seen) == len(items))
        wait_for(lambda: not r.keys("res:*"))  # all are taken
        relay.cut()
        assert data_of(calls.result()) == items
    assert len(worker.seen) == len(items)


@ALL
def test_a_connection_that_is_dead_without_saying_so_is_noticed(
    server: servers.Own, relay: Relay, r: redis.Redis, call: Call
) -> None:
    """Nobody cuts it, and Redis gives it the reply."""
    relay.drop_at = b"res:"
    with Answering(server.url):
        assert data_of(call(relay.url, ["x"], timeout=60)) == ["x"]
    assert relay.dropped


@ALL
def test_a_server_that_has_forgotten_everything_gets_no_request_that_it_had_taken(
    server: servers.Own, call: Call
) -> None:
    calls = Background(lambda: call(server.url, ["x"], timeout=4))
    with redis.Redis.from_url(server.url) as r:
        wait_for(lambda: r.xlen("t:req:x") == 1)
        time.sleep(0.2)  # the answer has come
        server.kill()
        server.start()
        (outcome,) = calls.result()
        assert isinstance(outcome, client.CallTimeout) and outcome.may_have_run
        assert r.xlen("t:req:x") == 0


@ALL
def test_what_does_not_pass_is_said_at_once(server: servers.Own, r: redis.Redis, call: Call) -> None:
    r.acl_setuser("no-streams", enabled=True, passwords=["+p"], keys=["*"], commands=["+@all", "-xadd"])
    r.acl_setuser("no-lists", enabled=True, passwords=["+p"], keys=["*"], commands=["+@all", "-brpop"])
    where = server.url.partition("//")[2]
    began = time.monotonic()
    with pytest.raises(LoginRefused):
        data_of(call(f"redis://no-streams:wrong@{where}", ["x"], timeout=300))
    with pytest.raises(StoreError, match=r"NOPERM.*xadd") as refused:
        data_of(call(f"redis://no-streams:p@{where}", ["x"], timeout=300))
    assert not isinstance(refused.value, client.CallError)
    with pytest.raises(client.CallError, match=r"NOPERM.*brpop.*the request was sent") as unread:
        data_of(call(f"redis://no-lists:p@{where}", ["x"], timeout=300))
    assert unread.value.may_have_run
    assert time.monotonic() - began < 60


def test_a_full_server_is_no_refused_login(server: servers.Own, r: redis.Redis) -> None:
    """What it says comes in place of the answer to the password."""
    r.acl_setuser("u", enabled=True, passwords=["+p"], keys=["*"], commands=["+@all"])
    r.config_set("maxclients", 1)
    (outcome,) = blocking(server.url.replace("://", "://u:p@"), ["x"], timeout=0.5)
    assert isinstance(outcome, client.NotSent)
    r.config_set("maxclients", 1000)


def test_a_user_that_may_not_watch_waits_instead_of_sending_twice(
    server: servers.Own, relay: Relay, r: redis.Redis
) -> None:
    r.acl_setuser("unfenced", enabled=True, passwords=["+p"], keys=["*"], commands=["+@all", "-watch"])
    url = relay.url.replace("://", "://unfenced:p@")
    with Answering(server.url):
        assert data_of(blocking(url, ["x"], timeout=20)) == ["x"]
        relay.hold_at = b"XADD"
        calls = Background(lambda: blocking(url, ["y"], timeout=3))
        wait_for(lambda: relay.held)
        relay.cut()
        (outcome,) = calls.result()
        assert isinstance(outcome, client.CallTimeout) and outcome.may_have_run
    assert r.xlen("t:req:x") == 1
