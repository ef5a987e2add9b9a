"""What can happen to a server while workers work: it restarts, loads, is taken over by a replica, is full, forgets its users.
Each for real, and each time every request is answered once."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import servers
from arena import wait_for
from runner import Runner

from sandboxrun.errors import ConnectionLost
from sandboxrun.redis.connection import Connection

# How often each was begun is counted in the worker's own scratch folder: Redis may be away.
CODE = """
import asyncio, os, time
from sandboxrun import worker

begun = {}

@worker.handler
def handle(request):
    n = request.data["n"]
    begun[n] = begun.get(n, 0) + 1
    time.sleep(request.data.get("sleep", 0))
    return {"n": n, "begun": begun[n], "deliveries": request.deliveries}

worker.run()
"""
KINDS = {
    "plain": CODE,
    "async": CODE.replace("def handle", "async def handle").replace("time.sleep", "await asyncio.sleep"),
}
Start = Callable[..., Any]
ClientOf = Callable[[servers.Own], redis.Redis]


def send(r: redis.Redis, **data: Any) -> str:
    ref = os.urandom(8).hex()
    r.xadd("t:req:x", {"ref": ref, "type": "t", "data": json.dumps(data)})
    return ref


def answer(r: redis.Redis, ref: str) -> dict[str, Any]:
    """The reply, from a server that may be away or loading for a while."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            found = r.brpop([f"res:{ref}"], timeout=2)
        except redis.RedisError:
            time.sleep(0.05)
            continue
        if found is not None:
            reply: dict[str, Any] = json.loads(found[1])
            return reply
    raise AssertionError("no reply")


def answered(r: redis.Redis) -> collections.Counter[str]:
    return collections.Counter(fields["ref"] for _, fields in r.xrange("t:res:x"))


@pytest.fixture
def client_of() -> Iterator[ClientOf]:
    with contextlib.ExitStack() as stack:
        yield lambda server: stack.enter_context(
            redis.Redis.from_url(server.url, decode_responses=True, socket_timeout=30)
        )


@pytest.fixture(params=KINDS)
def start(request: pytest.FixtureRequest, run: Runner, tmp_path: Path, client_of: ClientOf) -> Start:
    """Write the worker and its hashes, and start it: `start(server, id)`."""
    code = tmp_path / "code"
    code.mkdir()
    (code / "worker.py").write_text(KINDS[request.param])

    def begin(server: servers.Own, id_: str = "1", **fields: str) -> Any:
        settings = {"url": str(code), "version": "local", "replyExpireSeconds": "600", "responseStreamLimit": "0"}
        client_of(server).hset(f"t:{id_}:h", mapping=settings | fields)
        run.env["REDIS_URL"] = server.url
        return run.start("t", id_)

    return begin


@pytest.fixture
def kept() -> Iterator[servers.Own]:
    """A server that keeps everything on disk."""
    with servers.Own("appendonly yes", "appendfsync always") as server:
        yield server


def test_a_server_that_restarts_and_loads_is_waited_for(kept: servers.Own, start: Start, client_of: ClientOf) -> None:
    """It has forgotten the worker's user by then: users are not part of its data. And it loads for a second or two."""
    r = client_of(kept)
    with start(kept) as process:
        assert answer(r, send(r, n=0))["n"] == 0
        slow = send(r, n=1, sleep=2)
        wait_for(lambda: r.xpending("t:req:x", "worker")["pending"] == 1)
        waits = [send(r, n=n) for n in range(2, 12)]
        with r.pipeline(transaction=False) as pipe:
            for n in range(4000):
                pipe.set(f"filler:{n}", "x")
            pipe.execute()
        kept.kill()
        # Half a millisecond for each key, with a look at its clients after each thousand.
        kept.start("key-load-delay 500")
        probe = Connection(kept.url)
        probe.open()
        with pytest.raises(ConnectionLost, match="LOADING"):
            probe.call("GET", "filler:1")
        probe.close()
        assert answer(r, slow).items() >= {"n": 1, "begun": 1}.items()
        assert [answer(r, ref)["n"] for ref in waits] == list(range(2, 12))
        assert answer(r, send(r, n=12))["n"] == 12
        assert process.poll() is None
        assert set(answered(r).values()) == {1}
        wait_for(lambda: r.xpending("t:req:x", "worker")["pending"] == 0)
        r.hdel("t:1:h", "pid")
        _, err = process.communicate(timeout=20)
    assert process.returncode in (0, 128 + signal.SIGTERM), err
    assert b"Traceback" not in err


def test_a_replica_takes_over_and_the_worker_goes_on_with_it(start: Start, client_of: ClientOf) -> None:
    """The old one dies, the other is promoted and comes to its address. It has the data, and has never heard of the user."""
    program = servers.program("redis-7")  # which can be told another port while it runs
    with servers.Own(program=program) as old, servers.Own(f"replicaof 127.0.0.1 {old.port}", program=program) as new:
        r, other = client_of(old), client_of(new)
        wait_for(lambda: other.info("replication")["master_link_status"] == "up")
        with start(old) as process:
            assert answer(r, send(r, n=0))["n"] == 0
            slow = send(r, n=1, sleep=2)
            wait_for(lambda: r.xpending("t:req:x", "worker")["pending"] == 1)
            waits = [send(r, n=n) for n in range(2, 12)]
            assert r.wait(1, 10_000) == 1
            old.kill()
            other.replicaof("NO", "ONE")
            other.config_set("port", old.port)
            assert answer(r, slow).items() >= {"n": 1, "begun": 1}.items()
            assert [answer(r, ref)["n"] for ref in waits] == list(range(2, 12))
            assert process.poll() is None
            assert set(answered(r).values()) == {1}
            wait_for(lambda: r.xpending("t:req:x", "worker")["pending"] == 0)
            process.terminate()
            assert process.wait(20) == 0


def test_a_worker_whose_server_becomes_a_replica_waits_until_it_can_write(start: Start, client_of: ClientOf) -> None:
    with servers.Own() as one, servers.Own() as two, start(one) as process:
        r = client_of(one)
        slow = send(r, n=1, sleep=1)
        wait_for(
            lambda: r.exists("t:req:x") and r.xinfo_groups("t:req:x") and r.xpending("t:req:x", "worker")["pending"]
        )
        with redis.Redis.from_url(one.url) as raw:  # the other's replica is to know what it knows itself
            for name in ("t:1:h", "t:req:x"):
                client_of(two).restore(name, 0, raw.dump(name), replace=True)
        r.replicaof("127.0.0.1", two.port)
        wait_for(lambda: r.info("replication")["master_link_status"] == "up")
        with pytest.raises(redis.ReadOnlyError):
            r.set("x", 1)
        time.sleep(1.5)  # the handler ends, and its reply cannot be written
        assert not r.exists(f"res:{slow}")
        r.replicaof("NO", "ONE")
        assert answer(r, slow).items() >= {"n": 1, "begun": 1, "deliveries": 1}.items()
        assert answer(r, send(r, n=2))["n"] == 2
        assert process.poll() is None


def test_a_user_that_is_removed_for_a_while_locks_nobody_out_for_good(start: Start, client_of: ClientOf) -> None:
    with servers.Own() as server, start(server) as process:
        r = client_of(server)
        assert answer(r, send(r, n=0))["n"] == 0
        for turn in range(1, 4):
            users = [name for name in r.acl_users() if name != "default"]
            assert len(users) == 1
            r.acl_deluser(*users)
            r.client_kill_filter(skipme=True, _type="normal")
            assert answer(r, send(r, n=turn))["n"] == turn
        assert process.poll() is None


def test_a_full_server_gets_the_replies_later_and_no_more_is_read_meanwhile(start: Start, client_of: ClientOf) -> None:
    """`OOM command not allowed`: replies are refused, reading is not. What is in hand waits, and the rest stays there."""
    with servers.Own("maxmemory-policy noeviction") as server:
        r = client_of(server)
        with start(server, takeoverMillis="1000") as process, start(server, "2", takeoverMillis="1000"):
            assert answer(r, send(r, n=0))["n"] == 0
            slow = send(r, n=1, sleep=4)
            wait_for(lambda: r.xpending("t:req:x", "worker")["pending"] == 1)
            refs = [send(r, n=n) for n in range(2, 10)]
            assert [answer(r, ref)["n"] for ref in refs] == list(range(2, 10))
            with r.pipeline() as pipe:  # at once with the last that can be written
                refs = [os.urandom(8).hex() for _ in range(2000)]
                for n, ref in enumerate(refs, 100):
                    pipe.xadd("t:req:x", {"ref": ref, "type": "t", "data": json.dumps({"n": n})})
                pipe.config_set("maxmemory", 1)
                pipe.execute()
            time.sleep(2.5)  # more than takeoverMillis, in which nothing can be written
            before = answered(r)
            assert len(before) < 100
            assert r.xpending("t:req:x", "worker")["pending"] <= 500
            r.config_set("maxmemory", 0)
            assert answer(r, slow).items() >= {"n": 1, "begun": 1}.items()  # nobody has taken it meanwhile
            assert [answer(r, ref)["n"] for ref in refs] == list(range(100, 2100))
            assert process.poll() is None
            wait_for(lambda: r.xpending("t:req:x", "worker")["pending"] == 0)
            known = {fields["ref"] for _, fields in r.xrange("t:req:x")}
            assert answered(r) == dict.fromkeys(known, 1)
