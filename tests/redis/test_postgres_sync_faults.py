"""postgres-sync when things go away: chaos in small, an outage in words, two workers, and a standby that takes over."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from arena import wait_for
from postgres import Database, Replica, Server
from runner import Runner
from syncing import GROUP, ORDERS, Syncing

sys.path.append(str(Path(__file__).parents[1] / "tools"))

from postgres_chaos import play


@pytest.fixture
def own() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.mark.timeout(300)
def test_every_entry_is_one_row_and_one_effect_whatever_dies(tmp_path: Path) -> None:
    """tests/tools/postgres_chaos.py does the same with 100,000 entries."""
    chaos = play(3000, 7, tmp_path)
    assert (chaos.good, chaos.bad) == (2970, 30)
    assert sum(chaos.done.values()) >= 10


def test_an_outage_is_said_and_nothing_is_lost(r: redis.Redis, run: Runner, own: Server) -> None:
    with own.database() as database:
        syncing = Syncing(run, r, database, ORDERS)
        syncing.add_worker()
        with syncing.running():
            syncing.order(1)
            syncing.wait()
            own.stop()
            for n in range(2, 1500):
                syncing.order(n)
            wait_for(
                lambda: "the batch waits, because this is unavailable: PostgreSQL at 127.0.0.1:" in syncing.said(), 30
            )
            own.start()
            syncing.wait()
        assert syncing.rows("SELECT count(*), (SELECT sum(orders) FROM per_item) FROM orders") == [(1499, 1499)]
        assert "available again after" in syncing.said()
        assert syncing.dead() == []
        assert "pass-of" not in syncing.said()


def test_a_database_that_takes_no_writes_is_waited_for(r: redis.Redis, run: Runner, own: Server) -> None:
    with own.database() as database:
        syncing = Syncing(run, r, database, ORDERS)
        syncing.add_worker()
        with syncing.running():
            syncing.order(1)
            syncing.wait()
            own.execute(f"ALTER DATABASE {database.name} SET default_transaction_read_only = on")
            database.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'writer'", role="postgres"
            )
            syncing.order(2)
            wait_for(lambda: "the batch waits" in syncing.said(), 30)
            own.execute(f"ALTER DATABASE {database.name} RESET default_transaction_read_only")
            syncing.wait()
        assert syncing.rows("SELECT count(*) FROM orders") == [(2,)]
        assert syncing.dead() == []


def test_a_server_without_free_connections_is_waited_for(r: redis.Redis, run: Runner, own: Server) -> None:
    with own.database() as database:
        syncing = Syncing(run, r, database, ORDERS)
        syncing.add_worker()
        own.execute("ALTER ROLE writer CONNECTION LIMIT 0")
        try:
            with syncing.running():
                syncing.order(1)
                wait_for(lambda: "the batch waits" in syncing.said(), 30)
                own.execute("ALTER ROLE writer CONNECTION LIMIT -1")
                syncing.wait()
        finally:
            own.execute("ALTER ROLE writer CONNECTION LIMIT -1")
        assert "too many connections for role" in syncing.said()
        assert (syncing.rows("SELECT count(*) FROM orders"), syncing.dead()) == ([(1,)], [])


def test_two_workers_store_each_entry_once(r: redis.Redis, run: Runner, postgres: Database) -> None:
    syncing = Syncing(run, r, postgres, ORDERS)
    for id_ in "12":
        syncing.add_worker(id_, batchSize="50")
    with syncing.running("1"), syncing.running("2"):
        for n in range(3000):
            syncing.order(n)
        syncing.wait()
        consumers = r.xinfo_consumers("order:req:x", GROUP)
    assert len(consumers) == 2
    assert syncing.rows("SELECT count(*), (SELECT sum(orders) FROM per_item) FROM orders") == [(3000, 3000)]
    assert "deadlock" not in syncing.said("1") + syncing.said("2")


@pytest.mark.timeout(240)
def test_a_standby_that_is_promoted_is_followed(r: redis.Redis, run: Runner, own: Server) -> None:
    with own.database() as database, Replica(own) as standby:
        syncing = Syncing(run, r, database, ORDERS)
        secret = {
            "host": "127.0.0.1,127.0.0.1", "port": f"{own.port},{standby.port}", "user": "writer",
            "password": "pass-of-writer", "dbname": database.name,
        }  # fmt: skip
        syncing.add_worker(url=secret, allowNet=f"127.0.0.1:{own.port},127.0.0.1:{standby.port}")
        with syncing.running():
            for n in range(500):
                syncing.order(n)
            syncing.wait()
            wait_for(standby.caught_up, 30)
            own.crash()
            for n in range(500, 1000):
                syncing.order(n)
            standby.promote()
            syncing.wait()
        found = standby.execute(
            "SELECT count(*), (SELECT sum(orders) FROM per_item) FROM orders", database=database.name
        )
        assert found == [(1000, 1000)]
        own.start()  # for the end of the test
