"""Optimistic transactions: they start over after a change, write nothing without a decision, and leave nothing watched."""

from __future__ import annotations

from collections.abc import Iterator

import hiredis
import pytest
import redis

from sandboxrun.errors import ConfigError, ConnectionLost
from sandboxrun.redis.connection import Connection
from sandboxrun.redis.transaction import optimistic


@pytest.fixture
def connection(redis_url: str, r: redis.Redis) -> Iterator[Connection]:
    opened = Connection(redis_url, protocol=2)
    opened.open()
    yield opened
    opened.close()


def watches_nothing(r: redis.Redis, connection: Connection) -> bool:
    """Whether a change of the key lets the connection's next transaction go on."""
    r.hset("t:1:h", "note", "later")
    return connection.pipeline([("MULTI",), ("EXEC",)])[-1] is not None


def test_it_starts_over_until_nobody_changes_the_key(r: redis.Redis, connection: Connection) -> None:
    seen = []

    def decide(replies: list[bytes | None]) -> list[tuple[str, ...]]:
        seen.append(replies[0])
        if len(seen) < 3:
            r.hset("t:1:h", "note", len(seen))
        return [("HSET", "t:1:h", "ours", "1"), ("HDEL", "t:1:h", "note")]

    assert optimistic(connection, ["t:1:h"], decide, reads=[("HGET", "t:1:h", "note")])
    assert seen == [None, b"1", b"2"]
    assert r.hgetall("t:1:h") == {"ours": "1"}
    assert watches_nothing(r, connection)


def test_a_key_that_changes_each_time_is_given_up(r: redis.Redis, connection: Connection) -> None:
    def decide(_: list[object]) -> list[tuple[str, ...]]:
        r.hincrby("t:1:h", "note", 1)
        return [("HSET", "t:1:h", "ours", "1")]

    assert not optimistic(connection, ["t:1:h"], decide, tries=4)
    assert r.hgetall("t:1:h") == {"note": "4"}
    assert watches_nothing(r, connection)


def test_without_commands_nothing_is_written_or_watched(r: redis.Redis, connection: Connection) -> None:
    assert optimistic(connection, ["t:1:h"], lambda _: [])
    assert watches_nothing(r, connection)


@pytest.mark.parametrize("error", [ConfigError("x"), hiredis.ReplyError("WRONGTYPE x")])
def test_an_error_of_the_decision_leaves_nothing_watched(
    r: redis.Redis, connection: Connection, error: Exception
) -> None:
    def decide(_: list[object]) -> list[tuple[str, ...]]:
        raise error

    with pytest.raises(type(error)):
        optimistic(connection, ["t:1:h"], decide)
    assert watches_nothing(r, connection)


def test_a_refused_command_is_raised_and_nothing_is_watched(r: redis.Redis, connection: Connection) -> None:
    r.set("s", "text")
    for reads, commands in (([("HGETALL", "s")], []), ([], [("HSET", "s", "a", "b")]), ([], [("HSET", "t:1:h")])):
        with pytest.raises(hiredis.ReplyError):
            optimistic(connection, ["t:1:h"], lambda _, commands=commands: commands, reads=reads)
        assert watches_nothing(r, connection)


@pytest.mark.parametrize("reopen", [True, False])
def test_a_lost_connection_is_opened_anew_only_on_demand(r: redis.Redis, connection: Connection, reopen: bool) -> None:
    r.client_kill_filter(_id=connection.call("CLIENT", "ID"))
    commands = [("HSET", "t:1:h", "ours", "1")]
    if reopen:
        assert optimistic(connection, ["t:1:h"], lambda _: commands, reopen=True)
        assert r.hgetall("t:1:h") == {"ours": "1"}
    else:
        with pytest.raises(ConnectionLost):
            optimistic(connection, ["t:1:h"], lambda _: commands)
        assert not r.exists("t:1:h")
