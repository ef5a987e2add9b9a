"""Where a JSON Schema has further schemas, and what its references name. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

ONE = frozenset(
    "additionalItems additionalProperties contains contentSchema else if items not propertyNames then "
    "unevaluatedItems unevaluatedProperties".split()
)
MANY = frozenset("allOf anyOf oneOf prefixItems".split())
NAMED = frozenset("$defs definitions dependentSchemas patternProperties properties".split())
OF_FILE = "#/$defs/"  # begins a reference to a definition


def mapped(schema: Any, change: Callable[[Any], Any]) -> Any:
    """The schema with `change` of each schema directly in it. All else, as of `const` and `examples`, is data."""
    if not isinstance(schema, dict):
        return schema
    found: dict[str, Any] = {}
    for name, value in schema.items():
        if name in NAMED and isinstance(value, dict):
            found[name] = {key: change(each) for key, each in value.items()}
        elif (name in MANY or name == "items") and isinstance(value, list):
            found[name] = [change(each) for each in value]
        else:
            found[name] = change(value) if name in ONE else value
    return found


def pointer(parts: list[str]) -> str:
    """As JSON Pointer (RFC 6901) has them."""
    return "".join(f"/{part.replace('~', '~0').replace('/', '~1')}" for part in parts)


def parts_of(reference: str) -> list[str]:
    """Of `#/a/b`: the inverse of `pointer`, in a URI's fragment."""
    from urllib.parse import unquote

    return [unquote(part).replace("~1", "/").replace("~0", "~") for part in reference.removeprefix("#").split("/")[1:]]


def value_at(document: Any, reference: str) -> Any:
    """What `#/a/b` refers to. Raises LookupError, TypeError, ValueError."""
    for part in parts_of(reference):
        document = document[int(part) if isinstance(document, list) else part]
    return document


def definition(reference: Any, root: Any, defs: Mapping[str, Any]) -> tuple[str, Any] | None:
    """Name and schema of what `#/$defs/NAME` refers to in `root`, whose own definitions come first; None if nothing."""
    if not isinstance(reference, str) or not reference.startswith("#/"):
        return None
    given = root if isinstance(root, dict) else {}
    whole = {**given, "$defs": {**defs, **given.get("$defs", {})}}
    try:
        return parts_of(reference)[-1], value_at(whole, reference)
    except (LookupError, TypeError, ValueError):
        return None
