"""What a time-out may be, in Python and on the command line."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
import redis
import servers
from answering import Answering, plain
from arena import wait_for
from runner import Runner

from sandboxrun import client

UNLIMITED: list[Any] = [None, float("inf"), 1e300, 10**400, Decimal("Infinity"), timedelta.max]
LIMITED: list[Any] = [20, 20.5, Decimal("20.25"), Fraction(41, 2), timedelta(seconds=20), 10**8]
WRONG: list[tuple[Any, type[Exception]]] = [
    (0, ValueError), (0.0, ValueError), (-1, ValueError), (-1e300, ValueError), (-(10**400), ValueError),
    (float("-inf"), ValueError), (float("nan"), ValueError), (Decimal("NaN"), ValueError), (timedelta(), ValueError),
    (timedelta(seconds=-1), ValueError), (True, TypeError), (False, TypeError), ("5", TypeError), (b"5", TypeError),
    ([5], TypeError), (5j, TypeError), (object, TypeError),
]  # fmt: skip


@pytest.fixture
def r(server: servers.Own) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server.url, decode_responses=True, socket_timeout=30) as found:
        yield found


def deadlines(r: redis.Redis) -> list[str | None]:
    return [fields.get("deadline") for _, fields in r.xrange("t:req:x")]


@pytest.mark.parametrize("timeout", [*UNLIMITED, *LIMITED], ids=lambda value: repr(value)[:20])
def test_a_time_out_that_means_something(server: servers.Own, r: redis.Redis, timeout: Any) -> None:
    async def main() -> Any:
        a = client.AsyncClient(server.url)
        try:
            return await a.call("t", 2, timeout=timeout)
        finally:
            await a.aclose()

    with Answering(server.url), client.Client(server.url) as c:
        assert c.call("t", 1, timeout=timeout)["data"] == 1
        assert asyncio.run(main())["data"] == 2
        assert next(c.call_many("t", [3], timeout=timeout))[1]["data"] == 3  # type: ignore[index]
    limited = timeout in LIMITED
    assert [deadline is not None for deadline in deadlines(r)] == [limited] * 3
    for key in r.keys("req:*:h"):
        assert r.ttl(key) > 0


@pytest.mark.parametrize(("timeout", "kind"), WRONG, ids=lambda value: repr(value)[:12])
def test_a_time_out_that_means_nothing_is_refused_at_the_call(r: redis.Redis, timeout: Any, kind: Any) -> None:
    url = "redis://127.0.0.1:1"  # nobody is there: nothing is tried
    c = client.Client(url)
    with pytest.raises(kind, match="timeout is"):
        c.call("t", 1, timeout=timeout)
    with pytest.raises(kind, match="timeout is"):
        c.call_many("t", [1], timeout=timeout)
    with pytest.raises(kind, match="timeout is"):
        client.call("t", 1, timeout=timeout, url=url)

    async def main() -> None:
        with pytest.raises(kind, match="timeout is"):
            await client.AsyncClient(url).call("t", 1, timeout=timeout)

    asyncio.run(main())


def test_without_limit_means_as_long_as_it_takes(server: servers.Own, r: redis.Redis) -> None:
    """Longer than any single wait, and through a restart of what has nothing of it yet."""
    began = time.monotonic()
    with Answering(server.url, lambda data, ref: plain(data, ref) if time.sleep(7) is None else None):
        assert client.call("t", 1, timeout=None, url=server.url)["data"] == 1
    assert time.monotonic() - began > 6
    assert deadlines(r) == [None]


def test_a_time_out_is_kept_when_redis_is_silent(server: servers.Own) -> None:
    with client.Client(server.url) as c:
        with pytest.raises(client.CallTimeout):
            c.call("t", 1, timeout=0.01)
        server.freeze()
        began = time.monotonic()
        with pytest.raises(client.CallTimeout):
            c.call("t", 1, timeout=1)
        with pytest.raises(client.CallError):  # on a new connection
            c.call("t", 1, timeout=1)
        assert time.monotonic() - began < 5  # less than Redis may be silent otherwise
        server.thaw()


def test_a_thousand_calls_at_once_share_two_connections(server: servers.Own, r: redis.Redis) -> None:
    async def main() -> None:
        async with client.AsyncClient(server.url) as c:
            calls = [asyncio.create_task(c.call("t", n, timeout=60)) for n in range(1000)]
            while r.xlen("t:req:x") < 1000:
                await asyncio.sleep(0.01)
            assert sum(row["name"].startswith("sandboxrun-client") for row in r.client_list()) == 2
            with Answering(server.url):
                assert [reply["data"] for reply in await asyncio.gather(*calls)] == list(range(1000))

    asyncio.run(main())
    # In the order in which they were called.
    assert [int(fields["data"]) for _, fields in r.xrange("t:req:x")] == list(range(1000))


def test_the_command_takes_none_and_refuses_what_is_no_time(run: Runner, server: servers.Own, r: redis.Redis) -> None:
    run.env["REDIS_URL"] = server.url
    r.xgroup_create("t:req:x", "worker", "0", mkstream=True)  # or no such type would be known
    with Answering(server.url) as worker:
        for text in ("none", "inf", "20", "0.5e2"):
            done = run("call", "t", "1", "--timeout", text)
            assert (done.code, done.err) == (0, "")
            wait_for(lambda: worker.seen)
    assert [deadline is not None for deadline in deadlines(r)] == [False, False, True, True]
    for text in ("0", "-1", "nan", "soon", ""):
        done = run("call", "t", "1", f"--timeout={text}")
        assert (done.code, len(done.err.splitlines())) == (64, 1)
        assert f"--timeout is {text!r}: expected seconds above 0, or none for no limit" in done.err
    server.kill()
    for more in ((), ("-n", "5")):
        done = run("call", "t", "1", "--timeout", "0.3", *more)
        assert (done.code, done.out, len(done.err.splitlines())) == (75, "", 1)
        assert "the request was not sent within 0.3 s" in done.err
