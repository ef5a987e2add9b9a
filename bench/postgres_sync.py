"""Rows a second of postgres-sync in the sandbox, beside plain COPY and INSERT of the same batches without Redis and sandbox.

    python bench/postgres_sync.py [--rounds N] [--rows N] [--batches 100,1000,5000] [--grown MILLIONS]

Both are given the same rows with the same indexes, on the same server, in turn. The plain one has its rows ready in memory:
it copies a batch into a temporary table and inserts from it, with ON CONFLICT DO NOTHING, a transaction a batch.
Only ratios are comparable between machines. It needs PostgreSQL and redis-server, and everything stays on loopback.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "tests/support"))

import postgres
import psutil
import redis
import servers
from runner import Runner
from syncing import GROUP, STREAM, Syncing

from sandboxrun.sync import sql

WORDS = "a stream of short words that a text search has to find again among many others of its kind".split()
START = datetime(2026, 1, 1, tzinfo=UTC)
INDEXES: dict[str, list[Any]] = {
    "b-tree": ["item"],
    "two GIN": ["item", {"columns": ["whole"], "kind": "gin"}, {"columns": ["text"], "kind": "search"}],
}
LOG = "order:log:x"  # which no other workers read, so that the adapter trims it
COLUMNS = ("item", "price", "n", "at", "text", "whole")


def sync(indexes: str, stream: str = STREAM) -> dict[str, Any]:
    columns: dict[str, Any] = {
        "item": {"type": "text", "required": True}, "price": "numeric", "n": "integer", "at": "timestamp", "text": "text",
        "whole": {"path": "data", "type": "json"},
    }  # fmt: skip
    return {"tables": {"orders": {"stream": stream, "columns": columns, "indexes": INDEXES[indexes]}}}


def data(number: int) -> dict[str, Any]:
    text = " ".join(WORDS[(number + k) % len(WORDS)] for k in range(8))
    return {"item": f"i{number % 1000}", "price": number / 4, "n": number, "at": 1767225600000 + number, "text": text}


class Bench:
    def __init__(self, server: postgres.Server, redis_server: servers.Own, home: Path) -> None:
        self.server, self.redis_server, self.home = server, redis_server, home
        self.rss = 0.0  # of the worker at the end of the last run, MiB

    def plain(self, indexes: str, rows: int, batch: int) -> float:
        """Rows a second."""
        ready = [self._row(number) for number in range(rows)]
        with self.syncing(indexes) as syncing, syncing.database.connect("writer") as connection:
            names = ", ".join(map(sql.name, ("_ms", "_seq", *COLUMNS)))
            connection.execute("SET TimeZone = 'UTC'")
            connection.execute("CREATE TEMP TABLE batch (LIKE orders) ON COMMIT DELETE ROWS")
            began = time.monotonic()
            for at in range(0, rows, batch):
                with connection.transaction(), connection.cursor() as cursor:
                    with cursor.copy(f"COPY batch ({names}) FROM STDIN") as copy:
                        for row in ready[at : at + batch]:
                            copy.write_row(row)
                    cursor.execute("INSERT INTO orders SELECT * FROM batch ON CONFLICT DO NOTHING")
            seconds = time.monotonic() - began
            assert syncing.rows("SELECT count(*) FROM orders") == [(rows,)]
            return rows / seconds

    def ours(self, indexes: str, rows: int, batch: int) -> float:
        """Rows a second, from the first batch that is acknowledged until all are."""
        with self.syncing(indexes) as syncing:
            self.fill(syncing, 0, rows)
            syncing.add_worker(batchSize=str(batch))
            with syncing.running() as process:
                rate = self.drain(syncing, rows)
                worker = psutil.Process(process.pid).children()[0]
                self.rss = worker.memory_info().rss / 2**20
            assert syncing.rows("SELECT count(*) FROM orders") == [(rows,)]
            return rate

    @contextlib.contextmanager
    def syncing(self, indexes: str, stream: str = STREAM) -> Iterator[Syncing]:
        with (
            self.server.database() as database,
            redis.Redis.from_url(self.redis_server.url, decode_responses=True) as r,
        ):
            r.flushall()
            yield Syncing(Runner(self.redis_server.url, self.home), r, database, sync(indexes, stream))
        self.server.execute("CHECKPOINT")

    def fill(self, syncing: Syncing, begin: int, end: int, stream: str = STREAM) -> None:
        for at in range(begin, end, 1000):
            pipe = syncing.r.pipeline(transaction=False)
            for number in range(at, min(at + 1000, end)):
                pipe.xadd(stream, {"type": "order", "data": json.dumps(data(number))})
            pipe.execute()

    def drain(self, syncing: Syncing, rows: int) -> float:
        done = begun_with = 0
        began = 0.0
        while done < rows:
            groups = [group for group in syncing.r.xinfo_groups(STREAM) if group["name"] == GROUP]
            done = (groups[0]["entries-read"] or 0) - groups[0]["pending"] if groups else 0
            if done and not began:
                began, begun_with = time.monotonic(), done
            time.sleep(0.01)
        return (rows - begun_with) / (time.monotonic() - began)

    def _row(self, number: int) -> tuple[Any, ...]:
        one = data(number)
        values = {**one, "at": START + timedelta(milliseconds=number), "whole": json.dumps(one)}
        return (number, 0, *(values[name] for name in COLUMNS))


def compare(bench: Bench, rounds: int, rows: int, batches: list[int]) -> None:
    for indexes in INDEXES:
        for batch in batches:
            pairs = [(bench.plain(indexes, rows, batch), bench.ours(indexes, rows, batch)) for _ in range(rounds)]
            plain, ours = (statistics.median(column) for column in zip(*pairs, strict=True))
            ratio = statistics.median(one / other for other, one in pairs)
            print(
                f"{indexes}, batches of {batch}: plain {plain:,.0f} rows/s, ours {ours:,.0f}, ratio {ratio:.2f}",
                flush=True,
            )


def grow(bench: Bench, millions: int) -> None:
    """One table that grows, by a million rows at a time."""
    with bench.syncing("b-tree", LOG) as syncing:
        syncing.add_worker()
        with syncing.running() as process:
            for step in range(millions):
                began = time.monotonic()
                bench.fill(syncing, step * 10**6, (step + 1) * 10**6, LOG)
                while not syncing.is_done(LOG):
                    time.sleep(0.05)
                rate = 10**6 / (time.monotonic() - began)
                rss = psutil.Process(process.pid).children()[0].memory_info().rss / 2**20
                used = syncing.r.info("memory")["used_memory"] / 2**20
                print(f"{step + 1} million: {rate:,.0f} rows/s, worker {rss:.0f} MiB, Redis {used:.0f} MiB", flush=True)
        assert syncing.rows("SELECT count(*) FROM orders") == [(millions * 10**6,)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--batches", default="100,1000,5000")
    parser.add_argument("--grown", type=int, default=0, metavar="MILLIONS")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="bench") as home,
        servers.Own() as redis_server,
        postgres.Server() as server,
    ):
        bench = Bench(server, redis_server, Path(home))
        if options.grown:
            grow(bench, options.grown)
        else:
            compare(bench, options.rounds, options.rows, [int(size) for size in options.batches.split(",")])


if __name__ == "__main__":
    main()
