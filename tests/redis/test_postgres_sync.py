"""The plugin postgres-sync in the real sandbox, with a real PostgreSQL: rows, hashes, poison, rights and mistakes."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import redis
from arena import wait_for
from postgres import STRANGER, Database
from runner import Runner
from syncing import GROUP, ORDERS, STREAM, Syncing

from sandboxrun.sync import sql

Make = Callable[..., Syncing]


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all of them, because psycopg is installed into it."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def make(r: redis.Redis, redis_url: str, home: Path, postgres: Database) -> Make:
    for log in home.glob("log-*"):
        log.unlink()

    def made(sync: dict[str, Any] = ORDERS, **options: Any) -> Syncing:
        return Syncing(Runner(redis_url, home), r, postgres, sync, **options)

    return made


TYPES: dict[str, Any] = {
    "tables": {
        "typed": {
            "stream": STREAM,
            "columns": {
                "text": "text", "integer": "integer", "bigint": "bigint", "double": "double", "numeric": "numeric",
                "boolean": "boolean", "at": "timestamp", "day": "date", "id": "uuid", "json": "json", "tags": "texts",
                "deep": {"path": "data.a.b.1", "type": "integer"}, "odd": {"path": "data.it's \\ %s", "type": "text"},
                "ref": {"path": "ref", "type": "text"}, "sent": {"path": "time", "type": "timestamp"},
                "we\"ird %": {"path": "data.text", "type": "text"},
            },
        }
    }
}  # fmt: skip


def test_each_type_of_column_and_path(make: Make) -> None:
    syncing = make(TYPES)
    syncing.add_worker()
    id_ = uuid.uuid4()
    data = {
        "text": "words \U0001f600", "integer": 5, "bigint": 2**62, "double": 0.5, "numeric": "1e30", "boolean": True,
        "at": 1767225600123, "day": "2026-02-03", "id": str(id_), "json": {"x": [1, None]}, "tags": ["a", "b"],
        "a": {"b": [1, 2]}, "it's \\ %s": "odd",
    }  # fmt: skip
    syncing.add({"ref": "r1", "time": "2026-01-01T00:00:00.000Z", "data": json.dumps(data)})
    syncing.add({"data": json.dumps({"at": 1767225600, "tags": None, "json": None, "day": ""})})
    syncing.add({"data": json.dumps({"at": "2026-01-01T01:00:00+01:00", "boolean": "no"})})
    with syncing.running():
        syncing.wait()
    assert syncing.dead() == []
    first, second, third = syncing.rows("SELECT * FROM typed ORDER BY _ms, _seq")
    start = datetime(2026, 1, 1, tzinfo=UTC)
    assert first[2:10] == (
        "words \U0001f600",
        5,
        2**62,
        0.5,
        10**30,
        True,
        start.replace(microsecond=123000),
        datetime(2026, 2, 3).date(),
    )
    assert first[10:] == (id_, {"x": [1, None]}, ["a", "b"], 2, "odd", "r1", start, "words \U0001f600")
    assert second[8] == start
    assert {*second[2:8], *second[9:17]} == {None}
    assert (third[7], third[8]) == (False, start)


def test_entries_become_rows_once_with_their_totals(make: Make) -> None:
    syncing = make()
    syncing.add_worker()
    ids = [syncing.order(n) for n in range(2500)]
    with syncing.running():
        syncing.wait()
        syncing.r.xgroup_setid(STREAM, GROUP, "0")  # all of them once more
        syncing.order(2500)
        syncing.wait()
    assert syncing.rows("SELECT count(*), sum(n), min(at)::text FROM orders") == [
        (2501, 2501 * 1250, "2026-01-01 00:00:00+00")
    ]
    assert syncing.rows("SELECT sum(orders), sum(total) FROM per_item") == [(2501, 2501 * 1250)]
    assert syncing.rows("SELECT _ms || '-' || _seq FROM orders ORDER BY n LIMIT 1") == [(ids[0],)]
    assert syncing.r.xlen(f"{GROUP}:res:x") == 0


POISON: dict[str, bytes] = {
    "a NUL in JSON": b'{"item": "a\\u0000b"}',
    "a NUL": b'{"item": "a\0b"}',
    "a lone surrogate": b'{"item": "\\ud800"}',
    "NaN": b'{"item": "x", "price": NaN}',
    "Infinity": b'{"item": "x", "n": Infinity}',
    "half of it": b'{"item": "x", "n": ',
    "nothing": b"",
    "not UTF-8": b'{"item": "\xff"}',
    "an integer too large": b'{"item": "x", "n": 3000000000}',
    "a fraction": b'{"item": "x", "n": 1.5}',
    "no number": b'{"item": "x", "price": "cheap"}',
    "no time": b'{"item": "x", "at": "soon"}',
    "a value that is missing": b'{"n": 1}',
    "a value that is null": b'{"item": null}',
    "a list": b"[1, 2]",
    "a list where a number is expected": b'{"item": "x", "n": [1]}',
    "nested too deeply": b'{"item": "x", "n": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "a time beyond all calendars": b'{"item": "x", "at": 1e300}',
}


def test_each_kind_of_poison_becomes_one_dead_letter_and_all_others_are_stored(make: Make) -> None:
    syncing = make()
    syncing.add_worker()
    wanted = {}
    for number, (kind, data) in enumerate(POISON.items()):
        for n in range(40):
            syncing.order(100 * number + n)
        wanted[syncing.add({"type": "order", "data": data})] = kind
    missing = syncing.add({"type": "order"})
    with syncing.running():
        syncing.wait()
    dead = {fields["xid"]: fields["reason"] for fields in syncing.dead()}
    assert {wanted.get(xid, "no data") for xid in dead} == {*POISON, "no data"}
    assert all(reason.startswith("PostgreSQL refuses it: ") for reason in dead.values()), dead
    assert len(syncing.dead()) == len(POISON) + 1 and missing in dead
    assert syncing.rows("SELECT count(*), (SELECT sum(orders) FROM per_item) FROM orders") == [(40 * len(POISON),) * 2]
    assert "Traceback" not in syncing.said()


def test_an_id_beyond_bigint_is_a_dead_letter(make: Make) -> None:
    syncing = make()
    syncing.add_worker()
    syncing.order(1)
    syncing.r.xadd(STREAM, {"data": '{"item": "x"}'}, id=f"{2**63 + 5}-1")
    with syncing.running():
        syncing.wait()
    assert [fields["xid"] for fields in syncing.dead()] == [f"{2**63 + 5}-1"]
    assert syncing.rows("SELECT n FROM orders") == [(1,)]


@pytest.mark.parametrize(
    ("constraint", "state"),
    [
        ("ALTER TABLE orders ADD CHECK (n < 5)", "23514"),
        ("CREATE UNIQUE INDEX ON orders (n) WHERE n = 7", "23505"),
        ("CREATE TABLE items (item text PRIMARY KEY); GRANT SELECT ON items TO writer; INSERT INTO items VALUES ('i0'), ('i1'); "
         "ALTER TABLE orders ADD FOREIGN KEY (item) REFERENCES items", "23503"),
        ("CREATE TYPE kind AS ENUM ('i0', 'i1'); DROP INDEX orders_item_idx; "
         "ALTER TABLE orders ALTER item TYPE kind USING item::kind", ""),
    ],
    ids=["check", "unique", "foreign key", "enum"],
)  # fmt: skip
def test_what_a_constraint_refuses_is_poison(make: Make, constraint: str, state: str) -> None:
    """A column of an enum is not what sync.json says: the worker does not start."""
    syncing = make()
    syncing.add_worker()
    syncing.database.execute(constraint)
    for n in (0, 1, 7, 7):
        syncing.order(n, item="i1" if n < 7 else "i5")
    with syncing.running() as process:
        if not state:
            assert process.wait(20) == 78
            assert 'error: table orders is not as sync.json says: column "item" is of type kind' in syncing.said()
            return
        syncing.wait()
    stored = {n for (n,) in syncing.rows("SELECT n FROM orders")}
    assert stored == ({0, 1, 7} if state == "23505" else {0, 1})
    assert {fields["reason"][-6:-1] for fields in syncing.dead()} == {state}


CARTS: dict[str, Any] = {
    "tables": {
        "carts": {
            "stream": "cart:changes:x",
            "hash": "cart:*:h",
            "columns": {"name": {"type": "text", "required": True}, "total": {"path": "sum", "type": "integer"}},
        }
    }
}


def test_hashes_become_rows_that_follow_them_and_deleted_ones_stay_as_tombstones(make: Make) -> None:
    syncing = make(CARTS)
    syncing.add_worker(allowRedis="cart:changes:x,cart:*:h")
    r = syncing.r

    def change(key: str, fields: dict[str, str] | None) -> str:
        pipe = r.pipeline(transaction=True)
        pipe.delete(key)
        if fields is not None:
            pipe.hset(key, mapping=fields)
        pipe.xadd("cart:changes:x", {"key": key})
        return str(pipe.execute()[-1])

    with syncing.running():
        for n in range(300):
            change(f"cart:{n % 20}:h", {"name": f"n{n}", "sum": str(n)})
        change("cart:3:h", None)
        change("other:1:h", {"name": "x"})  # not of the pattern
        last = change("cart:4:h", {"name": "last", "sum": ""})
        syncing.wait("cart:changes:x")
        rows = {key: rest for key, *rest in syncing.rows("SELECT _key, _deleted, name, total FROM carts")}
        assert rows["cart:3:h"] == [True, None, None]
        assert rows["cart:4:h"] == [False, "last", None]
        assert rows["cart:19:h"] == [False, "n299", 299]
        assert len(rows) == 20
        # An older entry that comes late changes nothing.
        r.xgroup_setid("cart:changes:x", GROUP, "0")
        change("cart:5:h", {"sum": "1"})  # poison: name is missing
        syncing.wait("cart:changes:x")
    assert syncing.rows("SELECT _ms || '-' || _seq FROM carts WHERE _key = 'cart:4:h'") == [(last,)]
    assert [fields["request.key"] for fields in syncing.dead()].count("cart:5:h") >= 1
    assert syncing.rows("SELECT name FROM carts WHERE _key = 'cart:5:h'") == [("n285",)]


def test_a_key_of_another_kind_is_a_dead_letter(make: Make) -> None:
    syncing = make(CARTS)
    syncing.add_worker(allowRedis="cart:changes:x,cart:*:h")
    syncing.r.set("cart:1:h", "text")
    syncing.r.hset("cart:2:h", "name", "two")
    for n in (1, 2):
        syncing.add({"key": f"cart:{n}:h"}, "cart:changes:x")
    with syncing.running():
        syncing.wait("cart:changes:x")
    assert [fields["request.key"] for fields in syncing.dead()] == ["cart:1:h"]
    assert syncing.rows("SELECT _key FROM carts") == [("cart:2:h",)]


def test_the_preset_has_the_columns_of_lula_sync(make: Make) -> None:
    syncing = make({"tables": {"entries": {"stream": STREAM, "preset": "lula-sync", "where": {"type": "order"}}}})
    syncing.add_worker()
    entry = {"ref": "r", "type": "order", "time": "1767225600000", "source": "s", "subject": "u", "data": '{"a": 1}'}
    xid = syncing.add(entry)
    syncing.add(entry | {"type": "other"})
    with syncing.running():
        syncing.wait()
    [row] = syncing.rows("SELECT _id, _ref, _time, _source, _subject, _data, _type, _spec FROM entries")
    assert row == (xid, "r", datetime(2026, 1, 1, tzinfo=UTC), "s", "u", {"a": 1}, "order", None)


def test_two_tables_of_one_stream_are_written_in_one_transaction(make: Make) -> None:
    columns = {"item": {"type": "text", "required": True}}
    both = {name: {"stream": STREAM, "columns": columns} for name in ("a", "b")}
    syncing = make({"tables": both})
    syncing.add_worker()
    syncing.database.execute("ALTER TABLE b ADD CHECK (item <> 'i3')")
    for n in range(7):
        syncing.order(n)
    with syncing.running():
        syncing.wait()
    assert syncing.rows("SELECT * FROM a EXCEPT SELECT * FROM b") == []
    assert syncing.rows("SELECT count(*) FROM a") == [(6,)]
    assert len(syncing.dead()) == 1


# --- mistakes


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sync": ""}, "the hash has no field sync: expected the text of a sync.json"),
        ({"sync": "{"}, "field sync is not JSON"),
        ({"sync": '{"tabels": {}}'}, "field sync: the file: 'tabels' is no part of it, did you mean tables?"),
        ({"requestStream": "other:req:x", "allowRedis": "other:req:x"},
         f"no table of the field sync follows the stream 'other:req:x': expected {STREAM}"),
        ({"batchSize": "many"}, "the field batchSize is 'many': expected a number up to 10000, such as 1000"),
    ],
    ids=["no sync", "not JSON", "unknown key", "another stream", "no number"],
)  # fmt: skip
def test_a_mistake_in_the_hash_is_one_line(make: Make, fields: dict[str, str], message: str) -> None:
    syncing = make()
    syncing.add_worker(**fields)
    with syncing.running() as process:
        assert process.wait(30) == 78
    assert f"error: {message}" in syncing.said()
    assert "Traceback" not in syncing.said()


@pytest.mark.parametrize(
    ("secret", "message"),
    [
        ("no url s3cret", "the secret postgres is no URL of a database: expected postgresql://ROLE:PASSWORD@HOST"),
        (5, "the secret postgres is no text and no object"),
        ({"host": "h", "pasword": "s3cret"}, "the secret postgres has a parameter that libpq does not know"),
        ("postgresql:///d?user=s3cret", "the secret postgres names no host"),
    ],
    ids=["no URL", "a number", "an unknown parameter", "no host"],
)
def test_a_mistake_in_the_secret_is_one_line_without_it(make: Make, secret: object, message: str) -> None:
    syncing = make()
    syncing.add_worker(url=secret)
    with syncing.running() as process:
        assert process.wait(30) == 78
    assert f"error: {message}" in syncing.said()
    assert "s3cret" not in syncing.said() and "Traceback" not in syncing.said()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("DROP TABLE orders", "table orders does not exist in PostgreSQL at 127.0.0.1:"),
        ("DROP TABLE per_item", "table per_item does not exist"),
        ("REVOKE INSERT ON orders FROM writer", "the role may not INSERT into table orders"),
        ("REVOKE UPDATE ON per_item FROM writer", "the role may not UPDATE into table per_item"),
        ("ALTER TABLE orders DROP COLUMN price", 'table orders is not as sync.json says: column "price" of relation'),
        ("ALTER TABLE orders DROP CONSTRAINT orders_pkey", "table orders is not as sync.json says: there is no unique"),
    ],
    ids=["no table", "no totals", "no INSERT", "no UPDATE", "no column", "no key"],
)
def test_a_database_that_is_not_prepared_is_one_line_and_the_command_to_prepare_it(
    make: Make, spoil: str, message: str
) -> None:
    syncing = make()
    syncing.add_worker()
    syncing.database.execute(spoil)
    syncing.order(1)
    with syncing.running() as process:
        assert process.wait(30) == 78
    assert f"error: {message}" in syncing.said()
    assert "hint: sandboxrun sync plan . | psql" in syncing.said()
    assert "Traceback" not in syncing.said()


def test_a_wrong_password_is_said_without_it_and_the_entries_wait(make: Make) -> None:
    syncing = make()
    syncing.add_worker(url=syncing.database.url("writer", "s3cret"))
    xid = syncing.order(1)
    with syncing.running():
        wait_for(lambda: "the batch waits" in syncing.said(), 30)
    assert "password authentication failed" in syncing.said()
    assert "s3cret" not in syncing.said()
    assert syncing.dead() == []
    assert syncing.r.xpending_range(STREAM, GROUP, xid, xid, 1)


def test_a_role_that_may_do_more_than_it_needs_is_none_that_sync_plan_makes(make: Make) -> None:
    """Rows cannot be changed or removed by a writer that was taken over: it has INSERT and SELECT alone."""
    syncing = make()
    for statement in ("DELETE FROM orders", "UPDATE orders SET n = 0", "TRUNCATE orders", "DROP TABLE orders"):
        with pytest.raises(Exception, match=r"permission denied|must be owner"):
            syncing.database.execute(statement, role="writer")
    with pytest.raises(Exception, match="permission denied"):
        syncing.database.execute("SELECT * FROM orders", role=STRANGER)
    assert sql.rights(syncing.tables["orders"])["orders"] == ("INSERT", "SELECT")
