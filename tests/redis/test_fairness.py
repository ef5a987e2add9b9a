"""Claims that were taken over and new requests take turns, however many there are of either."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import servers
from arena import wait_for
from loop_workers import KINDS, answer, answered, pending, send
from runner import Runner

from sandboxrun.config.fields import parse_loop
from sandboxrun.redis.connection import Connection
from sandboxrun.worker.claims import Claims


@pytest.fixture
def r() -> Iterator[redis.Redis]:
    with servers.Own() as server, redis.Redis.from_url(server.url, decode_responses=True, socket_timeout=40) as found:
        yield found


def url_of(r: redis.Redis) -> str:
    return f"redis://127.0.0.1:{r.connection_pool.connection_kwargs['port']}"


def leave_behind(r: redis.Redis, consumer: str, count: int, *, deliveries: int = 1, sleep: float = 0.01) -> list[str]:
    """So many requests that a consumer has read, and will not answer."""
    refs = [os.urandom(8).hex() for _ in range(count)]
    r.xgroup_create("t:req:x", "worker", id="0", mkstream=True)
    with r.pipeline() as pipe:
        for n, ref in enumerate(refs):
            pipe.xadd("t:req:x", {"ref": ref, "type": "t", "data": json.dumps({"n": n, "sleep": sleep})})
        pipe.execute()
    found = r.xreadgroup("worker", consumer, {"t:req:x": ">"}, count=count)
    ids = [xid for xid, _ in found[0][1]]
    r.execute_command("XCLAIM", "t:req:x", "worker", consumer, 0, *ids, "IDLE", 60_000, "RETRYCOUNT", deliveries)
    return refs


@pytest.mark.parametrize("consumer", ["another", "1"])
@pytest.mark.parametrize("deliveries", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_new_requests_are_answered_while_very_many_old_ones_wait(
    r: redis.Redis, run: Runner, tmp_path: Path, kind: str, deliveries: int, consumer: str
) -> None:
    """From the second delivery on a request is begun alone, as it may be what has ended its worker."""
    (tmp_path / "worker.py").write_text(KINDS[kind].replace("concurrency=4", "concurrency=2"))
    run.env["REDIS_URL"] = url_of(r)
    fields = {"takeoverMillis": "1000", "maxDeliveries": "9", "responseStreamLimit": "0", "replyExpireSeconds": "600"}
    r.hset("t:1:h", mapping={"url": str(tmp_path), "version": "local", **fields})
    old = leave_behind(r, consumer, 300, deliveries=deliveries)
    with run.start("t", "1"):
        wait_for(lambda: r.xlen("t:res:x") > 5, 20)  # they are being taken over
        for n in range(20):
            assert answer(r, send(r, n=n, sleep=0.01), 10)["n"] == n
        waited = r.xlen("t:res:x")
        assert waited < 300, "the new ones had to wait for all the old ones"
        wait_for(lambda: pending(r) == 0, 60)
    found = answered(r)
    assert set(found.values()) == {1}
    assert all(found[ref] == 1 for ref in old)


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_old_requests_are_answered_while_there_are_always_new_ones(
    r: redis.Redis, run: Runner, tmp_path: Path, kind: str
) -> None:
    (tmp_path / "worker.py").write_text(KINDS[kind].replace("worker.run()", "worker.run(concurrency=1)"))
    run.env["REDIS_URL"] = url_of(r)
    r.hset(
        "t:1:h",
        mapping={"url": str(tmp_path), "version": "local", "takeoverMillis": "1000", "responseStreamLimit": "0"},
    )
    old = leave_behind(r, "another", 10)
    for n in range(1500):
        send(r, n=n, sleep=0.01)
    with run.start("t", "1"):
        wait_for(lambda: all(answered(r)[ref] for ref in old), 30)
        assert r.xlen("t:res:x") < 1500


def test_what_is_ours_is_found_between_very_many_others_of_our_name(r: redis.Redis) -> None:
    """The list from the first to the last of what is in hand is longer than what is asked for."""
    leave_behind(r, "1", 3000)
    rows = r.xpending_range("t:req:x", "worker", "-", "+", 3000)
    ids = [row["message_id"].encode() for row in rows]
    r.xack("t:req:x", "worker", ids[1500], ids[2900])
    r.hset("t:1:h", mapping={"pid": "7", "pidHost": "x"})
    claims = Claims(Connection(url_of(r)), parse_loop({}, "t", "1"), "t:1:h", "7")
    claims.open()
    wanted = [ids[0], ids[1499], ids[1500], ids[2899], ids[2900], ids[2999]]
    assert claims._pending_of(wanted) == {ids[0], ids[1499], ids[2899], ids[2999]}
    claims.connection.close()


def test_many_claims_are_renewed_in_parts(r: redis.Redis) -> None:
    leave_behind(r, "1", 2500)
    ids = [row["message_id"].encode() for row in r.xpending_range("t:req:x", "worker", "-", "+", 2500)]
    r.hset("t:1:h", mapping={"pid": "7", "pidHost": "x"})
    claims = Claims(Connection(url_of(r)), parse_loop({}, "t", "1"), "t:1:h", "7")
    claims.open()
    claims.suspects.update(dict.fromkeys(ids, 1))
    r.config_resetstat()
    claims.renew()
    claims.flush()
    while claims.waiting:
        claims.receive()
    assert r.info("commandstats")["cmdstat_xclaim"]["calls"] == 3
    assert max(row["time_since_delivered"] for row in r.xpending_range("t:req:x", "worker", "-", "+", 2500)) < 50_000
    claims.connection.close()
