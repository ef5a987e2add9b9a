"""Checks of values that nobody has looked at before: what their messages have, and what they may cost."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from sandboxrun.errors import SpecError
from sandboxrun.spec import interface, model, schemas
from sandboxrun.spec.schemas import DEPTH_MAX, Check, check_schema


def fault(schema: Any, value: Any) -> str:
    return Check(schema, {}).fault("data", value, json.dumps(value))


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("schema", "value", "text"),
    [
        ({"properties": {"a": {"items": {"type": "null"}}}}, {"a": [None, "pw"]}, 'data.a[1]: the value is not of type "null"'),
        ({"properties": {"a b": {"type": "null"}}}, {"a b": 1}, "data['a b']: the value is not of type \"null\""),
        ({"properties": {"\x1b": False}}, {"\x1b": 1}, "data['\\x1b']: False schema does not allow the value"),
        ({"maxProperties": 0, "additionalProperties": False, "properties": {"a": {}}}, {"\x1b[2J": 1}, "data: "),
        ({"enum": ["a", "b"]}, "pw", "data: the value is not one of \"a\" or \"b\""),
        ({"anyOf": [{"type": "null"}, {"minimum": 5}]}, 4, "data: the value is not valid under any of the schemas"),
        ({"multipleOf": 0.01}, 1e308, ""),
        ({"multipleOf": 7}, 10**4000, "data: the value is not a multiple of 7"),
        ({"type": "integer"}, 2**200, ""),
        ({"format": "ipv4"}, "1.2.3", 'data: the value is not a "ipv4"'),
    ],
)  # fmt: skip
def test_a_message_has_the_place_and_the_fault_and_never_the_value(schema: Any, value: Any, text: str) -> None:
    found = fault(schema, value)
    assert found.startswith(text) and bool(found) == bool(text)
    assert "pw" not in found and found.isprintable()


@pytest.mark.parametrize("pattern", ["^(a+)+$", "^(a|a)*$", "(x+x+)+y", "^(.*.*.*.*)*=$", "(?:a?){200}b{200}"])
def test_no_pattern_takes_exponential_time(pattern: str) -> None:
    assert fault({"pattern": pattern}, "a" * 50 + "!") or fault({"pattern": pattern}, "x" * 1_000_000)


@pytest.mark.parametrize("pattern", ["(?=a)b", r"(a)\1", "(", "(a{1000}){1000}"])
def test_a_pattern_that_would_need_more_is_refused_when_the_schema_is_read(pattern: str) -> None:
    with pytest.raises(
        SpecError, match=r"s\.pattern is not a JSON Schema: .* is not a \"regex\" \(without look-around"
    ):
        check_schema({"pattern": pattern}, {}, "s")


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "http://127.0.0.1:1/x"},
        {"$ref": "file:///etc/hostname"},
        {"$id": "http://127.0.0.1:1/a", "$ref": "b"},
        {"properties": {"a": {"$dynamicRef": "https://example.com/x"}}},
    ],
)
def test_no_reference_leaves_the_file(schema: Any) -> None:
    with pytest.raises(SpecError, match="is not a JSON Schema"):
        check_schema(schema, {}, "s")


RECURSIVE = {
    "anyOf": [
        {"type": "array", "items": {"$ref": "#"}},
        {"type": "array", "items": {"$ref": "#"}, "minItems": 1},
        {"type": "null"},
    ],
    "unevaluatedProperties": False,
}


def test_nesting_is_bounded_even_on_a_small_stack() -> None:
    found: list[str] = []
    before = threading.stack_size(512 * 1024)
    try:
        thread = threading.Thread(target=lambda: found.extend(fault(RECURSIVE, nested(n)) for n in (100, 101, 900)))
        thread.start()
    finally:
        threading.stack_size(before)
    thread.join()
    assert found[0] == "data: it does not fit the schema"
    assert found[1:] == [f"data: it is nested too deeply: at most {DEPTH_MAX} objects and lists in one another"] * 2


def test_a_large_value_is_refused_without_the_errors_of_all_alternatives() -> None:
    schema = {"anyOf": [{"type": "string"}, {"additionalProperties": {"type": "integer"}}]}
    assert fault(schema, {f"k{n}": "x" for n in range(50_000)}) == "data: it does not fit the schema"
    assert "listed in the 'anyOf' keyword" in fault(schema, {"k": "x"})


@pytest.mark.parametrize(
    ("schema", "recursive"),
    [
        ({"$ref": "#"}, True),
        ({"$ref": "#/properties/a", "properties": {"a": {}}}, True),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"type": "null"}}}, False),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"items": {"$ref": "#/$defs/b"}}, "b": {"not": {"$ref": "#/$defs/a"}}}}, True),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"items": {"$ref": "#/$defs/b"}}, "b": {}}}, False),
        ({"$defs": {"a": {"$ref": "#/$defs/a"}}}, False),
    ],
)  # fmt: skip
def test_a_schema_that_contains_itself_is_known(schema: Any, recursive: bool) -> None:
    assert schemas._is_recursive(schema) is recursive


def test_the_names_of_the_file_are_those_of_its_schema() -> None:
    properties = model.schema()["properties"]
    assert set(interface.NAMES) == set(properties)
    assert set(interface.METHOD_NAMES) == set(properties["methods"]["additionalProperties"]["properties"])
