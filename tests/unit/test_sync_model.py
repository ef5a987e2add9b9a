"""sync.json: each mistake has its line, and the JSON Schema for editors agrees with what is read."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from sandboxrun.errors import ConfigError
from sandboxrun.sync import model, sql

GOOD: dict[str, Any] = {
    "$schema": "sync.schema.json",
    "tables": {
        "t": {
            "stream": "a:req:x", "where": {"type": "a"},
            "columns": {"x": "text", "n": {"type": "integer", "path": "data.a.1", "required": True}, "j": "json"},
            "indexes": ["x", {"columns": ["j"], "kind": "gin"}],
            "totals": {"sums": {"by": ["n"], "sum": {"s": "n"}, "count": "c"}},
        },
        "h": {"stream": "b:x", "hash": "b:*", "columns": {"x": "text"}},
        "l": {"stream": "c:x", "preset": "lula-sync"},
    },
}  # fmt: skip
SCHEMA = jsonschema_rs.validator_for(json.loads(model.schema_text()))


def test_a_good_file_is_read_and_accepted_by_the_schema() -> None:
    tables = model.parse(json.dumps(GOOD).encode())
    assert list(tables) == ["t", "h", "l"]
    assert tables["t"].column("n") == model.Column("n", ("data", "a", "1"), "integer", True)
    assert tables["h"].columns[0].path == ("x",)
    assert tables["l"].columns[0].name == "_ref"
    assert SCHEMA.is_valid(GOOD)


def spoil(path: str, value: Any) -> dict[str, Any]:
    """GOOD with another value at a path; the path's last part may be new."""
    spoiled = copy.deepcopy(GOOD)
    at: Any = spoiled
    *steps, last = path.split("/")
    for step in steps:
        at = at[int(step) if isinstance(at, list) else step]
    at[int(last) if isinstance(at, list) else last] = value
    return spoiled


# What is wrong; whether the schema sees it too.
FAULTS: list[tuple[str, Any, str, bool]] = [
    ("tables", {}, "tables: expected an object with 1 to 100 tables by name", True),
    ("tabels", 1, "the file: 'tabels' is no part of it, did you mean tables?", True),
    ("tables/t/stram", 1, "tables.t: 'stram' is no part of it, did you mean stream?", True),
    ("tables/t/stream", "", "tables.t.stream: expected 1 to 256 printable characters", True),
    ("tables/t/where", {"type": 1}, "tables.t.where: expected an object with texts by name", True),
    ("tables/t/preset", "lula", "tables.t.preset: 'lula'", True),
    ("tables/t/preset", "lula-sync", "tables.t: with a preset there is no hash", False),
    ("tables/t/columns", {}, "tables.t.columns: expected an object with 1 to 200 columns by name", True),
    ("tables/t/columns/x", "txt", "tables.t.columns.x.type: 'txt', did you mean text?", True),
    ("tables/t/columns/x", {"type": "text", "requird": True}, "tables.t.columns.x: 'requird' is no part of it", True),
    ("tables/t/columns/x", {"path": "y"}, "tables.t.columns.x: type is missing", True),
    ("tables/t/columns/x", {"type": "text", "path": "data..x"}, "path: 'data..x' has an empty part", False),
    ("tables/t/columns/_ms", "text", "tables.t.columns._ms: names that begin with _ are those of", False),
    ("tables/t/columns/" + "n" * 64, "text", "a name in PostgreSQL has 1 to 63 bytes", False),
    ("tables/t/indexes/0", "y", "tables.t.indexes[0].columns: 'y' is no column here", False),
    ("tables/t/indexes/0", {"columns": ["x"], "kind": "hash"}, "tables.t.indexes[0].kind: 'hash'", True),
    ("tables/t/indexes/0", {"columns": ["x"], "kind": "gin"}, "a gin index is for json and texts, and x is text", False),
    ("tables/t/indexes/0", {"columns": ["j"], "kind": "search"}, "a search index is for text, and j is json", False),
    ("tables/t/indexes/1", {"columns": ["j"], "kind": "gin", "unique": True}, "true for a btree alone", False),
    ("tables/t/totals/sums/by", ["x"], "totals.sums.by: 'x' is no column here", False),
    ("tables/t/totals/sums/sum", {"s": "x"}, "totals.sums.sum.s: 'x'", False),
    ("tables/t/totals/sums/count", "s", "expected a sum or a count beside `by`, each with a name of its own", False),
    ("tables/t/totals/h", {"by": ["n"], "count": "c"}, "tables.h: there are two tables of this name", False),
    ("tables/h/totals", {"s": {"by": ["x"], "count": "c"}}, "tables.h.totals: totals are of streams", False),
]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "value", "message", "seen"), FAULTS, ids=[f"{f[0][:40]} {n}" for n, f in enumerate(FAULTS)]
)
def test_a_fault_has_its_line_and_its_place(path: str, value: Any, message: str, seen: bool) -> None:
    spoiled = spoil(path, value)
    with pytest.raises(ConfigError) as error:
        model.parse(json.dumps(spoiled).encode(), "sync.json")
    assert str(error.value).startswith("sync.json: ") and message in str(error.value)
    assert "\n" not in str(error.value)
    assert SCHEMA.is_valid(spoiled) is not seen


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", "is not JSON"), (b"\xff", "is not JSON"), (b"[" * 100_000, "is not JSON"), (b"[]", "the file: expected an object"),
        (b" " * (model.FILE_MAX_BYTES + 1), "has more than 1048576 bytes"),
    ],
    ids=["half", "not UTF-8", "deep", "a list", "long"],
)  # fmt: skip
def test_what_is_no_file_of_this_kind(data: bytes, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        model.parse(data)


def test_a_folder_without_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"sync\.json cannot be read: No such file"):
        model.load(str(tmp_path))


def test_long_names_of_indexes_stay_different() -> None:
    columns = tuple(model.Column(name, ("data", name), "text") for name in ("a" * 60, "a" * 61))
    table = model.Table("t" * 60, "s", (), None, columns, (), ())
    names = {sql.index_name(table, model.Index((column.name,))) for column in columns}
    assert len(names) == 2 and max(map(len, names)) <= 63
