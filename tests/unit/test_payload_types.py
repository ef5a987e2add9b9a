"""Every type that a payload may have: what JSON is made into it, what is refused and where, and what is no payload."""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import decimal
import enum
import ipaddress
import pathlib
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, InitVar, dataclass, field
from typing import (
    Annotated,
    Any,
    ClassVar,
    Final,
    Generic,
    Literal,
    NamedTuple,
    NewType,
    NotRequired,
    Optional,
    Required,
    Self,
    TypedDict,
    TypeVar,
)  # fmt: skip

import pytest

from sandboxrun.errors import ConfigError
from sandboxrun.protocol import HandlerTimeout
from sandboxrun.worker.payload import Mismatch, converter

T = TypeVar("T")
Bounded = TypeVar("Bounded", bound=int)
UserId = NewType("UserId", int)
ZERO = uuid.UUID(int=0)


class Colour(enum.Enum):
    ONE = 1
    RED = "red"
    PAIR = (1, 2)


class Level(enum.IntEnum):
    LOW = 1


class Ratio(enum.Enum):
    FULL = 1.0


class Bits(enum.Flag):
    A = 1
    B = 2


class Loose(enum.StrEnum):
    ANN = "ann"

    @classmethod
    def _missing_(cls, value: object) -> Loose | None:
        return cls.ANN if value == "ANN" else None


class Unsayable(enum.Enum):
    A = object()


@dataclass
class Box(Generic[T]):
    item: T
    more: list[T] = field(default_factory=list)


@dataclass
class IntBox(Box[int]):
    name: str = ""


@dataclass
class Node:
    v: int
    next: Optional[Node] = None  # noqa: UP045
    kids: list[Self] = field(default_factory=list)


@dataclass
class Scaled:
    size: int
    by: InitVar[int]
    _: KW_ONLY
    kind: Final[str] = "s"
    known: ClassVar[int] = 3
    made: int = field(init=False, default=0)

    def __post_init__(self, by: int) -> None:
        self.size *= by


class Pair(NamedTuple):
    a: int
    b: dt.date = dt.date.min


class Partial(TypedDict, total=False):
    a: Required[int]
    at: dt.date
    n: NotRequired[Level]


@dataclass
class Own:
    """Whose own code raises each kind of error."""

    n: int

    def __post_init__(self) -> None:
        errors: list[Exception] = [
            ValueError("too small"), TypeError("odd"), ZeroDivisionError("by zero"), KeyError("k"), RecursionError("x"),
            OSError("disk"), HandlerTimeout("late"), OverflowError("two\nlines"),
        ]  # fmt: skip
        if self.n < len(errors):
            raise errors[self.n]


class Arbitrary:
    pass


@dataclass
class Bad:
    place: list[dict[str, Arbitrary]]


@dataclass
class Unresolved:
    x: int
    y: Nowhere  # type: ignore[name-defined]  # noqa: F821


GOOD: list[tuple[Any, Any, Any]] = [
    (dt.datetime, "2026-01-02T03:04:05Z", dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)),
    (dt.datetime, "2026-01-02 03:04:05.25", dt.datetime(2026, 1, 2, 3, 4, 5, 250000)),
    (dt.date, "2026-01-02", dt.date(2026, 1, 2)),
    (dt.time, "03:04", dt.time(3, 4)),
    (dt.timedelta, "-P1DT2H3M4.5S", -dt.timedelta(days=1, hours=2, minutes=3, seconds=4.5)),
    (dt.timedelta, 90, dt.timedelta(seconds=90)),
    (decimal.Decimal, "1.10", decimal.Decimal("1.10")),
    (decimal.Decimal, 0.1, decimal.Decimal("0.1")),
    (uuid.UUID, str(ZERO), ZERO),
    (bytes, "YWJj", b"abc"),
    (pathlib.Path, "/a", pathlib.Path("/a")),
    (ipaddress.IPv4Address, "1.2.3.4", ipaddress.ip_address("1.2.3.4")),
    (Colour, 1, Colour.ONE),
    (Colour, [1, 2], Colour.PAIR),
    (Ratio, 1, Ratio.FULL),
    (Bits, 3, Bits.A | Bits.B),
    (Loose, "ANN", Loose.ANN),
    (Literal[1, "a", None, True, Level.LOW], True, True),
    (float, 2, 2.0),
    (int | float, 2, 2),
    (float | int, 2, 2),
    (list[dt.date | None], ["2026-01-02", None], [dt.date(2026, 1, 2), None]),
    (set[uuid.UUID], [str(ZERO), ZERO.hex], {ZERO}),
    (frozenset[Colour], ["red"], frozenset([Colour.RED])),
    (tuple[int, dt.date], [1, "2026-01-02"], (1, dt.date(2026, 1, 2))),
    (tuple[()], [], ()),
    (tuple[bytes, ...], ["YQ=="], (b"a",)),
    (collections.deque[int], [1], collections.deque([1])),
    (Sequence[bytes], ["YQ=="], [b"a"]),
    (Mapping[str, bytes], {"a": "YQ=="}, {"a": b"a"}),
    (dict[int, dt.date], {"-1": "2026-01-02"}, {-1: dt.date(2026, 1, 2)}),
    (dict[uuid.UUID, list[Level]], {str(ZERO): [1]}, {ZERO: [Level.LOW]}),
    (dict[Level | dt.date, int], {"1": 1, "2026-01-02": 2}, {Level.LOW: 1, dt.date(2026, 1, 2): 2}),
    (dict[dt.date, int], {"2026-01-02": 1}, {dt.date(2026, 1, 2): 1}),
    (dict[UserId, int], {"7": 1}, {7: 1}),
    (UserId, 1, 1),
    (Annotated[dt.date, "doc"], "2026-01-02", dt.date(2026, 1, 2)),
    (Box[int], {"item": 1, "more": [2]}, Box(1, [2])),
    (Box[Box[dt.date]], {"item": {"item": "2026-01-02"}}, Box(Box(dt.date(2026, 1, 2)))),
    (Box, {"item": [1]}, Box([1])),
    (IntBox, {"item": 1}, IntBox(1)),
    (Node, {"v": 1, "next": {"v": 2}, "kids": [{"v": 3}]}, Node(1, Node(2), [Node(3)])),
    (Scaled, {"size": 2, "by": 3, "kind": "k"}, Scaled(2, 3, kind="k")),
    (Pair, [1, "2026-01-02"], Pair(1, dt.date(2026, 1, 2))),
    (Pair, {"a": 1}, Pair(1)),
    (Partial, {"a": 1, "at": "2026-01-02"}, {"a": 1, "at": dt.date(2026, 1, 2)}),
    (Partial, {"a": 1, "n": 1}, {"a": 1, "n": Level.LOW}),
]  # fmt: skip


@pytest.mark.parametrize(("wanted", "data", "expected"), GOOD)
def test_json_becomes_the_type(wanted: Any, data: Any, expected: Any) -> None:
    found = converter(wanted)(data)
    assert found == expected
    assert type(found) is type(expected)
    assert converter(list[wanted])([data]) == [expected]
    assert converter(dict[str, Optional[wanted]])({"a": data, "b": None}) == {"a": expected, "b": None}  # noqa: UP045


WRONG: list[tuple[Any, Any, str]] = [
    (dt.datetime, "2026-13-01T00:00", ": expected a date and time as 2026-01-02T03:04:05Z, not '2026-13-01T00:00'"),
    (dt.datetime, 5, ": expected a date and time"),
    (dt.date, "2026-01-02T00:00", ": expected a date as 2026-01-02"),
    (dt.time, "25:00", ": expected a time"),
    (dt.timedelta, "P1Y", ": expected a duration"),
    (dt.timedelta, "P", ": expected a duration"),
    (dt.timedelta, 1e300, ": expected a duration"),
    (dt.timedelta, True, ": expected a duration"),
    (decimal.Decimal, "NaN", ": expected a decimal number, not 'NaN'"),
    (decimal.Decimal, "1_0", ": expected a decimal number"),
    (decimal.Decimal, "1e99999999999999999999", ": expected a decimal number"),
    (uuid.UUID, "x", ": expected a UUID, not 'x'"),
    (bytes, "YW", ": expected base64 text"),
    (bytes, "é", ": expected base64 text"),
    (pathlib.Path, "a\0b", ": expected a path"),
    (ipaddress.IPv6Network, "1.2.3.4", ": expected an IPv6 network"),
    (Colour, True, ": expected 1 or 'red' or [1, 2], not True"),
    (Colour, 1.0, ": expected 1 or 'red' or [1, 2], not 1.0"),
    (Colour, {"a": []}, ": expected 1 or 'red' or [1, 2], not an object"),
    (Colour, [[]], ": expected 1 or 'red' or [1, 2], not a list"),
    (Level, True, ": expected 1, not True"),
    (Level, "1", ": expected 1, not '1'"),
    (Ratio, True, ": expected 1.0, not True"),
    (Bits, 4, ": expected 1 or 2, not 4"),
    (Bits, -1, ": expected 1 or 2, not -1"),
    (Loose, 5, ": expected 'ann', not 5"),
    (Literal[1], True, ": expected 1, not True"),
    (Literal[1], 1.0, ": expected 1, not 1.0"),
    (Literal["a"], ["a"], ": expected 'a', not a list"),
    (int, 1.0, ": expected a whole number, not 1.0"),
    (float, 10**400, ": expected a number that is finite"),
    (float, float("nan"), ": expected a number that is finite, not nan"),
    (str, 1, ": expected text, not 1"),
    (bool, 1, ": expected true or false, not 1"),
    (int | str | None, [], ": expected a whole number or text or null, not a list"),
    (set[Any], [1, [2]], "[1]: unhashable type: 'list'"),
    (tuple[()], [1], ": expected a list of 0"),
    (dict[int, int], {"01": 1}, ".01: expected a whole number, not '01'"),
    (dict[int, int], {"1" * 5000: 1}, ": expected a whole number"),
    (dict[uuid.UUID, int], {str(ZERO): 1, ZERO.hex: 2}, " is the same key as another"),
    (dict[Level, int], {"2": 1}, ".2: expected '1', not '2'"),
    (dict[int, dt.date], {"7": "x"}, ".7: expected a date"),
    (Box[int], {"item": "x"}, ".item: expected a whole number, not 'x'"),
    (IntBox, {"item": 1, "more": ["x"]}, ".more[0]: expected a whole number, not 'x'"),
    (Node, {"v": 1, "kids": [{"v": 2, "next": {"v": "x"}}]}, ".kids[0].next.v: expected a whole number, not 'x'"),
    (Scaled, {"size": 1}, ".by is missing"),
    (Scaled, {"size": 1, "by": 1, "known": 2}, ".known is unknown: expected size, by, kind"),
    (Scaled, {"size": 1, "by": 1, "made": 2}, ".made is unknown"),
    (Pair, [1, "2026-01-02", 3], ": expected a list of 2, not of 3"),
    (Pair, {}, ".a is missing"),
    (Pair, "x", ": expected a list of 2 or an object, not 'x'"),
    (Partial, {"a": 1, "n": 2}, ".n: expected 1, not 2"),
    (Own, {"n": 0}, ": too small"),
    (Own, {"n": 1}, ": odd"),
    (Own, {"n": 2}, ": ZeroDivisionError: by zero"),
    (Own, {"n": 3}, ": KeyError: 'k'"),
    (Own, {"n": 4}, " is nested too deeply"),
    (Own, {"n": 7}, ": OverflowError: two lines"),
]  # fmt: skip


@pytest.mark.parametrize(("wanted", "data", "message"), WRONG)
def test_a_wrong_value_is_said_at_its_path_wherever_it_stands(wanted: Any, data: Any, message: str) -> None:
    with pytest.raises(Mismatch) as error:
        converter(dict[str, list[wanted]])({"deep": [data]})
    found = str(error.value)
    assert found.startswith(f"field deep[0]{message}") or (found.startswith("field deep[0]") and message in found)
    assert "\n" not in found
    with pytest.raises(Mismatch):
        converter(Optional[wanted])(data)  # noqa: UP045


@pytest.mark.parametrize(("n", "kind"), [(5, OSError), (6, HandlerTimeout)])
def test_what_is_not_the_payloads_fault_passes(n: int, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        converter(dict[str, list[Own | None]])({"a": [{"n": n}]})


UNUSABLE: list[tuple[Any, str]] = [
    (Bad, "Bad cannot be a payload: its field place[].* is Arbitrary; expected a dataclass"),
    (Unresolved, "Unresolved has a field y that has the annotation 'Nowhere', which cannot be resolved"),
    (list[Unresolved], "of its field [], Unresolved has a field y"),
    (Arbitrary, "Arbitrary cannot be a payload: expected a dataclass"),
    (Unsayable, "Unsayable cannot be a payload"),
    (dict[Colour, int], "keys of Colour: the key (1, 2)"),
    (dict[tuple[int, int], int], "it has keys of tuple[int, int]"),
    (dict[Arbitrary, int], "it has keys of Arbitrary"),
    (Callable, "cannot be a payload"),
    (complex, "complex cannot be a payload"),
    (type[int], "cannot be a payload"),
    (5, "5 cannot be a payload"),
    ([int], "cannot be a payload"),
]


@pytest.mark.parametrize(("wanted", "message"), UNUSABLE)
def test_a_type_that_json_cannot_be_made_into_is_an_error_at_the_start(wanted: Any, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        converter(wanted)
    assert message in str(error.value)


def chain(length: int) -> Any:
    data: dict[str, Any] = {"v": 1}
    for _ in range(length - 1):
        data = {"v": 1, "next": data}
    return data


def test_types_that_contain_themselves_have_a_bound() -> None:
    assert converter(Node)(chain(100)).next.next.v == 1
    for length in (101, 200, 900):
        with pytest.raises(Mismatch, match="is nested too deeply: at most 100") as error:
            converter(Node)(chain(length))
        assert len(str(error.value)) < 400


@dataclass
class Left:
    inner: Left | Right | None = None
    x: int = 0


@dataclass
class Right:
    inner: Left | Right | None = None
    x: int = 0


def test_alternatives_that_all_fail_inside_end() -> None:
    """Tried anew for each way that leads to it, this takes 2 to the 60th tries."""
    data: dict[str, Any] = {"x": "wrong"}
    for _ in range(60):
        data = {"inner": data}
    convert = converter(Left)
    with pytest.raises(Mismatch):
        convert(data)
    assert convert({"inner": {"x": 1}}) == Left(Left(None, 1))


def test_type_aliases_with_and_without_parameters() -> None:
    extensions = pytest.importorskip("typing_extensions")
    item = TypeVar("item")
    days = extensions.TypeAliasType("days", list[dt.date])
    many = extensions.TypeAliasType("many", dict[str, list[item]], type_params=(item,))
    assert converter(days)(["2026-01-02"]) == [dt.date(2026, 1, 2)]
    assert converter(many[bytes])({"a": ["YQ=="]}) == {"a": [b"a"]}
    assert converter(dict[extensions.TypeAliasType("key", int), int])({"1": 1}) == {1: 1}
    with pytest.raises(Mismatch, match=r"field a\[0\]: expected base64 text"):
        converter(many[bytes])({"a": ["%"]})
    assert converter(Bounded)(1) == 1
    with pytest.raises(Mismatch):
        converter(Bounded)("x")


def test_pydantic_takes_what_is_its_own() -> None:
    pydantic = pytest.importorskip("pydantic")

    class Strict(pydantic.BaseModel):  # type: ignore[name-defined,misc]
        model_config = pydantic.ConfigDict(strict=True)
        at: dt.date

        @pydantic.field_validator("at")
        @classmethod
        def later(cls, value: dt.date) -> dt.date:
            return {dt.date(2026, 1, 2): value}[value]  # KeyError, which pydantic lets pass

    @pydantic.dataclasses.dataclass
    class Own:
        link: pydantic.AnyUrl
        n: int = pydantic.Field(default=1, gt=0)

    @dataclasses.dataclass
    class Outer:
        strict: Strict
        own: list[Own]

    convert = converter(Outer, locals())
    good = {"strict": {"at": "2026-01-02"}, "own": [{"link": "http://a/", "n": 2}]}
    assert convert(good).own[0].n == 2
    for data, message in [
        ({**good, "strict": {"at": 5}}, "field strict.at: "),
        ({**good, "strict": {"at": "2027-01-02"}}, "field strict: KeyError"),
        ({**good, "own": [{"link": "http://a/", "n": 0}]}, "field own[0].n: Input should be greater than 0"),
        ({**good, "own": [{"link": "no"}]}, "field own[0].link: "),
        ({**good, "own": [{"link": "http://a/", "m": 1}]}, "field own[0].m is unknown: expected link, n"),
        ({**good, "own": [5]}, "field own[0]: expected an object, not 5"),
    ]:
        with pytest.raises(Mismatch) as error:
            convert(data)
        assert message in str(error.value)
