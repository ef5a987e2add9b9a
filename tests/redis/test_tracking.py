"""Redis says which keys have changed that a connection has read."""

from __future__ import annotations

import select
from collections.abc import Iterator

import pytest
import redis
from servers import Own

from sandboxrun.errors import ConnectionLost
from sandboxrun.redis.tracking import CHANNEL, Tracking


@pytest.fixture
def tracking(redis_url: str, r: redis.Redis) -> Iterator[Tracking]:
    made = Tracking(redis_url, name="tracking", seconds=5)
    assert made.open()
    yield made
    made.close()


def told(tracking: Tracking, seconds: float = 20) -> list[bytes] | None:
    """What has changed, once something has."""
    assert select.select([tracking.fileno()], [], [], seconds)[0]
    return tracking.changed()


def test_a_key_that_was_read_is_told_once_when_others_change_it(r: redis.Redis, tracking: Tracking) -> None:
    for _ in range(2):  # it must be read again
        tracking.reading.call("HGET", "a", "x")
        tracking.reading.call("LLEN", "b")
        r.hset("a", "x", 1)
        assert told(tracking) == [b"a"]
        r.hset("a", "x", 2)
        r.rpush("b", 1)
        assert told(tracking) == [b"b"]
        r.delete("b")


def test_neither_what_nobody_has_read_nor_ones_own_change_is_told(r: redis.Redis, tracking: Tracking) -> None:
    tracking.reading.call("GET", "mine")
    tracking.reading.call("SET", "mine", "1")
    r.set("other", 1)
    tracking.check()
    assert told(tracking) == []  # the answer to the question alone
    tracking.check()


def test_all_may_have_changed_when_the_server_was_emptied_or_somebody_publishes(
    r: redis.Redis, tracking: Tracking
) -> None:
    tracking.reading.call("GET", "a")
    r.flushall()
    assert told(tracking) is None
    r.publish(CHANNEL, "a")
    assert told(tracking) is None


def test_a_server_that_does_not_answer_is_away(server: Own) -> None:
    made = Tracking(server.url, name="tracking", seconds=5)
    assert made.open()
    made.check()
    assert told(made) == []
    server.kill()
    with pytest.raises(ConnectionLost):
        told(made)
    made.close()
