"""Services with async methods, in one sandboxed worker: every way from a thread or a coroutine to a method."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from arena import wait_for
from runner import Runner

from sandboxrun import aconnect, client, connect

SCRIPT = Path(__file__).parent / "workers" / "async_services.py"


@pytest.fixture
def shop(r: redis.Redis, run: Runner, redis_url: str) -> Iterator[Any]:
    r.hset("shop:1:h", mapping={"url": str(SCRIPT), "version": "local"})
    with run.start("shop", "1"):
        yield connect("shop", url=redis_url, timeout=30)


def test_a_coroutine_and_a_thread_can_call_either_kind_of_method(shop: Any) -> None:
    taken, later = {"item": "tea", "loop": False}, {"item": "tea", "loop": True}
    assert shop.order.both(item="tea") == [taken, later, later]
    assert shop.gate.around(item="tea") == [taken, later, later]
    assert shop.order.typed(item="tea") == [later, taken]


def test_a_blocking_call_in_a_coroutine_is_refused_with_the_way_to_await_it(shop: Any) -> None:
    with pytest.raises(
        client.RemoteError, match=r"stock\.take blocks the event loop .* use `await aconnect\('stock'\)\.take"
    ):
        shop.order.blocks(item="tea")


def test_a_method_that_was_begun_goes_on_without_its_caller(shop: Any) -> None:
    assert shop.order.leaves(item="mug") == "CallTimeout,CallTimeout"
    names = {"mug stock.take", "mug stock.later", "mug cancelled"}
    wait_for(lambda: names <= set(shop.stock.seen()), 20, "the methods to end")


def test_a_cancelled_method_is_an_error_of_its_call(shop: Any) -> None:
    with pytest.raises(client.RemoteError, match=r"stock replied 500: the handler raised CancelledError"):
        shop.order.fails()
    assert shop.order.both(item="tea")[0]["item"] == "tea"


def test_many_calls_at_once_that_wait_for_threads_and_coroutines_in_turn(shop: Any, redis_url: str) -> None:
    async def calls() -> list[Any]:
        many = aconnect("shop", url=redis_url, timeout=60)
        return await asyncio.gather(*(many.gate.around(item=str(n)) for n in range(150)))

    found = asyncio.run(calls())
    assert [each[0]["item"] for each in found] == [str(n) for n in range(150)]


def test_a_method_in_process_notes_and_emits_with_the_request_of_its_caller_unless_it_fails(
    r: redis.Redis, run: Runner, redis_url: str
) -> None:
    script = SCRIPT.with_name("noting_services.py")
    r.hset("shop:1:h", mapping={"url": str(script), "version": "local", "allowCall": "mail"})
    with run.start("shop", "1"), client.Client(redis_url) as c:
        kept = c.call("shop", {"text": "a"}, method="order.place", timeout=30)
        failed = c.call("shop", {"text": "b", "fail": True}, method="order.place", timeout=30)
    assert {name: kept[name] for name in ("data", "method", "path", "left")} == {
        "data": {"text": "a", "fail": False}, "method": "keep", "path": ["order"], "left": True,
    }  # fmt: skip
    assert failed["result"] == "note replied 500: no"
    assert [r.hget(f"req:{reply['ref']}:h", "kept") for reply in (kept, failed)] == ["a", "b"]
    assert [fields["data"] for _, fields in r.xrange("mail:req:x")] == ['{"text":"a"}']
