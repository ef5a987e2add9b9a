"""The PostgreSQL of the tests keeps what was committed through a crash, and fails over to a replica."""

from __future__ import annotations

import time

import psycopg
import pytest
from postgres import READER, WRITER, Database, Replica


def test_a_crash_loses_nothing_and_a_promoted_replica_has_it_all(postgres: Database) -> None:
    postgres.execute("CREATE TABLE t (n integer)")
    postgres.execute("INSERT INTO t VALUES (%s)", [1], role=WRITER)
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        postgres.execute("DELETE FROM t", role=WRITER)
    with psycopg.connect(postgres.socket_url(READER)) as reader:
        postgres.server.crash()
        with pytest.raises(psycopg.OperationalError):
            reader.execute("SELECT 1")
    postgres.server.restart()
    with Replica(postgres.server) as replica:
        postgres.execute("INSERT INTO t VALUES (2)")
        while not replica.caught_up():
            time.sleep(0.01)
        postgres.server.crash()
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            replica.execute("INSERT INTO t VALUES (3)", database=postgres.name)
        replica.promote()
        replica.execute("INSERT INTO t VALUES (3)", database=postgres.name)
        assert replica.execute("SELECT n FROM t", database=postgres.name) == [(1,), (2,), (3,)]
