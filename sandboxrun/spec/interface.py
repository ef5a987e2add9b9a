"""What a spec.json says of requests and replies, as workers and callers enforce it: the rest of the file is for tests.

A worker imports this at its start if there is a spec.json beside its script. model.py reads all of the file, and checks
more.
"""

from __future__ import annotations

from sandboxrun.errors import SpecError
from sandboxrun.nearnames import expected, quoted
from sandboxrun.plainjson import loads
from sandboxrun.spec.schemas import Check, check_schema

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

FILE_MAX_BYTES = 8 << 20
# What may stand at the top of the file, and in each of its methods.
NAMES = (
    "$schema", "$defs", "type", "title", "description", "grants", "ignore", "fields", "secrets",
    "clock", "seed", "request", "reply", "methods", "tests",
)  # fmt: skip
METHOD_NAMES = ("description", "request", "reply")
NAME_MAX_CHARS = 80


class Interface:
    """What one method, or the worker's own handler, is given and answers. None: anything."""

    __slots__ = ("reply", "request")

    def __init__(self, request: Check | None, reply: Check | None) -> None:
        self.request, self.reply = request, reply

    def request_fault(self, data: Any, text: str | bytes) -> str:
        """What is wrong with the data of a request; "" if nothing is. `text`: its JSON, or more than that."""
        fault = "" if self.request is None else self.request.fault("data", data, text)
        return fault and f"the request's data is not as expected: {fault}"

    def reply_fault(self, fields: Mapping[str, Any], text: str | bytes) -> str:
        """The same, of a reply's fields without ref, source, code and time."""
        return "" if self.reply is None else self.reply.fault("reply", fields, text)


class Interfaces:
    """Those of one file. `plain`: of requests without a method; None if the file describes methods alone."""

    __slots__ = ("methods", "path", "plain")

    def __init__(self, path: str, plain: Interface | None, methods: dict[str, Interface]) -> None:
        self.path, self.plain, self.methods = path, plain, methods


def read(path: str) -> bytes:
    """A file of at most FILE_MAX_BYTES. Raises SpecError."""
    try:
        with open(path, "rb") as file:
            data = file.read(FILE_MAX_BYTES + 1)
    except OSError as error:
        raise SpecError(f"{path} cannot be read: {error.strerror}") from None
    if len(data) > FILE_MAX_BYTES:
        raise SpecError(f"{path} has more than {FILE_MAX_BYTES} bytes")
    return data


def load(path: str) -> Interfaces:
    """Raises SpecError."""
    data = read(path)
    try:
        raw = loads(data.removeprefix(b"\xef\xbb\xbf"))
    except (ValueError, RecursionError) as error:
        raise SpecError(f"{path} is not JSON: {str(error)[:200] or 'it is nested too deep'}") from None
    _check(raw, NAMES, path, "")
    defs, methods = raw.get("$defs", {}), raw.get("methods", {})
    for name, value in (("$defs", defs), ("methods", methods)):
        if not isinstance(value, dict):
            raise SpecError(f"{path}: {name} is not an object")
    for name, each in defs.items():
        check_schema(each, defs, f"{path}: $defs.{name[:NAME_MAX_CHARS]}")
    for name, each in methods.items():
        _check(each, METHOD_NAMES, path, f"methods.{name[:NAME_MAX_CHARS]}")
    plain = _interface(raw, defs, f"{path}: ") if not methods or "request" in raw or "reply" in raw else None
    return Interfaces(
        path, plain, {name: _interface(each, defs, f"{path}: methods.{name}.") for name, each in methods.items()}
    )


def _check(given: Any, names: tuple[str, ...], path: str, place: str) -> None:
    """Raise SpecError for what is no object, or has other names: a mistyped one would turn the checks off."""
    where = f"{path}: {place}" if place else path
    if not isinstance(given, dict):
        raise SpecError(f"{where} is not an object")
    for name in given:
        if name not in names:
            raise SpecError(f"{where} has {quoted(name)}, which is no part of it{expected(name, names)}")


def _interface(given: Mapping[str, Any], defs: Mapping[str, Any], place: str) -> Interface:
    checks = []
    for name in ("request", "reply"):
        schema = given.get(name, True)
        if not isinstance(schema, dict | bool):
            raise SpecError(f"{place}{name} is not a JSON Schema: expected an object, true or false")
        check_schema(schema, defs, f"{place}{name}")
        checks.append(None if schema is True else Check(schema, defs))
    return Interface(*checks)
