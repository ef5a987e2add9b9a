"""A spec as an AsyncAPI 3.0 document.

Requests are messages of the stream TYPE:req:x: the field `data` is the payload, the fields beside it are headers. A reply is
one JSON object, whose envelope are the headers. Definitions become schemas of the components. AsyncAPI reads a schema as draft
07 does, so `prefixItems`, and keywords beside a `$ref`, are written in its form. What AsyncAPI has no place for is in
`x-tests` and `x-sandboxrun`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from sandboxrun.config import keys
from sandboxrun.errors import SpecError
from sandboxrun.spec.keywords import mapped, parts_of, pointer, value_at
from sandboxrun.spec.match import shown
from sandboxrun.spec.model import Interface, Spec

VERSION = "3.0.0"
DOCUMENT_VERSION = "1.0.0"  # of the interface, which a spec does not number
EXTENSION, TESTS = "x-sandboxrun", "x-tests"
BOOLEAN = "x-boolean"  # marks an object that stands for true or false, which the parser of AsyncAPI refuses here
BESIDE = "x-beside-ref"  # marks an allOf that stands for a `$ref` with keywords beside it
PLACED = frozenset("type title description $defs request reply methods tests".split())  # members that AsyncAPI has
SCHEMAS = "#/components/schemas/"
OPERATION = "request-reply"  # without a method; no method has this name
ERROR = "error"  # the message of a reply with a code other than 200
_NEVER: Mapping[bool, Any] = {True: {}, False: {"not": {}}}
_TEXT = {"type": "string"}
_NAME = re.compile(r"[A-Za-z0-9_.-]+")


def document(spec: Spec) -> dict[str, Any]:
    """Raises SpecError for what AsyncAPI cannot have."""
    raw, requests = spec.raw, keys.request_stream(spec.type)
    messages: dict[str, Any] = {}
    operations = {}
    for interface in spec.interfaces.values():
        request, reply = names(interface.method)
        messages[request] = _request(spec, interface, request)
        messages[reply] = _reply(spec, interface, reply)
        operations[interface.method or OPERATION] = _operation(interface, request, reply)
    messages[ERROR] = _error()
    to_worker = [names(method)[0] for method in spec.interfaces]
    from_worker = [*(names(method)[1] for method in spec.interfaces), ERROR]
    found = {
        "asyncapi": VERSION,
        "info": _info(raw),
        "defaultContentType": "application/json",
        "channels": {
            "requests": {
                "address": requests,
                "description": "A Redis stream: each entry is a request.",
                "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in to_worker},
            },
            "replies": {
                "address": "res:{ref}",
                "description": "A Redis list with one element, the reply.",
                "parameters": {
                    "ref": {"description": "The request's ref.", "location": "$message.header#/ref"},
                },
                "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in from_worker},
            },
        },
        "operations": operations,
        "components": {"messages": messages, **_components(spec)},
        EXTENSION: _extension(raw),
        **({TESTS: _tests(raw["tests"])} if "tests" in raw else {}),
    }
    for reference in _references(found["components"]):
        _check_reference(reference, found, spec.path)
    return found


def _references(value: Any) -> Iterator[Any]:
    """All of them, also those in data: a reader of AsyncAPI does not tell them apart."""
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"]
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from _references(each)


def _check_reference(reference: Any, found: Mapping[str, Any], path: str) -> None:
    try:
        value_at(found, reference)
    except (LookupError, TypeError, ValueError, AttributeError):  # such as of data that has an object as its $ref
        raise SpecError(f"{path} has the reference {shown(reference)}, which AsyncAPI cannot have") from None


def names(method: str | None) -> tuple[str, str]:
    """Of the messages of a request and its reply."""
    return (f"{method}.request", f"{method}.reply") if method else ("request", "reply")


def _info(raw: Mapping[str, Any]) -> dict[str, Any]:
    info = {"title": raw.get("title", raw["type"]), "version": DOCUMENT_VERSION}
    return info | ({"description": raw["description"]} if "description" in raw else {})


def _extension(raw: Mapping[str, Any]) -> dict[str, Any]:
    found = {"type": raw["type"], **{name: value for name, value in raw.items() if name not in PLACED}}
    if raw.get("title") == raw["type"]:  # else it would be taken for a missing one
        found["title"] = raw["title"]
    if raw.get("methods") == {}:
        found["methods"] = {}
    return found


def _operation(interface: Interface, request: str, reply: str) -> dict[str, Any]:
    return {
        "action": "receive",
        "channel": {"$ref": "#/channels/requests"},
        "messages": [{"$ref": f"#/channels/requests/messages/{request}"}],
        "reply": {
            "channel": {"$ref": "#/channels/replies"},
            "messages": [{"$ref": f"#/channels/replies/messages/{name}"} for name in (reply, ERROR)],
        },
    }


def _given(spec: Spec, interface: Interface) -> Mapping[str, Any]:
    """The object of the file that has the schemas."""
    found: Mapping[str, Any] = spec.raw if interface.method is None else spec.raw["methods"][interface.method]
    return found


def _request(spec: Spec, interface: Interface, name: str) -> dict[str, Any]:
    fields: dict[str, Any] = {"ref": _TEXT, "type": {"const": spec.type}, "deadline": _TEXT}
    needed = ["ref"]
    if interface.method is not None:
        fields["method"] = {"const": interface.method}
        needed.append("method")
    given = _given(spec, interface)
    description = given.get("description") if interface.method is not None else None
    return {
        "name": name,
        **({"description": description} if description is not None else {}),
        "headers": {"type": "object", "properties": fields, "required": needed},
        **_payload(spec, interface, "request", name),
    }


def _reply(spec: Spec, interface: Interface, name: str) -> dict[str, Any]:
    return {
        "name": name,
        "headers": _envelope({"const": 200}),
        **_payload(spec, interface, "reply", name),
    }


def _envelope(code: dict[str, Any]) -> dict[str, Any]:
    fields = {"ref": _TEXT, "source": _TEXT, "code": code, "time": {"type": "string", "format": "date-time"}}
    return {"type": "object", "properties": fields, "required": list(fields)}


def _error() -> dict[str, Any]:
    message = {"type": "object", "properties": {"message": _TEXT}, "required": ["message"]}
    return {
        "name": ERROR,
        "headers": _envelope({"type": "integer", "not": {"const": 200}}),
        "payload": {"type": "object", "properties": {"err": message}, "required": ["err"]},
    }


def _payload(spec: Spec, interface: Interface, part: str, message: str) -> dict[str, Any]:
    given = _given(spec, interface)
    if part not in given:
        return {}
    place = f"{spec.path}: {part if interface.method is None else f'methods.{interface.method}.{part}'}"
    return {"payload": _Moved(given[part], spec.defs, f"#/components/messages/{message}/payload", place).schema}


def _components(spec: Spec) -> dict[str, Any]:
    if "$defs" not in spec.raw:
        return {}
    found = {}
    for name, schema in spec.defs.items():
        if not _NAME.fullmatch(name):
            raise SpecError(
                f"{spec.path}: $defs has the name {shown(name)}: AsyncAPI has names of letters, digits, '.', '-' and '_' only"
            )
        found[name] = _Moved(schema, spec.defs, f"{SCHEMAS}{name}", f"{spec.path}: $defs.{name}", is_shared=True).schema
    return {"schemas": found}


class _Moved:
    """A schema in the form that it has in the document, at `here`."""

    def __init__(self, schema: Any, defs: Mapping[str, Any], here: str, place: str, *, is_shared: bool = False) -> None:
        """`is_shared`: it is a definition, in which # is the schema that refers to it."""
        self._own = schema.get("$defs", {}) if isinstance(schema, dict) and not is_shared else {}
        self._defs, self._here, self._place, self._is_shared = defs, here, place, is_shared
        self.schema = {BOOLEAN: schema, **_NEVER[schema]} if isinstance(schema, bool) else self._moved(schema)

    def _moved(self, schema: Any) -> Any:
        found = mapped(schema, self._moved)
        if not isinstance(found, dict):
            return found
        if "prefixItems" in found:
            rest = {"additionalItems": found.pop("items")} if "items" in found else {}
            found |= {"items": found.pop("prefixItems"), **rest}
        for name in ("$id", "$anchor", "$dynamicAnchor", "$dynamicRef"):
            if name in found:
                raise SpecError(
                    f"{self._place} has {name}, which AsyncAPI does not have: expected $ref to #/$defs/NAME"
                )
        if "$ref" not in found:
            return found
        reference = {"$ref": self._reference(found.pop("$ref"))}
        if not found:
            return reference
        return {**found, "allOf": [*found.get("allOf", ()), reference], BESIDE: True}

    def _reference(self, reference: str) -> str:
        parts = parts_of(reference)
        if parts[:1] == ["$defs"] and len(parts) > 1 and parts[1] not in self._own:
            if parts[1] in self._defs:
                return f"{SCHEMAS}{pointer(parts[1:])[1:]}"
        elif (reference == "#" or reference.startswith("#/")) and not self._is_shared:
            return f"{self._here}{pointer(parts)}"
        raise SpecError(f"{self._place} has the reference {shown(reference)}: expected #/$defs/NAME")


def _tests(tests: list[Any]) -> Any:
    """The tests; as text if a reader would take a name in them for a reference of the document."""
    text = json.dumps(tests, ensure_ascii=False)
    return text if '"$ref"' in text else tests
