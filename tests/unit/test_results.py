"""What a handler's result is in JSON: each type's form, and the path of what JSON cannot be."""

from __future__ import annotations

import array
import asyncio
import collections
import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import ipaddress
import json
import pathlib
import types
import uuid
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from sandboxrun.errors import ConfigError
from sandboxrun.worker.app import App
from sandboxrun.worker.request import Encoder, Request

UTC = dt.UTC
ENVELOPE = ("ref", "source", "code", "time")


class Colour(enum.Enum):
    RED = "red"
    TWO = 2
    PAIR = (1, dt.date(2026, 1, 2))


class Level(enum.IntEnum):
    LOW = 1


class Name(enum.StrEnum):
    ANN = "ann"


class Bits(enum.Flag):
    A = 1
    B = 2


class Text(str):
    __slots__ = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    at: dt.datetime
    colour: Colour = Colour.RED


@dataclasses.dataclass
class Tree:
    name: str
    places: list[Place]


class Pair(NamedTuple):
    a: int
    b: dt.date


class Struct:  # as msgspec's
    __struct_fields__ = ("a",)
    a = decimal.Decimal("1.50")


class Plain:
    pass


class Money:
    amount = decimal.Decimal("1.10")


class Failing(collections.abc.Mapping[str, int]):
    def __getitem__(self, name: str) -> int:
        raise LookupError("the database is away")

    def __iter__(self) -> Iterator[str]:
        return iter(["a"])

    def __len__(self) -> int:
        return 1


USUAL = Encoder()


def sent(result: Any, encoder: Encoder = USUAL) -> Any:
    """The result as whoever called reads it."""

    def refuse(text: str) -> None:
        raise AssertionError(f"{text} in the reply")

    made = result if isinstance(result, dict) else encoder.forms.fields(result)
    found = json.loads(encoder.reply("r", "t", 200, made, "now"), parse_constant=refuse)
    return {name: value for name, value in found.items() if name not in ENVELOPE}


AT = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
NESTED: list[tuple[Any, Any]] = [
    (AT, "2026-01-02T03:04:05Z"),
    (dt.datetime(2026, 1, 2, 3, 4, 5, 6), "2026-01-02T03:04:05.000006"),
    (dt.datetime(2026, 1, 2, tzinfo=dt.timezone(dt.timedelta(hours=2))), "2026-01-02T00:00:00+02:00"),
    (dt.date(2026, 1, 2), "2026-01-02"),
    (dt.time(3, 4, tzinfo=UTC), "03:04:00Z"),
    (dt.timedelta(days=1, seconds=3661, microseconds=500000), "P1DT1H1M1.5S"),
    (decimal.Decimal("1.10"), "1.10"),
    (fractions.Fraction(1, 3), "1/3"),
    (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    (Colour.RED, "red"),
    (Colour.TWO, 2),
    (Colour.PAIR, [1, "2026-01-02"]),
    (Level.LOW, 1),
    (Name.ANN, "ann"),
    (Bits.A | Bits.B, 3),
    (Text("x"), "x"),
    (b"abc", "YWJj"),
    (bytearray(b"abc"), "YWJj"),
    (memoryview(b"azbzc")[::2], "YWJj"),
    ({3}, [3]),
    (frozenset(["a"]), ["a"]),
    (collections.deque([AT]), ["2026-01-02T03:04:05Z"]),
    (range(3), [0, 1, 2]),
    ({"a": {1}}.values(), [[1]]),
    (pathlib.Path("/a/b"), "/a/b"),
    (ipaddress.ip_address("::1"), "::1"),
    (ipaddress.ip_network("10.0.0.0/8"), "10.0.0.0/8"),
    (Place(AT), {"at": "2026-01-02T03:04:05Z", "colour": "red"}),
    (Tree("x", [Place(AT)]), {"name": "x", "places": [{"at": "2026-01-02T03:04:05Z", "colour": "red"}]}),
    (Pair(1, dt.date(2026, 1, 2)), [1, "2026-01-02"]),
    (types.MappingProxyType({"a": {1}}), {"a": [1]}),
    (collections.Counter("aab"), {"a": 2, "b": 1}),
    (Struct(), {"a": "1.50"}),
    (array.array("d", [1.5]), [1.5]),
    ({1: 1, None: 2, False: 3, 1.5: 4}, {"1": 1, "null": 2, "false": 3, "1.5": 4}),
    ({Level.LOW: 1, Colour.RED: 2, Name.ANN: 3}, {"1": 1, "red": 2, "ann": 3}),
    ({uuid.UUID(int=1): AT}, {"00000000-0000-0000-0000-000000000001": "2026-01-02T03:04:05Z"}),
    ({dt.date(2026, 1, 2): {b"k": 1}}, {"2026-01-02": {"aw==": 1}}),
    ("\ud800", "\ud800"),
]


@pytest.mark.parametrize(("value", "expected"), NESTED)
def test_a_value_has_its_usual_form_wherever_it_stands(value: Any, expected: Any) -> None:
    assert sent({"x": value}) == {"x": expected}
    assert sent({"x": [{"y": (value,)}]}) == {"x": [{"y": [expected]}]}
    assert sent({"x": value, "key": {uuid.UUID(int=2): value}})["key"] == {str(uuid.UUID(int=2)): expected}
    assert sent(value) == (expected if isinstance(expected, dict) else {"result": expected})


@pytest.mark.parametrize("value", [1, 1.5, True, False, "", "text", [], [1, {"a": 2}], (1, 2)])
def test_what_is_no_object_is_the_field_result(value: Any) -> None:
    assert sent(value) == {"result": list(value) if isinstance(value, tuple) else value}


CIRCLE: dict[str, Any] = {"name": "x", "list": []}
CIRCLE["list"].append(CIRCLE)
DEEP: Any = {1}
for _ in range(3000):
    DEEP = [DEEP]
REFUSED: list[tuple[Any, str]] = [
    ({"items": [1, {"price": float("nan")}]}, "result.items[1].price: nan is not JSON"),
    ({"x": float("-inf")}, "result.x: -inf is not JSON"),
    ({"at": AT, "x": [[float("inf")]]}, "result.x[0][0]: inf is not JSON"),
    ([float("nan")], "result[0]: nan is not JSON"),
    (float("nan"), "result: nan is not JSON"),
    ({"x": decimal.Decimal("NaN")}, "result.x: Decimal NaN is not JSON"),
    ({"x": decimal.Decimal("-Infinity")}, "result.x: Decimal -Infinity is not JSON"),
    ({"x": {float("nan"): 1}}, "result.x: the key nan is not JSON"),
    (array.array("d", [0, float("nan")]), "result[1]: nan is not JSON"),
    ({"x": 10**5000}, "result.x: an integer of 16610 bits"),
    ({"x": {10**5000: 1}}, "result.x: an integer of 16610 bits"),
    ({"x": {(1, 2): 3}}, "result.x: the key (1, 2) is of type tuple"),
    ({(1, 2): 3}, "result: the key (1, 2) is of type tuple"),
    ({"x": {Colour.PAIR: 3}}, "result.x: the key <Colour.PAIR"),
    ({"x": {1: 1, "1": 1, "y": {2}, Level: 1}}, "result.x: two of its keys are '1' as JSON"),
    ({"x": {uuid.UUID(int=1): 1, str(uuid.UUID(int=1)): 2}}, "result.x: two of its keys are '00000000-"),
    ({"x": [Plain()]}, "result.x[0]: Plain is not JSON: return its values, or say with @worker.encoder"),
    ([Plain], "result[0]: type is not JSON"),
    (Tree("x", [1, Plain()]), "result.places[1]: Plain is not JSON"),  # type: ignore[list-item]
    ({"a b": {"c\n": Plain()}}, "result['a b']['c\\n']: Plain is not JSON"),
    ({"x": (n for n in [1])}, "result.x: generator is not JSON: return a list of what it gives"),
    ({"x": Failing()}, "result.x: LookupError: the database is away"),
    (CIRCLE, "result.list[0]: it contains itself"),
    (DEEP, "…: it is nested too deeply"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "message"), REFUSED)
def test_what_json_cannot_be_is_said_at_its_path(value: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError)) as error:
        sent(value)
    assert message in str(error.value)
    assert len(str(error.value)) < 400


def test_a_coroutine_in_a_result_is_closed_and_said() -> None:
    async def later() -> None: ...

    # filterwarnings = error: one that was never awaited would fail the test
    for result in (later(), {"x": [later()]}):
        with pytest.raises(TypeError, match=r"coroutine is not JSON: await it"):
            sent(result)


@pytest.mark.parametrize(
    "value",
    [dt.timedelta(0), dt.timedelta(microseconds=-1), dt.timedelta(days=20, hours=25), dt.timedelta(seconds=-90.5)],
)
def test_durations_are_those_of_pydantic(value: dt.timedelta) -> None:
    pydantic = pytest.importorskip("pydantic")
    assert USUAL.forms.simple(value) == pydantic.TypeAdapter(dt.timedelta).dump_python(value, mode="json")


def test_pydantic_models_and_dataclasses_are_results_by_their_own_rules() -> None:
    pydantic = pytest.importorskip("pydantic")

    class Model(pydantic.BaseModel):  # type: ignore[name-defined,misc]
        at: dt.date
        place: Place
        ratio: float = 1.0

    class Numbers(pydantic.RootModel[list[int]]):  # type: ignore[name-defined,misc]
        pass

    @pydantic.dataclasses.dataclass
    class Own:
        at: dt.date
        ratio: float = 1.0

    place = {"at": "2026-01-02T03:04:05Z", "colour": "red"}
    model = Model(at="2026-01-02", place=Place(AT))
    assert sent(model) == {"at": "2026-01-02", "place": place, "ratio": 1.0}
    assert sent({"x": [model]}) == {"x": [sent(model)]}
    assert sent({"x": Own("2026-01-02")}) == {"x": {"at": "2026-01-02", "ratio": 1.0}}  # type: ignore[arg-type]
    assert sent(Numbers([1])) == {"result": [1]}
    for wrong in (Model(at="2026-01-02", place=Place(AT), ratio=float("nan")), Own("2026-01-02", float("nan"))):  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"result\.x\.ratio: nan is not JSON"):
            sent({"x": wrong})


def test_numpy_needs_no_conversion_by_hand() -> None:
    np = pytest.importorskip("numpy")
    made = {
        "i": np.int64(1), "f": np.float32(1.5), "d": np.float64(2.5), "b": np.bool_(True), "s": np.str_("x"),
        "a": np.arange(4).reshape(2, 2), "zero": np.array(7), "at": np.datetime64("2026-01-02T03:04:05", "ns"),
        "days": np.array(["2026-01-02"], "datetime64[D]"), "td": np.timedelta64(90, "s"), np.int64(5): 1,
    }  # fmt: skip
    expected = {
        "i": 1, "f": 1.5, "d": 2.5, "b": True, "s": "x", "a": [[0, 1], [2, 3]], "zero": 7, "at": "2026-01-02T03:04:05",
        "days": ["2026-01-02T00:00:00"], "td": "PT1M30S", "5": 1,
    }  # fmt: skip
    assert sent(made) == expected
    for wrong in (np.float64("nan"), np.float32("inf"), np.array([[1, np.nan]])):
        with pytest.raises(ValueError, match=r"result\.x.*: (nan|inf) is not JSON"):
            sent({"x": wrong})
    with pytest.raises(TypeError, match=r"result\.x: longdouble is not JSON"):
        sent({"x": np.longdouble(1)})


def test_an_encoder_says_what_other_objects_are() -> None:
    app = App()

    @app.encoder
    def encode(value: object) -> Any:
        if isinstance(value, Money):
            return {"amount": value.amount, "at": [AT]}
        if isinstance(value, Plain):
            return value
        if isinstance(value, complex):
            return Money()
        if isinstance(value, type):
            return float("nan")
        if isinstance(value, asyncio.Lock):
            raise KeyError("lock")
        raise TypeError("nobody knows it")

    money = {"amount": "1.10", "at": ["2026-01-02T03:04:05Z"]}
    assert sent({"x": Money()}, app.json) == {"x": money}
    assert sent(Money(), app.json) == money
    assert sent({"x": [1j], "k": {uuid.UUID(int=1): Money()}}, app.json)["x"] == [money]
    request = Request("1-0", "r", "t", None, {}, encoder=app.json)
    request.trace(cost=Money())
    assert json.loads((request._noted or {})["cost"]) == money
    for value, message in [
        (Plain(), "result.x: Plain is not JSON: the encoder returned it as it is"),
        (object(), "result.x: object is not JSON: nobody knows it"),
        (int, "result.x: nan is not JSON"),
        (asyncio.Lock(), "result.x: KeyError: 'lock'"),
    ]:
        with pytest.raises((TypeError, ValueError)) as error:
            sent({"x": value}, app.json)
        assert str(error.value) == message
    with pytest.raises(ConfigError, match="two encoders"):
        app.encoder(encode)


def test_an_encoder_that_never_arrives_is_an_error() -> None:
    app = App()
    app.encoder(lambda value: Plain())
    for result in (Plain(), {"x": Plain()}):
        with pytest.raises(ValueError, match="nested too deeply"):
            sent(result, app.json)


def test_an_encoder_is_a_plain_function() -> None:
    async def later(value: object) -> None: ...

    for wrong in (later, 5):
        with pytest.raises(ConfigError, match=r"@worker.encoder is given .*: expected a function"):
            App().encoder(wrong)


def test_a_trace_is_text_that_redis_can_be_sent() -> None:
    request = Request("1-0", "r", "t", None, {})
    request.trace(text="as it is", half="\ud800", at=AT, n=7, **{"odd\udfff": [1]})
    expected = {"text": "as it is", "half": "\\ud800", "at": '"2026-01-02T03:04:05Z"', "n": "7", "odd\\udfff": "[1]"}
    assert request._noted == expected
    "".join([*expected, *expected.values()]).encode()
    with pytest.raises(ValueError, match=r"^model\.x\[0\]: nan is not JSON"):
        request.trace(model={"x": [float("nan")]})
    with pytest.raises(TypeError, match=r"^progress: Plain is not JSON"):
        request.progress(Plain())
