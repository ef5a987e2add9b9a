"""Each kind of key: how a test writes it, what fits, and what exactly is said of a difference."""

from __future__ import annotations

import math
from typing import Any

import pytest

from sandboxrun.errors import SpecError
from sandboxrun.spec import compare, state
from sandboxrun.spec.state import Actual

COMMANDS: list[tuple[str, Any, list[list[str | bytes]]]] = [
    ("a", "text", [["SET", "a", b"text"]]),
    ("a", 42, [["SET", "a", b"42"]]),
    ("a", 1.5, [["SET", "a", b"1.5"]]),
    ("a", "$$any", [["SET", "a", b"$any"]]),
    ("a", {"$json": {"b": [1]}}, [["SET", "a", b'{"b":[1]}']]),
    ("a", {"$base64": "/w=="}, [["SET", "a", b"\xff"]]),
    ("a:h", {"b": 1, "c": "d"}, [["HSET", "a:h", "b", b"1", "c", b"d"]]),
    ("a", {"b": 1}, [["HSET", "a", "b", b"1"]]),
    ("a:q", [1, "b"], [["RPUSH", "a:q", b"1", b"b"]]),
    ("a", [1], [["RPUSH", "a", b"1"]]),
    ("a:s", [1, 2], [["SADD", "a:s", b"1", b"2"]]),
    ("a:s", "text", [["SET", "a:s", b"text"]]),
    ("a:z", {"b": 1.5, "c": 2}, [["ZADD", "a:z", "1.5", "b", "2", "c"]]),
    ("a:z", {"b": "-inf"}, [["ZADD", "a:z", "-inf", "b"]]),
    ("a:x", [{"b": 1}, {"$id": "5-1", "c": 2}], [["XADD", "a:x", "*", "b", b"1"], ["XADD", "a:x", "5-1", "c", b"2"]]),
    ("a", {"$set": [1]}, [["SADD", "a", b"1"]]),
    ("a", {"$zset": {"b": 1}, "$ttl": 2}, [["ZADD", "a", "1", "b"], ["PEXPIRE", "a", "2000"]]),
    ("a:h", {"$value": {"b": 1}, "$ttl": 0.5}, [["HSET", "a:h", "b", b"1"], ["PEXPIRE", "a:h", "500"]]),
]


@pytest.mark.parametrize(("key", "given", "commands"), COMMANDS)
def test_how_a_key_is_written(key: str, given: Any, commands: list[list[str | bytes]]) -> None:
    assert list(state.commands(key, state.parse(key, given, key, before=True))) == commands


FITS = [
    ("a", 42, Actual("string", b"42")),
    ("a", {"$json": {"b": "$any"}}, Actual("string", b'{"b": 2}')),
    ("a", {"$base64": "/w=="}, Actual("string", b"\xff")),
    ("a", {"$between": [1, 2]}, Actual("string", b"1.5")),
    ("a", {"$schema": {"type": "integer"}}, Actual("string", b"15")),
    ("a", {"$schema": {"type": "string"}}, Actual("string", b"15")),
    ("a:h", {"b": {"$match": "c+"}}, Actual("hash", {b"b": b"cc"})),
    ("a:q", [1, "$any"], Actual("list", [b"1", b"x"])),
    ("a:s", [2, {"$match": "x."}], Actual("set", {b"xy", b"2"})),
    ("a:z", {"b": {"$between": [1, 2]}, "c": 1.5}, Actual("zset", {b"b": 2.0, b"c": 1.5})),
    ("a:x", [{"b": 1}, "$any"], Actual("stream", [(b"1-1", {b"b": b"1"}), (b"2-1", {b"c": b"1"})])),
    ("a:x", [{"$id": "1-1", "b": 1}], Actual("stream", [(b"1-1", {b"b": b"1"})])),
    (
        "a:req:x",
        [{"data": {"$json": {"n": 1}}}],
        Actual("stream", [(b"1-1", {b"ref": b"r", b"type": b"a", b"time": b"t", b"data": b'{"n":1}'})]),
    ),
    ("a", "$any", Actual("hash", {b"b": b"c"}, 5000)),
    ("a", None, None),
    ("a", {"$value": 1, "$ttl": 60}, Actual("string", b"1", 59_500)),
    ("a", {"$value": 1, "$ttl": "$any"}, Actual("string", b"1", 7)),
    ("a", {"$value": 1, "$ttl": {"$between": [5, 10]}}, Actual("string", b"1", 7000)),
]


@pytest.mark.parametrize(("key", "given", "actual"), FITS)
def test_what_fits_has_no_difference(key: str, given: Any, actual: Actual | None) -> None:
    assert list(compare.differences(key, state.parse(key, given, key, before=False), actual, 0.0)) == []


DIFFERS = [
    ("a", 42, Actual("string", b"41"), ['a: expected "42", got "41"']),
    ("a", "x", Actual("string", b"\xff"), ['a: expected "x", got {"$base64": "/w=="}']),
    ("a", {"$base64": "/w=="}, Actual("string", b"x"), ['a: expected the bytes "/w==" in base64, got "x"']),
    ("a", {"$json": 1}, Actual("string", b"x"), ['a: expected the JSON of 1, got "x"']),
    ("a", 1, None, ["a: expected a string, got no key"]),
    ("a", "$any", None, ["a: expected a key, got no key"]),
    ("a", None, Actual("string", b"1"), ["a: expected no key, got a string: 1"]),
    ("a:h", {"b": 1}, Actual("set", {b"b"}), ['a:h: expected a hash, got a set: {"$set": ["b"]}']),
    ("a:h", {"b": 1}, Actual("hash", {b"c": b"1"}), ["a:h.b: expected \"1\", got no field", 'a:h.c: expected no field, got "1"']),
    ("a:q", [1, 2], Actual("list", [b"2", b"1"]), ['a:q[0]: expected "1", got "2"', 'a:q[1]: expected "2", got "1"']),
    ("a:q", [1], Actual("list", [b"1", b"2"]), ['a:q[1]: expected nothing, got "2"']),
    ("a:q", [1, 2], Actual("list", [b"1"]), ['a:q[1]: expected "2", got nothing']),
    ("a:s", [1], Actual("set", {b"2"}), ['a:s: expected the member "1", got none', 'a:s: expected no member "2", got it']),
    ("a:s", [{"$match": "x"}], Actual("set", {b"2"}), ['a:s: expected a member that is a text like "x", got none', 'a:s: expected no member "2", got it']),
    ("a:z", {"b": 1}, Actual("zset", {b"b": 2.0, b"c": 1.0}), ["a:z.b: expected the score 1, got 2", "a:z.c: expected no member, got the score 1"]),
    ("a:z", {"b": "inf"}, Actual("zset", {b"b": 1.0}), ["a:z.b: expected the score inf, got 1"]),
    ("a:z", {"b": 1, "c": 2}, Actual("zset", {b"b": 1.0}), ["a:z.c: expected the score 2, got no member"]),
    ("a:x", [{"b": 1}], Actual("stream", [(b"1-1", {b"b": b"2"})]), ['a:x[0].b: expected "1", got "2"']),
    ("a:x", [{"$id": "1-2", "b": 1}], Actual("stream", [(b"1-1", {b"b": b"1"})]), ["a:x[0]: expected the ID 1-2, got 1-1"]),
    ("a:x", [{"b": 1}], Actual("stream", [(b"1-1", {b"b": b"1"}), (b"1-2", {b"c": b"1"})]), ['a:x[1]: expected no entry, got {"c": "1"}']),
    ("a:x", [{"b": 1}, {"b": 2}], Actual("stream", [(b"1-1", {b"b": b"1"})]), ['a:x[1]: expected {"b": 2}, got no entry']),
    ("a:req:x", [{"data": {"$json": 1}, "ref": "r"}], Actual("stream", [(b"1-1", {b"ref": b"s", b"time": b"t", b"data": b"1"})]), ['a:req:x[0].ref: expected "r", got "s"']),
    ("a", 1, Actual("string", b"1", 5000), ["a: expected no time to live, got 5 s"]),
    ("a", {"$value": 1, "$ttl": 60}, Actual("string", b"1"), ["a: expected 60 s to live, got no time to live"]),
    ("a", {"$value": 1, "$ttl": 60}, Actual("string", b"1", 50_000), ["a: expected 60 s to live, got 50 s to live"]),
    ("a", {"$value": 1, "$ttl": 60}, Actual("string", b"1", 60_001), ["a: expected 60 s to live, got 60.001 s to live"]),
    ("a", {"$value": 1, "$ttl": "$any"}, Actual("string", b"1"), ["a: expected a time to live, got none"]),
    ("a", {"$value": 1, "$ttl": {"$between": [5, 10]}}, Actual("string", b"1", 11_000), ["a: expected 5 to 10 s to live, got 11 s to live"]),
]  # fmt: skip


@pytest.mark.parametrize(("key", "given", "actual", "lines"), DIFFERS)
def test_what_differs_says_where_and_how(key: str, given: Any, actual: Actual | None, lines: list[str]) -> None:
    assert list(compare.differences(key, state.parse(key, given, key, before=False), actual, 0.0)) == lines


MALFORMED = [
    ("a:h", [1], True, "a:h is a hash, and [1]: expected an object of fields"),
    ("a:z", [1], True, "a:z is a zset, and [1]: expected an object of members and their scores"),
    ("a:q", {"b": 1}, True, 'a:q is a list, and {"b": 1}: expected an array of items'),
    ("a:h", {}, True, "a:h is an empty hash, which Redis does not have: leave it out"),
    ("a", True, True, 'a is true: expected text or a number; {"$json": …} stores JSON'),
    ("a:h", {"b": [1]}, True, 'a:h.b is [1]: expected text or a number; {"$json": …} stores JSON'),
    ("a:h", {"b": {"c": 1}}, False, 'a:h.b is {"c": 1}: expected text or a number; {"$json": …} stores JSON'),
    ("a", "$any", True, "a is $any: a matcher is for `after`, not for what is written before"),
    ("a:h", {"b": {"$match": "c"}}, True, "a:h.b has a matcher: that is for `after`, not for what is written before"),
    ("a", {"$json": {"b": "$any"}}, True, "a has a matcher: that is for `after`, not for what is written before"),
    ("a", {"$base64": "?"}, True, 'a has $base64 "?": expected bytes in base64'),
    ("a:z", {"b": "1"}, True, 'a:z.b is "1": expected a score, which is a number, "inf" or "-inf"'),
    ("a:x", [1], True, "a:x[0] is 1: expected an entry, an object of fields"),
    ("a:x", [{"$id": "5"}], True, 'a:x[0] has $id "5": expected an ID such as 1-1'),
    ("a:x", [{"$id": "5-1"}], True, "a:x[0] has no field: Redis has no such entry"),
    ("a", {"$value": 1, "$ttl": 0}, True, "a has $ttl 0: expected seconds above 0"),
    ("a", {"$value": 1, "$ttl": "$any"}, True, 'a has $ttl "$any": expected seconds above 0'),
    ("a", {"$value": 1, "$ttl": {"$match": "1"}}, False, 'a has $ttl {"$match": "1"}: expected seconds above 0, $any or $between'),
    ("a", {"$ttl": 1}, True, 'a is {"$ttl": 1}: expected one of $value, $string, $hash, $list, $set, $zset, $stream, and $ttl'),
]  # fmt: skip


@pytest.mark.parametrize(("key", "given", "before", "message"), MALFORMED)
def test_what_no_key_can_be_is_an_error(key: str, given: Any, before: bool, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        state.parse(key, given, key, before=before)
    assert str(caught.value) == message


RECORDED = [
    ("a", Actual("string", b"42"), 42),
    ("a", Actual("string", b"042"), "042"),
    ("a", Actual("string", b"1e5"), "1e5"),
    ("a", Actual("string", b"$x"), "$$x"),
    ("a", Actual("string", b"\xff"), {"$base64": "/w=="}),
    ("a", Actual("string", b"1", 59_100), {"$value": 1, "$ttl": 60}),
    ("a", Actual("set", {b"2", b"1"}), {"$set": [1, 2]}),
    ("a:s", Actual("set", {b"1"}), [1]),
    ("a:h", Actual("string", b"1"), {"$string": 1}),
    ("a:h", Actual("hash", {b"$b": b"c"}), {"$$b": "c"}),
    ("a:z", Actual("zset", {b"b": 1.5}), {"b": 1.5}),
    ("a:z", Actual("zset", {b"b": math.inf, b"c": -math.inf}), {"b": "inf", "c": "-inf"}),
    ("a", Actual("list", [b"1"]), [1]),
    ("a:x", Actual("stream", [(b"1-1", {b"b": b"1"})]), [{"b": "1"}]),
    ("a:req:x", Actual("stream", [(b"1-1", {b"ref": b"r", b"data": b"[1]"})]), [{"data": {"$json": [1]}}]),
]


@pytest.mark.parametrize(("key", "actual", "written"), RECORDED)
def test_a_key_is_recorded_in_a_form_that_it_fits(key: str, actual: Actual, written: Any) -> None:
    assert compare.as_json(key, actual) == written
    assert list(compare.differences(key, state.parse(key, written, key, before=False), actual, 0.0)) == []
