"""Our enumerations do what is used of those of the standard library."""

from __future__ import annotations

import copy
import enum
import json
import pickle
from typing import Any

import pytest

from sandboxrun import enums


class Word(enums.StrEnum):
    ONE = "one"
    TWO = "two"

    def twice(self) -> str:
        return self * 2


class Theirs(enum.StrEnum):
    ONE = "one"
    TWO = "two"

    def twice(self) -> str:
        return self * 2


class Row(enums.Enum):
    FIRST = ("first", 1)
    SECOND = ("second", 2)

    def __init__(self, label: str, number: int) -> None:
        self.label, self.number = label, number

    @property
    def is_first(self) -> bool:
        return self is Row.FIRST


@pytest.mark.parametrize("kind", [Word, Theirs])
def test_text_is_as_in_the_standard_library(kind: Any) -> None:
    assert [member.name for member in kind] == ["ONE", "TWO"]
    assert (kind("one"), kind["TWO"]) == (kind.ONE, kind.TWO)
    assert kind("one") is kind.ONE
    assert (str(kind.ONE), f"{kind.ONE}", type(str(kind.ONE))) == ("one", "one", str)
    assert (kind.ONE == "one", hash(kind.ONE) == hash("one"), kind.ONE.value) == (True, True, "one")
    assert (kind.ONE.twice(), json.dumps(kind.ONE)) == ("oneone", '"one"')
    assert repr(kind.ONE) == f"<{kind.__name__}.ONE: 'one'>"
    assert isinstance(kind.ONE, kind)
    assert isinstance(kind.ONE, str)
    with pytest.raises(ValueError, match=f"'three' is not a valid {kind.__name__}"):
        kind("three")
    with pytest.raises(KeyError):
        kind["three"]


@pytest.mark.parametrize("member", [Word.ONE, Row.SECOND])
def test_a_copy_is_the_member_itself(member: Any) -> None:
    assert copy.deepcopy(member) is member
    assert pickle.loads(pickle.dumps(member)) is member


def test_rows_have_attributes_and_methods_and_are_equal_to_themselves_alone() -> None:
    assert [(row.name, row.label, row.number, row.is_first) for row in Row] == [
        ("FIRST", "first", 1, True),
        ("SECOND", "second", 2, False),
    ]
    assert Row(("first", 1)) is Row.FIRST
    assert Row.FIRST.value == ("first", 1)
    assert len({Row.FIRST, Row.SECOND, Row.FIRST}) == 2
    with pytest.raises(ValueError, match="is not a valid Row"):
        Row([])


def test_two_members_of_one_value_are_a_mistake() -> None:
    with pytest.raises(TypeError, match=r"Twins\.B has the value of Twins\.A"):
        type(Word)("Twins", (enums.StrEnum,), {"A": "x", "B": "x"})
