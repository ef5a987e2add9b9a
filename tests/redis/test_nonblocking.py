"""A connection's descriptor may be made non-blocking by whoever watches it: libuv does so, and thereby uvloop."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
import servers
from arena import wait_for
from loop_workers import answer, answered, pending, send
from proxy import Proxy
from runner import Runner
from scripts import script

from sandboxrun.errors import ConnectionLost
from sandboxrun.redis.connection import Connection

UVLOOP = """
import asyncio, time, uvloop
from sandboxrun import worker

uvloop.install()

@worker.handler
async def handle(request):
    await asyncio.sleep(request.data.get("sleep", 0))
    return {"n": request.data["n"], "loop": type(asyncio.get_running_loop()).__module__}

worker.run()
"""
THREADS = UVLOOP.replace("async def", "def").replace("await asyncio.sleep", "time.sleep").replace(
    'type(asyncio.get_running_loop()).__module__', '"uvloop"'
).replace("worker.run()", "worker.run(concurrency=4)")  # fmt: skip
POLICY = UVLOOP.replace("uvloop.install()", "asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())")
# As any other event loop may do it.
BY_HAND = script("another_loop")


@pytest.mark.parametrize(
    "code", [UVLOOP, THREADS, POLICY, BY_HAND], ids=["installed", "threads", "as a policy", "another loop"]
)
def test_handlers_under_another_event_loop_keep_their_connection(
    r: redis.Redis, run: Runner, local: Callable[..., Path], code: str
) -> None:
    local(code, takeoverMillis="600")
    with run.start("t", "1") as process:
        refs = [send(r, n=n, sleep=0.5 if n % 10 == 0 else 0) for n in range(40)]
        assert {(reply := answer(r, ref))["n"] for ref in refs} == set(range(40))
        assert reply["loop"] == "uvloop"
        time.sleep(2.2)  # two looks around, and renewals
        assert answer(r, send(r, n=41))["n"] == 41
        wait_for(lambda: pending(r) == 0)
        process.terminate()
        _, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    assert b"connecting again" not in err
    assert set(answered(r).values()) == {1}


def test_a_connection_that_does_not_block_waits_all_the_same() -> None:
    with servers.Own() as server, Proxy(("127.0.0.1", server.port)) as proxy:
        connection = Connection(f"redis://127.0.0.1:{proxy.port}", seconds=1.5)
        connection.open()
        os.set_blocking(connection.fileno(), False)
        assert connection.call("PING") == b"PONG"
        connection.set_wait(1)
        assert connection.call("BLPOP", "nothing", 0.5) is None
        proxy.slow(10_000_000)  # more than its buffers hold is sent by parts
        large = "x" * 5_000_000
        assert connection.call("ECHO", large) == large.encode()
        proxy.stall()
        with pytest.raises(ConnectionLost, match="no answer in time"):
            connection.call("PING")
        assert not connection.is_open
        proxy.resume()


def test_a_wait_is_ended_from_another_thread() -> None:
    with servers.Own() as server:
        connection = Connection(server.url, seconds=60)
        connection.open()
        threading.Timer(0.2, connection.cancel).start()
        began = time.monotonic()
        with pytest.raises(ConnectionLost):
            connection.call("BLPOP", "nothing", 50)
        assert time.monotonic() - began < 30
        with pytest.raises(ConnectionLost):
            connection.open()
