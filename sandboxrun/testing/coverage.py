"""What of a spec no test names: properties of requests, codes of replies, keys that the worker may write."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from typing import Any

from sandboxrun.spec.model import OK, Interface, Spec
from sandboxrun.spec.schemas import PARTS

DEPTH_MAX = 6
BAD_REQUEST = 400


def untested(spec: Spec) -> tuple[str, ...]:
    """A few words for each."""
    return (*_properties(spec), *_codes(spec), *_keys(spec))


def _properties(spec: Spec) -> Iterator[str]:
    for interface in spec.interfaces.values():
        requests = [case.request for case in spec.cases if case.method == interface.method]
        named = {path for request in requests for path in _paths(request)}
        for path in dict.fromkeys(_schema_paths(interface.request, spec, "")):
            if path not in named:
                yield f"{_prefix(interface)}request{path}"


def _prefix(interface: Interface) -> str:
    return f"{interface.method}." if interface.method else ""


def _paths(value: Any, path: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield f"{path}.{name}"
            yield from _paths(item, f"{path}.{name}")
    elif isinstance(value, list):
        for item in value:
            yield from _paths(item, f"{path}[]")


def _schema_paths(schema: Any, spec: Spec, path: str, depth: int = 0) -> Iterator[str]:
    if not isinstance(schema, dict) or depth > DEPTH_MAX:
        return
    ref = schema.get("$ref")
    if isinstance(ref, str) and ref.startswith("#/$defs/"):
        yield from _schema_paths(spec.defs.get(ref.removeprefix("#/$defs/")), spec, path, depth + 1)
    for part in (part for name in PARTS for part in schema.get(name, ())):
        yield from _schema_paths(part, spec, path, depth + 1)
    for name, each in schema.get("properties", {}).items():
        yield f"{path}.{name}"
        yield from _schema_paths(each, spec, f"{path}.{name}", depth + 1)
    if "items" in schema:
        yield from _schema_paths(schema["items"], spec, f"{path}[]", depth + 1)


def _codes(spec: Spec) -> Iterator[str]:
    """A method is answered 200, and 400 if its schema refuses something."""
    for interface in spec.interfaces.values():
        codes = {case.code for case in spec.cases if case.method == interface.method}
        for code in (OK, BAD_REQUEST):
            if code not in codes and (code == OK or interface.request not in (True, {}, {"type": "object"})):
                yield f"{_prefix(interface)}code {code}"


def _keys(spec: Spec) -> Iterator[str]:
    keys = {key for case in spec.cases for key in (*case.before, *case.after)}
    for entry in spec.grants.get("allowRedis", "").split(","):
        pattern = entry.strip().removeprefix("%RW~").removeprefix("%R~").removeprefix("%W~")
        if pattern and not pattern.startswith("+") and not any(fnmatch.fnmatchcase(key, pattern) for key in keys):
            yield f"a key {pattern}"
