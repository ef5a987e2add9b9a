"""What a worker hands back is free at once, also if the first try is lost with the fence or the connection."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import redis

from sandboxrun.config.fields import parse_loop
from sandboxrun.protocol import GROUP, HANDED_BACK_MILLIS
from sandboxrun.redis.connection import Connection
from sandboxrun.worker.claims import Claims
from sandboxrun.worker.rendering import Entry


@contextlib.contextmanager
def claims(url: str) -> Iterator[Claims]:
    with contextlib.closing(Connection(url)) as connection:
        yield Claims(connection, parse_loop({}, "t", "1"), "t:1:h", "7")


@pytest.fixture
def worker(r: redis.Redis, redis_url: str) -> Iterator[Claims]:
    r.hset("t:1:h", "pid", "7")
    with claims(redis_url) as made:
        made.open()
        yield made


def read(r: redis.Redis, worker: Claims, count: int) -> list[Entry]:
    for number in range(count):
        r.xadd("t:req:x", {"ref": f"r{number}", "data": "{}"})
    worker.ask(count, block=False)
    settle(worker)
    return worker.arrived.popleft()[0]


def settle(worker: Claims) -> None:
    worker.flush()
    while worker.waiting:
        worker.receive()


def free(r: redis.Redis) -> list[int]:
    """The deliveries of the entries that anybody may take now."""
    rows = r.xpending_range("t:req:x", GROUP, "-", "+", 100, idle=HANDED_BACK_MILLIS)
    return [row["times_delivered"] for row in rows]


def test_it_is_free_at_once_and_counts_as_never_delivered(r: redis.Redis, worker: Claims) -> None:
    fresh, begun = read(r, worker, 2)
    begun.begun = True
    worker.hand_back([fresh, begun])
    settle(worker)
    assert (free(r), worker.suspects, worker.hand) == ([0, 1], {}, {})


@pytest.mark.parametrize("count", [1, 1500])
def test_a_broken_fence_makes_it_wait_for_the_next_try(r: redis.Redis, worker: Claims, count: int) -> None:
    entries = read(r, worker, count)
    r.delete(worker.keep_fence[1])  # type: ignore[arg-type]  # as who takes a claim does
    worker.hand_back(entries)
    settle(worker)
    assert (free(r), len(worker.suspects), worker.broken) == ([], count, True)
    worker.verify()
    worker.hand_back([])
    settle(worker)
    assert (len(r.xpending_range("t:req:x", GROUP, "-", "+", 2000, idle=HANDED_BACK_MILLIS)), worker.suspects) == (
        count,
        {},
    )


def test_a_lost_connection_makes_it_wait_for_the_next_try(r: redis.Redis, worker: Claims) -> None:
    entries = read(r, worker, 3)
    worker.hand_back(entries)
    worker.close()  # before anything was sent
    assert len(worker.suspects) == 3
    worker.open()
    worker.hand_back([])
    settle(worker)
    assert (free(r), worker.suspects) == ([1, 1, 1], {})


def test_what_another_has_taken_meanwhile_is_not_handed_back(r: redis.Redis, worker: Claims) -> None:
    entries = read(r, worker, 2)
    r.xclaim("t:req:x", GROUP, "other", 0, [entries[0].xid])
    r.delete(worker.keep_fence[1])  # type: ignore[arg-type]
    worker.hand_back(entries)
    settle(worker)
    worker.verify()
    worker.hand_back([])
    settle(worker)
    rows = r.xpending_range("t:req:x", GROUP, "-", "+", 100)
    assert [row["consumer"] for row in rows] == ["other", "1"]
    assert len(free(r)) == 1
