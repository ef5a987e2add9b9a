"""sync.json: which tables follow which streams and hashes, and what their columns are."""

from __future__ import annotations

import importlib.resources
import os
from dataclasses import dataclass

from sandboxrun.errors import ConfigError
from sandboxrun.nearnames import expected, quoted
from sandboxrun.plainjson import loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from typing import Any

NAME = "sync.json"
FILE_MAX_BYTES = 1 << 20
IDENTIFIER_MAX_BYTES = 63  # PostgreSQL cuts longer names, so that two could become one
COLUMNS_MAX, TABLES_MAX = 200, 100
# The type of a column in sync.json: its type in PostgreSQL.
TYPES = {
    "text": "text", "integer": "integer", "bigint": "bigint", "double": "double precision", "numeric": "numeric",
    "boolean": "boolean", "timestamp": "timestamptz", "date": "date", "uuid": "uuid", "json": "jsonb", "texts": "text[]",
}  # fmt: skip
KINDS = ("btree", "gin", "search")
PRESETS = ("lula-sync",)
OWN = "_"  # what names of our own columns begin with
_TABLE = ("stream", "where", "hash", "preset", "columns", "indexes", "totals")
_COLUMN = ("path", "type", "required")
_INDEX = ("columns", "kind", "language", "unique")
_TOTALS = ("by", "sum", "count")


@dataclass(frozen=True, slots=True)
class Column:
    """`path`: of a stream, a field of the entry and what follows in its JSON; of a hash, a field of the hash."""

    name: str
    path: tuple[str, ...]
    type: str
    required: bool = False


@dataclass(frozen=True, slots=True)
class Index:
    """`kind`: one of KINDS. `language`: the configuration of a text search."""

    columns: tuple[str, ...]
    kind: str = "btree"
    language: str = "simple"
    unique: bool = False


@dataclass(frozen=True, slots=True)
class Totals:
    """A table with a row for each value of `by`: sums of columns, and how many entries there were, each counted once."""

    name: str
    by: tuple[str, ...]
    sums: tuple[tuple[str, str], ...]  # the total's name, and the column that is added up
    count: str | None


@dataclass(frozen=True, slots=True)
class Table:
    """`hash`: the pattern of keys whose hashes are the rows; None if the entries themselves are. `where`: fields of an
    entry that must have these values."""

    name: str
    stream: str
    where: tuple[tuple[str, str], ...]
    hash: str | None
    columns: tuple[Column, ...]
    indexes: tuple[Index, ...]
    totals: tuple[Totals, ...]
    preset: str | None = None

    def column(self, name: str) -> Column:
        return next(column for column in self.columns if column.name == name)


def schema_text() -> str:
    """The JSON Schema of sync.json."""
    return importlib.resources.files("sandboxrun.sync").joinpath("schema.json").read_text("utf-8")


def load(folder: str) -> dict[str, Table]:
    """The tables of the sync.json in a folder, by name. Raises ConfigError."""
    path = os.path.join(folder, NAME)
    try:
        with open(path, "rb") as file:
            data = file.read(FILE_MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}", hint="sandboxrun sync schema  # says what it may have"
        ) from None
    return parse(data, path)


def parse(data: bytes, path: str = NAME) -> dict[str, Table]:
    """Raises ConfigError with the place of the fault."""
    if len(data) > FILE_MAX_BYTES:
        raise ConfigError(f"{path} has more than {FILE_MAX_BYTES} bytes")
    try:
        raw = loads(data)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not JSON: {str(error)[:200]}") from None
    return _Reader(path).tables(raw)


class _Reader:
    """Reads one file; each method is given where it is in it."""

    def __init__(self, path: str) -> None:
        self._path = path

    def tables(self, raw: Any) -> dict[str, Table]:
        top = self._object(raw, "the file", ("$schema", "tables"), ("tables",))
        named = top["tables"]
        if not isinstance(named, dict) or not 1 <= len(named) <= TABLES_MAX:
            raise self._fault("tables", f"expected an object with 1 to {TABLES_MAX} tables by name")
        found = {name: self._table(name, value) for name, value in named.items()}
        self._check_totals(found)
        return found

    def _check_totals(self, tables: Mapping[str, Table]) -> None:
        names = [*tables, *(totals.name for table in tables.values() for totals in table.totals)]
        for name in names:
            if names.count(name) > 1:
                raise self._fault(f"tables.{name}", "there are two tables of this name, of which one has totals")

    def _table(self, name: str, raw: Any) -> Table:
        place = f"tables.{name}"
        self._identifier(name, place)
        raw = self._object(raw, place, _TABLE, ("stream",))
        stream = self._text(raw["stream"], f"{place}.stream")
        preset = raw.get("preset")
        if preset is not None and preset not in PRESETS:
            raise self._fault(f"{place}.preset", f"{quoted(str(preset))}{expected(str(preset), PRESETS)}")
        if preset is not None and ("hash" in raw or "columns" in raw):
            raise self._fault(
                place, "with a preset there is no hash, and there are no columns: the preset says what they are"
            )
        hash_ = self._text(raw["hash"], f"{place}.hash") if "hash" in raw else None
        columns = LULA if preset else self._columns(raw.get("columns"), f"{place}.columns", is_hash=hash_ is not None)
        names = [column.name for column in columns]
        where = self._texts_by_name(raw.get("where", {}), f"{place}.where")
        indexes = tuple(
            self._index(each, f"{place}.indexes[{at}]", names, columns)
            for at, each in enumerate(self._list(raw.get("indexes", []), f"{place}.indexes"))
        )
        return Table(name, stream, where, hash_, columns, indexes, self._all_totals(raw, place, columns, hash_), preset)

    def _columns(self, raw: Any, place: str, *, is_hash: bool) -> tuple[Column, ...]:
        if not isinstance(raw, dict) or not 1 <= len(raw) <= COLUMNS_MAX:
            raise self._fault(place, f"expected an object with 1 to {COLUMNS_MAX} columns by name")
        return tuple(self._column(name, value, f"{place}.{name}", is_hash=is_hash) for name, value in raw.items())

    def _column(self, name: str, raw: Any, place: str, *, is_hash: bool) -> Column:
        self._identifier(name, place)
        if name.startswith(OWN):
            raise self._fault(place, f"names that begin with {OWN} are those of the adapter's own columns")
        raw = {"type": raw} if isinstance(raw, str) else self._object(raw, place, _COLUMN, ("type",))
        type_ = raw["type"]
        if not isinstance(type_, str) or type_ not in TYPES:
            raise self._fault(f"{place}.type", f"{quoted(str(type_))}{expected(str(type_), TYPES)}")
        if not isinstance(raw.get("required", False), bool):
            raise self._fault(f"{place}.required", "expected true or false")
        default = name if is_hash else f"data.{name}"
        text = self._text(raw.get("path", default), f"{place}.path")
        path = (text,) if is_hash else tuple(text.split("."))
        if not all(path):
            raise self._fault(f"{place}.path", f"{quoted(text)} has an empty part")
        return Column(name, path, type_, raw.get("required", False))

    def _index(self, raw: Any, place: str, names: Collection[str], columns: Collection[Column]) -> Index:
        raw = {"columns": [raw]} if isinstance(raw, str) else self._object(raw, place, _INDEX, ("columns",))
        own = self._names(raw["columns"], f"{place}.columns", names)
        kind, unique = raw.get("kind", "btree"), raw.get("unique", False)
        if kind not in KINDS:
            raise self._fault(f"{place}.kind", f"{quoted(str(kind))}{expected(str(kind), KINDS)}")
        if not isinstance(unique, bool) or (unique and kind != "btree"):
            raise self._fault(f"{place}.unique", "expected true or false, and true for a btree alone")
        wanted = {"gin": ("json", "texts"), "search": ("text",)}.get(kind)
        for column in columns:
            if wanted and column.name in own and column.type not in wanted:
                raise self._fault(
                    place, f"a {kind} index is for {' and '.join(wanted)}, and {column.name} is {column.type}"
                )
        language = self._text(raw.get("language", "simple"), f"{place}.language")
        self._identifier(language, f"{place}.language")
        return Index(own, kind, language, unique)

    def _all_totals(self, raw: Any, place: str, columns: tuple[Column, ...], hash_: str | None) -> tuple[Totals, ...]:
        named = raw.get("totals", {})
        if not isinstance(named, dict):
            raise self._fault(f"{place}.totals", "expected an object with tables by name")
        if named and hash_ is not None:
            raise self._fault(f"{place}.totals", "totals are of streams: a hash changes, and an entry does not")
        return tuple(self._totals(name, each, f"{place}.totals.{name}", columns) for name, each in named.items())

    def _totals(self, name: str, raw: Any, place: str, columns: tuple[Column, ...]) -> Totals:
        self._identifier(name, place)
        raw = self._object(raw, place, _TOTALS, ("by",))
        by = self._names(raw["by"], f"{place}.by", [column.name for column in columns if column.required])
        numbers = [column.name for column in columns if column.type in ("integer", "bigint", "numeric", "double")]
        sums = self._texts_by_name(raw.get("sum", {}), f"{place}.sum")
        for total, column in sums:
            self._identifier(total, f"{place}.sum")
            if column not in numbers:
                raise self._fault(
                    f"{place}.sum.{total}", f"{quoted(column)}{expected(column, numbers)}: a column of numbers"
                )
        count = self._text(raw["count"], f"{place}.count") if "count" in raw else None
        if count is not None:
            self._identifier(count, f"{place}.count")
        own = [*by, *(total for total, _ in sums), *([count] if count else [])]
        if len(set(own)) < len(own) or len(own) == len(by):
            raise self._fault(place, "expected a sum or a count beside `by`, each with a name of its own")
        return Totals(name, by, sums, count)

    def _names(self, raw: Any, place: str, known: Collection[str]) -> tuple[str, ...]:
        names = self._list(raw, place)
        for name in names:
            if name not in known:
                raise self._fault(place, f"{quoted(str(name))} is no column here{expected(str(name), known)}")
        if not names or len(set(names)) < len(names):
            raise self._fault(place, "expected columns, each once")
        return tuple(names)

    def _texts_by_name(self, raw: Any, place: str) -> tuple[tuple[str, str], ...]:
        if not isinstance(raw, dict) or not all(isinstance(value, str) for value in raw.values()):
            raise self._fault(place, "expected an object with texts by name")
        return tuple(raw.items())

    def _list(self, raw: Any, place: str) -> list[Any]:
        if not isinstance(raw, list):
            raise self._fault(place, "expected a list")
        return raw

    def _text(self, raw: Any, place: str) -> str:
        if not isinstance(raw, str) or not raw or len(raw) > 256 or not raw.isprintable():
            raise self._fault(place, "expected 1 to 256 printable characters")
        return raw

    def _identifier(self, name: Any, place: str) -> None:
        if not isinstance(name, str) or not name or not name.isprintable() or len(name.encode()) > IDENTIFIER_MAX_BYTES:
            raise self._fault(place[:120], f"a name in PostgreSQL has 1 to {IDENTIFIER_MAX_BYTES} bytes, all printable")

    def _object(self, raw: Any, place: str, known: Collection[str], needed: Collection[str]) -> dict[str, Any]:
        if not isinstance(raw, dict):
            raise self._fault(place, "expected an object")
        for name in raw:
            if name not in known:
                raise self._fault(place, f"{quoted(name)} is no part of it{expected(name, known)}")
        for name in needed:
            if name not in raw:
                raise self._fault(place, f"{name} is missing")
        return raw

    def _fault(self, place: str, message: str) -> ConfigError:
        return ConfigError(f"{self._path}: {place}: {message}")


# The columns of lula-sync, an earlier adapter of the same streams, by its names.
LULA = (
    Column("_ref", ("ref",), "text"),
    Column("_time", ("time",), "timestamp"),
    Column("_source", ("source",), "text"),
    Column("_subject", ("subject",), "text"),
    Column("_type", ("type",), "text"),
    Column("_spec", ("spec",), "text"),
    Column("_data", ("data",), "json"),
)
