"""JSON Schema, draft 2020-12, by jsonschema-rs: what a schema accepts, and the place and the fault of what it does not.

A schema is trusted as much as the script beside it, and a value is not: patterns match in linear time, nothing is fetched or
opened, and what a message costs is bounded.
"""

from __future__ import annotations

import jsonschema_rs

from sandboxrun.errors import SpecError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

DRAFT = "https://json-schema.org/draft/2020-12/schema"
FAULTS_MAX = 20
SHOWN_MAX_CHARS = 200
PARTS = ("allOf", "anyOf", "oneOf")  # schemas for the same value
NAME_MAX_CHARS = 80  # of each step of a path
DEPTH_MAX = 100  # nested objects and lists in a value: the validator recurses, and has only the stack
# The validator explains a failed anyOf by the errors of all its branches. What that may cost:
EXPLAINED_MAX_BYTES = 64 * 1024  # of a value's JSON
EXPLAINED_MAX_CONTAINERS = 6  # objects and lists, if the schema contains itself: each level doubles the errors

_ALTERNATIVES = ("anyOf", "oneOf")
_MASK = "the value"  # stands for what a message would quote, which may be a secret


def whole(schema: Any, defs: Mapping[str, Any]) -> Any:
    """The schema with the definitions that its references name."""
    return {**schema, "$defs": {**defs, **schema.get("$defs", {})}} if defs and isinstance(schema, dict) else schema


def check_schema(schema: Any, defs: Mapping[str, Any], place: str) -> None:
    """Raise SpecError for what is no schema, or refers to another file."""
    try:
        validator(whole(schema, defs))
    except (ValueError, TypeError) as error:
        text = str(error)
        linear = " (without look-around and back-references)" if ' is not a "regex"' in text else ""
        place += path_text(getattr(error, "instance_path", []))
        raise SpecError(f"{place} is not a JSON Schema: {_line(text.partition(_DETAILS)[0])}{linear}") from None


_DETAILS = "\n\nFailed validating"  # begins the part of an error's text that quotes schema and value


def validator(schema: Any, mask: str | None = None) -> Any:
    """Raises ValueError. What a schema refers to is in the same file: nothing is fetched or opened.

    `mask`: stands in messages for what was validated.
    """
    return jsonschema_rs.Draft202012Validator(
        schema, retriever=_retrieve, validate_formats=True, pattern_options=jsonschema_rs.RegexOptions(), mask=mask
    )


def _retrieve(uri: str) -> Any:
    raise ValueError(f"{uri} is in another file: expected #/$defs/NAME")


def faults(schema: Any, value: Any, defs: Mapping[str, Any] | None = None) -> Iterator[str]:
    """What the schema does not accept, as `.PATH: message`; at most FAULTS_MAX of it."""
    found = validator(whole(schema, defs or {})).iter_errors(value)
    for error, _ in zip(found, range(FAULTS_MAX), strict=False):
        yield f"{path_text(error.instance_path)}: {_line(error.message)}"


def path_text(path: list[Any]) -> str:
    """As `.items[3].price`; unusual names are quoted, and the length is bounded."""
    return "".join(map(_step, path))[:SHOWN_MAX_CHARS]


def _step(part: Any) -> str:
    if isinstance(part, int):
        return f"[{part}]"
    plain = part.isprintable() and " " not in part and len(part) <= NAME_MAX_CHARS
    return f".{part}" if plain else f"[{part[:NAME_MAX_CHARS]!r}]"


def _line(message: object) -> str:
    """One line of at most SHOWN_MAX_CHARS, without control characters."""
    text = " ".join(str(message)[: 4 * SHOWN_MAX_CHARS].split())[:SHOWN_MAX_CHARS]
    return text if text.isprintable() else ascii(text)[1:-1][:SHOWN_MAX_CHARS]


class Check:
    """A schema, compiled once, for many values that nobody has looked at before."""

    __slots__ = ("_accepts", "_alternatives", "_recursive", "_validator")

    def __init__(self, schema: Any, defs: Mapping[str, Any]) -> None:
        """`schema`: one that `check_schema` accepts."""
        schema = whole(schema, defs)
        self._validator = validator(schema, _MASK)
        self._accepts = self._validator.is_valid
        self._alternatives = _mentions(schema, _ALTERNATIVES)
        self._recursive = _is_recursive(schema)

    def fault(self, root: str, value: Any, text: str | bytes) -> str:
        """What is wrong with a value, as `ROOT.PATH: message`; "" if nothing is. `text`: its JSON, or more than that."""
        containers = text.count("{") + text.count("[") if isinstance(text, str) else text.count(b"{") + text.count(b"[")
        if containers > DEPTH_MAX and _is_deep(value):
            return f"{root}: it is nested too deeply: at most {DEPTH_MAX} objects and lists in one another"
        if self._accepts(value):
            return ""
        if self._alternatives and (
            len(text) > EXPLAINED_MAX_BYTES or (self._recursive and containers > EXPLAINED_MAX_CONTAINERS)
        ):
            return f"{root}: it does not fit the schema"
        error = None
        try:
            self._validator.validate(value)
        except jsonschema_rs.ValidationError as found:
            error = found
        return "" if error is None else f"{root}{path_text(error.instance_path)}: {_line(error.message)}"


def _is_deep(value: Any) -> bool:
    """Whether objects and lists are nested more than DEPTH_MAX levels deep."""
    level = [value]
    for _ in range(DEPTH_MAX):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer if isinstance(outer, list) else ())
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True


def _mentions(schema: Any, names: tuple[str, ...]) -> bool:
    """Whether a schema or a part of it has one of these keywords, or anything of its name."""
    if isinstance(schema, dict):
        return any(name in schema for name in names) or any(_mentions(each, names) for each in schema.values())
    return isinstance(schema, list) and any(_mentions(each, names) for each in schema)


def _is_recursive(schema: Any) -> bool:
    """Whether a schema contains itself, or may: by a reference to anything but one of its $defs."""
    if not isinstance(schema, dict):
        return False
    defs = schema.get("$defs", {})
    rest = {name: value for name, value in schema.items() if name != "$defs"}
    needs = {f"#/$defs/{name}": set(_references(each)) for name, each in defs.items()}
    todo, seen = [*_references(rest)], set()
    while todo:  # the definitions that are used
        name = todo.pop()
        if name not in needs:
            return True
        if name not in seen:
            seen.add(name)
            todo += needs[name]
    while seen:  # those that need none of the others are no part of a circle
        plain = {name for name in seen if not needs[name] & seen}
        if not plain:
            return True
        seen -= plain
    return False


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        for name, value in schema.items():
            if name in ("$ref", "$dynamicRef", "$recursiveRef") and isinstance(value, str):
                yield value
            else:
                yield from _references(value)
    elif isinstance(schema, list):
        for each in schema:
            yield from _references(each)
