"""What of a spec no test names."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sandboxrun.spec import model
from sandboxrun.testing.coverage import untested

REFUSED = {"request": 0, "reply": {"code": 400}}


def missing(*tests: Any, **given: Any) -> tuple[str, ...]:
    named = [{"name": f"test {number}", **test} for number, test in enumerate(tests)]
    return untested(model.parse(json.dumps({"type": "t", "tests": named, **given}).encode(), "t/spec.json"))


def test_properties_of_requests() -> None:
    defs = {"line": {"type": "object", "properties": {"item": {}, "count": {}}}}
    lines = {"type": "array", "items": {"$ref": "#/$defs/line"}}
    request = {"type": "object", "properties": {"user": {}, "lines": lines, "at": {"properties": {"x": {}, "y": {}}}}}
    asked = {"request": {"lines": [{"count": 1}, {}], "at": {"y": 1}}}
    assert missing(asked, REFUSED, request=request, **{"$defs": defs}) == (
        "request.user",
        "request.lines[].item",
        "request.at.x",
    )


def test_properties_of_one_of_several_schemas() -> None:
    request = {"oneOf": [{"properties": {"a": {}, "b": {}}}, {"properties": {"b": {}, "c": {}}}]}
    assert missing({"request": {"a": 1}}, REFUSED, request=request) == ("request.b", "request.c")


@pytest.mark.parametrize(
    ("request_", "tests", "expected"),
    [
        (True, [{}], ()),
        ({"type": "object"}, [{}], ()),
        (True, [REFUSED], ("code 200",)),
        (True, [], ("code 200",)),
        ({"type": "integer"}, [{"request": 1}], ("code 400",)),
        ({"type": "integer"}, [{"request": 1}, REFUSED], ()),
    ],
)
def test_codes_of_replies(request_: Any, tests: list[Any], expected: tuple[str, ...]) -> None:
    assert missing(*tests, request=request_) == expected


def test_each_method_has_its_own() -> None:
    methods = {
        "put": {"request": {"type": "object", "properties": {"item": {}}, "required": ["item"]}},
        "pay": {},
    }
    asked = {"method": "put", "request": {"item": 1}}
    assert missing(asked, methods=methods) == ("put.code 400", "pay.code 200")


@pytest.mark.parametrize(
    ("grant", "expected"),
    [
        ("count:*", ()),
        ("count:*,other:*", ("a key other:*",)),
        (["%R~list:*", "%W~count:?nn:h", "+lrange"], ("a key list:*",)),
        ("count:ann:h", ()),
        ("count:bob:h", ("a key count:bob:h",)),
    ],
)
def test_keys_that_are_granted(grant: Any, expected: tuple[str, ...]) -> None:
    test = {"after": {"count:ann:h": {"n": 1}}}
    assert missing(test, grants={"allowRedis": grant}) == expected
    assert missing({"before": test["after"]}, grants={"allowRedis": grant}) == expected


def test_a_schema_that_contains_itself_ends() -> None:
    tree = {"type": "object", "properties": {"left": {"$ref": "#/$defs/tree"}}}
    found = missing({}, request={"$ref": "#/$defs/tree"}, **{"$defs": {"tree": tree}})
    assert found[:2] == ("request.left", "request.left.left")
    assert found[-1] == "code 400"
