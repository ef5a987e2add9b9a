"""Requests made from the schema: those of the written tests with one change each, at and beyond the schema's bounds.

A request that the schema does not accept must be answered 400, and change nothing.
A request that it accepts must not fail: the worker may answer 200, by the schema of replies, or refuse it with 400.
A worker that refuses a request at a bound of the schema must also refuse the request a step further in.
Otherwise its own bound differs from the schema's.

Each written test that succeeds is also run again: a worker that remembers something answers it otherwise.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from sandboxrun.spec import schemas
from sandboxrun.spec.match import shown
from sandboxrun.spec.model import OK, Case, Expected, Interface, Spec
from sandboxrun.testing.http import PLACEHOLDER

GENERATED = "generated: "  # how the names of these tests begin
AGAIN = "again: "  # and those of written tests that are run once more
CASES_MAX = 200  # of one interface
DEPTH_MAX = 4
LENGTH_MAX = 100_000  # of texts and lists that are made
EXACT_MAX = 1 << 53  # of whole numbers that a float has exactly
REFUSED = 400
UNUSUAL = 'Ünï:漢 🙂\n"$'
_ORIGIN = "http://127.0.0.1:1"  # such as the worker is told
_OTHERS: tuple[Any, ...] = (None, True, 7, 7.5, "text", [], {})  # of each type of JSON
# Texts that parsers of Python accept, and that the format does not.
_NEARLY: Mapping[str, tuple[str, ...]] = {
    "date": ("20261201", "2026-W49-2", "2026-12-01T00:00:00"),
    "date-time": ("2026-12-01", "20261201T000000Z"),
    "uuid": ("12345678123456781234567812345678",),
}


@dataclass(frozen=True, slots=True)
class Change:
    """A changed value. `inside`: for one at a bound, the value a step further in."""

    what: str
    value: Any
    inside: Any = None

    def placed(self, place: Callable[[Any], Any]) -> Change:
        """The change of what the value is a part of."""
        return Change(self.what, place(self.value), None if self.inside is None else place(self.inside))


def generated(spec: Spec) -> Iterator[Case]:
    """For each interface whose requests have a schema, and that a test asks with success."""
    if not any(case.fresh for case in spec.cases):  # else the worker remembers something, and its tests know
        for case in spec.cases:
            if case.code == OK:
                yield replace(case, name=f"{AGAIN}{case.name}")
    for interface in spec.interfaces.values():
        base = next((case for case in spec.cases if case.method == interface.method and case.code == OK), None)
        if base is None or not isinstance(interface.request, dict):
            continue
        yield from _of(spec, interface, base)


def _of(spec: Spec, interface: Interface, base: Case) -> Iterator[Case]:
    is_valid = schemas.validator(schemas.whole(interface.request, spec.defs)).is_valid

    def accepts(request: Any) -> bool:
        return bool(is_valid(json.loads(json.dumps(request).replace(PLACEHOLDER, _ORIGIN))))

    written = {json.dumps(case.request, sort_keys=True) for case in spec.cases if case.method == interface.method}
    method = f"{interface.method} " if interface.method else ""
    count = 0
    for change in _changes(interface.request, base.request, spec, ""):
        text = json.dumps(change.value, sort_keys=True)
        if text in written or count >= CASES_MAX:
            continue
        written.add(text)
        count += 1
        accepted = accepts(change.value)
        yield replace(
            base,
            name=f"{GENERATED}{method}{change.what}",
            request=change.value,
            code=OK if accepted else REFUSED,
            reply={},
            after={},
            fresh=False,
            http=base.http if accepted else (),
            expected=Expected.ACCEPTED if accepted else Expected.WRITTEN,
            inside=change.inside if accepted and change.inside is not None and accepts(change.inside) else None,
        )


def _changes(schema: Any, value: Any, spec: Spec, path: str, depth: int = 0) -> Iterator[Change]:
    schema = _resolved(schema, spec)
    if not isinstance(schema, dict) or depth > DEPTH_MAX:
        return
    name = f"request{path}"
    yield from (_is(name, each) for each in schema.get("enum", ()) if each != value)
    if isinstance(value, str):
        yield from _texts(schema, value, name)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield from _numbers(schema, value, name)
    yield from (_is(name, other) for other in _OTHERS if type(other) is not type(value))
    if isinstance(value, dict):
        yield from _objects(schema, value, spec, path, depth)
    if isinstance(value, list):
        yield from _lists(schema, value, spec, path, depth)
    for each in (each for name in schemas.PARTS for each in schema.get(name, ())):
        yield from _changes(each, value, spec, path, depth + 1)


def _is(name: str, value: Any, inside: Any = None) -> Change:
    return Change(f"{name} is {shown(value)}", value, inside)


def _resolved(schema: Any, spec: Spec) -> Any:
    for _ in range(DEPTH_MAX):
        ref = schema.get("$ref") if isinstance(schema, dict) else None
        if not (isinstance(ref, str) and ref.startswith("#/$defs/")):
            break
        schema = spec.defs.get(ref.removeprefix("#/$defs/"))
    return schema


def _lengths(schema: dict[str, Any], least: str, most: str) -> Iterator[tuple[int, int | None]]:
    """Lengths at and beyond the bounds; for one at a bound also the length a step further in."""
    low, high = int(schema.get(least, 0)), int(schema.get(most, LENGTH_MAX))
    yield from ((0, 1 if low == 0 else None), *([(low, low + 1), (low - 1, None)] if 0 < low < LENGTH_MAX else []))
    if high < LENGTH_MAX:
        yield from ((high, high - 1 if high else None), (high + 1, None))


def _texts(schema: dict[str, Any], value: str, name: str) -> Iterator[Change]:
    def of(length: int) -> str:
        return ((value or "x") * (length // max(1, len(value)) + 1))[:length]

    for length, inside in _lengths(schema, "minLength", "maxLength"):
        yield Change(
            f"{name} has {length} character{'s' * (length != 1)}", of(length), None if inside is None else of(inside)
        )
    if "enum" in schema or "pattern" in schema or "format" in schema:
        yield _is(name, f"{value}-other")
    else:
        yield _is(name, UNUSUAL[: int(schema.get("maxLength", LENGTH_MAX))])
    for near in _NEARLY.get(schema.get("format", ""), ()):
        yield _is(name, near)


def _numbers(schema: dict[str, Any], value: float, name: str) -> Iterator[Change]:
    for key, inwards in (("minimum", 1), ("maximum", -1)):
        if key in schema:
            bound = schema[key]
            yield _is(name, bound, bound + inwards)
            yield _is(name, bound - inwards)
    for key, inwards in (("exclusiveMinimum", 1), ("exclusiveMaximum", -1)):
        if key in schema:
            bound = schema[key]
            yield _is(name, bound + inwards, bound + 2 * inwards)
            yield _is(name, bound)
    yield from (_is(name, number) for number in (0, -1))
    if isinstance(value, int) and abs(value) < EXACT_MAX:
        yield _is(name, float(value))  # a whole number for a schema, and for Python another type


def _objects(schema: dict[str, Any], value: dict[str, Any], spec: Spec, path: str, depth: int) -> Iterator[Change]:
    for name in value:
        yield Change(f"request{path} has no {name}", {key: item for key, item in value.items() if key != name})
    if schema.get("additionalProperties", True) is False:
        yield Change(f"request{path} has an unknown field", {**value, "unknown": 1})
    for name, each in schema.get("properties", {}).items():
        whole = value
        if name not in value:
            sample = _sample(_resolved(each, spec))
            if sample is None:
                continue
            whole = {**value, name: sample}
            yield Change(f"request{path}.{name} is {shown(sample)}", whole)
        for change in _changes(each, whole[name], spec, f"{path}.{name}", depth + 1):
            yield change.placed(lambda item, name=name: {**value, name: item})  # type: ignore[misc]


def _sample(schema: Any) -> Any:
    """A value for a property that the written test does not have, if the schema makes that easy."""
    if not isinstance(schema, dict):
        return None
    for name in ("const", "default"):
        if name in schema:
            return schema[name]
    named = [*schema.get("examples", ()), *schema.get("enum", ())]
    if named:
        return named[0]
    kind = schema.get("type")
    if kind in ("integer", "number"):
        return schema.get("minimum", schema.get("maximum", 1))
    return {"string": "x" * schema.get("minLength", 1), "boolean": True, "array": [], "object": {}}.get(str(kind))


def _lists(schema: dict[str, Any], value: list[Any], spec: Spec, path: str, depth: int) -> Iterator[Change]:
    def of(length: int) -> list[Any]:
        return [copy.deepcopy(value[at % len(value)]) for at in range(length)]

    for length, inside in _lengths(schema, "minItems", "maxItems"):
        if value or not length:
            inner = of(inside) if inside is not None and value else None
            yield Change(f"request{path} has {length} item{'s' * (length != 1)}", of(length), inner)
    if value and schema.get("uniqueItems") is True:
        yield Change(f"request{path} has an item twice", [*value, value[0]])
    if value and "items" in schema:
        for change in _changes(schema["items"], value[0], spec, f"{path}[0]", depth + 1):
            yield change.placed(lambda item: [item, *value[1:]])


def as_test(case: Case, spec: Spec) -> dict[str, Any]:
    """A generated case as a test to be written into the spec; its `before` is that of the test it was made from."""
    name = next((each.name for each in spec.cases if each.method == case.method and each.code == OK), None)
    base: dict[str, Any] = next((each for each in spec.raw.get("tests", ()) if each["name"] == name), {})
    test: dict[str, Any] = {"name": case.name.removeprefix(GENERATED)}
    if case.method is not None:
        test["method"] = case.method
    if base.get("before"):
        test["before"] = base["before"]
    test["request"] = case.request
    if case.code != OK:
        test["reply"] = {"code": case.code}
    return test
