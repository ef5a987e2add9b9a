"""What users write, checked by `mypy --strict`: it has no error, and each expression has the type that is asserted."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol, TypedDict, assert_type

import redis

import sandboxrun
from sandboxrun import aconnect, client, connect, worker


@dataclass
class Order:
    item: str
    count: int = 1


class Search(TypedDict):
    text: str
    limit: int


# --- a worker


@worker.handler
def plain(request: worker.Request) -> dict[str, str]:
    assert_type(request.data, Any)
    assert_type((request.ref, request.type, request.xid), tuple[str, str, str])
    assert_type(request.fields, dict[str, str])
    assert_type(request.deadline, float | None)
    assert_type(request.deliveries, int)
    assert_type(request.remaining(), float | None)
    request.progress(0.5)
    request.trace(step="begun", items=[1, 2])
    if not request.data:
        raise worker.BadRequest("there is nothing to do")
    return {"text": request.data["text"].upper()}


@worker.handler
def generic(request: worker.Request[Order]) -> Order:
    assert_type(request.data, Order)
    assert_type(request.data.count, int)
    return request.data


@worker.handler("search", timeout=2.5)
async def search(request: worker.Request, data: Search) -> list[str]:
    return [data["text"]] * data["limit"]


@worker.handler(payload=Order)
def with_payload(request: worker.Request[Order]) -> None: ...


@worker.handler(timeout=1)
def payload_alone(order: Order) -> int:
    return order.count


@worker.handler
def by_keyword(request: worker.Request, *, order: Order) -> int:
    return order.count


class Shop:
    def order(self, request: worker.Request, order: Order) -> int:
        return order.count

    def __call__(self, request: worker.Request) -> int:
        return 1


def with_database(path: str, request: worker.Request) -> str:
    return path


# A decorator returns the function that it was given, with its type.
REQUEST = worker.Request("1-0", "r", "t", None, {})
assert_type(plain(REQUEST), dict[str, str])
assert_type(payload_alone(Order("tea")), int)
assert_type(by_keyword(REQUEST, order=Order("tea")), int)
kept: Callable[[worker.Request[Order]], Order] = generic


async def awaits() -> None:
    assert_type(await search(REQUEST, {"text": "a", "limit": 1}), list[str])


worker.handler(Shop().order)


@worker.batch(size=10, seconds=0)
def store(requests: list[worker.Request]) -> list[dict[str, int]]:
    if not requests:
        raise worker.Unavailable("away")
    return [{"bytes": len(request.raw[b"data"])} for request in requests]


worker.handler("shop")(Shop())
worker.handler(functools.partial(with_database, "/db"))
worker.handler(lambda request: request.data, timeout=3)


@worker.encoder
def encode(value: object) -> dict[str, int]:
    if isinstance(value, complex):
        return {"real": int(value.real)}
    raise TypeError("no form in JSON is known")


assert_type(encode(1j), dict[str, int])
assert_type(worker.config(), dict[str, str])
assert_type(worker.secrets(), dict[str, Any])
assert_type(worker.connect(), redis.Redis)
if __name__ == "__main__":
    assert_type(worker.run(concurrency=10, key=lambda request: request.data["user"]), None)

# --- services


@worker.service("price")
class Price:
    def of(self, item: str, count: int = 1) -> int:
        return count

    async def later(self, item: str) -> dict[str, int]:
        return {item: await aconnect("stock").of(item=item)}


class Stock(Protocol):
    def of(self, item: str) -> int: ...


async def calls_of_services() -> None:
    assert_type(Price().of("tea"), int)
    assert_type(connect("price", Price, timeout=timedelta(seconds=2)).of("tea", count=2), int)
    assert_type(await client.connect("price", Price).later("tea"), dict[str, int])
    assert_type(connect("price", url="redis://:pw@127.0.0.1").of(item="tea"), Any)
    assert_type(await aconnect("shop", timeout=None).price.of(item="tea"), Any)
    assert_type(connect("stock", Stock).of("tea"), int)


# --- a client

Reply = dict[str, Any]


def calls(query: Search) -> None:
    assert_type(client.call("t", {"text": "hi"}, timeout=5, url="redis://:pw@127.0.0.1"), Reply)
    assert_type(client.call("t", None, timeout=timedelta(seconds=2), trace={"user": 7}), Reply)
    with client.Client("redis://127.0.0.1") as calling:
        assert_type(calling.call("t", query, timeout=None, retry=False), Reply)
        assert_type(calling.call("t", [1, "two", None]), Reply)
        many = calling.call_many("t", ({"n": n} for n in range(3)), timeout=5)
        assert_type(many, Iterator[tuple[int, Reply | client.CallError, float]])
        for index, outcome, seconds in many:
            assert_type((index, seconds), tuple[int, float])
            if isinstance(outcome, client.CallError):
                assert_type(outcome.may_have_run, bool)
                assert_type(outcome.reply, Reply | None)
                assert_type(outcome.hint, tuple[str, ...])
            else:
                assert_type(outcome, Reply)


async def calls_of_asyncio() -> None:
    async with client.AsyncClient() as calling:
        assert_type(calling, client.AsyncClient)
        reply: Awaitable[Reply] = calling.call("t", {"n": 1}, timeout=1.5)
        assert_type(await reply, Reply)
    await calling.aclose()


def with_redis_py(r: redis.Redis) -> None:
    ref = client.send(r, "t", {"n": 1}, now="2026-01-02T03:04:05Z")
    assert_type(ref, str)
    assert_type(client.wait(r, ref, timeout_seconds=2), Reply | None)


def errors() -> str:
    try:
        calls({"text": "a", "limit": 1})
    except client.BadRequest as error:
        return str(error)
    except (client.Expired, client.NotSent, client.RemoteError, client.CallTimeout) as error:
        assert_type(error, client.Expired | client.NotSent | client.RemoteError | client.CallTimeout)
    return assert_type(sandboxrun.__version__, str)
