from __future__ import annotations

import copy
import dataclasses
import pickle

import pytest

from sandboxrun.records import asdict, field, never, record, replace


@record
class Point:
    """As its twin below."""

    x: int
    y: int = 2
    tags: list[str] = field(default_factory=list)
    secret: str = field(default_factory=str, repr=False)

    @property
    def sum(self) -> int:
        return self.x + self.y


@dataclasses.dataclass(frozen=True, slots=True)
class Twin:
    x: int
    y: int = 2
    tags: list[str] = dataclasses.field(default_factory=list)
    secret: str = dataclasses.field(default_factory=str, repr=False)


@record
class Pair:
    left: object
    right: object = None


def test_a_record_is_what_a_frozen_slotted_dataclass_is() -> None:
    point, twin = Point(1, secret="s"), Twin(1, secret="s")
    assert repr(point) == repr(twin).replace("Twin", "Point") == "Point(x=1, y=2, tags=[])"
    assert point == Point(1, 2, [], "s") != Point(1)
    assert point != twin
    assert (point.sum, Point.__doc__) == (3, "As its twin below.")
    assert asdict(point) == dataclasses.asdict(twin)
    assert replace(point, y=5) == Point(1, 5, secret="s")
    assert Point(1).tags is not Point(1).tags
    assert hash(Pair(1, "a")) == hash(Pair(1, "a"))
    assert len({Pair(1), Pair(1), Pair(2)}) == 2
    assert copy.copy(point) == pickle.loads(pickle.dumps(point)) == point
    match Pair(1, 2):
        case Pair(left, right):
            assert (left, right) == (1, 2)


@pytest.mark.parametrize(
    "change", [lambda p: setattr(p, "x", 2), lambda p: setattr(p, "new", 2), lambda p: delattr(p, "x")]
)
def test_a_record_cannot_be_changed(change: object) -> None:
    point = Point(1)
    with pytest.raises(AttributeError):
        change(point)  # type: ignore[operator]
    assert point == Point(1)


@pytest.mark.parametrize(
    ("args", "named"), [((), {}), ((1, 2, [], "s", 5), {}), ((1,), {"x": 2}), ((1,), {"z": 2}), ((), {"y": 2})]
)
def test_fields_that_are_missing_or_too_many_are_type_errors(
    args: tuple[object, ...], named: dict[str, object]
) -> None:
    for kind in (Point, Twin):
        with pytest.raises(TypeError):
            kind(*args, **named)  # type: ignore[arg-type]


def test_a_closed_set_has_a_branch_for_each_member() -> None:
    with pytest.raises(AssertionError, match="no branch for 'new'"):
        never("new")
