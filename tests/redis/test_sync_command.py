"""sandboxrun sync: a plan that psql carries out twice, and hashes that were there before the worker."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import redis
from postgres import Database, program
from runner import Runner
from servers import Own
from syncing import GROUP, Syncing

SHOP: dict[str, Any] = {
    "tables": {
        "odd \" name' %": {
            "stream": "order:req:x",
            "columns": {
                "item": {"type": "text", "required": True}, "whole": {"path": "data", "type": "json"},
                "words": "text", "tags": "texts", "n": "bigint",
            },
            "indexes": [
                "item", {"columns": ["item", "n"], "unique": True}, {"columns": ["whole"], "kind": "gin"},
                {"columns": ["tags"], "kind": "gin"}, {"columns": ["item", "words"], "kind": "search", "language": "english"},
            ],
            "totals": {"per_item": {"by": ["item"], "sum": {"sum": "n"}, "count": "count"}},
        },
        "carts": {"stream": "cart:changes:x", "hash": "cart:*:h", "columns": {"name": {"type": "text", "required": True}}},
        "entries": {"stream": "order:req:x", "preset": "lula-sync"},
    }
}  # fmt: skip


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    (tmp_path / "sync.json").write_text(json.dumps(SHOP))
    return tmp_path


def test_the_plan_makes_tables_indexes_and_rights_and_may_be_carried_out_twice(
    run: Runner, shop: Path, postgres: Database
) -> None:
    done = run("sync", "plan", str(shop), "--postgres-role", "writer")
    assert (done.code, done.err) == (0, "")
    psql = [str(program("psql")), "-v", "ON_ERROR_STOP=1", "-q", postgres.url("owner")]
    for _ in range(2):
        piped = subprocess.run(psql, input=done.out, capture_output=True, text=True, timeout=60)
        assert piped.returncode == 0, piped.stderr
    granted = "SELECT table_name, string_agg(privilege_type, ' ' ORDER BY 1) FROM information_schema.role_table_grants WHERE grantee = 'writer' GROUP BY 1"
    granted = granted.replace("ORDER BY 1)", "ORDER BY privilege_type)")
    assert dict(postgres.execute(granted)) == {
        "odd \" name' %": "INSERT SELECT", "per_item": "INSERT SELECT UPDATE", "carts": "INSERT SELECT UPDATE",
        "entries": "INSERT SELECT",
    }  # fmt: skip
    kinds = "SELECT count(*), count(*) FILTER (WHERE indexdef LIKE '%USING gin%') FROM pg_indexes WHERE tablename LIKE 'odd%'"
    assert postgres.execute(kinds) == [(6, 3)]


def test_without_a_role_nothing_is_granted(run: Runner, shop: Path) -> None:
    assert "GRANT" not in run("sync", "plan", str(shop)).out


def test_a_table_of_the_plan_with_an_odd_name_is_written(r: redis.Redis, run: Runner, postgres: Database) -> None:
    syncing = Syncing(run, r, postgres, SHOP)
    syncing.add_worker()
    syncing.order(1, words="running shoes", tags=["a", "b"])
    syncing.order(1, words="the same item and n: a violation")
    with syncing.running():
        syncing.wait()
    query = "SELECT n, tags FROM \"odd \"\" name' %\" WHERE to_tsvector('english', coalesce(item, '') || ' ' || coalesce(words, '')) @@ plainto_tsquery('english', 'shoe')"
    assert syncing.rows(query) == [(1, ["a", "b"])]
    assert len(syncing.dead()) == 1


def test_hashes_that_were_there_before_are_stored_by_a_backfill(
    r: redis.Redis, run: Runner, shop: Path, postgres: Database
) -> None:
    syncing = Syncing(run, r, postgres, SHOP)
    for n in range(3000):
        r.hset(f"cart:{n}:h", "name", f"n{n}")
    r.set("cart:text:h", "none")
    done = run("sync", "backfill", str(shop), "carts")
    assert (done.code, done.out) == (0, "added 3000 keys of cart:*:h to cart:changes:x; the worker stores them\n")
    syncing.add_worker(requestStream="cart:changes:x", allowRedis="cart:changes:x,cart:*:h")
    with syncing.running():
        syncing.wait("cart:changes:x")
    assert syncing.rows("SELECT count(*), count(DISTINCT name) FROM carts") == [(3000, 3000)]
    assert run("sync", "backfill", str(shop), "carts").code == 0  # again: nothing changes
    with syncing.running():
        syncing.wait("cart:changes:x")
    assert syncing.rows("SELECT count(*) FROM carts") == [(3000,)]
    assert syncing.dead() == []


def test_a_backfill_waits_for_the_worker(r: redis.Redis, run: Runner, shop: Path) -> None:
    """It fills Redis with no more than what it can name in a step beyond the limit."""
    r.xgroup_create("cart:changes:x", GROUP, "0", mkstream=True)
    pipe = r.pipeline()
    for n in range(20_000):
        pipe.hset(f"cart:{n}:h", "name", "n")
    pipe.execute()
    with subprocess.Popen(
        run.command("sync", "backfill", str(shop), "carts"), env=run.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(5)
        assert 10_000 <= r.xlen("cart:changes:x") < 13_000
        process.terminate()
        _, err = process.communicate(timeout=20)
    assert b"Traceback" not in err
    assert err.count(b"waiting until a worker has read what cart:changes:x has") == 1


@pytest.mark.parametrize("refusal", ["memory", "rights"])
def test_a_backfill_that_redis_refuses_is_an_error(server: Own, shop: Path, refusal: str) -> None:
    """Each of its commands in a pipeline has a reply of its own."""
    run = Runner(server.url, shop)
    with redis.Redis.from_url(server.url, decode_responses=True) as r:
        r.hset("cart:1:h", "name", "one")
        r.xadd("cart:changes:x", {"key": "cart:0:h"})
        if refusal == "memory":
            r.config_set("maxmemory", "1")
        else:
            r.acl_setuser("reader", enabled=True, passwords=["+p"], keys=["*"], categories=["+@read", "+@connection"])
            run.env["REDIS_URL"] = server.url.replace("redis://", "redis://reader:p@")
        done = run("sync", "backfill", str(shop), "carts")
        assert (done.code, done.out) == (75, ""), done
        assert done.err.startswith("error: ") and "Traceback" not in done.err
        assert r.xlen("cart:changes:x") == 1


def test_a_stream_needs_no_backfill(run: Runner, shop: Path) -> None:
    done = run("sync", "backfill", str(shop), "entries")
    assert done.code == 0 and "the worker begins with the first: nothing is to be done" in done.out


def test_a_table_that_is_not_there_is_named_nearly(run: Runner, shop: Path) -> None:
    done = run("sync", "backfill", str(shop), "cart")
    assert (done.code, done.err) == (78, "error: sync.json has no table 'cart', did you mean carts?\n")


def test_the_plan_connects_to_nothing(shop: Path) -> None:
    run = Runner("redis://127.0.0.1:1", shop)
    run.env["PATH"] = os.environ["PATH"]
    assert run("sync", "plan", str(shop)).code == 0
    assert run("sync", "schema").code == 0
