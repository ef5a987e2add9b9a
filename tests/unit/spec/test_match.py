"""Each matcher and each form of JSON: what fits says nothing, what does not fits says exactly this."""

from __future__ import annotations

from typing import Any

import pytest

from sandboxrun.errors import SpecError
from sandboxrun.spec import match

FITS = [
    (42, 42),
    (42, 42.0),
    ("a", "a"),
    (None, None),
    (True, True),
    ("$$any", "$any"),
    ({"$$a": 1}, {"$a": 1}),
    ([1, [2]], [1, [2]]),
    ({"a": 1}, {"a": 1, "b": 2}),
    ({"a": {"b": 1}}, {"a": {"b": 1, "c": 2}}),
    ("$any", None),
    ("$any", {"a": 1}),
    ({"$match": "a+"}, "aaa"),
    ({"$match": "a[^b]b"}, "a\nb"),
    ({"$match": "a|bc"}, "bc"),
    ({"$between": [1, 2]}, 1),
    ({"$between": [1, 2]}, 2),
    ({"$between": [1.5, 1.5]}, 1.5),
    ({"$schema": {"type": "integer"}}, 3),
    ({"$json": {"a": "$any"}}, '{"a": 1}'),
    ({"$json": None}, "null"),
    ([{"$match": "a"}, "$any"], ["a", 0]),
]


@pytest.mark.parametrize(("expected", "actual"), FITS, ids=str)
def test_what_fits_has_no_difference(expected: Any, actual: Any) -> None:
    match.check(expected, "reply")
    assert list(match.differences(expected, actual, "reply", is_open=True)) == []


DIFFERS = [
    (42, 41, ["reply: expected 42, got 41"]),
    (1, True, ["reply: expected 1, got true"]),
    (0, False, ["reply: expected 0, got false"]),
    (None, 0, ["reply: expected null, got 0"]),
    ("1", 1, ['reply: expected "1", got 1']),
    ("$$any", "other", ['reply: expected "$any", got "other"']),
    ({"a": 1}, {}, ["reply.a: expected 1, got nothing"]),
    ({"a": 1}, [1], ['reply: expected {"a": 1}, got [1]']),
    ({"a": {"b": 1}}, {"a": {"b": 2}}, ["reply.a.b: expected 1, got 2"]),
    ([1, 2], [2, 1], ["reply[0]: expected 1, got 2", "reply[1]: expected 2, got 1"]),
    ([1], [1, 2], ["reply[1]: expected nothing, got 2"]),
    ([1, {"$match": "a"}], [1], ['reply[1]: expected a text like "a", got nothing']),
    ({"a": "$any"}, {}, ["reply.a: expected anything, got nothing"]),
    ({"$match": "a.b"}, "a\nb", ['reply: expected a text like "a.b", got "a\\nb"']),
    ({"$match": "a|bc"}, "ac", ['reply: expected a text like "a|bc", got "ac"']),
    ({"$match": "a"}, "a\n", ['reply: expected a text like "a", got "a\\n"']),
    ({"$match": "a+"}, "aab", ['reply: expected a text like "a+", got "aab"']),
    ({"$match": "1"}, 1, ['reply: expected a text like "1", got 1']),
    ({"$between": [1, 2]}, 3, ["reply: expected a number between 1 and 2, got 3"]),
    ({"$between": [0, 2]}, True, ["reply: expected a number between 0 and 2, got true"]),
    ({"$between": [1, 2]}, "1", ['reply: expected a number between 1 and 2, got "1"']),
    ({"$schema": {"type": "integer"}}, "a", ['reply: "a" is not of type "integer"']),
    ({"$json": {"a": 1}}, '{"a": 1, "b": 2}', ["reply.b: expected nothing, got 2"]),
    ({"$json": 1}, "no", ['reply: expected the JSON of 1, got "no"']),
    ("a", "x" * 300, [f'reply: expected "a", got "{"x" * 199}… (302 characters)']),
    ("a", "\x1b[31m", ['reply: expected "a", got "\\u001b[31m"']),
]


@pytest.mark.parametrize(("expected", "actual", "lines"), DIFFERS, ids=lambda value: str(value)[:40])
def test_what_differs_says_where_and_how(expected: Any, actual: Any, lines: list[str]) -> None:
    assert list(match.differences(expected, actual, "reply", is_open=True)) == lines


def test_a_closed_object_has_no_more_fields() -> None:
    assert list(match.differences({"a": 1}, {"a": 1, "b": 2}, "x", is_open=False)) == ["x.b: expected nothing, got 2"]


MALFORMED = [
    ("$anything", 'reply is "$anything": expected $any, or $$ for a text that begins with $'),
    ({"$mach": "a"}, 'reply has "$mach": expected one of $match, $between, $schema, $json alone, or $$ for a name that begins with $'),
    ({"$match": "a", "b": 1}, 'reply has "$match": expected one of $match, $between, $schema, $json alone, or $$ for a name that begins with $'),
    ({"$match": "("}, 'reply has $match "(": expected a regular expression without look-around and back-references'),
    ({"$match": "a)|(b"}, 'reply has $match "a)|(b": expected a regular expression without look-around and back-references'),
    ({"$match": "(?=a)a"}, 'reply has $match "(?=a)a": expected a regular expression without look-around and back-references'),
    ({"$match": ["a"]}, 'reply has $match ["a"]: expected a regular expression without look-around and back-references'),
    ({"$match": 1}, "reply has $match 1: expected a regular expression without look-around and back-references"),
    ({"$between": [2, 1]}, "reply has $between [2, 1]: expected two numbers, the lower one first"),
    ({"$between": [1, True]}, "reply has $between [1, true]: expected two numbers, the lower one first"),
    ({"$json": {"$match": "("}}, 'reply.$json has $match "(": expected a regular expression without look-around and back-references'),
]  # fmt: skip


@pytest.mark.parametrize(("expected", "message"), MALFORMED, ids=lambda value: str(value)[:40])
def test_a_malformed_matcher_is_an_error(expected: Any, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        match.check(expected, "reply")
    assert str(caught.value) == message


def test_a_schema_of_a_matcher_is_checked() -> None:
    with pytest.raises(SpecError, match=r"^reply\.\$schema\.type is not a JSON Schema: "):
        match.check({"$schema": {"type": "nothing"}}, "reply")


@pytest.mark.parametrize("value", ["$a", {"$a": ["$any", {"b": "$$"}]}, [1, None, True, "a"]], ids=str)
def test_any_json_can_be_written_as_expected(value: Any) -> None:
    expected = match.escaped(value)
    match.check(expected, "x")
    assert match.plain(expected) == value
    assert list(match.differences(expected, value, "x", is_open=False)) == []


def test_no_pattern_takes_long() -> None:
    """With backtracking this would take longer than the universe has existed."""
    expected = {"$match": "(a*)*b"}
    assert len(list(match.differences(expected, "a" * 100_000, "reply", is_open=True))) == 1
