"""The time of a query through postgres-query in the sandbox, beside psycopg alone: by key, text search and JSON.

    python bench/postgres_query.py [--rows N] [--asked N]

Medians of single calls, one after another, over a table of 100,000 rows; both ask in turn. Only ratios are comparable
between machines. It needs PostgreSQL and redis-server, and everything stays on loopback.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "tests/support"))

import postgres
import redis
import servers
from runner import Runner

from sandboxrun import client

PLUGIN = Path(__file__).parents[1] / "plugins/postgres-query"
TABLE = """
CREATE TABLE things (id bigint PRIMARY KEY, words text, j jsonb);
INSERT INTO things SELECT n, 'word' || n % 997 || ' and word' || n % 1009, jsonb_build_object('n', n % 5003)
  FROM generate_series(1, {rows}) n;
CREATE INDEX ON things USING gin (to_tsvector('simple', words));
CREATE INDEX ON things USING gin (j);
ANALYZE things;
GRANT SELECT ON things TO reader;
"""
QUERIES: dict[str, tuple[str, str, Callable[[int], Any]]] = {
    "key": ("SELECT * FROM things WHERE id = {}", "bigint", lambda n: n + 1),
    "text": (
        "SELECT id FROM things WHERE to_tsvector('simple', words) @@ plainto_tsquery('simple', {}) LIMIT 20",
        "text", lambda n: f"word{n % 997}",
    ),
    "JSON": ("SELECT id FROM things WHERE j @> {} LIMIT 20", "json", lambda n: {"n": n % 5003}),
}  # fmt: skip
CASTS = {"bigint": "bigint", "text": "text", "json": "jsonb"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--asked", type=int, default=2000)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="bench") as home,
        servers.Own() as redis_server,
        postgres.Server() as server,
        server.database() as database,
    ):
        database.execute(TABLE.format(rows=options.rows))
        run, url = Runner(redis_server.url, Path(home)), database.url("reader")
        key = start(run, redis_server.url, url, server.port)
        with key.open("rb") as stdin:
            process = subprocess.Popen(run.command("postgres-query", "1", "--yes"), env=run.env, cwd=home, stdin=stdin)
        with process, client.Client(redis_server.url) as c, database.connect("reader") as plain:
            c.call("postgres-query", {"value": 1}, method="key", timeout=60)
            for name, (sql, type_, value) in QUERIES.items():
                compare(name, sql, type_, value, c, plain, options.asked)
            process.terminate()


def start(run: Runner, redis_url: str, url: str, port: int) -> Path:
    """Set the worker up; its key."""
    queries = {
        name: {"sql": sql.format(":value"), "parameters": {"value": type_}} for name, (sql, type_, _) in QUERIES.items()
    }
    key = run.home / "worker.key"
    key.write_text(f"worker-v0 {os.urandom(32).hex()}\n")
    key.chmod(0o600)
    fields = {
        "url": str(PLUGIN),
        "version": "local",
        "allowNet": f"127.0.0.1:{port}",
        "queries": json.dumps({"queries": queries}),
    }
    with redis.Redis.from_url(redis_url) as r:
        r.hset("postgres-query:1:h", mapping=fields)
    done = run("encrypt", "postgres-query", "1", "--key-file", str(key), "--write", stdin=json.dumps({"postgres": url}))
    assert done.code == 0, done.err
    return key


def compare(name: str, sql: str, type_: str, value: Callable[[int], Any], c: Any, plain: Any, asked: int) -> None:
    from psycopg.types.json import Jsonb

    text = sql.format(f"%s::{CASTS[type_]}")
    ours, theirs = [], []
    for n in range(asked):
        given = value(n)
        began = time.perf_counter()
        reply = c.call("postgres-query", {"value": given}, method=name, timeout=20)
        ours.append(time.perf_counter() - began)
        began = time.perf_counter()
        rows = plain.execute(text, [Jsonb(given) if type_ == "json" else given], prepare=True).fetchall()
        theirs.append(time.perf_counter() - began)
        assert len(reply["rows"]) == len(rows) > 0
    ours_p50, plain_p50 = statistics.median(ours) * 1e6, statistics.median(theirs) * 1e6
    print(f"{name}: {ours_p50:.0f} µs, psycopg alone {plain_p50:.0f} µs, ratio {ours_p50 / plain_p50:.2f}", flush=True)


if __name__ == "__main__":
    main()
