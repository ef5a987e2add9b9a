"""A spec of an AsyncAPI 3 document: of one that `asyncapi` has written, or of another one with operations that have replies."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from sandboxrun.config import keys
from sandboxrun.errors import SpecError
from sandboxrun.spec import model
from sandboxrun.spec.asyncapi import BESIDE, BOOLEAN, ERROR, EXTENSION, PLACED, SCHEMAS, TESTS
from sandboxrun.spec.keywords import OF_FILE, mapped, parts_of, pointer, value_at
from sandboxrun.spec.match import shown

REFERENCES_MAX = 20  # that lead from one to the next
_TYPE_OF_STREAM = re.compile(r"([a-z][a-z0-9_-]*):req:x")
_NAME_OF_ERROR = re.compile("error|fault|failure|exception|problem")


def spec_of(data: bytes, path: str) -> dict[str, Any]:
    """The JSON of a spec that is valid. Raises SpecError."""
    document = model.json_of(data, path)
    if not isinstance(document, dict) or not isinstance(document.get("asyncapi"), str):
        raise SpecError(f"{path} is no AsyncAPI document: expected an object with asyncapi, such as 3.0.0")
    if not document["asyncapi"].startswith("3."):
        raise SpecError(f"{path} has asyncapi {shown(document['asyncapi'])}: expected 3.0.0 or a later 3")
    raw = _Document(document, path).spec()
    model.parse(json.dumps(raw).encode(), path)
    return raw


class _Document:
    def __init__(self, document: Mapping[str, Any], path: str) -> None:
        self._path, self._document = path, document
        self._extension = self._object(document, EXTENSION)

    def spec(self) -> dict[str, Any]:
        raw: dict[str, Any] = {name: value for name, value in self._extension.items() if name not in PLACED}
        info = self._object(self._document, "info")
        raw["type"] = self._extension.get("type") or self._type(info)
        title = self._extension.get("title") or info.get("title")
        if title is not None and (title != raw["type"] or "title" in self._extension):
            raw["title"] = title
        if "description" in info:
            raw["description"] = info["description"]
        if "schemas" in self._object(self._document, "components"):
            schemas = self._object(self._object(self._document, "components"), "schemas")
            raw["$defs"] = {name: self._schema(each, f"{SCHEMAS}{name}") for name, each in schemas.items()}
        methods: dict[str, Any] = self._extension.get("methods", {})
        for method, given in self._interfaces():
            if method is None:
                raw |= given
            elif method in methods:
                raise SpecError(f"{self._path} has two operations of the name {shown(method)}")
            else:
                methods = {**methods, method: given}
        if methods or "methods" in self._extension:
            raw["methods"] = methods
        if TESTS in self._document:
            raw["tests"] = self._tests(self._document[TESTS])
        order = [*model.schema()["properties"], *raw]
        return {name: raw[name] for name in dict.fromkeys(order) if name in raw}

    def _tests(self, tests: Any) -> Any:
        return model.json_of(tests.encode(), f"{self._path}: {TESTS}") if isinstance(tests, str) else tests

    def _type(self, info: Mapping[str, Any]) -> str:
        for channel in self._object(self._document, "channels").values():
            address = channel.get("address") if isinstance(channel, dict) else None
            match = _TYPE_OF_STREAM.fullmatch(address) if isinstance(address, str) else None
            if match is not None:
                return match[1]
        title = info.get("title")
        words = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-0123456789") if isinstance(title, str) else ""
        if not keys.is_type(words[: keys.TYPE_MAX_CHARS]):
            raise SpecError(f"{self._path} has info.title {shown(title)}, which gives no type of a worker")
        return words[: keys.TYPE_MAX_CHARS]

    # --- operations

    def _interfaces(self) -> Iterator[tuple[str | None, dict[str, Any]]]:
        """Method, and what a spec says of it, for each operation with a reply."""
        operations = self._object(self._document, "operations")
        resolved = {name: self._resolved(operations, name)[0] for name in operations}
        replied = {name: each for name, each in resolved.items() if "reply" in each}
        received = {name: each for name, each in replied.items() if each.get("action") == "receive"}
        found = received or replied
        if not found:
            raise SpecError(f"{self._path} has no operation with a reply, so there is no request to describe")
        for name, operation in found.items():
            requests = self._messages(operation, f"operations.{name}")
            replies = self._messages(self._resolved(operation, "reply")[0], f"operations.{name}.reply")
            method = self._method(name, requests, is_one=len(found) == 1)
            given: dict[str, Any] = {}
            description = next((each["description"] for each, _ in requests if "description" in each), None)
            description = operation.get("description") if description is None else description
            if method is not None and description is not None:
                given["description"] = description
            for part, messages in (("request", requests), ("reply", replies)):
                schemas = [schema for each, here in messages for schema in self._payload(each, here)]
                if schemas:
                    given[part] = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
            yield method, given

    def _method(self, name: str, requests: list[tuple[Mapping[str, Any], str]], *, is_one: bool) -> str | None:
        for message, _ in requests:
            field = self._object(self._object(self._object(message, "headers"), "properties"), "method")
            if isinstance(field.get("const"), str):
                return str(field["const"])
        if is_one or self._extension:
            return None
        return re.sub(r"[^A-Za-z0-9_]", "_", name).lstrip("_0123456789") or "method"

    def _messages(self, operation: Mapping[str, Any], place: str) -> list[tuple[Mapping[str, Any], str]]:
        """Those of an operation or a reply, each with its place in the document; without errors, if there are others."""
        if "messages" in operation:
            listed = operation["messages"]
            if not isinstance(listed, list):
                raise SpecError(f"{self._path}: {place}.messages is no array")
            found = [self._followed(each) for each in listed]
        elif "channel" in operation:
            channel, at = self._resolved(operation, "channel")
            named = self._object(channel, "messages")
            found = [self._followed(each, f"{at}/messages{pointer([name])}") for name, each in named.items()]
        else:
            found = []
        good = [(each, here) for each, here in found if not self._is_error(each, here)]
        return good or found

    def _is_error(self, message: Mapping[str, Any], here: str) -> bool:
        """Whether it is the message of a failed request; of others' documents, as far as the name tells."""
        name = message.get("name", here.rpartition("/")[2])
        if self._extension:
            return bool(name == ERROR)
        return isinstance(name, str) and _NAME_OF_ERROR.search(name.lower()) is not None

    def _payload(self, message: Mapping[str, Any], here: str) -> Iterator[Any]:
        if "payload" in message:
            yield self._schema(message["payload"], f"{here}/payload")

    # --- references

    def _object(self, given: Mapping[str, Any], name: str) -> Mapping[str, Any]:
        found = given.get(name, {})
        if not isinstance(found, dict):
            raise SpecError(f"{self._path} has {name} {shown(found)}: expected an object")
        return found

    def _resolved(self, given: Mapping[str, Any], name: str) -> tuple[Mapping[str, Any], str]:
        return self._followed(given[name])

    def _followed(self, value: Any, here: str = "#") -> tuple[Mapping[str, Any], str]:
        """The object that a reference leads to, and where it is. `here`: where the reference is."""
        for _ in range(REFERENCES_MAX):
            if not isinstance(value, dict):
                raise SpecError(f"{self._path} has {shown(value)} at {here}: expected an object")
            if "$ref" not in value:
                return value, here
            here = value["$ref"]
            value = self._at(here)
        raise SpecError(f"{self._path} has the reference {shown(here)}, which leads to itself")

    def _at(self, reference: Any) -> Any:
        if not isinstance(reference, str) or not reference.startswith("#/"):
            raise SpecError(f"{self._path} has the reference {shown(reference)}: expected one within the document")
        try:
            return value_at(self._document, reference)
        except (LookupError, TypeError, ValueError):
            raise SpecError(f"{self._path} has the reference {shown(reference)}, which leads nowhere") from None

    # --- schemas

    def _schema(self, schema: Any, here: str) -> Any:
        if isinstance(schema, dict) and "schemaFormat" in schema:
            name = schema["schemaFormat"]
            if not isinstance(name, str) or not ("aai.asyncapi" in name or "schema+json" in name):
                raise SpecError(f"{self._path} has schemaFormat {shown(name)} at {here}: expected a JSON Schema")
            return self._schema(schema.get("schema"), f"{here}/schema")
        if isinstance(schema, dict) and isinstance(schema.get(BOOLEAN), bool):
            return schema[BOOLEAN]
        return self._restored(schema, here)

    def _restored(self, schema: Any, here: str) -> Any:
        """As a spec has it, of a schema that `asyncapi` may have written."""
        found = mapped(schema, lambda each: self._restored(each, here))
        if not isinstance(found, dict):
            return found
        if isinstance(found.get("items"), list):
            rest = {"items": found.pop("additionalItems")} if "additionalItems" in found else {}
            found = {**found, "prefixItems": found.pop("items"), **rest}
        if found.pop(BESIDE, False) is True and found.get("allOf"):
            *others, reference = found.pop("allOf")
            return {**reference, **found, **({"allOf": others} if others else {})}
        if "$ref" in found:
            found["$ref"] = self._reference(found["$ref"], here)
        return found

    def _reference(self, reference: Any, here: str) -> str:
        if isinstance(reference, str) and reference.startswith(SCHEMAS):
            return f"{OF_FILE}{reference.removeprefix(SCHEMAS)}"
        if isinstance(reference, str) and (reference == here or reference.startswith(f"{here}/")):
            return f"#{pointer(parts_of(reference)[len(parts_of(here)) :])}"
        raise SpecError(f"{self._path} has the reference {shown(reference)} in a schema: expected {SCHEMAS}NAME")
