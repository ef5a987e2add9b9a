"""JSON Schemas in words: a row for each field. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from sandboxrun.spec.keywords import definition
from sandboxrun.spec.match import shown

DEPTH_MAX = 8  # of fields in fields
REFERENCES_MAX = 20  # that lead to one another
ROWS_MAX = 200  # of one schema
STEPS_MAX = 2_000  # from schema to schema: references can make many of few
CONDITIONS: Mapping[str, str] = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
    "multipleOf": "a multiple of {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "pattern": "like {}",
    "format": "as {}",
    "contentEncoding": "in {}",
    "minItems": "at least {} items",
    "maxItems": "at most {} items",
    "minProperties": "at least {} fields",
    "maxProperties": "at most {} fields",
    "default": "default {}",
}
FLAGS: Mapping[str, tuple[Any, str]] = {
    "uniqueItems": (True, "no two alike"),
    "additionalProperties": (False, "no other fields"),
    "deprecated": (True, "deprecated"),
}
FURTHER = frozenset(
    "not if dependentRequired dependentSchemas contains propertyNames patternProperties "
    "unevaluatedItems unevaluatedProperties".split()
)


class Row(NamedTuple):
    """A field. `name`: its path, such as `items[].price`; "" for the whole. `conditions`: in words."""

    name: str
    kind: str
    is_required: bool
    conditions: str
    description: str


def rows(schema: Any, defs: Mapping[str, Any]) -> list[Row]:
    """At most ROWS_MAX; the whole comes first."""
    found = []
    for row, _ in zip(_Rows(schema, defs).of(schema, "", is_required=False), range(ROWS_MAX), strict=False):
        found.append(row)
    return found


class _Rows:
    def __init__(self, root: Any, defs: Mapping[str, Any]) -> None:
        self._root, self._defs = root, defs
        self._steps = 0

    def of(self, schema: Any, name: str, *, is_required: bool, above: tuple[int, ...] = ()) -> Iterator[Row]:
        """The field and those in it. `above`: the ids of the schemas that it is in."""
        target, label = self._followed(schema)
        is_again = id(target) in above
        kind = self._kind(target)
        item, of_items = self._followed(target.get("items")) if isinstance(target, dict) else (None, "")
        again = label if is_again else of_items if id(item) in above else ""
        if again:
            kind = f"{kind}, {again} again"
        yield Row(name, kind, is_required, self._conditions(schema, target), _description(schema, target))
        if isinstance(target, dict) and not is_again and len(above) < DEPTH_MAX:
            yield from self._inside(target, name, (*above, id(target)))

    def _inside(self, schema: Mapping[str, Any], name: str, above: tuple[int, ...]) -> Iterator[Row]:
        self._steps += 1
        if self._steps > STEPS_MAX:
            return
        required = _texts(schema.get("required"))
        properties = schema.get("properties", {})
        for field, each in properties.items():
            path = f"{name}.{field}" if name else field
            yield from self.of(each, path, is_required=field in required, above=above)
        if isinstance(schema.get("additionalProperties"), dict):
            yield from self.of(
                schema["additionalProperties"], f"{name}.*" if name else "*", is_required=False, above=above
            )
        for each in (*schema.get("prefixItems", ()), schema.get("items")):
            item, _ = self._followed(each)
            if isinstance(item, dict) and id(item) not in above and len(above) < DEPTH_MAX:
                yield from self._inside(item, f"{name}[]", (*above, id(item)))
        for keyword in ("allOf", "anyOf", "oneOf"):
            for each in schema.get(keyword, ()):
                part, _ = self._followed(each)
                if isinstance(part, dict) and id(part) not in above and len(above) < DEPTH_MAX:
                    yield from self._inside(part, name, (*above, id(part)))

    def _followed(self, schema: Any) -> tuple[Any, str]:
        """What it refers to, and the name of that."""
        name = ""
        for _ in range(REFERENCES_MAX):
            if not isinstance(schema, dict) or "$ref" not in schema:
                break
            if schema["$ref"] == "#":
                return self._root, "the whole"
            found = definition(schema["$ref"], self._root, self._defs)
            if found is None:
                return True, ""
            name, schema = found
        return schema, name

    def _kind(self, schema: Any, depth: int = 0) -> str:
        self._steps += 1
        if schema is False:
            return "nothing"
        if not isinstance(schema, dict) or depth > DEPTH_MAX or self._steps > STEPS_MAX:
            return "anything"
        if "const" in schema:
            return shown(schema["const"])
        if "enum" in schema:
            return _either([shown(value) for value in schema["enum"]])
        types = schema.get("type")
        if types is not None:
            listed = types if isinstance(types, list) else [types]
            return _either([self._kind_of_type(each, schema, depth) for each in listed])
        for keyword in ("anyOf", "oneOf", "allOf"):
            if keyword in schema and "properties" not in schema:
                kinds = [self._kind(self._followed(each)[0], depth + 1) for each in schema[keyword]]
                if keyword != "allOf":
                    return _either(kinds)
                return next((each for each in kinds if each != "anything"), "anything")
        return "object" if "properties" in schema else "anything"

    def _kind_of_type(self, name: str, schema: Mapping[str, Any], depth: int) -> str:
        items = schema.get("items", True)
        if name != "array" or not isinstance(items, dict) or "prefixItems" in schema:
            return name
        return f"array of {self._kind(self._followed(items)[0], depth + 1)}"

    def _conditions(self, *schemas: Any) -> str:
        found: dict[str, None] = {}
        for schema in schemas:
            found |= dict.fromkeys(_conditions(schema)) if isinstance(schema, dict) else {}
        return ", ".join(found)


def _conditions(schema: Mapping[str, Any]) -> Iterator[str]:
    for keyword, text in CONDITIONS.items():
        if keyword in schema:
            value = schema[keyword]
            is_text = isinstance(value, str) and keyword != "default"
            text = text.removesuffix("s") if value == 1 else text
            yield text.format(value if is_text else json.dumps(value, ensure_ascii=False))
    for keyword, (value, text) in FLAGS.items():
        if schema.get(keyword) is value:
            yield text
    if isinstance(schema.get("items"), dict):
        yield from (f"each {each}" for each in _conditions(schema["items"]))
    if FURTHER & schema.keys():
        yield "and further conditions of its schema"


def _description(*schemas: Any) -> str:
    """The one of the reference, else of what it refers to."""
    found = (schema.get("description") for schema in schemas if isinstance(schema, dict))
    return next((text for text in found if isinstance(text, str)), "")


def _either(kinds: list[str]) -> str:
    return " or ".join(dict.fromkeys(kinds))


def _texts(value: Any) -> frozenset[str]:
    return frozenset(each for each in value if isinstance(each, str)) if isinstance(value, list) else frozenset()
