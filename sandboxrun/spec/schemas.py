"""JSON Schema, draft 2020-12, by jsonschema-rs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jsonschema_rs

from sandboxrun.errors import SpecError

DRAFT = "https://json-schema.org/draft/2020-12/schema"
FAULTS_MAX = 20
SHOWN_MAX_CHARS = 200
PARTS = ("allOf", "anyOf", "oneOf")  # schemas for the same value


def whole(schema: Any, defs: Mapping[str, Any]) -> Any:
    """The schema with the definitions that its references name."""
    return {**schema, "$defs": {**defs, **schema.get("$defs", {})}} if defs and isinstance(schema, dict) else schema


def check_schema(schema: Any, defs: Mapping[str, Any], place: str) -> None:
    """Raise SpecError for what is no schema, or refers to another file."""
    try:
        validator(whole(schema, defs))
    except (ValueError, TypeError) as error:
        raise SpecError(f"{place} is not a JSON Schema: {_line(error)}") from None


def validator(schema: Any) -> Any:
    """Raises ValueError. What a schema refers to is in the same file: nothing is fetched or opened."""
    return jsonschema_rs.Draft202012Validator(schema, retriever=_retrieve, validate_formats=True)


def _retrieve(uri: str) -> Any:
    raise ValueError(f"{uri} is in another file: expected #/$defs/NAME")


def faults(schema: Any, value: Any, defs: Mapping[str, Any] | None = None) -> Iterator[str]:
    """What the schema does not accept, as `.PATH: message`; at most FAULTS_MAX of it."""
    found = validator(whole(schema, defs or {})).iter_errors(value)
    for error, _ in zip(found, range(FAULTS_MAX), strict=False):
        yield f"{path_text(error.instance_path)}: {_line(error.message)}"


def path_text(path: list[Any]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)


def _line(message: object) -> str:
    return " ".join(str(message).split())[:SHOWN_MAX_CHARS]
