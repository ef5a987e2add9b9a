"""An idle worker asks Redis for little, and still ends at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from arena import wait_for
from loop_workers import KINDS, answer, send
from page import health_of
from runner import Runner

from sandboxrun.redis.unblock import user_of

Local = Callable[..., Path]
READS = 3  # of an idle worker, over which its commands are counted

LIAR = """
import sys
from sandboxrun import worker

@worker.handler
def handle(request):
    memoryview(sys._sandboxrun_health).cast("Q")[4] = request.data["client"]
    return {}

worker.run()
"""


def calls(r: redis.Redis, *names: str) -> int:
    """How often Redis has had these commands."""
    stats = r.info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in names)


@pytest.mark.parametrize("kind", KINDS)
def test_an_idle_worker_has_less_than_two_commands_a_second(
    r: redis.Redis, run: Runner, local: Local, kind: str
) -> None:
    local(KINDS[kind])
    with run.start("t", "1") as process:
        wait_for(lambda: r.hget("t:1:h", "pid"), 30)
        # Quiet: a look asks for what is pending once, not twice and for the length of both streams.
        seen: list[tuple[int, int]] = []

        def quiet() -> bool:
            seen.append((calls(r, "xpending"), calls(r, "xlen")))
            return any(looks + 3 <= seen[-1][0] and lengths == seen[-1][1] for looks, lengths in seen)

        wait_for(quiet, 60, "quiet")
        begin, reads = time.monotonic(), calls(r, "xreadgroup")
        others = calls(r, "xpending", "xlen", "xinfo|groups", "xinfo|consumers", "xinfo|stream", "xtrim")
        wait_for(lambda: calls(r, "xreadgroup") >= reads + READS, 30)
        read = calls(r, "xreadgroup") - reads
        more = calls(r, "xpending", "xlen", "xinfo|groups", "xinfo|consumers", "xinfo|stream", "xtrim") - others
        assert more <= read + 1  # a read is two commands, as it looks at `pid` too
        assert time.monotonic() - begin >= 2 * (READS - 1)  # each waits for two seconds
        process.terminate()
        assert process.wait(20) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_end_of_an_idle_worker_is_not_kept_waiting_by_its_read(
    r: redis.Redis, run: Runner, local: Local, kind: str
) -> None:
    local(KINDS[kind])
    before = calls(r, "client|unblock")
    with run.start("t", "1") as process:
        wait_for(lambda: _waits(r), 30)
        r.hdel("t:1:h", "pid")
        assert process.wait(20) == 0
    assert calls(r, "client|unblock") > before


def _waits(r: redis.Redis) -> bool:
    return any(client["user"].startswith("sandboxrun:t:1:") and "b" in client["flags"] for client in r.client_list())


def test_a_worker_cannot_have_a_strangers_wait_ended(r: redis.Redis, redis_url: str, run: Runner, local: Local) -> None:
    local(LIAR)
    before = calls(r, "client|unblock"), calls(r, "client|list")
    found: list[object] = []
    with redis.Redis.from_url(redis_url, client_name="worker:t:1:h") as stranger:
        client = stranger.client_id()
        waiting = threading.Thread(target=lambda: found.append(stranger.blpop(["never"], timeout=30)))
        waiting.start()
        with run.start("t", "1") as process:
            answer(r, send(r, client=client))
            assert health_of(process.pid).client_id == client
            process.terminate()
            assert process.wait(20) == 0
        assert calls(r, "client|unblock") == before[0]
        assert waiting.is_alive()
        r.lpush("never", "x")
        waiting.join(10)
    assert found == [(b"never", b"x")]


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (b"id=7 addr=1.2.3.4:5 name=x user=sandboxrun:t:1:h resp=2\n", "sandboxrun:t:1:h"),
        (b"id=8 name=x user=u\n", None),
        (b"id=7 name=user=u user=v\n", "v"),
        (b"id=7 name=x\n", None),
        (b"id=7 user=u user=v\n", None),
        (b"id=7 user=u\nid=7 user=v\n", None),
        (b"", None),
        (None, None),
        ([], None),
    ],
)
def test_whose_a_connection_is(reply: object, expected: str | None) -> None:
    assert user_of(reply, 7) == expected
