"""spec.json as it is read: what each wrong file is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sandboxrun.errors import SpecError
from sandboxrun.spec import interface, model, schemas


def parsed(**given: Any) -> model.Spec:
    return model.parse(json.dumps({"type": "counter", **given}).encode(), "spec.json")


def test(**given: Any) -> dict[str, Any]:
    return {"tests": [{"name": "a", **given}]}


test.__test__ = False  # type: ignore[attr-defined]
OBJECT = {"type": "object", "properties": {"n": {"type": "integer"}}, "additionalProperties": False}
METHODS = {"methods": {"quote": {}, "pay": {}}}
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"grant": {}}, 'spec.json has \'grant\', which is no part of it, did you mean grants?'),
    (test(reqest=1), 'spec.json: tests[0] has \'reqest\', which is no part of it, did you mean request?'),
    (test(name=""), 'spec.json: tests[0].name: "" is shorter than 1 character'),
    ({"tests": {}}, 'spec.json: tests: {} is not of type "array"'),
    ({"type": "Counter"}, 'spec.json: type: "Counter" does not match "^[a-z][a-z0-9_-]{0,63}$"'),
    ({"request": {"type": "nothing"}}, "spec.json: request.type is not a JSON Schema: "),
    ({"request": {"$ref": "other.json"}}, "spec.json: request is not a JSON Schema: "),
    ({"request": {"$ref": "file:///etc/passwd"}}, "spec.json: request is not a JSON Schema: "),
    ({"reply": OBJECT, **test(reply={"n": "1"})}, 'spec.json: tests[0].reply.n breaks the schema of replies: "1" is not of type "integer"'),
    ({"reply": OBJECT, **test(reply={"m": 1})}, "spec.json: tests[0].reply.m is no field of the schema of replies"),
    (test(reply={"code": "200"}), 'spec.json: tests[0].reply.code is "200": expected a whole number'),
    ({**METHODS, **test()}, "spec.json: tests[0] has no method: expected one of quote, pay"),
    ({**METHODS, **test(method="quot")}, 'spec.json: tests[0] has the method \'quot\', which the spec does not describe, did you mean quote?'),
    (test(method="quote"), 'spec.json: tests[0] has the method \'quote\', which the spec does not describe, because it describes none'),
    ({"tests": [{"name": "a"}, {"name": "a"}]}, 'spec.json: tests[1] is a second test with the name "a"'),
    (test(before={"a": None}), "spec.json: tests[0].before.a is null: leave it out, there are no other keys before"),
    (test(after={"a:h": 1}), "spec.json: tests[0].after.a:h is a hash, and 1: expected an object of fields"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "message"), WRONG, ids=lambda value: str(value)[:50])
def test_a_wrong_file_is_told_where_and_what(given: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        parsed(**given)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


NO_JSON = [
    (b"{", "spec.json:1:2 is not JSON: "),
    (b'{"type": "a"\n "b": 1}', "spec.json:2:2 is not JSON: "),
    (b"\xff", "spec.json is not UTF-8, at byte 0"),
    (b'{"a": 1, "a": 2}', 'spec.json is not JSON as expected: an object has "a" twice'),
    (b'{"a": NaN}', "spec.json is not JSON as expected: NaN is no number of JSON"),
    (b'{"a": 1e999}', "spec.json is not JSON as expected: 1e999 is beyond the numbers of JSON's readers"),
    (rb'{"a": "\ud800"}', "spec.json has half of a surrogate pair, which is no text"),
    (rb'{"\ud800": 1}', "spec.json has half of a surrogate pair, which is no text"),
    (b"[" * 100_000, "spec.json is not JSON as expected: "),
    (b"[]", 'spec.json: [] is not of type "object"'),
]


@pytest.mark.parametrize(("data", "message"), NO_JSON, ids=lambda value: str(value)[:30])
def test_what_is_no_json_is_told_so(data: bytes, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        model.parse(data, "spec.json")
    assert str(caught.value).startswith(message)


def test_a_file_that_is_not_there_or_too_large(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"spec\.json cannot be read: No such file or directory$"):
        model.load(str(tmp_path))
    (tmp_path / "spec.json").write_bytes(b" " * (interface.FILE_MAX_BYTES + 1))
    with pytest.raises(SpecError, match=f"has more than {interface.FILE_MAX_BYTES} bytes$"):
        model.load(str(tmp_path))


def test_what_a_file_may_leave_out() -> None:
    spec = parsed(**test())
    (case,) = spec.cases
    assert (case.request, case.code, case.reply, case.before, case.after) == ({}, 200, {}, {}, {})
    assert list(spec.interfaces) == [None]


def test_methods_stand_beside_the_workers_own_requests() -> None:
    assert list(parsed(**METHODS).interfaces) == ["quote", "pay"]
    assert list(parsed(**METHODS, request={}).interfaces) == [None, "quote", "pay"]


def test_a_definition_is_shared() -> None:
    spec = parsed(**{"$defs": {"n": {"type": "integer"}}, "request": {"$ref": "#/$defs/n"}})
    request = spec.interfaces[None].request
    assert list(schemas.faults(request, "x", spec.defs)) == [': "x" is not of type "integer"']
    assert list(schemas.faults(request, 1, spec.defs)) == []


def test_grants_are_a_list_or_one_text() -> None:
    spec = parsed(grants={"allowRedis": ["a:*", "b:*"], "allowNet": "a.example:443"})
    assert spec.grants == {"allowRedis": "a:*,b:*", "allowNet": "a.example:443"}
