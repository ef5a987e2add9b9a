"""Named queries: their SQL with parameters by name, and the values that a request gives for them."""

from __future__ import annotations

import datetime
import json
import math
import re
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from psycopg.types.json import Jsonb

from sandboxrun import worker
from sandboxrun.nearnames import expected, quoted
from sandboxrun.sync.libpq import Mistake
from sandboxrun.sync.model import TYPES

LIMIT, LIMIT_MAX = 100, 10_000  # rows of a reply
TEXT_MAX_CHARS = 64 * 1024
_QUERY = ("sql", "parameters", "limit", "description")
_PARAMETER = ("type", "default")
# What is not SQL proper, in which a colon means nothing; then a cast; then a parameter. Section 4.1 of PostgreSQL's manual.
_TOKEN = re.compile(
    r"""[eE]'(?:[^'\\]|\\.|'')*' | '(?:[^']|'')*' | "(?:[^"]|"")*" | --[^\n]* | /\*.*?\*/
    | \$(?P<tag>\w*)\$.*?\$(?P=tag)\$ | :: | :(?P<name>[A-Za-z_]\w*)""",
    re.DOTALL | re.VERBOSE,
)
_DECIMAL = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?")


class Query:
    """`text`: as psycopg takes it, cut off one row after `limit`. `types`: of the parameters; `defaults`: of some."""

    def __init__(self, name: str, raw: Any) -> None:
        """Raises Mistake with the place."""
        place = f"queries.{name}"
        raw = _object(raw, place, _QUERY)
        if not isinstance(raw.get("sql"), str):
            raise Mistake(f"{place}.sql: expected a text")
        self.name, self.limit = name, raw.get("limit", LIMIT)
        if type(self.limit) is not int or not 1 <= self.limit <= LIMIT_MAX:
            raise Mistake(f"{place}.limit is {str(self.limit)[:40]}: expected 1 to {LIMIT_MAX}")
        self.types: dict[str, str] = {}
        self.defaults: dict[str, Any] = {}
        for each, value in _object(raw.get("parameters", {}), f"{place}.parameters", None).items():
            self._add(each, value, f"{place}.parameters.{each}")
        self.text = self._rewritten(raw["sql"].strip().rstrip(";"), place)

    def _add(self, name: str, raw: Any, place: str) -> None:
        raw = {"type": raw} if isinstance(raw, str) else _object(raw, place, _PARAMETER)
        type_ = raw.get("type")
        if type_ not in TYPES:
            raise Mistake(f"{place}.type: {quoted(str(type_))}{expected(str(type_), TYPES)}")
        self.types[name] = type_
        if "default" in raw:
            try:
                self.defaults[name] = None if raw["default"] is None else value_of(type_, raw["default"])
            except ValueError as error:
                raise Mistake(f"{place}.default: {error}") from None

    def _rewritten(self, sql: str, place: str) -> str:
        used = set()

        def replaced(match: re.Match[str]) -> str:
            name = match["name"]
            if name is None:
                return match[0].replace("%", "%%")
            if name not in self.types:
                raise Mistake(f"{place}.sql: :{name} is no parameter{expected(name, self.types)}")
            used.add(name)
            return f"%({name})s::{TYPES[self.types[name]]}"

        parts, at = [], 0
        for match in _TOKEN.finditer(sql):
            parts += [sql[at : match.start()].replace("%", "%%"), replaced(match)]
            at = match.end()
        parts.append(sql[at:].replace("%", "%%"))
        for name in self.types.keys() - used:
            raise Mistake(f"{place}.parameters: :{name} does not stand in its SQL")
        # In a subquery nothing but one SELECT can stand, and the rows are bounded where they are made.
        return f"SELECT * FROM (\n{''.join(parts)}\n) AS query LIMIT {self.limit + 1}"  # noqa: S608  # the operator's own SQL

    def values(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters of a request. Raises BadRequest."""
        for name in given:
            if name not in self.types:
                raise worker.BadRequest(f"{self.name} has no parameter {quoted(name)}{expected(name, self.types)}")
        return {name: self._value(name, type_, given) for name, type_ in self.types.items()}

    def _value(self, name: str, type_: str, given: Mapping[str, Any]) -> Any:
        value = given.get(name)
        if value is None:
            if name in self.defaults and (name not in given or self.defaults[name] is None):
                return self.defaults[name]
            raise worker.BadRequest(f"{self.name} needs the parameter {name}, of the type {type_}")
        try:
            return value_of(type_, value)
        except ValueError as error:
            raise worker.BadRequest(f"the parameter {name}: {error}") from None

    def nulls(self) -> dict[str, None]:
        """For a try that reads no row."""
        return dict.fromkeys(self.types)


def parse(text: str) -> dict[str, Query]:
    """The queries of the hash's field, by name. Raises Mistake."""
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Mistake(f"field queries is not JSON: {str(error)[:200]}") from None
    named = _object(_object(raw, "field queries", ("$schema", "queries")).get("queries"), "queries", None)
    if not named:
        raise Mistake("queries: expected an object with queries by name")
    return {name: Query(name, value) for name, value in named.items()}


def _object(raw: Any, place: str, known: tuple[str, ...] | None) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise Mistake(f"{place}: expected an object")
    for name in raw:
        if known is not None and name not in known:
            raise Mistake(f"{place}: {quoted(name)} is no part of it{expected(name, known)}")
    return raw


# --- values of JSON as parameters


def value_of(type_: str, value: Any) -> Any:
    """Raises ValueError with what was expected; PostgreSQL is not asked."""
    return _OF[type_](value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("expected text")
    if len(value) > TEXT_MAX_CHARS:
        raise ValueError(f"expected at most {TEXT_MAX_CHARS} characters")
    if "\0" in value:
        raise ValueError("PostgreSQL's text cannot have a NUL")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("it has half of a surrogate pair") from None
    return value


def _whole(bits: int) -> Callable[[Any], int]:
    def convert(value: Any) -> int:
        if type(value) is not int or not -(2 ** (bits - 1)) <= value < 2 ** (bits - 1):
            raise ValueError(f"expected a whole number of {bits} bits")
        return value

    return convert


def _double(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value) or abs(value) > 1.7e308:
        raise ValueError("expected a number")
    return float(value)


def _numeric(value: Any) -> str:
    text = str(value) if type(value) in (int, float, str) else ""
    if len(text) > 1000 or not _DECIMAL.fullmatch(text):
        raise ValueError("expected a number, or one as text")
    return text


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("expected true or false")
    return value


def _parsed(parse: Callable[[str], Any], what: str) -> Callable[[Any], Any]:
    def convert(value: Any) -> Any:
        try:
            return parse(value)
        except (ValueError, TypeError, AttributeError):
            raise ValueError(f"expected {what}") from None

    return convert


def _moment(value: str) -> datetime.datetime:
    found = datetime.datetime.fromisoformat(value)
    return found if found.tzinfo else found.replace(tzinfo=datetime.UTC)


def _json(value: Any) -> Jsonb:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    if "\\u0000" in text:
        raise ValueError("PostgreSQL's JSON cannot have a NUL")
    _text(text[:TEXT_MAX_CHARS])
    if len(text) > TEXT_MAX_CHARS:
        raise ValueError(f"expected JSON of at most {TEXT_MAX_CHARS} characters")
    return Jsonb(value)


def _texts(value: Any) -> list[str]:
    if not isinstance(value, list):
        raise ValueError("expected a list of texts")
    return [_text(each) for each in value]


_OF: dict[str, Callable[[Any], Any]] = {
    "text": _text, "integer": _whole(32), "bigint": _whole(64), "double": _double, "numeric": _numeric, "boolean": _boolean,
    "timestamp": _parsed(_moment, "a time as ISO 8601"), "date": _parsed(datetime.date.fromisoformat, "a date as ISO 8601"),
    "uuid": _parsed(uuid.UUID, "a UUID"), "json": _json, "texts": _texts,
}  # fmt: skip
