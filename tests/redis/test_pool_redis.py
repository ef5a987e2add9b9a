"""What becomes of the workers of a pool when Redis is away, or does not say what has changed: nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from pooled import pooled, wait_for
from runner import Runner
from servers import Own

from sandboxrun.redis.connection import Connection
from sandboxrun.redis.lease import Run, new_token
from sandboxrun.redis.watch import renew

WAITS = "import signal\nprint('there', flush=True)\nwhile True: signal.pause()\n"


@pytest.fixture
def server() -> Iterator[Own]:
    with Own("appendonly yes", "appendfsync always") as own:
        yield own


@pytest.fixture
def ask(server: Own, tmp_path: Path) -> Iterator[redis.Redis]:
    folder = tmp_path / "waits"
    folder.mkdir()
    (folder / "worker.py").write_text(WAITS)
    with redis.Redis.from_url(server.url, decode_responses=True, socket_timeout=30) as client:
        client.hset("waits:h", mapping={"url": str(folder), "version": "local"})
        yield client


def _users(ask: redis.Redis) -> Callable[[], bool]:
    return lambda: sum(user.startswith("sandboxrun:") for user in ask.acl_users()) == 2


def test_a_server_that_is_started_anew_ends_no_worker_and_watches_them_again(
    server: Own, ask: redis.Redis, run: Runner
) -> None:
    with pooled(server.url, str(run.home)) as pool:
        one, two = pool.runs("waits"), pool.runs("waits", "2")
        wait_for(lambda: pool.pool.watch.tracks)
        server.kill()
        wait_for(lambda: not pool.pool.redis_is_up)
        server.start()
        wait_for(lambda: pool.pool.redis_is_up)
        assert pool.pool.watch.tracks and _users(ask)()
        assert (one.state, two.state) == ("running", "running")
        assert len([message for message in pool.messages if "the workers go on" in message]) == 1
        assert not pool.on.of(one, "redis") and not pool.on.of(two, "redis")

        for user in ask.acl_users():
            if user.startswith("sandboxrun:waits:1:"):
                ask.acl_deluser(user)
        wait_for(_users(ask), "the user that was removed")

        ask.hdel(one.key, "pid")
        ended = pool.on.end(one)
        assert ended.loss is not None and ended.loss.reason.startswith("field pid of waits:1:h was removed")
        assert two.state == "running"
        ask.hset("waits:2:h", "pidToken", "ab" * 16)
        assert pool.on.end(two).code == 73


def test_a_start_while_redis_is_away_ends_and_leaves_nothing(server: Own, ask: redis.Redis, run: Runner) -> None:
    with pooled(server.url, str(run.home)) as pool:
        pool.runs("waits")
        server.kill()
        assert pool.on.end(pool.start("waits", "3")).code == 75
        server.start()
        wait_for(lambda: pool.pool.redis_is_up)
        pool.runs("waits", "4")
        assert _users(ask)()
    assert ask.acl_users() == ["default"]


def test_leases_are_renewed_together_and_if_one_cannot_be_without_that_one(server: Own, ask: redis.Redis) -> None:
    runs = [Run(f"w:{number}:h", number, new_token()) for number in range(5)]
    for run_ in runs:
        ask.hset(run_.key, mapping={"pid": run_.pid, "pidToken": run_.token})
    ask.hset(runs[1].key, "pidToken", "of another")
    ask.delete(runs[2].key)
    ask.set(runs[3].key, "no hash")
    connection = Connection(server.url)
    connection.open()
    renew(connection, *runs)
    connection.close()
    renewed = [ask.type(run_.key) == "hash" and ask.hexists(run_.key, "pidSeen") for run_ in runs]
    assert renewed == [True, False, False, False, True]


def test_the_hash_that_they_stand_on_is_removed(server: Own, ask: redis.Redis, run: Runner) -> None:
    with pooled(server.url, str(run.home)) as pool:
        one, two = pool.runs("waits"), pool.runs("waits", "2")
        ask.delete("waits:h")
        for running in (one, two):
            ended = pool.on.end(running)
            assert ended.code == 66 and ended.reason.startswith("waits:h does not exist any more"), ended


def test_a_login_that_may_not_be_told_of_changes_is_asked_for_twice_a_second(
    server: Own, ask: redis.Redis, run: Runner
) -> None:
    ask.execute_command("ACL", "SETUSER", "operator", "on", ">secret", "~*", "&*", "+@all", "-client|tracking")
    with pooled(server.url.replace("//", "//operator:secret@"), str(run.home)) as pool:
        one, two = pool.runs("waits"), pool.runs("waits", "2")
        assert not pool.pool.watch.tracks
        ask.hdel(one.key, "pid")
        assert pool.on.end(one).loss is not None
        ask.hset(two.key, "pid", "x" * 100_000)
        ended = pool.on.end(two)
        assert ended.reason == "field pid of waits:2:h was changed to something long: ending the worker"
        assert pool.messages == []


def test_a_pid_that_is_too_long_ends_that_worker_alone(server: Own, ask: redis.Redis, run: Runner) -> None:
    with pooled(server.url, str(run.home)) as pool:
        one, two = pool.runs("waits"), pool.runs("waits", "2")
        ask.hset(one.key, "pid", "x" * 1_000_000)
        assert "something long" in pool.on.end(one).reason
        ask.publish("__redis__:invalidate", "y" * 3_000_000)
        ask.publish("__redis__:invalidate", "forged")
        ask.hset("other", "a", "b")
        wait_for(lambda: pool.pool.watch.tracks and pool.pool.redis_is_up)
        ask.hdel(two.key, "pid")
        assert pool.on.end(two).loss is not None
