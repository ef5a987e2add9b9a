"""spec.json as it is read: checked by its schema first, then by what a schema cannot say."""

from __future__ import annotations

import enum
import functools
import importlib.resources
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sandboxrun import moment
from sandboxrun.config import keys
from sandboxrun.errors import SpecError
from sandboxrun.nearnames import expected, quoted
from sandboxrun.spec import match, schemas, state
from sandboxrun.spec.interface import read
from sandboxrun.spec.match import shown
from sandboxrun.spec.state import Stored

NAME = "spec.json"
TIMEOUT_SECONDS = 10.0
OK = 200
ENVELOPE = ("ref", "source", "time")  # of a reply, beside its code


@dataclass(frozen=True, slots=True)
class Interface:
    """What a request and its reply are; `method` is None for the worker's own requests. True accepts anything."""

    method: str | None
    request: Any = True
    reply: Any = True
    description: str = ""


@dataclass(frozen=True, slots=True)
class HttpExchange:
    """A request that the worker makes, and its answer: status, headers and body, or None to end the connection."""

    method: str
    path: str
    headers: Mapping[str, Any]
    has_body: bool
    body: Any
    reply: tuple[int, dict[str, str], bytes] | None


class Expected(enum.Enum):
    """How much a test says."""

    WRITTEN = "the reply, and all changes"
    ACCEPTED = "that the request does not fail"


@dataclass(frozen=True, slots=True)
class Case:
    """One test. `code` is that of the reply.

    `inside`: for a request at a bound of the schema, the request a step further in.
    A worker that refuses the first must refuse the second.
    """

    name: str
    method: str | None
    before: Mapping[str, Stored]
    request: Any
    code: int
    reply: Mapping[str, Any]
    after: Mapping[str, Stored]
    timeout: float = TIMEOUT_SECONDS
    fresh: bool = False
    clock: str | None = None  # the time at which the worker's clock stands
    seed: int | None = None  # of the worker's random numbers
    http: tuple[HttpExchange, ...] = ()
    expected: Expected = Expected.WRITTEN
    inside: Any = None


@dataclass(frozen=True, slots=True)
class Spec:
    """`path`: of the file. `interfaces`: by method; one of None, or more. `raw`: the JSON itself."""

    path: str
    type: str
    description: str
    grants: Mapping[str, str]
    fields: Mapping[str, str]
    secrets: Mapping[str, str]
    defs: Mapping[str, Any]
    interfaces: Mapping[str | None, Interface]
    cases: tuple[Case, ...]
    raw: Mapping[str, Any]
    ignore: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        return os.path.dirname(self.path)


@functools.cache
def schema() -> Any:
    """The JSON Schema of the file."""
    return json.loads(schema_text())


def schema_text() -> str:
    return importlib.resources.files("sandboxrun.spec").joinpath("schema.json").read_text(encoding="utf-8")


def load(path: str) -> Spec:
    """A file, or the folder that has it. Raises SpecError."""
    if os.path.isdir(path):
        path = os.path.join(path, NAME)
    return parse(read(path), path)


def parse(data: bytes, path: str) -> Spec:
    """Raises SpecError."""
    raw = json_of(data, path)
    _check(raw, path, is_read=False)
    defs = raw.get("$defs", {})
    for name, each in defs.items():
        schemas.check_schema(each, defs, f"{path}: $defs.{name}")
    interfaces = _interfaces(raw, defs, path)
    cases = tuple(
        _case(given, raw, f"{path}: tests[{number}]", interfaces, defs)
        for number, given in enumerate(raw.get("tests", []))
    )
    _check_names(cases, path)
    _check(raw, path, is_read=True)
    return Spec(
        path=os.path.abspath(path),
        type=keys.check_type(raw["type"]),
        description=raw.get("description", ""),
        grants={
            name: value if isinstance(value, str) else ",".join(value) for name, value in raw.get("grants", {}).items()
        },
        fields={name: str(value) for name, value in raw.get("fields", {}).items()},
        secrets=raw.get("secrets", {}),
        defs=defs,
        interfaces=interfaces,
        cases=cases,
        raw=raw,
        ignore=tuple(raw.get("ignore", ())),
    )


def json_of(data: bytes, path: str) -> Any:
    """Strictly: no name twice, no NaN, no number beyond a float, no half of a surrogate pair. Raises SpecError."""
    try:
        found = json.loads(
            data.decode("utf-8-sig"), object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite
        )
        json.dumps(found, ensure_ascii=False).encode()
        return found
    except UnicodeEncodeError:
        raise SpecError(f"{path} has half of a surrogate pair, which is no text") from None
    except json.JSONDecodeError as error:
        raise SpecError(f"{path}:{error.lineno}:{error.colno} is not JSON: {error.msg}") from None
    except UnicodeDecodeError as error:
        raise SpecError(f"{path} is not UTF-8, at byte {error.start}") from None
    except (ValueError, RecursionError) as error:
        raise SpecError(f"{path} is not JSON as expected: {_why(error)}") from None


def _why(error: Exception) -> str:
    return str(error).partition(";")[0][:200] or "it is nested too deep"  # behind a ; Python has advice for programs


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object has {shown(twice)} twice")
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is beyond the numbers of JSON's readers")
    return number


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _check(raw: Any, path: str, *, is_read: bool) -> None:
    """Raise SpecError for what the schema does not accept; unless `is_read`, not for what is read with better messages."""
    errors = schemas.validator(schema()).iter_errors(raw)
    error = next((error for error in errors if is_read or not _is_read_later(error)), None)
    if error is not None:
        raise _fault(raw, error, path)


def _is_read_later(error: Any) -> bool:
    """Whether it is within a JSON Schema, a key of Redis, or the fields of a reply."""
    match list(error.instance_path):
        case ["tests", int(), "reply"]:
            return isinstance(error.instance, dict)
        case ["tests", int(), "before" | "after" | "reply", _, *_]:
            return True
        case ["tests", int(), "http", int(), "request", "headers" | "body", *_]:
            return True
        case ["request" | "reply", *_] | ["$defs", _, *_] | ["methods", _, "request" | "reply", *_]:
            return True
    return False


def _fault(raw: Any, error: Any, path: str) -> SpecError:
    place = schemas.path_text(error.instance_path).lstrip(".")
    where = f"{path}: {place}" if place else path
    unknown = getattr(error.kind, "unexpected", None)
    if unknown:
        return _unknown(raw, error, where, str(unknown[0]))
    return SpecError(f"{where}: {schemas._line(error.message)}")


def _unknown(raw: Any, error: Any, where: str, name: str) -> SpecError:
    """An error for a name that the schema does not have, with the one that was probably meant."""
    known: Any = schema()
    for part in error.schema_path[:-1]:
        known = known[part]
        if isinstance(known, dict) and "$ref" in known:
            known = schema()["$defs"][known["$ref"].rpartition("/")[2]]
    names = list(known.get("properties", ())) if isinstance(known, dict) else []
    return SpecError(f"{where} has {quoted(name)}, which is no part of it{expected(name, names) if names else ''}")


def _interfaces(raw: Mapping[str, Any], defs: Mapping[str, Any], path: str) -> dict[str | None, Interface]:
    found: dict[str | None, Interface] = {}
    parts: list[tuple[str | None, Mapping[str, Any], str]] = [
        (method, each, f"methods.{method}.") for method, each in raw.get("methods", {}).items()
    ]
    if not parts or "request" in raw or "reply" in raw:
        parts.insert(0, (None, raw, ""))
    for method, each, place in parts:
        request, reply = each.get("request", True), each.get("reply", True)
        schemas.check_schema(request, defs, f"{path}: {place}request")
        schemas.check_schema(reply, defs, f"{path}: {place}reply")
        found[method] = Interface(method, request, reply, each.get("description", ""))
    return found


def _case(
    given: Mapping[str, Any],
    raw: Mapping[str, Any],
    place: str,
    interfaces: Mapping[str | None, Interface],
    defs: Mapping[str, Any],
) -> Case:
    method = given.get("method")
    if method not in interfaces:
        _raise_method(method, place, interfaces)
    reply = dict(given.get("reply", {}))
    match.check(reply, f"{place}.reply")
    code = reply.pop("code", OK)
    if not isinstance(code, int) or isinstance(code, bool):
        raise SpecError(f"{place}.reply.code is {shown(code)}: expected a whole number")
    if code == OK:
        _check_reply(reply, interfaces[method].reply, defs, f"{place}.reply")
    before = _state(given.get("before", {}), f"{place}.before", before=True)
    for key, stored in before.items():
        if stored.kind == "none":
            raise SpecError(f"{place}.before.{key} is null: leave it out, there are no other keys before")
    return Case(
        name=given["name"],
        method=method,
        before=before,
        request=given.get("request", {}),
        code=code,
        reply=reply,
        after=_state(given.get("after", {}), f"{place}.after", before=False),
        timeout=given.get("timeout", TIMEOUT_SECONDS),
        fresh=given.get("fresh", False),
        clock=_clock(given, raw, place),
        seed=given.get("seed", raw.get("seed")),
        http=tuple(_exchange(each, f"{place}.http[{number}]") for number, each in enumerate(given.get("http", ()))),
    )


def _clock(given: Mapping[str, Any], raw: Mapping[str, Any], place: str) -> str | None:
    """Of a test, else of the whole spec. Raises SpecError."""
    text: str | None = given.get("clock", raw.get("clock"))
    if text is not None and moment.seconds(text) is None:
        where = f"{place}.clock" if "clock" in given else f"{place.partition(': ')[0]}: clock"
        raise SpecError(f"{where} is {shown(text)}: expected {moment.EXPECTED}")
    return text


def _exchange(given: Mapping[str, Any], place: str) -> HttpExchange:
    request, reply = given["request"], given.get("reply", {})
    match.check(request.get("headers", {}), f"{place}.request.headers")
    match.check(request.get("body"), f"{place}.request.body")
    answer = None
    if reply is not None:
        body, headers = reply.get("body", ""), dict(reply.get("headers", {}))
        is_text = isinstance(body, str)
        if not any(name.lower() == "content-type" for name in headers):
            headers["content-type"] = "text/plain; charset=utf-8" if is_text else "application/json"
        data = (body if is_text else json.dumps(body)).encode()
        answer = (reply.get("status", 200), headers, data)
    return HttpExchange(
        request.get("method", "GET"),
        request["path"],
        request.get("headers", {}),
        "body" in request,
        request.get("body"),
        answer,
    )


def _raise_method(method: str | None, place: str, interfaces: Mapping[str | None, Interface]) -> None:
    names = [name for name in interfaces if name is not None]
    if method is None:
        raise SpecError(f"{place} has no method: expected one of {', '.join(names)}")
    known = expected(method, names) if names else ", because it describes none"
    raise SpecError(f"{place} has the method {quoted(method)}, which the spec does not describe{known}")


def _state(given: Mapping[str, Any], place: str, *, before: bool) -> dict[str, Stored]:
    return {key: state.parse(key, value, f"{place}.{key}", before=before) for key, value in given.items()}


def _check_reply(reply: Mapping[str, Any], wanted: Any, defs: Mapping[str, Any], place: str) -> None:
    """Raise SpecError if the reply that a test expects breaks the schema of replies. It need not have all fields."""
    properties = wanted.get("properties", {}) if isinstance(wanted, dict) else {}
    for name, value in reply.items():
        if name in ENVELOPE or match.has_matcher(value):
            continue
        if name in properties:
            fault = next(schemas.faults(properties[name], match.plain(value), defs), None)
            if fault is not None:
                raise SpecError(f"{place}.{name}{fault.replace(': ', ' breaks the schema of replies: ', 1)}")
        elif isinstance(wanted, dict) and wanted.get("additionalProperties") is False:
            raise SpecError(f"{place}.{name} is no field of the schema of replies")


def _check_names(cases: tuple[Case, ...], path: str) -> None:
    names: set[str] = set()
    for number, case in enumerate(cases):
        if case.name in names:
            raise SpecError(f"{path}: tests[{number}] is a second test with the name {shown(case.name)}")
        names.add(case.name)
