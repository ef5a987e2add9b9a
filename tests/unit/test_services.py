"""Services without Redis: what of a class can be called by name, what a call is given, and how its result travels."""

from __future__ import annotations

import contextvars
import enum
import functools
import json
import string
import time
from dataclasses import dataclass
from typing import Any

import pytest

from sandboxrun.config import keys
from sandboxrun.config.fields import SERVICES_MAX, parse_loop
from sandboxrun.errors import ConfigError
from sandboxrun.protocol.services import value_of
from sandboxrun.worker import Request
from sandboxrun.worker.answer import Answers
from sandboxrun.worker.app import App
from sandboxrun.worker.context import Context
from sandboxrun.worker.rendering import Entry, Renderer

ran: list[str] = []


class Base:
    def inherited(self) -> str:
        return "inherited"

    def hidden(self) -> str:
        return "hidden"


def _private(self: Any) -> str:
    ran.append("private")
    return ""


class Price(Base, string.Formatter):  # whose public methods are another file's
    rate = 2
    hidden = None  # type: ignore[assignment]
    partial = functools.partial(_private, None)
    aliased = _private  # a function in the class: a method by this name

    def __init__(self) -> None:
        self.set_on_object = lambda: ran.append("object")

    def of(self, item: str, count: int = 1, *, note: str = "") -> dict[str, Any]:
        return {"item": item, "cents": self.rate * count, "note": note}

    def plain(self, value=7):  # type: ignore[no-untyped-def]
        return value

    def seen(self, request: Request, item: str) -> list[Any]:
        return [request.method, request.data, item]

    async def later(self, item: str) -> str:
        return item

    def nothing(self) -> None: ...

    def _private(self) -> None:
        ran.append("private")

    @property
    def secret(self) -> str:
        ran.append("property")
        return "secret"

    @staticmethod
    def static() -> None:
        ran.append("static")

    @classmethod
    def of_class(cls) -> None:
        ran.append("class")

    class Nested:
        def __call__(self) -> None:
            ran.append("nested")


def made(*services: type, type_: str = "price", wanted: tuple[str, ...] = ()) -> App:
    app = App(Context(f"{type_}:1:h", "redis://127.0.0.1:1", None))
    for kind in services:
        app.service(kind.__name__.lower())(kind)
    app._start_services(wanted)
    return app


def answer(app: App, method: str | None, data: Any = None, **fields: str) -> dict[str, Any]:
    """The reply to such a request."""
    type_ = app.context.type
    render = Renderer(parse_loop({}, type_, "1"), type_, keys.dead_stream(type_))
    answers = Answers(
        app.handlers(),
        type_,
        parse_loop({}, type_, "1"),
        render,
        app.json,
        lambda request, noted: None,
        app.context.caller,
    )
    bodies: list[str] = []
    render.reply = lambda entry, code, body, *rest: bodies.append(body)  # type: ignore[method-assign,misc,assignment]
    raw = {"ref": "r", "type": type_, "data": json.dumps({} if data is None else data), **fields}
    if method is not None:
        raw["method"] = method
    entry = Entry(b"1-0", {name.encode(): value.encode() for name, value in raw.items()})
    contextvars.copy_context().run(answers.serve, entry)  # it leaves the request as `current`
    reply: dict[str, Any] = json.loads(bodies[0])
    return reply


def said(reply: dict[str, Any]) -> tuple[int, str]:
    return reply["code"], reply.get("err", {}).get("message", "")


# --- what can be called


def test_a_method_gets_its_arguments_by_name_and_their_types() -> None:
    app = made(Price)
    assert value_of(answer(app, "of", {"item": "tea", "count": 3})) == {"item": "tea", "cents": 6, "note": ""}
    assert value_of(answer(app, "price.of", {"item": "tea", "note": "n"})) == {"item": "tea", "cents": 2, "note": "n"}
    assert value_of(answer(app, "plain", {"value": [1]})) == [1]
    assert value_of(answer(app, "inherited")) == "inherited"
    assert value_of(answer(app, "seen", {"item": "tea"})) == ["seen", {"item": "tea"}, "tea"]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({}, "field item is missing"),
        ({"item": 5}, "field item: expected text, not 5"),
        ({"item": "tea", "count": "2"}, "field count: expected a whole number, not '2'"),
        ({"item": "tea", "cuont": 2}, "field cuont is unknown, did you mean count?"),
        ({"item": "tea", "self": 2}, "field self is unknown: expected item, count, note"),
        ([], "it: expected an object, not a list"),
        ("tea", "it: expected an object, not 'tea'"),
        ({"item": "tea", "request": {"ref": "r"}}, "field request is unknown: expected item, count, note"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_as_a_handlers_payload(data: Any, text: str) -> None:
    assert said(answer(made(Price), "of", data)) == (400, f"the request's data is not as expected: {text}")


ATTACKS = """
    _private __init__ __class__ __dict__ __getattribute__ __reduce_ex__ __call__ of.__call__ of.__globals__
    __init__.__globals__ price.__init__ price._private price.price.of price..of .of of. secret rate static of_class Nested
    partial hidden format vformat parse set_on_object set_on_class request method self kind mro price Price Price.of Base.hidden shop.of
    oﬀ ｏｆ of\x00 of\u200b OF
    """.split()


@pytest.mark.parametrize("method", ATTACKS)
def test_nothing_else_of_the_object_can_be_called(method: str) -> None:
    app = made(Price)
    ran.clear()
    Price.set_on_class = lambda self: ran.append("set on class")  # type: ignore[attr-defined]
    try:
        code, text = said(answer(app, method, {"item": "tea"}))
    finally:
        del Price.set_on_class  # type: ignore[attr-defined]
    assert code in (400, 404) and text, text
    assert ran == []


def test_an_unknown_method_is_a_404_that_says_what_there_is() -> None:
    app = made(Price)
    assert said(answer(app, "off")) == (404, "price has no method 'off', did you mean of?")
    names = "aliased or inherited or later or nothing or of or plain or seen"
    assert said(answer(app, "x" * 100)) == (404, f"price has no method {'x' * 80!r}: expected {names}")
    assert said(answer(app, "stock.of")) == (404, "price does not serve 'stock': expected price")
    assert said(answer(app, None))[1].startswith("the request has no method: expected aliased or inherited")


class Stock:
    def take(self) -> str:
        return "taken"


def test_a_worker_serves_the_services_that_its_hash_names() -> None:
    both = made(Price, Stock, type_="shop")
    assert value_of(answer(both, "stock.take")) == "taken"
    assert said(answer(both, "take")) == (404, "shop has no method 'take', did you mean stock.take?")
    stock = made(Price, Stock, type_="shop", wanted=("stock",))
    assert value_of(answer(stock, "take")) == value_of(answer(stock, "stock.take")) == "taken"
    assert said(answer(stock, "price.of", {"item": "tea"})) == (404, "shop does not serve 'price': expected stock")
    own = made(Price, Stock, type_="stock")
    assert value_of(answer(own, "take")) == value_of(answer(own, "stock.take")) == "taken"


def test_a_circle_is_refused_where_it_would_close() -> None:
    """A request by both names: its path has the service in the place of the worker."""
    both = made(Price, Stock, type_="shop")
    text = "stock calls itself: stock → order → stock; it would wait for its own reply"
    assert said(answer(both, "stock.take", path="stock,order")) == (400, text)
    assert value_of(answer(both, "stock.take", path="shop,order")) == "taken"
    long = ",".join(f"s{n}" for n in range(17))
    assert said(answer(both, "stock.take", path=long))[0] == 400


def test_a_plain_handler_gets_the_requests_without_a_method() -> None:
    app = made(Price)
    app.handler(lambda request: {"plain": request.method})
    assert answer(app, None)["plain"] is None
    assert said(answer(app, "missing"))[0] == 404
    alone = App(Context("t:1:h", "redis://127.0.0.1:1", None))
    alone.handler(lambda request: {"plain": request.method})
    assert answer(alone, "any")["plain"] == "any"


def test_a_field_that_names_another_service_says_which_there_are() -> None:
    with pytest.raises(ConfigError) as raised:
        made(Price, Stock, type_="shop", wanted=("price", "stok"))
    assert str(raised.value) == (
        "field services of shop:1:h has stok, which the script does not have, did you mean stock? (it has: price, stock)"
    )
    assert raised.value.hint == ("sandboxrun set shop 1 services=price,stock",)
    with pytest.raises(ConfigError, match=r"has price, which the script does not have \(it has: no service\)"):
        made(type_="shop", wanted=("price",))


@pytest.mark.parametrize("text", ["Price", "price,,stock", "a b", "req", "é", "price," * 3, "x" * 65, "$(x)"])
def test_a_field_with_a_malformed_name_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"field services of t:1:h has .*: expected names as of worker types"):
        parse_loop({"services": text}, "t", "1")


def test_the_field_is_a_bounded_list() -> None:
    assert parse_loop({"services": "b, a,b"}, "t", "1").services == ("b", "a")
    assert parse_loop({"services": ""}, "t", "1").services == ()
    with pytest.raises(ConfigError, match=f"has {SERVICES_MAX + 1} names: at most {SERVICES_MAX}"):
        parse_loop({"services": ",".join(f"s{n}" for n in range(SERVICES_MAX + 1))}, "t", "1")


# --- classes that cannot be services


def one(kind: Any, name: Any = "price") -> None:
    app = App(Context("shop:1:h", "redis://127.0.0.1:1", None))
    app.service(name)(kind)
    app._start_services(())


def test_a_class_that_cannot_be_a_service_is_refused_at_start() -> None:
    class Needs:
        def __init__(self, url: str) -> None: ...
        def of(self) -> None: ...

    class Empty:
        rate = 1

    class Many:
        def of(self, *items: str) -> None: ...

    class Bare:
        def of() -> None: ...  # type: ignore[misc]

    class Only:
        def of(self, item: str, /) -> None: ...

    class Lazy:
        def of(self) -> Any:
            yield 1

    class Odd:
        def of(self, item: complex) -> None: ...

    class Lost:
        def of(self, item: Missing) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    for kind, text in (
        (
            Needs,
            r"Needs \(service price\) requires the argument url, but worker\.run\(\) passes none: give it a default",
        ),
        (Empty, "the service price has no method: expected a function in the class .*Empty"),
        (Many, r"the method of has the parameter \*items: .*, which has no name in a request"),
        (Bare, "the method of has no parameter for the object itself: expected self, first"),
        (Only, "the method of has the parameter item: .*, which has no name in a request"),
        (Lazy, "the method of is a generator"),
        (Odd, "the method of cannot be given its arguments: its field item is complex"),
        (Lost, "the method of has the annotation 'Missing', which cannot be resolved"),
        (len, "the service price is len: expected a class"),
    ):
        with pytest.raises(ConfigError, match=text):
            one(kind)
    for name in ("Price", "", "req", "a.b", "a,b", "x" * 65, None, Price):
        with pytest.raises(
            ConfigError, match=r"@worker.service is given .*: expected a name like that of a worker type"
        ):
            one(Price, name)
    app = App(Context("shop:1:h", "redis://127.0.0.1:1", None))
    app.service("price")(Price)
    with pytest.raises(ConfigError, match="the script has two services price, Price and Stock: expected one class"):
        app.service("price")(Stock)


def test_an_object_is_made_once_when_the_worker_starts() -> None:
    count: list[int] = []

    class Counter:
        def __init__(self, start: int = 0) -> None:
            count.append(start)
            self.calls = start

        def up(self) -> int:
            self.calls += 1
            return self.calls

    app = App(Context("counter:1:h", "redis://127.0.0.1:1", None))
    app.service("counter")(Counter)
    assert count == []
    app._start_services(())
    assert [value_of(answer(app, "up")) for _ in range(3)] == [1, 2, 3] and count == [0]


# --- results


class Colour(enum.Enum):
    TIME = "time"


@dataclass
class Quote:
    cents: int
    time: str = "now"


@pytest.mark.parametrize(
    ("result", "value", "fields"),
    [
        ({}, {}, set()),
        (None, None, {"result"}),
        ({"cents": 3}, {"cents": 3}, {"cents"}),
        ({"result": 3}, {"result": 3}, {"result"}),
        ({"result": 3, "more": 1}, {"result": 3, "more": 1}, {"result"}),
        ({"time": 1, "ref": 2, "code": 3, "source": 4}, {"time": 1, "ref": 2, "code": 3, "source": 4}, {"result"}),
        ({"err": {"message": "no"}}, {"err": {"message": "no"}}, {"err"}),
        (Quote(3), {"cents": 3, "time": "now"}, {"result"}),
        ([Quote(3)], [{"cents": 3, "time": "now"}], {"result"}),
        ({1: (2, 3)}, {"1": [2, 3]}, {"1"}),
        ("text", "text", {"result"}),
        (False, False, {"result"}),
        (0.5, 0.5, {"result"}),
    ],
)
def test_every_result_arrives_as_the_json_that_it_is(result: Any, value: Any, fields: set[str]) -> None:
    class Any_:
        def of(self) -> Any:
            return result

    app = App(Context("any:1:h", "redis://127.0.0.1:1", None))
    app.service("any")(Any_)
    app._start_services(())
    reply = answer(app, "of")
    assert reply["code"] == 200 and set(reply) - {"ref", "source", "code", "time"} == fields
    assert value_of(reply) == value


def test_a_request_past_its_deadline_calls_no_method() -> None:
    reply = answer(made(Price), "of", {"item": "tea"}, deadline=str(int(time.time() * 1000) - 1))
    assert reply["code"] == 504
