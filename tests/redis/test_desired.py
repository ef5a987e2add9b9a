"""Which workers shall run: the queues of ids and the count, by themselves, also against others and with foreign entries."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

import pytest
import redis
from leases import lease

from sandboxrun.errors import ConfigError
from sandboxrun.fleet import agents, count, desired
from sandboxrun.fleet.agents import Agent
from sandboxrun.fleet.backlog import Backlog, backlog
from sandboxrun.fleet.orphans import Orphans
from sandboxrun.fleet.queues import read_queue
from sandboxrun.protocol import HANDED_BACK_MILLIS
from sandboxrun.redis.connection import Connection
from sandboxrun.redis.lease import AHEAD_SECONDS, LEASE_SECONDS, start_time, this_host


@contextlib.contextmanager
def opened(url: str) -> Iterator[Connection]:
    connection = Connection(url, protocol=2)
    connection.open()
    try:
        yield connection
    finally:
        connection.close()


@pytest.fixture
def c(r: redis.Redis, redis_url: str) -> Iterator[Connection]:
    with opened(redis_url) as connection:
        yield connection


def queues(r: redis.Redis) -> tuple[list[str], list[str], list[str]]:
    """Waiting, started and stopped ids."""
    return r.lrange("t:start:q", 0, -1), r.lrange("t:started:q", 0, -1), r.lrange("t:stopped:q", 0, -1)


def agent(c: Connection, token: str, *, pid: int = 0, age: int = 0, host: str = "") -> None:
    """An agent's entry; of this process unless said otherwise."""
    now = int(c.call("TIME")[0]) - age
    pid = pid or os.getpid()
    agents.write(
        c, Agent(token, "host", host or this_host(), pid, start_time(pid) or 0, now, now, ("t",), 0, 9, draining=False)
    )


def test_ids_are_taken_in_the_order_in_which_they_were_pushed(r: redis.Redis, c: Connection) -> None:
    r.lpush("t:start:q", "a", "b", "c")
    assert desired.take(c, "t", "me", 2).ids == ("a", "b")
    assert queues(r) == (["c"], ["b", "a"], [])
    assert r.hgetall("t:a:h") == {"pidAgent": "me"}
    assert desired.take(c, "t", "me", 2).ids == ("c",)
    assert desired.take(c, "t", "me", 2).ids == ()


def test_what_is_handed_back_is_taken_next_and_in_its_order(r: redis.Redis, c: Connection) -> None:
    r.lpush("t:start:q", "a", "b", "c")
    desired.take(c, "t", "me", 2)
    assert desired.give_back(c, "t", ["a", "b", "z"], "me") == ("a", "b")
    assert queues(r) == (["c", "b", "a"], [], [])
    assert not r.exists("t:a:h")


def test_another_agents_id_is_not_handed_back(r: redis.Redis, c: Connection) -> None:
    r.lpush("t:start:q", "a")
    desired.take(c, "t", "other", 1)
    assert desired.give_back(c, "t", ["a"], "me") == ()
    assert queues(r) == ([], ["a"], [])
    assert desired.lost(c, "t", ["a"], "me", idle=["a"]) == {"a"}
    assert desired.lost(c, "t", ["a"], "other", idle=["a"]) == set()
    assert desired.lost(c, "t", ["a", "z"], "me") == {"z"}


def test_an_id_that_was_pushed_twice_is_taken_once(r: redis.Redis, c: Connection) -> None:
    r.lpush("t:start:q", "a", "a", "b", "a")
    assert desired.take(c, "t", "me", 5).ids == ("a", "b")
    assert queues(r) == ([], ["b", "a"], [])


def test_an_id_in_both_queues_is_not_taken_a_second_time(r: redis.Redis, c: Connection) -> None:
    r.lpush("t:start:q", "a")
    r.lpush("t:started:q", "a")
    taken = desired.take(c, "t", "me", 5)
    assert (taken.ids, taken.again) == ((), ("a",))
    assert queues(r) == ([], ["a"], [])


def test_two_agents_at_once_share_without_taking_one_twice(r: redis.Redis, redis_url: str) -> None:
    r.lpush("t:start:q", *range(100))
    found: dict[str, list[str]] = {"one": [], "two": []}

    def work(name: str) -> None:
        with opened(redis_url) as c:
            while r.llen("t:start:q"):
                found[name] += desired.take(c, "t", name, 3).ids

    threads = [threading.Thread(target=work, args=(name,)) for name in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(found["one"] + found["two"], key=int) == [str(n) for n in range(100)]
    assert all(r.hget(f"t:{id_}:h", "pidAgent") == name for name, ids in found.items() for id_ in ids)


def test_foreign_entries_are_left_alone_and_said(r: redis.Redis, c: Connection) -> None:
    foreign = ["x y", "", "\x1b[2J", "a:b", "9" * 1_000_000, "../..", "ä"]
    r.lpush("t:start:q", "a", *foreign, "b", *foreign)
    taken = desired.take(c, "t", "me", 5)
    assert taken.ids == ("a", "b")
    assert taken.fault == "t:start:q has 14 entries that are no id, which are left alone"
    assert r.llen("t:start:q") == 14
    assert desired.take(c, "t", "me", 5).ids == ()


def test_a_queue_of_long_foreign_entries_is_given_up(r: redis.Redis, c: Connection) -> None:
    r.lpush("t:start:q", "a", *(["9" * 300_000] * 40))
    found = read_queue(c, "t:start:q")
    assert found.ids == ("a",)
    r.rpush("t:start:q", *(["9" * 300_000] * 40))
    found = read_queue(c, "t:start:q")
    assert found.ids == ()
    assert "very long: the rest is left alone" in found.fault


def test_a_queue_of_another_type_is_an_error_and_loses_no_id(r: redis.Redis, c: Connection) -> None:
    r.lpush("t:start:q", "a")
    r.set("t:started:q", "no list")
    with pytest.raises(ConfigError, match="t:started:q is no list"):
        desired.take(c, "t", "me", 1)
    assert r.lrange("t:start:q", 0, -1) == ["a"]
    r.delete("t:started:q", "t:start:q")
    r.hset("t:start:q", "a", "b")
    assert "t:start:q is no list" in desired.take(c, "t", "me", 1).fault


def test_a_worker_whose_key_is_no_hash_is_taken_all_the_same(r: redis.Redis, c: Connection) -> None:
    r.set("t:a:h", "no hash")
    r.lpush("t:start:q", "a")
    assert desired.take(c, "t", "me", 1).ids == ("a",)
    assert r.get("t:a:h") == "no hash"


def test_a_count_makes_the_lowest_ids_that_are_free(r: redis.Redis, c: Connection) -> None:
    r.lpush("t:started:q", "2", "blue")
    assert count.scale(c, "t", 5).added == ("1", "3", "4")
    assert queues(r) == (["4", "3", "1"], ["blue", "2"], [])
    assert r.hgetall("t:h") == {"count": "5"}
    assert count.reconcile(c, "t") == count.Reconciled(5)


def test_too_many_are_removed_those_that_wait_first(r: redis.Redis, c: Connection) -> None:
    r.lpush("t:start:q", "1", "11")
    r.lpush("t:started:q", "9", "10", "blue", "2")
    r.lpush("t:stopped:q", "3")
    r.hset("t:3:h", mapping={"pidStopped": "1", "pidExit": "1"})
    r.hset("t:h", "count", "6")
    assert count.reconcile(c, "t").removed == ("11",)
    r.hset("t:h", "workerCount", "6")
    assert count.scale(c, "t", 2).removed == ("1", "3", "10", "9")
    assert r.hgetall("t:h") == {"count": "2", "workerCount": "2"}
    assert queues(r) == ([], ["2", "blue"], [])
    assert not r.exists("t:3:h")
    assert count.scale(c, "t", 0).removed == ("2", "blue")


def test_both_counts_must_say_the_same(r: redis.Redis, c: Connection) -> None:
    r.hset("t:h", mapping={"workerCount": "3"})
    assert count.reconcile(c, "t").count == 3
    r.hset("t:h", mapping={"count": "4"})
    with pytest.raises(ConfigError, match="has count 4 and workerCount 3") as error:
        count.reconcile(c, "t")
    assert error.value.hint == ("sandboxrun scale t 4",)
    for wrong in ("-1", "many", "1e3", "5001", "9" * 100):
        r.hset("t:h", mapping={"count": wrong, "workerCount": wrong})
        with pytest.raises(ConfigError, match="expected a number from 0 to 5000"):
            count.reconcile(c, "t")
    assert queues(r)[0] == ["3", "2", "1"]


def test_what_is_stopped_stays_so_until_it_is_ordered_and_counts(r: redis.Redis, c: Connection) -> None:
    count.scale(c, "t", 2)
    desired.take(c, "t", "me", 5)
    r.hset("t:2:h", mapping=lease(r))
    assert desired.keep_stopped(c, "t", "2")
    assert queues(r) == ([], ["1"], ["2"])
    assert not r.hexists("t:2:h", "pid") and r.hexists("t:2:h", "pidStopped")
    assert count.reconcile(c, "t") == count.Reconciled(2)
    assert desired.ended(c, "t", "2", "me", code=143, reason="", counts=False) is False
    assert desired.stopped(c, "t") == ("2",)
    assert desired.start(c, "t", ["2"]).ordered == ("2",)
    assert queues(r) == (["2"], ["1"], [])
    assert not r.hexists("t:2:h", "pidStopped")
    assert not desired.keep_stopped(c, "t", "7")


def test_an_id_that_is_pushed_by_hand_is_stopped_no_more(r: redis.Redis, c: Connection) -> None:
    count.scale(c, "t", 1)
    desired.keep_stopped(c, "t", "1")
    r.lpush("t:start:q", "1")
    assert desired.take(c, "t", "me", 1).ids == ("1",)
    assert queues(r) == ([], ["1"], [])
    assert r.hgetall("t:1:h") == {"pidAgent": "me"}


def test_an_order_leaves_running_ones_alone_and_raises_the_count(r: redis.Redis, c: Connection) -> None:
    count.scale(c, "t", 2)
    desired.take(c, "t", "me", 2)
    r.hset("t:1:h", mapping=lease(r))
    done = desired.start(c, "t", ["1", "2", "new"])
    assert done == desired.Ordered(("2", "new"), ("1",))
    assert queues(r) == (["new", "2"], ["1"], [])
    assert r.hget("t:h", "count") == "3"
    assert count.reconcile(c, "t").removed == ()


def test_how_a_run_ended_is_noted_unless_the_id_is_anothers(r: redis.Redis, c: Connection) -> None:
    r.lpush("t:start:q", "a")
    desired.take(c, "t", "me", 1)
    assert desired.ended(c, "t", "a", "me", code=1, reason="x" * 1000, counts=True)
    assert desired.ended(c, "t", "a", "me", code=2, reason="y", counts=True)
    assert r.hgetall("t:a:h") == {"pidAgent": "me", "pidExit": "2", "pidReason": "y", "pidRestarts": "2"}
    r.hset("t:a:h", mapping={"pidAgent": "other", "pidRestarts": "lots"})
    assert not desired.ended(c, "t", "a", "me", code=3, reason="", counts=True)
    assert desired.ended(c, "t", "a", "other", code=3, reason="", counts=True)
    assert r.hget("t:a:h", "pidRestarts") == "1"
    r.delete("t:started:q")
    desired.done(c, "t", "a", "me")
    assert r.hget("t:a:h", "pidAgent") == "other"
    desired.done(c, "t", "a", "other")
    assert not r.exists("t:a:h")


def test_ids_of_agents_that_are_gone_are_moved_back(r: redis.Redis, c: Connection) -> None:
    r.lpush("t:start:q", "waits")
    agent(c, "living")
    agent(c, "dead", pid=4_000_000)
    agent(c, "far", host="elsewhere/1")
    agent(c, "silent", host="elsewhere/1", age=LEASE_SECONDS + 1)
    agent(c, "ahead", host="elsewhere/1", age=-1_000_000)
    r.hset("sandboxrun:agents", mapping={"broken": "{", "odd": "[]", "deep": "[" * 50_000})
    for token in ("living", "dead", "far", "silent", "ahead", "unknown", "broken"):
        r.lpush("t:started:q", token)
        r.hset(f"t:{token}:h", "pidAgent", token)
    r.lpush("t:started:q", "runs", "forged", "original", "mine")
    r.hset("t:runs:h", mapping={**lease(r, age=-AHEAD_SECONDS // 2), "pidAgent": "unknown"})
    r.hset("t:forged:h", mapping={**lease(r, age=-1_000_000), "pidAgent": "unknown"})
    r.hset("t:original:h", "pid", "4000000000")
    known, clock = agents.read(c)
    orphans = Orphans("t")
    moved = orphans.move(c, mine={"mine"}, known=known, clock=clock)
    assert sorted(moved) == ["ahead", "broken", "dead", "forged", "silent", "unknown"]
    assert r.lrange("t:start:q", 0, -1)[0] == "waits"
    assert sorted(queues(r)[1]) == ["far", "living", "mine", "original", "runs"]
    assert orphans.move(c, mine={"mine"}, known=known, clock=clock) == ()
    r.lpush("t:started:q", "unknown")
    r.hset("t:unknown:h", "pidAgent", "unknown")
    r.rename("sandboxrun:agents", "agents")
    r.set("sandboxrun:agents", "who lives, nobody knows now")
    assert orphans.move(c, mine={"mine"}, known=known, clock=clock) == ()
    r.rename("agents", "sandboxrun:agents")
    agents.remove_dead(c, known, clock)
    assert sorted(r.hkeys("sandboxrun:agents")) == ["broken", "deep", "far", "living", "odd"]


def test_what_thousands_of_agents_have_left_is_removed(r: redis.Redis, c: Connection) -> None:
    """The hash is too large to be read whole, so that nobody knew any agent."""
    agent(c, "living")
    agent(c, "dead", pid=4_000_000)
    left = r.hget("sandboxrun:agents", "dead")
    r.hset("sandboxrun:agents", mapping={f"dead{number}": left for number in range(3000)})
    r.hset("sandboxrun:agents", mapping={"long": "x" * (2 << 20), "\x1b[2J": "{", "y" * 100_000: "1"})
    assert agents.read(c)[0] == {}
    for _ in range(100):  # each time takes a part of a second at most
        with contextlib.suppress(ConfigError):
            if not agents.clean(c):
                break
    assert list(agents.read(c)[0]) == r.hkeys("sandboxrun:agents") == ["living"]


def test_entries_that_look_alive_are_left_and_said(r: redis.Redis, c: Connection) -> None:
    agent(c, "far", host="elsewhere/1")
    entry = r.hget("sandboxrun:agents", "far")
    r.hset("sandboxrun:agents", mapping={f"far{number}": entry for number in range(4000)})
    with pytest.raises(ConfigError, match="more than 512 KiB, so agents cannot see each other") as caught:
        agents.clean(c)
    assert caught.value.hint == ('redis-cli -u "$REDIS_URL" DEL sandboxrun:agents',)
    assert agents.read(c)[0] == {}


def test_an_id_that_no_agent_had_is_moved_once_a_loop_must_have_started_it(r: redis.Redis, c: Connection) -> None:
    r.lpush("t:started:q", "a")
    agent(c, "looks")
    orphans = Orphans("t")
    known, clock = agents.read(c)
    assert orphans.move(c, mine=(), known=known, clock=clock) == ()
    orphans._since["a"] -= LEASE_SECONDS  # which is not waited for here
    r.hset("t:a:h", "pid", str(os.getpid()))  # a loop's worker, on whatever host
    assert orphans.move(c, mine=(), known=known, clock=clock) == ()
    r.hdel("t:a:h", "pid")
    assert orphans.move(c, mine=(), known=known, clock=clock) == ()
    orphans._since["a"] -= LEASE_SECONDS
    assert orphans.move(c, mine=(), known=known, clock=clock) == ("a",)
    assert queues(r) == (["a"], [], [])


@pytest.mark.parametrize(
    ("here", "fields", "handed"),
    [
        (True, {}, True),
        (True, {"requestStream": "t:other:x"}, True),
        (True, {"requestStream": "victim:req:x"}, False),
        (True, {"consumerId": "another"}, False),
        (False, {}, False),  # it may still handle the request: takeoverMillis decides
    ],
)
def test_requests_of_a_killed_agents_workers_are_handed_back(
    r: redis.Redis, c: Connection, here: bool, fields: dict[str, str], handed: bool
) -> None:
    agent(c, "looks")
    stream = fields.get("requestStream", "t:req:x")
    r.xgroup_create(stream, "worker", "0", mkstream=True)
    r.xadd(stream, {"ref": "r"})
    r.xreadgroup("worker", "1", {stream: ">"}, count=1)
    r.lpush("t:started:q", "1")
    held = {**lease(r, age=LEASE_SECONDS + 1), "pid": "4000000", "pidAgent": "gone"}
    r.hset("t:1:h", mapping={**held, **({"pidHost": this_host()} if here else {}), **fields})
    known, clock = agents.read(c)
    assert Orphans("t").move(c, mine=(), known=known, clock=clock) == ("1",)
    idle = r.xpending_range(stream, "worker", "-", "+", 10)[0]["time_since_delivered"]
    assert (idle >= HANDED_BACK_MILLIS) is handed


def test_what_waits_is_counted_and_has_an_age(r: redis.Redis, c: Connection) -> None:
    assert backlog(c, "t") == Backlog(dead=0)
    r.xgroup_create("t:req:x", "worker", "0", mkstream=True)
    for age in (50_000, 40_000, 30_000):
        r.xadd("t:req:x", {"data": "x" * 2_000_000}, id=f"{int(float(r.time()[0]) * 1000) - age}-0")
    r.xreadgroup("worker", "1", {"t:req:x": ">"}, count=1)
    r.xadd("t:dead:x", {"ref": "r"})
    found = backlog(c, "t")
    assert (found.lag, found.pending, found.dead) == (2, 1, 1)
    assert 45 < (found.oldest_handling or 0) < 80
    assert found.oldest_waiting is None  # too large to be read
    r.xtrim("t:req:x", maxlen=0)
    r.xadd("t:req:x", {"data": "x"})
    assert 0 <= (backlog(c, "t").oldest_waiting or 0) < 30


def test_what_waits_is_that_of_the_streams_that_are_read(r: redis.Redis, c: Connection) -> None:
    for name, entries in (("t:req:x", 1), ("t:more:x", 2), ("t:most:x", 4)):
        r.xgroup_create(name, "worker", "0", mkstream=True)
        for _ in range(entries):
            r.xadd(name, {"ref": "r"})
    r.xreadgroup("worker", "1", {"t:most:x": ">"}, count=1)
    assert backlog(c, "t").lag == 1
    assert (backlog(c, "t", ["t:more:x", "t:most:x"]).lag, backlog(c, "t", ["t:most:x"]).pending) == (5, 1)
    r.hset("t:h", "requestStream", "t:more:x")
    assert backlog(c, "t").lag == 2
    r.hset("t:h", "requestStream", "t:h")
    assert backlog(c, "t") == Backlog(dead=0)
