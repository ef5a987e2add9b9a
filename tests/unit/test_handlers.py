"""What may be a handler: how each kind of callable is called, by its signature, and what is refused at the start."""

from __future__ import annotations

import asyncio
import functools
import inspect
import subprocess
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from sandboxrun.errors import ConfigError
from sandboxrun.protocol import BadRequest
from sandboxrun.worker.app import App
from sandboxrun.worker.handlers import Handler
from sandboxrun.worker.request import Request

if TYPE_CHECKING:
    from nowhere import Answer, Question  # type: ignore[import-not-found]

ORDER = {"n": 1}


@dataclass
class Order:
    n: int


def request(data: Any = ORDER) -> Request:
    return Request("1-0", "r", "t", data, {})


def passing(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


class Shop:
    def plain(self, request: Request) -> Any:
        return request.ref

    def order(self, request: Request, order: Order) -> Any:
        return (request.ref, order)

    async def later(self, request: Request, order: Order) -> Any:
        return (request.ref, order)

    @classmethod
    def made(cls, order: Order) -> Any:
        return order

    @staticmethod
    def static(request: Request, order: Order) -> Any:
        return (request.ref, order)

    @passing
    def decorated(self, request: Request, order: Order) -> Any:
        return (request.ref, order)

    def __call__(self, order: Order) -> Any:
        return order


class Later:
    async def __call__(self, request: Request, order: Order) -> Any:
        return (request.ref, order)


class Reply:
    def __init__(self, request: Request, order: Order) -> None:
        self.order = order

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Reply)

    __hash__ = None  # type: ignore[assignment]


def three(db: str, request: Request, order: Order) -> Any:
    return (db, request.ref, order)


def keyword(request: Request, *, order: Order) -> Any:
    return (request.ref, order)


def database(request: Request, *, db: str) -> Any:
    return db


async def later(request: Request, order: Order) -> Any:
    return (request.ref, order)


def of_request(request: Request[Order]) -> Any:
    return (request.ref, request.data)


async def of_request_later(request: Request[Order]) -> Any:
    return (request.ref, request.data)


def of_nothing(request: Request[Any]) -> Any:
    return request.data


def of_second(request: Request[Any], order: Order) -> Any:
    return (request.ref, order)


def answer(request: Request, order: Order) -> Answer:
    return (request.ref, order)


def question(request: Question, order: Order) -> Any:
    return (request.ref, order)


def quoted(order: "Order | None" = None) -> Any:  # noqa: UP037
    return order


def retries(request: Request, times=3, *more: int, db: str = "x") -> Any:  # type: ignore[no-untyped-def]
    return times


@functools.lru_cache
def cached(request: Request) -> Any:
    return request.ref


@types.coroutine
def old(request: Request) -> Any:
    yield
    return request.ref


SHOP = Shop()
BOTH, ONE = ("r", Order(1)), Order(1)
CALLABLES: dict[str, tuple[Any, Any, str]] = {
    "bound method": (SHOP.plain, "r", ""),
    "bound method with a payload": (SHOP.order, BOTH, ""),
    "bound async method": (SHOP.later, BOTH, "async"),
    "classmethod": (Shop.made, ONE, ""),
    "staticmethod": (SHOP.static, BOTH, ""),
    "staticmethod object": (staticmethod(Shop.static), BOTH, ""),
    "decorated method": (SHOP.decorated, BOTH, ""),
    "object": (SHOP, ONE, ""),
    "object with an async call": (Later(), BOTH, "async"),
    "class": (Reply, Reply(request(), ONE), ""),
    "partial": (functools.partial(three, "db"), ("db", *BOTH), ""),
    "partial of a partial": (functools.partial(functools.partial(three, "db")), ("db", *BOTH), ""),
    "partial by keyword": (functools.partial(database, db="db"), "db", ""),
    "partial of an async function": (functools.partial(later), BOTH, "async"),
    "partial of a method": (functools.partial(SHOP.order), BOTH, ""),
    "partial of an object": (functools.partial(Later()), BOTH, "async"),
    "decorated": (passing(keyword), BOTH, ""),
    "decorated async": (passing(later), BOTH, "perhaps"),
    "decorated twice": (passing(passing(later)), BOTH, "perhaps"),
    "decorated partial": (passing(functools.partial(later)), BOTH, "perhaps"),
    "keyword-only payload": (keyword, BOTH, ""),
    "payload of the request": (of_request, BOTH, ""),
    "payload of the request, async": (of_request_later, BOTH, "async"),
    "payload of the request, decorated": (passing(of_request), BOTH, ""),
    "request of anything": (of_nothing, ORDER, ""),
    "request of anything and a payload": (of_second, BOTH, ""),
    "defaults": (retries, 3, ""),
    "any arguments": (lambda *args: len(args), 1, ""),
    "lambda": (lambda request: request.ref, "r", ""),
    "cached": (cached, "r", ""),
    "builtin": (id, None, ""),
    "builtin without a signature": (str, None, ""),
    "generator-based coroutine": (old, "r", "async"),
    "return type under TYPE_CHECKING": (answer, BOTH, ""),
    "return type under TYPE_CHECKING, decorated": (passing(answer), BOTH, ""),
    "return type under TYPE_CHECKING, partial": (functools.partial(answer), BOTH, ""),
    "request's type under TYPE_CHECKING": (question, BOTH, ""),
    "annotation in quotes": (quoted, ONE, ""),
}


@pytest.mark.parametrize("name", CALLABLES)
def test_any_callable_is_called_by_its_signature(name: str) -> None:
    function, expected, way = CALLABLES[name]
    made = Handler(function, None, None)
    assert (made.is_async, made.may_await) == (way == "async", way == "perhaps")
    found = made.call(request())
    if way:
        assert inspect.isawaitable(found)
        found = asyncio.run(awaited(found))
    if expected is not None:
        assert found == expected
    if expected in (BOTH, ONE):
        with pytest.raises(BadRequest, match=r"field n|it: expected|expected"):
            Handler(function, None, None).call(request({"n": "x"}))


async def awaited(value: Any) -> Any:
    return await value


def local_names() -> dict[str, Callable[..., Any]]:
    @dataclass
    class Item:
        n: int

    @dataclass
    class Basket:
        n: int
        items: list[Item] | None = None

    class Local:
        def handle(self, request: Request, basket: Basket) -> Any:
            return basket

    def function(request: Request, basket: Basket) -> Any:
        return basket

    found = {"function": function, "method": Local().handle, "partial": functools.partial(function)}
    return {name: Handler(each, None, None).call(request()) for name, each in found.items()}


def test_types_that_are_local_to_a_function_are_found() -> None:
    assert {name: value.n for name, value in local_names().items()} == {"function": 1, "method": 1, "partial": 1}


def generator(request: Request) -> Any:
    yield 1


async def async_generator(request: Request) -> Any:
    yield 1


class Generating:
    def __call__(self, request: Request) -> Any:
        yield 1


def unresolved(request: Request, order: Question) -> Any: ...


def unknown(request: Request, order: Shop) -> Any: ...


def untyped(request: Request, order) -> Any: ...  # type: ignore[no-untyped-def]


def payload_first(order: Order, request: Request) -> Any: ...


def two_keywords(request: Request, *, order: Order, db: str) -> Any: ...


def nothing() -> Any: ...


REFUSED: dict[str, tuple[Any, str]] = {
    "generator": (generator, "the handler generator is a generator, because it has yield"),
    "async generator": (async_generator, "is a generator"),
    "object that generates": (Generating(), "is a generator"),
    "partial of a generator": (functools.partial(generator), "is a generator"),
    "unresolved": (unresolved, "the handler unresolved has the annotation 'Question', which cannot be resolved"),
    "unresolved in a partial": (functools.partial(unresolved), "the annotation 'Question', which cannot be resolved"),
    "unresolved in a decorated one": (passing(unresolved), "the annotation 'Question', which cannot be resolved"),
    "no payload": (unknown, "Shop cannot be a payload: expected a dataclass"),
    "second without a type": (untyped, "has a second parameter without a type: order"),
    "second of a method": (functools.partial(untyped), "has a second parameter without a type: order"),
    "payload first": (payload_first, "is not given its parameter request: expected the request first"),
    "too many": (three, "the handler three is not given its parameter request"),
    "too many of a partial": (
        functools.partial(three),
        "the handler three (partial) is not given its parameter request",
    ),
    "no parameter": (nothing, "the handler nothing takes no argument"),
    "unbound method": (Shop.order, "is not given its parameter request"),
    "keyword": (two_keywords, "the handler two_keywords needs order by keyword"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_could_never_be_called_is_an_error_at_the_start(name: str) -> None:
    function, message = REFUSED[name]
    with pytest.raises(ConfigError) as error:
        Handler(function, None, None)
    assert message in str(error.value)


@pytest.mark.parametrize("wrong", [5, classmethod(lambda cls: None), object()])
def test_what_is_no_function_and_no_type_is_refused_not_forgotten(wrong: Any) -> None:
    app = App()
    for decorate in (app.handler, app.handler("some-type")):
        with pytest.raises(ConfigError, match="expected a function"):
            decorate(wrong)
    assert not app.registered


def test_a_plain_function_needs_no_inspect() -> None:
    code = (
        "import sys\nfrom sandboxrun import worker\n"
        "@worker.handler\ndef handle(request: worker.Request) -> 'Nowhere': ...\n"
        "@worker.handler('other')\nasync def other(request: 'Request', times=3, *more, db=None): ...\n"
        "worker.handler('third')(lambda request: 1)\n"
        "assert 'inspect' not in sys.modules and 'typing' not in sys.modules, sorted(sys.modules)\n"
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path[:] = {sys.path}\n{code}"],
        check=False,
        capture_output=True,
    )
    assert (done.returncode, done.stderr) == (0, b"")
