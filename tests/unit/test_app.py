"""Two workers in one process: each has its own handlers, encoder and context."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sandboxrun.config import keys
from sandboxrun.config.fields import parse_loop
from sandboxrun.errors import ConfigError
from sandboxrun.worker.answer import Answers
from sandboxrun.worker.app import App
from sandboxrun.worker.context import Context
from sandboxrun.worker.rendering import Entry, Renderer


class Money:
    amount = 7


def made(type_: str) -> App:
    return App(Context(f"{type_}:1:h", "redis://127.0.0.1:1", None))


def reply(app: App, type_: str, told: list[Any]) -> Any:
    """What the app answers to a request of this type."""
    own = app.context.type
    render = Renderer(parse_loop({}, own, "1"), own, keys.dead_stream(own))
    answers = Answers(
        app.handlers(), own, parse_loop({}, own, "1"), render, app.json, lambda request, fields: told.append(fields)
    )
    bodies: list[str] = []
    render.reply = lambda entry, code, body, *rest: bodies.append(body)  # type: ignore[method-assign,misc,assignment]
    answers.serve(Entry(b"1-0", {b"ref": b"r", b"type": type_.encode(), b"data": b"{}"}))
    return json.loads(bodies[0])


def test_two_workers_share_neither_handlers_nor_encoder_nor_context() -> None:
    first, second = made("one"), made("two")

    @first.handler
    def one(request: Any) -> Any:
        request.progress(Money())
        return {"by": "one", "money": Money()}

    @second.handler
    async def two(request: Any) -> Any: ...

    @second.handler("both")
    def both(request: Any) -> Any:
        request.progress(Money())
        return {"by": "two", "money": Money()}

    @first.handler("both")
    def other(request: Any) -> Any:
        return {"by": "one"}

    first.encoder(lambda value: value.amount)
    second.encoder(lambda value: f"{value.amount} EUR")

    assert set(first.handlers()) == {"one", "both"}
    assert set(second.handlers()) == {"two", "both"}
    assert (first.context.type, second.context.type) == ("one", "two")

    told: list[Any] = []
    found = [reply(first, "one", told), reply(second, "both", told), reply(first, "both", told)]
    assert [(each["source"], each["by"], each.get("money")) for each in found] == [
        ("one", "one", 7),
        ("two", "two", "7 EUR"),
        ("one", "one", None),
    ]
    assert told == [{"progress": "7"}, {"progress": '"7 EUR"'}]
    assert reply(first, "two", told)["code"] == 400


def test_the_functions_of_the_module_are_of_one_object_that_others_do_not_touch() -> None:
    from sandboxrun import worker
    from sandboxrun.worker.app import default

    before = dict(default.registered)
    App().handler("elsewhere")(lambda request: None)
    assert default.registered == before
    assert worker.handler.__self__ is worker.run.__self__ is worker.encoder.__self__ is default


def test_a_worker_that_was_not_started_as_one_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REDIS_URL", raising=False)
    with pytest.raises(ConfigError, match="was not started by sandboxrun"):
        assert App().context
