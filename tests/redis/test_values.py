"""Python's usual types in both directions, and handlers of every kind, through a real worker in its sandbox."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from runner import Runner

Local = Callable[..., Path]
TYPES = """\
from __future__ import annotations

import dataclasses, datetime, decimal, enum, functools, uuid
from typing import TYPE_CHECKING, Literal

from sandboxrun import worker

if TYPE_CHECKING:
    from nowhere import Reply

class Colour(enum.Enum):
    ONE = 1
    RED = "red"

@dataclasses.dataclass
class Item:
    at: datetime.datetime
    price: decimal.Decimal
    colour: Colour = Colour.RED
    raw: bytes = b""
    kind: Literal[1, "a"] = 1
    inner: Item | None = None

@dataclasses.dataclass
class Order:
    items: dict[uuid.UUID, list[Item]]
    took: datetime.timedelta | None = None

    def __post_init__(self):
        if self.took is not None and self.took.days:
            raise ZeroDivisionError("days")

class Money:
    pass

class Unknown:
    pass

@worker.encoder
def encode(value):
    if isinstance(value, Money):
        return {"amount": decimal.Decimal("1.10")}
    raise TypeError("nobody knows it")

RESULTS = {
    "date": {"x": [datetime.date(2026, 1, 2)]},
    "list": [1, {2}],
    "text": "text",
    "number": 0,
    "none": None,
    "nan": {"x": [{"y": float("nan")}]},
    "nan alone": float("nan"),
    "decimal nan": {"at": datetime.date(2026, 1, 2), "x": decimal.Decimal("NaN")},
    "infinity in a list": [1, float("inf")],
    "key": {"x": {(1, 2): 3}},
    "keys": {uuid.UUID(int=1): {Colour.ONE: {3}}},
    "money": {"x": Money()},
    "money alone": Money(),
    "unknown": {"x": [Unknown()]},
    "integer": {"x": 10**5000},
    "half": {"x": "\\ud800"},
}
"""
SERIAL = (
    TYPES
    + """
@worker.handler
def echo(request, order: Order) -> Reply:
    return order

@worker.handler("result")
def result(request: worker.Request) -> Reply:
    return RESULTS[request.data]

@worker.handler("data")
def data(request):
    request.trace(data=request.data, at=datetime.date(2026, 1, 2))
    return {"data": request.data}

class Shop:
    def order(self, request, order: Order):
        return {"items": len(order.items)}

    def __call__(self, order: Order):
        return {"items": len(order.items)}

worker.handler("method")(Shop().order)
worker.handler("object")(Shop())
worker.handler("partial")(functools.partial(Shop.order, Shop()))

async def later(request):
    return {"awaited": request.ref}

@worker.handler("raises")
def raises(request, order: Order):
    raise ValueError("the handler's own")

worker.handler("coroutine")(lambda request: later(request))
worker.handler("nan trace")(lambda request: request.trace(model={"x": [float("nan")]}))
worker.run()
"""
)
ITEM = {"at": "2026-01-02T03:04:05Z", "price": "1.10"}
ID = "00000000-0000-0000-0000-000000000001"


def order(**changed: Any) -> dict[str, Any]:
    return {"items": {ID: [{**ITEM, **changed}]}}


def chain(length: int) -> dict[str, Any]:
    item: dict[str, Any] = dict(ITEM)
    for _ in range(length):
        item = {**ITEM, "inner": item}
    return order(inner=item)


# The type of the request, its data (as JSON already where it is bytes), the code, and what is in the reply.
EXCHANGES: list[tuple[str, Any, int, Any]] = [
    ("t", order(), 200, {"items": {ID: [{**ITEM, "colour": "red", "raw": "", "kind": 1, "inner": None}]}, "took": None}),
    ("t", {**order(raw="YWJj", colour=1), "took": "PT1.5S"}, 200, {"took": "PT1.5S"}),
    ("t", order(at="yesterday"), 400, f"field items.{ID}[0].at: expected a date and time"),
    ("t", order(price="NaN"), 400, f"field items.{ID}[0].price: expected a decimal number"),
    ("t", order(colour=True), 400, f"field items.{ID}[0].colour: expected 1 or 'red', not True"),
    ("t", order(colour=1.0), 400, f"field items.{ID}[0].colour: expected 1 or 'red', not 1.0"),
    ("t", order(colour=[[]]), 400, f"field items.{ID}[0].colour: expected 1 or 'red', not a list"),
    ("t", order(kind=True), 400, f"field items.{ID}[0].kind: expected 1 or 'a', not True"),
    ("t", order(raw="%"), 400, f"field items.{ID}[0].raw: expected base64 text"),
    ("t", {"items": {"x": []}}, 400, "field items.x: expected a UUID"),
    ("t", {"items": {ID: [], ID.replace("-", ""): []}}, 400, "is the same key as another"),
    ("t", {**order(), "took": "P2D"}, 400, "it: ZeroDivisionError: days"),
    ("t", chain(200), 400, "is nested too deeply"),
    ("t", chain(90), 200, {"took": None}),
    ("method", order(), 200, {"items": 1}),
    ("method", order(at=1), 400, f"field items.{ID}[0].at: expected a date and time"),
    ("object", order(), 200, {"items": 1}),
    ("partial", order(), 200, {"items": 1}),
    ("raises", order(), 500, "the handler's own"),
    ("result", "date", 200, {"x": ["2026-01-02"]}),
    ("result", "list", 200, {"result": [1, [2]]}),
    ("result", "text", 200, {"result": "text"}),
    ("result", "number", 200, {"result": 0}),
    ("result", "none", 200, {}),
    ("result", "nan", 500, "result.x[0].y: nan is not JSON"),
    ("result", "nan alone", 500, "result: nan is not JSON"),
    ("result", "decimal nan", 500, "result.x: Decimal NaN is not JSON"),
    ("result", "infinity in a list", 500, "result[1]: inf is not JSON"),
    ("result", "key", 500, "result.x: the key (1, 2) is of type tuple"),
    ("result", "keys", 200, {ID: {"1": [3]}}),
    ("result", "money", 200, {"x": {"amount": "1.10"}}),
    ("result", "money alone", 200, {"amount": "1.10"}),
    ("result", "unknown", 500, "result.x[0]: Unknown is not JSON: nobody knows it"),
    ("result", "integer", 500, "result.x: an integer of"),
    ("result", "half", 200, {"x": "\ud800"}),
    ("nan trace", None, 500, "model.x[0]: nan is not JSON"),
    ("coroutine", None, 500, "coroutine is not JSON: await it in an async handler"),
    ("data", b'{"a":[1,NaN]}', 400, "data.a[1]: nan is not JSON"),
    ("data", b"-Infinity", 400, "data: -inf is not JSON"),
    ("data", b"[1e999]", 400, "data[0]: inf is not JSON"),
    ("data", b'"NaN, Infinity"', 200, {"data": "NaN, Infinity"}),
    ("data", b"1" * 5000, 400, "an integer with too many digits"),
    ("data", b"[" * 100_000, 400, "nested too deeply"),
    ("data", b"[" * 200 + b"]" * 200, 200, {}),
    ("data", b'"\\ud800"', 200, {"data": "\ud800"}),
    ("data", b'{"\\ud800":["\\udfff"]}', 200, {"data": {"\ud800": ["\udfff"]}}),
    ("data", b'"\\u0000"', 200, {"data": "\0"}),
    ("data", b'"\0"', 400, "not JSON"),
    ("data", b"\xef\xbb\xbf1", 400, "not JSON"),
    ("data", b'"\xed\xa0\x80"', 400, "not UTF-8"),
    ("data", b'{"a":1,"a":2}', 200, {"data": {"a": 2}}),
]  # fmt: skip


def exchange(r: redis.Redis, kind: str, data: Any) -> dict[str, Any]:
    ref = os.urandom(8).hex()
    text = data if isinstance(data, bytes) else json.dumps(data)
    r.xadd("t:req:x", {"ref": ref, "type": kind, "data": text})
    found = r.brpop([f"res:{ref}"], timeout=20)
    assert found is not None, "no reply"

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} in the reply")

    reply: dict[str, Any] = json.loads(found[1], parse_constant=refuse)
    return reply


def check(r: redis.Redis, exchanges: list[tuple[str, Any, int, Any]]) -> None:
    wrong = []
    for kind, data, code, expected in exchanges:
        reply = exchange(r, kind, data)
        right = reply["code"] == code and (
            expected in reply["err"]["message"]
            if isinstance(expected, str)
            else all(reply.get(name) == value for name, value in expected.items())
        )
        if not right:
            wrong.append((kind, str(data)[:100], reply))
    assert not wrong


@pytest.fixture
def serial(r: redis.Redis, run: Runner, local: Local) -> Iterator[None]:
    local(SERIAL)
    with run.start("t", "1") as process:
        yield
        process.terminate()
        _, err = process.communicate(timeout=20)
    assert process.returncode == 0
    assert b"never awaited" not in err


@pytest.mark.usefixtures("serial")
def test_each_value_has_its_reply_and_the_worker_lives(r: redis.Redis) -> None:
    check(r, EXCHANGES)
    assert r.xpending("t:req:x", "worker")["pending"] == 0
    assert r.xlen("t:res:x") == len(EXCHANGES)


CONCURRENT = (
    TYPES
    + """
def passing(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)
    return wrapper

class Later:
    async def __call__(self, request, order: Order):
        return {"items": len(order.items)}

async def later(request, order: Order):
    return order.items

def forgotten(request):
    return later(request, None)

async def returned(request):
    return [later(request, None)]

worker.handler("object")(Later())
worker.handler("partial")(functools.partial(later))
worker.handler("decorated")(passing(later))
worker.handler("decorated twice")(passing(functools.partial(passing(later))))
worker.handler("lambda")(lambda request: Later()(request, Order({})))
worker.handler("returned")(returned)
worker.handler("result")(passing(lambda request: RESULTS[request.data]))
worker.run()
"""
)


def test_whatever_is_async_underneath_is_awaited(r: redis.Redis, run: Runner, local: Local) -> None:
    local(CONCURRENT)
    with run.start("t", "1") as process:
        check(
            r,
            [
                ("object", order(), 200, {"items": 1}),
                ("partial", order(), 200, {ID: [{**ITEM, "colour": "red", "raw": "", "kind": 1, "inner": None}]}),
                ("decorated", order(), 200, {ID: [{**ITEM, "colour": "red", "raw": "", "kind": 1, "inner": None}]}),
                ("decorated", order(at=1), 400, f"field items.{ID}[0].at: expected a date and time"),
                ("decorated twice", {"items": {}}, 200, {}),
                ("lambda", None, 200, {"items": 0}),
                ("returned", None, 500, "result[0]: coroutine is not JSON"),
                ("result", "nan", 500, "result.x[0].y: nan is not JSON"),
                ("result", "money", 200, {"x": {"amount": "1.10"}}),
            ],
        )
        process.terminate()
        _, err = process.communicate(timeout=20)
    assert process.returncode == 0
    assert b"never awaited" not in err


# What could never be handled, and what is said of it before anything runs.
START: list[tuple[str, str]] = [
    ("@worker.handler\ndef handle(request, order: list[Money]): ...", "cannot be a payload: its field [] is Money"),
    ("@worker.handler\ndef handle(request, order: Reply): ...", "the annotation 'Reply', which cannot be resolved"),
    ("@worker.handler\ndef handle(request):\n    yield 1", "the handler handle is a generator"),
    ("@worker.handler\nasync def handle(request):\n    yield 1", "the handler handle is a generator"),
    ("@worker.handler\ndef handle(): ...", "takes no argument"),
]


@pytest.mark.parametrize(("code", "message"), START)
def test_what_could_never_be_handled_is_said_at_the_start(run: Runner, local: Local, code: str, message: str) -> None:
    local(f"{TYPES}\n{code}\nworker.run()\n")
    done = run("t", "1")
    assert done.code != 0
    assert message in done.err
