"""Requests made from the schema: those of the written tests with one change each, at and beyond the schema's bounds.

A request that the schema does not accept must be answered 400, and change nothing. One that it accepts may be answered 200,
by the schema of replies, or refused by the worker with 400: it must not fail.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from sandboxrun.spec import schemas
from sandboxrun.spec.model import OK, Case, Expected, Interface, Spec

GENERATED = "generated: "  # how the names of these tests begin
CASES_MAX = 200  # of one interface
DEPTH_MAX = 4
REFUSED = 400
_OTHERS: tuple[Any, ...] = (None, True, 7, 7.5, "text", [], {})  # of each type of JSON


def generated(spec: Spec) -> Iterator[Case]:
    """For each interface whose requests have a schema, and that a test asks with success."""
    for interface in spec.interfaces.values():
        base = next((case for case in spec.cases if case.method == interface.method and case.code == OK), None)
        if base is None or not isinstance(interface.request, dict):
            continue
        yield from _of(spec, interface, base)


def _of(spec: Spec, interface: Interface, base: Case) -> Iterator[Case]:
    accepts = schemas.validator(schemas.whole(interface.request, spec.defs)).is_valid
    written = {json.dumps(case.request, sort_keys=True) for case in spec.cases if case.method == interface.method}
    method = f"{interface.method} " if interface.method else ""
    count = 0
    for what, request in _changes(interface.request, base.request, spec, ""):
        text = json.dumps(request, sort_keys=True)
        if text in written or count >= CASES_MAX:
            continue
        written.add(text)
        count += 1
        accepted = accepts(request)
        yield replace(
            base,
            name=f"{GENERATED}{method}{what}",
            request=request,
            code=OK if accepted else REFUSED,
            reply={},
            after={},
            fresh=False,
            http=base.http if accepted else (),
            expected=Expected.ACCEPTED if accepted else Expected.WRITTEN,
        )


def _changes(schema: Any, value: Any, spec: Spec, path: str, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Words for each change, and the changed value."""
    schema = _resolved(schema, spec)
    if not isinstance(schema, dict) or depth > DEPTH_MAX:
        return
    name = f"request{path}"
    yield from _scalars(schema, value, name)
    for other in _OTHERS:
        if type(other) is not type(value):
            yield f"{name} is {json.dumps(other)}", other
    if isinstance(value, dict):
        yield from _objects(schema, value, spec, path, depth)
    if isinstance(value, list):
        yield from _lists(schema, value, spec, path, depth)


def _resolved(schema: Any, spec: Spec) -> Any:
    for _ in range(DEPTH_MAX):
        ref = schema.get("$ref") if isinstance(schema, dict) else None
        if not (isinstance(ref, str) and ref.startswith("#/$defs/")):
            break
        schema = spec.defs.get(ref.removeprefix("#/$defs/"))
    return schema


def _scalars(schema: dict[str, Any], value: Any, name: str) -> Iterator[tuple[str, Any]]:
    for each in schema.get("enum", ()):
        if each != value:
            yield f"{name} is {json.dumps(each)}", each
    if isinstance(value, str):
        low, high = schema.get("minLength"), schema.get("maxLength")
        lengths = [0, *([low, low - 1] if low else []), *([high, high + 1] if high else [])]
        for length in lengths:
            yield (
                f"{name} has {length} characters",
                (value * (length // max(1, len(value)) + 1) or "x" * length)[:length],
            )
        if "enum" in schema:
            yield f"{name} is none of its values", f"{value}-other"
    elif isinstance(value, int | float) and not isinstance(value, bool):
        for key, step in (("minimum", -1), ("maximum", 1), ("exclusiveMinimum", 1), ("exclusiveMaximum", -1)):
            if key in schema:
                bound = schema[key]
                for number in (bound, bound + step):
                    yield f"{name} is {json.dumps(number)}", number
        for number in (0, -1):
            yield f"{name} is {number}", number


def _objects(
    schema: dict[str, Any], value: dict[str, Any], spec: Spec, path: str, depth: int
) -> Iterator[tuple[str, Any]]:
    properties = schema.get("properties", {})
    for name in value:
        yield f"request{path} has no {name}", {key: item for key, item in value.items() if key != name}
    if schema.get("additionalProperties", True) is False:
        yield f"request{path} has an unknown field", {**value, "unknown": 1}
    for name, each in properties.items():
        if name in value:
            for what, changed in _changes(each, value[name], spec, f"{path}.{name}", depth + 1):
                yield what, {**value, name: changed}


def _lists(schema: dict[str, Any], value: list[Any], spec: Spec, path: str, depth: int) -> Iterator[tuple[str, Any]]:
    low, high = schema.get("minItems"), schema.get("maxItems")
    for length in (0, *([low - 1] if low else []), *([high, high + 1] if high and value else [])):
        yield f"request{path} has {length} items", [copy.deepcopy(value[at % len(value)]) for at in range(length)]
    if value and "items" in schema:
        for what, changed in _changes(schema["items"], value[0], spec, f"{path}[0]", depth + 1):
            yield what, [changed, *value[1:]]


def as_test(case: Case, spec: Spec) -> dict[str, Any]:
    """A generated case as a test to be written into the spec; its `before` is that of the test it was made from."""
    base: dict[str, Any] = next((each for each in spec.raw.get("tests", ()) if each.get("method") == case.method), {})
    test: dict[str, Any] = {"name": case.name.removeprefix(GENERATED)}
    if case.method is not None:
        test["method"] = case.method
    if base.get("before"):
        test["before"] = base["before"]
    test["request"] = case.request
    if case.code != OK:
        test["reply"] = {"code": case.code}
    return test
