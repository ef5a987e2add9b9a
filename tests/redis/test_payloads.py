"""What a handler is given where it says what it takes, and the 400 that names the field where a request does not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from runner import Runner
from scripts import script

from sandboxrun import client
from sandboxrun.client import BadRequest

Local = Callable[..., Path]
# The same payload as each of the kinds: Place in a list in Order.
DATACLASS = """
from dataclasses import dataclass

@dataclass
class Place:
    city: str
    floor: int = 0

@dataclass
class Order:
    item: str
    places: list[Place]
    note: str | None = None

def shown(order):
    return f"{order.item} {order.places[0].city} {order.places[0].floor} {order.note}"
"""
TYPEDDICT = """
from typing import NotRequired, TypedDict

class Place(TypedDict):
    city: str
    floor: NotRequired[int]

class Order(TypedDict, total=False):
    item: Required[str]
    places: Required[list[Place]]
    note: str | None

def shown(order):
    place = order["places"][0]
    return f"{order['item']} {place['city']} {place.get('floor', 0)} {order.get('note')}"
""".replace("import NotRequired, ", "import NotRequired, Required, ")
MODEL = """
from pydantic import BaseModel, ConfigDict

class Place(BaseModel):
    city: str
    floor: int = 0

class Order(BaseModel):
    model_config = ConfigDict(extra="forbid")
    item: str
    places: list[Place]
    note: str | None = None
""" + DATACLASS[DATACLASS.index("def shown") :]
PYDANTIC_DATACLASS = DATACLASS.replace("from dataclasses", "from pydantic.dataclasses")
KINDS = {"dataclass": DATACLASS, "TypedDict": TYPEDDICT, "pydantic": MODEL, "pydantic dataclass": PYDANTIC_DATACLASS}
# The ways to say it.
HANDLERS = {
    "second": "@worker.handler\ndef handle(request, order: Order):\n    return {'got': shown(order)}\n",
    "alone": "@worker.handler\ndef handle(order: Order):\n    return {'got': shown(order)}\n",
    "named": "@worker.handler(payload=Order)\ndef handle(request):\n    return {'got': shown(request.data)}\n",
    "async": "@worker.handler\nasync def handle(request, order: Order):\n    return {'got': shown(order)}\n",
}
# Data, where it does not fit, and what the message says of it, in our words or in pydantic's.
WRONG: list[tuple[Any, str, tuple[str, ...]]] = [
    ({"item": "tea"}, "field places", ("is missing", "Field required")),
    ({"item": 1, "places": []}, "field item", ("expected text, not 1", "valid string")),
    (
        {"item": "tea", "places": [{"city": "a"}, {"city": 2}]},
        "field places[1].city",
        ("expected text, not 2", "valid string"),
    ),
    ({"item": "tea", "places": [{"floor": 1}]}, "field places[0].city", ("is missing", "Field required")),
    ({"item": "tea", "places": [], "x": 1}, "field x", ("is unknown", "not permitted")),
    ([], "", ("expected an object, not a list", "valid dictionary")),
]


@pytest.mark.parametrize("way", HANDLERS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_typed_payload_is_made_and_a_400_names_the_field(
    r: redis.Redis, redis_url: str, run: Runner, local: Local, kind: str, way: str
) -> None:
    if "pydantic" in kind:
        pytest.importorskip("pydantic")
    # Annotations as text, too: that is how most files have them now.
    future = "from __future__ import annotations\n" if way in ("second", "async") else ""
    local(f"{future}from sandboxrun import worker\n{KINDS[kind]}\n{HANDLERS[way]}\nworker.run()\n")
    with run.start("t", "1") as process, client.Client(redis_url) as c:
        good = {"item": "tea", "places": [{"city": "Bonn"}]}
        assert c.call("t", good, timeout=20)["got"] == "tea Bonn 0 None"
        assert c.call("t", {**good, "note": "hot"}, timeout=20)["got"] == "tea Bonn 0 hot"
        for data, field, texts in WRONG:
            with pytest.raises(BadRequest) as error:
                c.call("t", data, timeout=20)
            message = str(error.value)
            assert field in message, message
            assert any(text in message for text in texts), message
            assert "\n" not in message
        assert c.call("t", good, timeout=20)["got"] == "tea Bonn 0 None"
        process.terminate()
        _, err = process.communicate(timeout=20)
    assert (process.returncode, b"Traceback" in err) == (0, False)
    assert [entry["code"] for _, entry in r.xrange("t:res:x")] == ["200"] * 2 + ["400"] * len(WRONG) + ["200"]


def test_a_model_or_a_dataclass_is_a_result(redis_url: str, run: Runner, local: Local) -> None:
    pytest.importorskip("pydantic")
    local(script("results_of_classes"))
    with run.start("t", "1"), client.Client(redis_url) as c:
        found = c.call("t", True, timeout=20)
        assert (found["at"], found["inner"]) == ("2026-01-02", [1])
        assert c.call("t", False, timeout=20)["n"] == 3


def test_a_model_that_checks_by_itself_is_heard(redis_url: str, run: Runner, local: Local) -> None:
    """What its validators say, and what a dataclass's __post_init__ does, is a 400, too: the handler did not run."""
    pytest.importorskip("pydantic")
    local(script("payloads_that_check"))
    with run.start("t", "1"), client.Client(redis_url) as c:
        assert c.call("t", {"model": {"size": 2}}, timeout=20)["size"] == 2
        with pytest.raises(BadRequest, match=r"field model\.size: Input should be greater than 0"):
            c.call("t", {"model": {"size": 0}}, timeout=20)
        with pytest.raises(BadRequest, match="only red ones are left"):
            c.call("t", {"model": {"size": 1}, "colour": "blue"}, timeout=20)
