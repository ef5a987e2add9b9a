"""The plugin postgres-query in the real sandbox: rows as JSON, values that attack, queries that must not run, outages."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis
from arena import wait_for
from postgres import READER, WRITER, Database, Server
from runner import Runner

from sandboxrun import client

PLUGIN = Path(__file__).parents[2] / "plugins/postgres-query"
TYPE = "postgres-query"
TABLE = """
CREATE TABLE things (id bigint PRIMARY KEY, name text, price numeric, at timestamptz, d double precision, j jsonb, b bytea);
INSERT INTO things SELECT n, 'thing ' || n, n / 2.0, '2026-01-01Z'::timestamptz + n * interval '1 s',
  CASE n WHEN 3 THEN 'NaN'::float8 ELSE n END, jsonb_build_object('n', n), 'x' FROM generate_series(1, 50) n;
GRANT SELECT ON things TO reader;
"""
QUERIES: dict[str, Any] = {
    "one": {"sql": "SELECT * FROM things WHERE id = :id", "parameters": {"id": "bigint"}},
    "named": {
        "sql": "SELECT id FROM things WHERE name = :name OR name ~ ':name' -- :name\n /* :name */ ORDER BY id",
        "parameters": {"name": "text"},
    },
    "page": {"sql": "SELECT id, '100%' AS x FROM things ORDER BY id OFFSET :skip;", "limit": 3,
             "parameters": {"skip": {"type": "integer", "default": 0}}},
    "sleep": {"sql": "SELECT pg_sleep(:seconds)::text AS slept", "parameters": {"seconds": "double"}},
    "divide": {"sql": "SELECT 1 / :by AS q", "parameters": {"by": "integer"}},
    "types": {"sql": "SELECT :i::int + 1 AS i, :n AS n, :b AS b, :t AS t, :d AS d, :u AS u, :j AS j, :l AS l",
              "parameters": {"i": "integer", "n": "numeric", "b": "boolean", "t": "timestamp", "d": "date", "u": "uuid",
                             "j": "json", "l": "texts"}},
    "maybe": {"sql": "SELECT count(*) AS n FROM things WHERE :name IS NULL OR name = :name",
              "parameters": {"name": {"type": "text", "default": None}}},
}  # fmt: skip


class Querying:
    def __init__(self, run: Runner, r: redis.Redis, database: Database) -> None:
        self.run, self.r, self.database = run, r, database
        self.key = run.home / "worker.key"
        self.log = run.home / "query-log"
        self.log.unlink(missing_ok=True)
        if not self.key.exists():
            self.key.write_text(f"worker-v0 {os.urandom(32).hex()}\n")
            self.key.chmod(0o600)

    def set_up(self, queries: Any = QUERIES, *, role: str = READER, url: object = None, **fields: str) -> None:
        url = self.database.url(role) if url is None else url
        port = urlsplit(url if isinstance(url, str) else "").port or 1
        text = queries if isinstance(queries, str) else json.dumps({"queries": queries})
        mapping = {"url": str(PLUGIN), "version": "local", "allowNet": f"127.0.0.1:{port}", "queries": text}
        self.r.hset(f"{TYPE}:1:h", mapping=mapping | fields)
        done = self.run(
            "encrypt", TYPE, "1", "--key-file", str(self.key), "--write", stdin=json.dumps({"postgres": url})
        )
        assert done.code == 0, done.err

    @contextlib.contextmanager
    def running(self) -> Iterator[subprocess.Popen[bytes]]:
        with self.key.open("rb") as key, self.log.open("ab") as out:
            process = subprocess.Popen(
                self.run.command(TYPE, "1", "--yes"),
                env=self.run.env,
                cwd=self.run.home,
                stdin=key,
                stdout=out,
                stderr=out,
            )
        with process:
            try:
                yield process
            finally:
                process.terminate()

    def said(self) -> str:
        return self.log.read_text()

    def ask(self, query: str, timeout: float = 20, /, **parameters: Any) -> dict[str, Any]:
        with client.Client(self.run.env["REDIS_URL"]) as c:
            return c.call(TYPE, parameters, method=query, timeout=timeout)

    def code(self, query: str, timeout: float = 20, /, **parameters: Any) -> tuple[int, str]:
        """The code of an error, and its text."""
        with pytest.raises(client.CallError) as error:
            self.ask(query, timeout, **parameters)
        codes = {"UnknownMethod": 404, "BadRequest": 400, "RemoteError": 500}
        return codes.get(type(error.value).__name__, 504), str(error.value)


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all of them, because psycopg is installed into it."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def make(r: redis.Redis, redis_url: str, home: Path, postgres: Database) -> Callable[..., Querying]:
    postgres.execute(TABLE)

    def made(**options: Any) -> Querying:
        querying = Querying(Runner(redis_url, home), r, postgres)
        querying.set_up(**options)
        return querying

    return made


Make = Callable[..., Querying]


def test_rows_come_as_json_and_values_go_as_values(make: Make) -> None:
    querying = make()
    with querying.running():
        [row] = querying.ask("one", id=3)["rows"]
        assert row == {
            "id": 3, "name": "thing 3", "price": "1.5000000000000000", "at": "2026-01-01T00:00:03Z", "d": None, "j": {"n": 3}, "b": "eA==",
        }  # fmt: skip
        page = querying.ask("page")
        assert ([row["id"] for row in page["rows"]], page["more"], page["rows"][0]["x"]) == ([1, 2, 3], True, "100%")
        last = querying.ask("page", skip=47)
        assert ([row["id"] for row in last["rows"]], last["more"]) == ([48, 49, 50], False)
        assert querying.ask("maybe")["rows"] == querying.ask("maybe", name=None)["rows"] == [{"n": 50}]
        assert querying.ask("maybe", name="thing 4")["rows"] == [{"n": 1}]
        given = {
            "i": 1, "n": "1.50", "b": True, "t": "2026-01-01T01:00:00+01:00", "d": "2026-02-03",
            "u": "12345678-1234-5678-1234-567812345678", "j": {"a": [None]}, "l": ["x", "y"],
        }  # fmt: skip
        [row] = querying.ask("types", **given)["rows"]
        assert row == {**given, "i": 2, "t": "2026-01-01T00:00:00Z"}
        with client.Client(querying.run.env["REDIS_URL"]) as c:
            plain = c.call(TYPE, {"query": "named", "parameters": {"name": "thing 9"}}, timeout=20)
        assert plain["rows"] == [{"id": 9}]
    assert "warning" not in querying.said()


INJECTIONS = (
    "' OR 1=1 --", "'; DROP TABLE things; --", "\\'; SELECT 1 --", "$$", "%s", "%(name)s", ":name", "thing 1' UNION SELECT 2 --",
    "x" * 60_000, "\u2028\U0001f600", "",
)  # fmt: skip


def test_text_that_looks_like_sql_is_only_text(make: Make) -> None:
    querying = make()
    with querying.running():
        for text in INJECTIONS:
            assert querying.ask("named", name=text)["rows"] == []
    assert querying.database.execute("SELECT count(*) FROM things") == [(50,)]


@pytest.mark.parametrize(
    ("name", "parameters", "code", "message"),
    [
        ("oen", {}, 404, "there is no query 'oen', did you mean one?"),
        ("one", {}, 400, "one needs the parameter id, of the type bigint"),
        ("one", {"id": None}, 400, "one needs the parameter id"),
        ("one", {"idd": 1}, 400, "one has no parameter 'idd', did you mean id?"),
        ("one", {"id": "1"}, 400, "the parameter id: expected a whole number of 64 bits"),
        ("one", {"id": 2**70}, 400, "expected a whole number of 64 bits"),
        ("one", {"id": True}, 400, "expected a whole number of 64 bits"),
        ("one", {"id": 1.5}, 400, "expected a whole number of 64 bits"),
        ("named", {"name": "a\0b"}, 400, "PostgreSQL's text cannot have a NUL"),
        ("named", {"name": "x" * 70_000}, 400, "expected at most 65536 characters"),
        ("named", {"name": ["x"]}, 400, "expected text"),
        ("divide", {"by": 0}, 400, "PostgreSQL refuses the values: division by zero (22012)"),
        ("types", {"i": 1, "n": "1e9999", "b": 1, "t": "", "d": "", "u": "", "j": 1, "l": []}, 400, "the parameter n:"),
    ],
    ids=lambda value: str(value)[:20] if isinstance(value, str | int) else "",
)
def test_a_wrong_request_has_its_code_and_its_words(
    make: Make, name: str, parameters: dict[str, Any], code: int, message: str
) -> None:
    querying = make()
    with querying.running():
        found, text = querying.code(name, **parameters)
    assert (found, message in text) == (code, True), text


def test_a_lone_surrogate_is_refused(make: Make) -> None:
    querying = make()
    with querying.running():
        querying.r.xadd(f"{TYPE}:req:x", {"ref": "r", "type": TYPE, "method": "named", "data": '{"name": "\\ud800"}'})
        found = querying.r.brpop(["res:r"], timeout=30)
    assert found is not None
    assert (json.loads(found[1])["code"], "half of a surrogate pair" in found[1]) == (400, True)


def test_a_query_ends_with_the_deadline_and_keeps_no_other_waiting(make: Make) -> None:
    querying = make()
    with querying.running():
        querying.ask("one", id=1)
        began = time.monotonic()
        querying.r.xadd(
            f"{TYPE}:req:x",
            {
                "ref": "slow",
                "type": TYPE,
                "method": "sleep",
                "data": '{"seconds": 60}',
                "deadline": str(int(time.time() * 1000) + 1500),
            },
        )
        assert querying.ask("one", id=2)["rows"][0]["id"] == 2
        found = querying.r.brpop(["res:slow"], timeout=30)
        assert found is not None and json.loads(found[1])["code"] == 504
        assert time.monotonic() - began < 20
        asked = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND usename = 'reader'"
        wait_for(lambda: querying.database.execute(asked, role="postgres") == [(0,)], 10)


WRITES = {
    "an INSERT": "INSERT INTO things VALUES (99)",
    "a DELETE": "DELETE FROM things RETURNING id",
    "a DELETE in a WITH": "WITH gone AS (DELETE FROM things RETURNING id) SELECT * FROM gone",
    "a DO": "DO $$ BEGIN DELETE FROM things; END $$",
    "a COPY": "COPY things TO PROGRAM 'cat'",
    "two statements": "SELECT 1; DELETE FROM things",
    "a parenthesis": "SELECT 1) AS q; DELETE FROM things; SELECT * FROM (SELECT 1",
    "a SET": "SET default_transaction_read_only = off",
    "nothing": "",
    "no SQL": "SELEC 1",
    "no such table": "SELECT * FROM thing",
}


@pytest.mark.parametrize("kind", WRITES)
def test_what_is_no_select_is_refused_at_the_start(make: Make, kind: str) -> None:
    """As a role that may write."""
    querying = make(queries={"bad": {"sql": WRITES[kind]}}, role="owner")
    with querying.running() as process:
        assert process.wait(30) == 78
    assert "error: queries.bad.sql: PostgreSQL says: " in querying.said()
    assert "Traceback" not in querying.said()
    assert querying.database.execute("SELECT count(*) FROM things") == [(50,)]


def test_a_function_that_writes_is_stopped_by_the_transaction(make: Make) -> None:
    """It succeeds outside of the worker, for the same role."""
    body = "CREATE FUNCTION write() RETURNS bigint LANGUAGE sql AS 'DELETE FROM things WHERE id = 7 RETURNING id'"
    querying = make()
    querying.database.execute(body)
    queries = {
        "write": {"sql": "SELECT write() AS w"},
        "unset": {"sql": "SELECT set_config('transaction_read_only', 'off', true) AS v, write() AS w"},
    }
    querying.set_up(queries, role="owner")
    with querying.running():
        for name in queries:
            code, message = querying.code(name)
            assert code == 500 and ("read-only" in message or "read-write mode" in message), message
        assert querying.database.execute("SELECT count(*) FROM things") == [(50,)]
    assert "warning: the role may write 1 tables: grant it SELECT alone" in querying.said()
    assert querying.database.execute("SELECT write()") == [(7,)]


@pytest.mark.parametrize(
    ("queries", "message"),
    [
        ("", "the hash has no field queries: expected the text of a queries.json"),
        ("{", "field queries is not JSON"),
        ('{"querys": {}}', "field queries: 'querys' is no part of it, did you mean queries?"),
        ({}, "queries: expected an object with queries by name"),
        ({"q": {"sql": "SELECT :a"}}, "queries.q.sql: :a is no parameter"),
        ({"q": {"sql": "SELECT 1", "parameters": {"a": "text"}}}, "queries.q.parameters: :a does not stand in its SQL"),
        ({"q": {"sql": "SELECT :a", "parameters": {"a": "txt"}}}, "queries.q.parameters.a.type: 'txt', did you mean text?"),
        ({"q": {"sql": "SELECT :a", "parameters": {"a": {"type": "integer", "default": "x"}}}}, "queries.q.parameters.a.default:"),
        ({"q": {"sql": "SELECT 1", "limit": 0}}, "queries.q.limit is 0: expected 1 to 10000"),
        ({"q": {"sql": "SELECT 1", "limt": 1}}, "queries.q: 'limt' is no part of it, did you mean limit?"),
    ],
    ids=range(10),
)  # fmt: skip
def test_a_mistake_in_the_queries_is_one_line(make: Make, queries: Any, message: str) -> None:
    querying = make(queries=queries)
    with querying.running() as process:
        assert process.wait(30) == 78
    assert f"error: {message}" in querying.said()
    assert "Traceback" not in querying.said()


def test_an_outage_is_waited_for_within_the_deadline(r: redis.Redis, run: Runner) -> None:
    with Server() as server, server.database() as database:
        database.execute(TABLE)
        querying = Querying(run, r, database)
        querying.set_up()
        with querying.running():
            assert querying.ask("one", id=1)["rows"][0]["id"] == 1
            server.crash()
            code, message = querying.code("one", 2, id=1)
            assert code in (500, 504)
            server.start()
            wait_for(lambda: bool(querying.ask("one", id=1)["rows"]), 20)
        assert "pass-of" not in querying.said() + message


def test_a_role_without_rights_is_told_at_the_start(make: Make) -> None:
    querying = make(role=WRITER)
    querying.database.execute("REVOKE ALL ON things FROM writer")
    with querying.running() as process:
        assert process.wait(30) == 78
    assert "error: queries.one.sql: PostgreSQL says: permission denied for table things" in querying.said()
