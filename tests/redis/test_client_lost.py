"""Calls where Redis takes nothing, or is lost: what becomes of those that are on their way, and what their errors say."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import servers
from arena import wait_for
from runner import Runner

from sandboxrun import client
from sandboxrun.errors import StoreError

CODE = """
import asyncio
from sandboxrun import worker

@worker.handler
async def handle(request):
    await asyncio.sleep(request.data.get("sleep", 0))
    return {"n": request.data["n"]}

worker.run(concurrency=500)
"""
BIG = "x" * 200_000
Use = Callable[[client.AsyncClient], Awaitable[Any]]


@pytest.fixture
def r(server: servers.Own) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server.url, decode_responses=True, socket_timeout=30) as found:
        yield found


@pytest.fixture
def worker(server: servers.Own, r: redis.Redis, run: Runner, tmp_path: Path) -> Iterator[None]:
    (tmp_path / "worker.py").write_text(CODE)
    r.hset("t:1:h", mapping={"url": str(tmp_path), "version": "local"})
    run.env["REDIS_URL"] = server.url
    with run.start("t", "1"):
        yield


def using(server: servers.Own, use: Use) -> Any:
    async def main() -> Any:
        async with client.AsyncClient(server.url) as c:
            return await use(c)

    return asyncio.run(main())


def of_client(r: redis.Redis) -> list[dict[str, str]]:
    return [connection for connection in r.client_list() if connection["name"].startswith("sandboxrun-client")]


async def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        await asyncio.sleep(0.01)


def test_a_server_that_takes_nothing_does_not_keep_the_event_loop(server: servers.Own, worker: None) -> None:
    """What is sent is more than all buffers on the way hold: whoever writes it without asking is held up."""

    async def use(c: client.AsyncClient) -> None:
        await c.call("t", {"n": 0}, timeout=20)
        server.freeze()
        calls = [asyncio.create_task(c.call("t", {"n": n, "big": BIG}, timeout=60)) for n in range(100)]
        beats = 0
        began = time.monotonic()
        while beats < 100:
            await asyncio.sleep(0.002)
            beats += 1
        assert time.monotonic() - began < 3, "the event loop was held up"
        assert not any(call.done() for call in calls)
        server.thaw()
        assert [reply["n"] for reply in await asyncio.gather(*calls)] == list(range(100))

    using(server, use)


def test_two_thousand_calls_are_on_their_way_on_two_connections(
    server: servers.Own, r: redis.Redis, worker: None
) -> None:
    async def use(c: client.AsyncClient) -> None:
        await c.call("t", {"n": 0}, timeout=20)
        calls = [asyncio.create_task(c.call("t", {"n": n, "sleep": 0.05}, timeout=60)) for n in range(2000)]
        await until(lambda: r.xlen("t:req:x") == 2001)
        assert len(of_client(r)) == 2
        assert [reply["n"] for reply in await asyncio.gather(*calls)] == list(range(2000))

    using(server, use)


def test_a_call_that_is_cancelled_is_not_sent_later_and_disturbs_no_other(
    server: servers.Own, r: redis.Redis, worker: None
) -> None:
    async def use(c: client.AsyncClient) -> None:
        await c.call("t", {"n": 0}, timeout=20)
        # One that is on its way.
        slow = asyncio.create_task(c.call("t", {"n": 1, "sleep": 0.5}, timeout=20))
        await until(lambda: r.xlen("t:req:x") == 2)
        slow.cancel()
        # One that waits behind another, which Redis does not take.
        server.freeze()
        first = asyncio.create_task(c.call("t", {"n": 2}, timeout=20))
        await asyncio.sleep(0.05)
        second = asyncio.create_task(c.call("t", {"n": 3}, timeout=20))
        with pytest.raises(client.NotSent, match=r"Redis takes no more at the moment; .* not sent within 0\.2 s"):
            await c.call("t", {"n": 4}, timeout=0.2)
        second.cancel()
        server.thaw()
        assert (await first)["n"] == 2
        for task in (slow, second):
            with pytest.raises(asyncio.CancelledError):
                await task
        assert (await c.call("t", {"n": 5}, timeout=20))["n"] == 5

    using(server, use)
    assert [fields["data"] for _, fields in r.xrange("t:req:x")] == [
        '{"n": 0}', '{"n": 1, "sleep": 0.5}', '{"n": 2}', '{"n": 5}',
    ]  # fmt: skip


def test_connections_that_are_lost_while_calls_are_in_flight_lose_no_reply(
    server: servers.Own, r: redis.Redis, worker: None
) -> None:
    async def use(c: client.AsyncClient) -> None:
        calls = [asyncio.create_task(c.call("t", {"n": n, "sleep": 1}, timeout=20)) for n in range(50)]
        await until(lambda: r.xlen("t:req:x") == 50)
        killed = of_client(r)
        assert len(killed) == 2
        for connection in killed:
            r.client_kill_filter(_id=connection["id"])
        assert [reply["n"] for reply in await asyncio.gather(*calls)] == list(range(50))
        assert (await c.call("t", {"n": 1}, timeout=20))["n"] == 1

    using(server, use)
    with client.Client(server.url) as c:
        found: list[Any] = []

        def collect() -> None:
            items = [{"n": n, "sleep": 0.5} for n in range(50)]
            found.extend(sorted(c.call_many("t", items, timeout=20), key=lambda one: one[0]))

        thread = threading.Thread(target=collect)
        thread.start()
        wait_for(lambda: r.xlen("t:req:x") == 101)
        for connection in of_client(r):
            r.client_kill_filter(_id=connection["id"])
        thread.join(30)
        assert [outcome["n"] for _, outcome, _ in found] == list(range(50))


def test_a_server_that_is_away_says_that_nothing_ran_and_is_used_again_when_it_is_back(server: servers.Own) -> None:
    def serve() -> None:
        """A worker of one request, by hand."""
        with redis.Redis.from_url(server.url, socket_timeout=30) as mine:
            found = mine.xread({"t:req:x": "0"}, block=20_000)
            mine.lpush(b"res:" + found[0][1][0][1][b"ref"], '{"code": 200, "n": 1}')

    async def use(c: client.AsyncClient) -> None:
        server.kill()
        with pytest.raises(
            client.NotSent, match=r"cannot be reached .*; the request was not sent within 0\.5 s"
        ) as error:
            await c.call("t", {"n": 1}, timeout=0.5)
        assert not error.value.may_have_run
        waits = asyncio.create_task(c.call("t", {"n": 1}, timeout=20))
        await asyncio.sleep(0)
        server.start()
        answered = asyncio.get_running_loop().run_in_executor(None, serve)
        assert (await waits)["n"] == 1
        await answered

    using(server, use)
    with client.Client(server.url) as c:
        server.kill()
        with pytest.raises(client.NotSent, match="cannot be reached") as error:
            c.call("t", {"n": 1}, timeout=0.5)
        assert not error.value.may_have_run


def test_what_was_sent_and_not_confirmed_is_unknown(server: servers.Own) -> None:
    async def use(c: client.AsyncClient) -> None:
        server.freeze()
        call = asyncio.create_task(c.call("t", {"n": 1}, timeout=1))
        await asyncio.sleep(0.2)  # it is in the server's socket by now, or never
        server.kill()
        with pytest.raises(client.CallTimeout) as error:
            await call
        assert error.value.may_have_run

    using(server, use)
    server.start()
    with client.Client(server.url) as c:
        with pytest.raises(client.CallTimeout):
            c.call("t", {"n": 0}, timeout=0.1)  # it has a connection from now on
        server.freeze()
        killer = threading.Timer(0.2, server.kill)
        killer.start()
        with pytest.raises(
            client.CallTimeout, match=r"no reply within 1 s, and whether the request was accepted is unknown"
        ) as error:
            c.call("t", {"n": 1}, timeout=1)
        assert error.value.may_have_run
        killer.join()


def test_a_full_server_says_that_nothing_ran(server: servers.Own, r: redis.Redis, worker: None) -> None:
    """And each call hears of itself: those that are on their way get their replies."""

    async def use(c: client.AsyncClient) -> None:
        await c.call("t", {"n": 0}, timeout=20)  # the worker is there
        early = asyncio.create_task(c.call("t", {"n": 0, "sleep": 1}, timeout=20))
        await until(lambda: r.xlen("t:req:x") == 2)
        r.config_set("maxmemory", 1)
        late = [c.call("t", {"n": n}, timeout=20, retry=False) for n in range(3)]
        for outcome in await asyncio.gather(*late, return_exceptions=True):
            assert isinstance(outcome, client.NotSent) and "OOM command not allowed" in str(outcome)
        with client.Client(server.url) as plain:
            with pytest.raises(client.NotSent, match="OOM command not allowed"):
                plain.call("t", {"n": 1}, timeout=0.5)
            outcomes = [outcome for _, outcome, _ in plain.call_many("t", [{"n": 1}] * 5, timeout=20, retry=False)]
            assert [type(outcome) for outcome in outcomes] == [client.NotSent] * 5
        r.config_set("maxmemory", 0)
        assert (await early)["n"] == 0
        assert (await c.call("t", {"n": 9}, timeout=20))["n"] == 9

    using(server, use)
    assert r.xlen("t:req:x") == 3


def test_what_redis_refuses_for_good_is_no_call_error(server: servers.Own, r: redis.Redis) -> None:
    r.set("t:req:x", "no stream")

    async def use(c: client.AsyncClient) -> None:
        with pytest.raises(StoreError, match="refuses: WRONGTYPE") as error:
            await c.call("t", {}, timeout=20)
        assert not isinstance(error.value, client.CallError)
        # A password that was changed meanwhile.
        r.config_set("requirepass", "new")
        for connection in of_client(r):
            r.client_kill_filter(_id=connection["id"])
        await asyncio.sleep(0.1)
        with pytest.raises(StoreError, match="NOAUTH"):
            await c.call("u", {}, timeout=20)

    using(server, use)


def test_a_client_that_is_closed_ends_its_calls(server: servers.Own) -> None:
    async def main() -> list[Any]:
        async with client.AsyncClient(server.url) as c:
            calls = [asyncio.create_task(c.call("t", {"n": n}, timeout=60)) for n in range(3)]
            await asyncio.sleep(0.2)
        return await asyncio.gather(*calls, return_exceptions=True)

    outcomes = asyncio.run(main())
    assert [(type(o), str(o)) for o in outcomes] == [(client.CallTimeout, "the client was closed")] * 3
