"""The SQL of a table: how it is made, and the statement that writes a batch into it.

Values are taken out of an entry's JSON by PostgreSQL: it is faster at it than Python, runs beside it, and refuses what a
column cannot hold.
"""

from __future__ import annotations

from sandboxrun.sync.model import TYPES, Column, Index, Table, Totals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_MILLIS_FROM = "1e11"  # from here on a number is not of seconds since 1970, because that would be the year 5138
_PARAMETER = "\0"  # until the statement is whole, because psycopg takes each % for a placeholder


def name(text: str) -> str:
    """A name, quoted."""
    return '"' + text.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A text in quotes, also if backslashes are special."""
    quoted = text.replace("'", "''")
    return f" E'{quoted.replace(chr(92), chr(92) * 2)}'" if "\\" in text else f"'{quoted}'"


# --- making tables


def create(table: Table) -> list[str]:
    """The statements that make a table, its totals and its indexes, unless they are there."""
    own = (
        ["_key text PRIMARY KEY", "_ms bigint NOT NULL", "_seq bigint NOT NULL", "_deleted boolean NOT NULL"]
        if table.hash is not None
        else ["_ms bigint NOT NULL", "_seq bigint NOT NULL"]
    )
    if table.preset:
        own.append("_id text GENERATED ALWAYS AS (_ms::text || '-' || _seq::text) STORED")
    lines = [*own, *(_column(column, table) for column in table.columns)]
    if table.hash is None:
        lines.append("PRIMARY KEY (_ms, _seq)")
    body = ",\n  ".join(lines)
    statements = [f"CREATE TABLE IF NOT EXISTS {name(table.name)} (\n  {body}\n);"]
    statements += [_create_totals(table, totals) for totals in table.totals]
    return statements + [index(table, each) for each in table.indexes]


def _column(column: Column, table: Table) -> str:
    text = f"{name(column.name)} {TYPES[column.type]}"
    if not column.required:
        return text
    if table.hash is None:
        return f"{text} NOT NULL"
    return f"{text} CHECK (_deleted OR {name(column.name)} IS NOT NULL)"


def _create_totals(table: Table, totals: Totals) -> str:
    lines = [f"{name(each)} {TYPES[table.column(each).type]} NOT NULL" for each in totals.by]
    lines += [f"{name(total)} {_sum_type(table, column)} NOT NULL" for total, column in totals.sums]
    if totals.count:
        lines.append(f"{name(totals.count)} bigint NOT NULL")
    lines.append(f"PRIMARY KEY ({_names(totals.by)})")
    return f"CREATE TABLE IF NOT EXISTS {name(totals.name)} (\n  " + ",\n  ".join(lines) + "\n);"


def _sum_type(table: Table, column: str) -> str:
    return "double precision" if table.column(column).type == "double" else "numeric"


def index_name(table: Table, each: Index) -> str:
    """As PostgreSQL would name it; cut by its digest if it is too long."""
    text = f"{table.name}_{'_'.join(each.columns)}_{each.kind if each.kind != 'btree' else 'idx'}"
    if len(text.encode()) <= 63:
        return text
    import hashlib

    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return text.encode()[:54].decode("utf-8", "ignore") + "_" + digest


def index(table: Table, each: Index) -> str:
    """The statement that makes an index."""
    columns = _names(each.columns)
    if each.kind == "search":
        joined = " || ' ' || ".join(f"coalesce({name(column)}, '')" for column in each.columns)
        using = f"USING gin (to_tsvector({literal(each.language)}, {joined}))"
    else:
        using = f"USING {each.kind} ({columns})"
    unique = "UNIQUE " if each.unique else ""
    return f"CREATE {unique}INDEX IF NOT EXISTS {name(index_name(table, each))} ON {name(table.name)} {using};"


def rights(table: Table) -> dict[str, tuple[str, ...]]:
    """What the adapter's role needs, by table: no entry is ever changed or removed."""
    own = ("INSERT", "SELECT") if table.hash is None else ("INSERT", "SELECT", "UPDATE")
    return {table.name: own, **{totals.name: ("INSERT", "SELECT", "UPDATE") for totals in table.totals}}


def grants(table: Table, role: str) -> list[str]:
    return [f"GRANT {', '.join(needed)} ON {name(each)} TO {name(role)};" for each, needed in rights(table).items()]


# --- writing


class Field:
    """An array that the statement is given: a field of the entries or hashes. `is_json`: it is sent as jsonb."""

    __slots__ = ("is_json", "name")

    def __init__(self, field: str, is_json: bool) -> None:
        self.name, self.is_json = field, is_json


def fields(table: Table) -> list[Field]:
    """The arrays after those of `leading`, each once, in the statement's order."""
    found: dict[tuple[str, bool], Field] = {}
    for column in table.columns:
        key = (column.path[0], _is_json(column))
        found.setdefault(key, Field(*key))
    return list(found.values())


def leading(table: Table) -> list[str]:
    """The types of the first arrays: of what is not a field."""
    return ["bigint", "bigint"] if table.hash is None else ["bigint", "bigint", "text", "boolean"]


def insert(table: Table) -> str:
    """The statement for a batch: its parameters are one array for each of `leading` and `fields`.

    Entries that are in the table already change nothing, and hashes only if their entry is newer.
    """
    given = fields(table)
    arrays = [*leading(table), *("jsonb" if field.is_json else "text" for field in given)]
    names = ["ms", "seq"] + (["key", "deleted"] if table.hash is not None else [])
    names += [f"f{number}" for number in range(len(given))]
    parameters = ", ".join(f"{_PARAMETER}::{type_}[]" for type_ in arrays)
    places = {(field.name, field.is_json): f"f{number}" for number, field in enumerate(given)}
    values = [_value(column, places[column.path[0], _is_json(column)]) for column in table.columns]
    own = ["_ms", "_seq"] + (["_key", "_deleted"] if table.hash is not None else [])
    columns = ", ".join([*own, *(name(column.name) for column in table.columns)])
    statement = (
        f"INSERT INTO {name(table.name)} AS t ({columns})\n"
        f"SELECT {', '.join([*names[: len(own)], *values])}\n"
        f"FROM unnest({parameters}) AS g({', '.join(names)})\n"
        f"ON CONFLICT {_on_conflict(table)}"
    )
    if table.totals:
        statement = _with_totals(table, statement)
    return statement.replace("%", "%%").replace(_PARAMETER, "%s")


def _on_conflict(table: Table) -> str:
    if table.hash is None:
        return "(_ms, _seq) DO NOTHING"
    changed = ["_ms", "_seq", "_deleted", *(name(column.name) for column in table.columns)]
    sets = ", ".join(f"{each} = excluded.{each}" for each in changed)
    return f"(_key) DO UPDATE SET {sets} WHERE (t._ms, t._seq) < (excluded._ms, excluded._seq)"


def _with_totals(table: Table, statement: str) -> str:
    """Add only what was not there before to the totals, in the order of their keys, so that two adapters never block
    each other."""
    wanted = dict.fromkeys(
        each for totals in table.totals for each in (*totals.by, *(column for _, column in totals.sums))
    )
    parts = [f"fresh AS (\n{statement}\nRETURNING {_names(wanted, 't.')})"]
    for number, totals in enumerate(table.totals):
        sums = [f"coalesce(sum({name(column)}), 0)" for _, column in totals.sums] + ["count(*)"] * bool(totals.count)
        own = [total for total, _ in totals.sums] + ([totals.count] if totals.count else [])
        sets = ", ".join(f"{name(each)} = t.{name(each)} + excluded.{name(each)}" for each in own)
        parts.append(
            f"totals{number} AS (\nINSERT INTO {name(totals.name)} AS t ({_names([*totals.by, *own])})\n"
            f"SELECT {', '.join([_names(totals.by), *sums])} FROM fresh GROUP BY {_names(totals.by)} "
            f"ORDER BY {_names(totals.by)}\nON CONFLICT ({_names(totals.by)}) DO UPDATE SET {sets})"
        )
    return "WITH " + ",\n".join(parts) + "\nSELECT FROM fresh LIMIT 0"


def _is_json(column: Column) -> bool:
    return len(column.path) > 1 or column.type in ("json", "texts")


def _value(column: Column, place: str) -> str:
    """The column's value, of an array's element."""
    steps = column.path[1:]
    if not _is_json(column):
        return _converted(column.type, place)
    if column.type in ("json", "texts"):
        value = f"NULLIF({_inner(place, steps)}, 'null')"
        if column.type == "json":
            return value
        return f"CASE WHEN {value} IS NOT NULL THEN ARRAY(SELECT jsonb_array_elements_text({value})) END"
    return _converted(column.type, _inner(place, steps, text=True))


def _inner(place: str, steps: Iterable[str], *, text: bool = False) -> str:
    """The value at the end of a path, null if there is none."""
    steps = list(steps)
    if not steps:
        return place
    if len(steps) == 1:
        return f"{place} {'->>' if text else '->'} {literal(steps[0])}"
    path = ", ".join(literal(step) for step in steps)
    return f"{place} {'#>>' if text else '#>'} ARRAY[{path}]"


def _converted(type_: str, value: str) -> str:
    if type_ == "text":
        return value
    value = f"NULLIF({value}, '')"
    if type_ != "timestamp":
        return f"({value})::{TYPES[type_]}"
    number = f"({value})::double precision"
    # Of all texts, dates alone have a hyphen inside. This is faster than a pattern.
    return (
        f"CASE WHEN strpos(substr({value}, 2), '-') > 0 THEN ({value})::timestamptz "
        f"WHEN abs({number}) < {_MILLIS_FROM} THEN to_timestamp({number}) ELSE to_timestamp({number} / 1000) END"
    )


def _names(names: Iterable[str], before: str = "") -> str:
    return ", ".join(before + name(each) for each in names)
