"""What requests are made from a schema and a written test."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sandboxrun.spec import model
from sandboxrun.spec.model import Expected, Spec
from sandboxrun.testing.generate import AGAIN, GENERATED, UNUSUAL, as_test, generated


def spec_of(request: Any, *tests: Any, **more: Any) -> Spec:
    named = [{"name": f"test {number}", **test} for number, test in enumerate(tests)]
    return model.parse(json.dumps({"type": "t", "request": request, "tests": named, **more}).encode(), "t/spec.json")


def made(request: Any, *tests: Any, **more: Any) -> dict[str, tuple[Any, int]]:
    """Each request that is made from the schema, by its words, and the code that is expected."""
    found = [case for case in generated(spec_of(request, *tests, **more)) if case.name.startswith(GENERATED)]
    return {case.name.removeprefix(GENERATED): (case.request, case.code) for case in found}


def bounds(request: Any, value: Any) -> dict[str, tuple[Any, Any]]:
    """The requests at a bound, each with the one that is further in."""
    found = generated(spec_of(request, {"request": value}))
    return {case.name.removeprefix(GENERATED): (case.request, case.inside) for case in found if case.inside is not None}


def others(place: str, *kept: Any) -> dict[str, tuple[Any, int]]:
    return {f"{place} is {json.dumps(value)}": (value, 400) for value in kept}


def test_a_number() -> None:
    schema = {"type": "integer", "minimum": 1, "maximum": 9}
    assert made(schema, {"request": 5}) == {
        "request is 1": (1, 200),
        "request is 0": (0, 400),
        "request is 9": (9, 200),
        "request is 10": (10, 400),
        "request is -1": (-1, 400),
        "request is 5.0": (5.0, 200),
        **others("request", None, True, 7.5, "text", [], {}),
    }
    assert bounds(schema, 5) == {"request is 1": (1, 2), "request is 9": (9, 8)}


def test_a_number_between_bounds_that_it_may_not_have() -> None:
    schema = {"type": "integer", "exclusiveMinimum": 1, "exclusiveMaximum": 9}
    numbers = {words: code for words, (value, code) in made(schema, {"request": 5}).items() if type(value) is int}
    assert numbers == {
        "request is 2": 200,
        "request is 1": 400,
        "request is 8": 200,
        "request is 9": 400,
        "request is 0": 400,
        "request is -1": 400,
    }
    assert bounds(schema, 5) == {"request is 2": (2, 3), "request is 8": (8, 7)}


def test_a_text() -> None:
    schema = {"type": "string", "minLength": 2, "maxLength": 3}
    assert made(schema, {"request": "ab"}) == {
        "request has 0 characters": ("", 400),
        "request has 1 character": ("a", 400),
        "request has 3 characters": ("aba", 200),
        "request has 4 characters": ("abab", 400),
        f'request is "{UNUSUAL[:3]}"': (UNUSUAL[:3], 200),
        **others("request", None, True, 7, 7.5, [], {}),
    }
    assert bounds(schema, "ab") == {"request has 3 characters": ("aba", "ab")}
    assert bounds(schema, "abc") == {"request has 2 characters": ("ab", "abc")}
    assert bounds({"type": "string"}, "ab") == {"request has 0 characters": ("", "a")}


@pytest.mark.parametrize(
    ("schema", "value", "refused"),
    [
        ({"enum": ["a", "b"]}, "a", ["", "a-other"]),
        ({"type": "string", "pattern": "^[a-z]+$"}, "ab", ["", "ab-other"]),
        (
            {"type": "string", "format": "date"},
            "2026-12-01",
            ["", "2026-12-01-other", "20261201", "2026-W49-2", "2026-12-01T00:00:00"],
        ),
    ],
)
def test_a_text_of_a_certain_form(schema: Any, value: str, refused: list[str]) -> None:
    found = made(schema, {"request": value}).values()
    assert [
        request for request, code in found if code == 400 and isinstance(request, str) and request != "text"
    ] == refused
    assert ("b", 200) in found or "enum" not in schema


def test_an_object() -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"const": 1}, "b": {"type": "boolean"}, "c": {}},
        "required": ["a"],
        "additionalProperties": False,
    }
    found = made(schema, {"request": {"a": 1, "c": None}})
    assert found["request has no a"] == ({"c": None}, 400)
    assert found["request has no c"] == ({"a": 1}, 200)
    assert found["request has an unknown field"] == ({"a": 1, "c": None, "unknown": 1}, 400)
    assert found["request.b is true"] == ({"a": 1, "c": None, "b": True}, 200), "a property that no test has"
    assert found["request.b is null"] == ({"a": 1, "c": None, "b": None}, 400)
    assert found["request.c is 7.5"] == ({"a": 1, "c": 7.5}, 200)


def test_a_property_that_no_test_has_is_sent_at_its_bounds() -> None:
    schema = {"type": "object", "properties": {"n": {"$ref": "#/$defs/few"}}}
    found = made(schema, {"request": {}}, **{"$defs": {"few": {"type": "integer", "minimum": 3, "maximum": 4}}})
    numbers = [(request["n"], code) for request, code in found.values() if type(request) is dict and request]
    assert [pair for pair in numbers if type(pair[0]) is int and pair[0] != 7] == [
        (3, 200), (2, 400), (4, 200), (5, 400), (0, 400), (-1, 400),
    ]  # fmt: skip


def test_a_list() -> None:
    schema = {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 3, "uniqueItems": True}
    found = made(schema, {"request": [1, 2]})
    assert {words: pair for words, pair in found.items() if "item" in words} == {
        "request has 0 items": ([], 400),
        "request has 1 item": ([1], 400),
        "request has 3 items": ([1, 2, 1], 400),
        "request has 4 items": ([1, 2, 1, 2], 400),
    }
    assert found["request[0] is 0"] == ([0, 2], 200)
    assert found['request[0] is "text"'] == (["text", 2], 400)
    assert bounds({"type": "array", "maxItems": 3}, [1]) == {
        "request has 3 items": ([1, 1, 1], [1, 1]),
        "request has 0 items": ([], [1]),
    }
    assert made({"type": "array", "uniqueItems": True}, {"request": [1]})["request has an item twice"] == ([1, 1], 400)


def test_each_method_has_its_own_from_its_first_test_that_succeeds() -> None:
    methods = {"one": {"request": {"type": "boolean"}}, "two": {"request": {"enum": [1, 2]}}, "three": {}}
    tests = [
        {"name": "a", "method": "two", "request": 3, "reply": {"code": 400}},
        {"name": "b", "method": "two", "request": 1, "before": {"a": "b"}},
        {"name": "c", "method": "three"},
    ]
    spec = model.parse(json.dumps({"type": "t", "methods": methods, "tests": tests}).encode(), "t/spec.json")
    found = [case for case in generated(spec) if case.name.startswith(GENERATED)]
    assert {case.method for case in found} == {"two"}, "one has no test, and three no schema"
    assert found[0].name == "generated: two request is 2"
    assert all(case.before == spec.cases[1].before for case in found)


def test_a_request_of_a_written_test_is_not_made() -> None:
    schema = {"type": "integer", "minimum": 1}
    assert "request is 0" not in made(schema, {"request": 5}, {"request": 0, "reply": {"code": 400}})


def test_what_the_schema_accepts_may_be_refused_and_the_rest_must_be() -> None:
    cases = {
        case.request: case
        for case in generated(spec_of({"enum": ["a", "b"]}, {"request": "a"}))
        if isinstance(case.request, str)
    }
    assert cases["b"].expected is Expected.ACCEPTED
    assert (cases["a-other"].expected, cases["a-other"].after) == (Expected.WRITTEN, {})


def test_a_written_test_that_succeeds_is_run_again_if_the_worker_remembers_nothing() -> None:
    tests = [{"request": 1, "after": {"a": "b"}}, {"request": 2, "reply": {"code": 400}}]
    spec = spec_of(True, *tests)
    assert [(case.name, case.after) for case in generated(spec)] == [(f"{AGAIN}test 0", spec.cases[0].after)]
    assert list(generated(spec_of(True, *tests, {"fresh": True}))) == []


def test_as_a_test_it_has_the_state_of_the_one_that_it_was_made_from() -> None:
    refused = {"request": 0, "reply": {"code": 400}, "before": {"c": "d"}}
    spec = spec_of({"type": "integer", "minimum": 1}, refused, {"request": 5, "before": {"a": "b"}})
    found = {case.name: as_test(case, spec) for case in generated(spec)}
    assert found[f"{GENERATED}request is -1"] == {
        "name": "request is -1",
        "before": {"a": "b"},
        "request": -1,
        "reply": {"code": 400},
    }
    assert found[f"{GENERATED}request is 1"] == {"name": "request is 1", "before": {"a": "b"}, "request": 1}


def test_where_the_servers_are_is_a_url_for_the_schema() -> None:
    found = made({"type": "string", "pattern": "^http://"}, {"request": "{http}/a"})
    assert found['request is "{http}/a-other"'] == ("{http}/a-other", 200)


def test_bounds_that_no_request_should_have() -> None:
    huge = 10**12
    assert len(made({"type": "string", "maxLength": huge}, {"request": "a"})) < 20
    assert len(made({"type": "array", "minItems": 1.0, "maxItems": huge}, {"request": [1]})) < 20
    assert len(made({"type": "integer", "maximum": 10**400}, {"request": 10**400})) < 20


def test_one_of_several_schemas() -> None:
    found = made({"anyOf": [{"type": "integer", "maximum": 9}, {"enum": ["a", "b"]}]}, {"request": 5})
    assert found["request is 9"] == (9, 200)
    assert found["request is 10"] == (10, 400)
    assert found['request is "b"'] == ("b", 200)
    assert found['request is "text"'] == ("text", 400)


def test_a_schema_that_contains_itself_ends() -> None:
    tree = {"type": "object", "properties": {"left": {"$ref": "#/$defs/tree"}, "n": {"type": "integer"}}}
    found = made({"$ref": "#/$defs/tree"}, {"request": {}}, **{"$defs": {"tree": tree}})
    assert 20 < len(found) <= 200
