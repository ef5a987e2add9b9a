"""Whoever can write the keys of one type stops no worker of another one, and not the agent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from agents import Agent, wait_for
from runner import Runner

WORKER = Path(__file__).parent / "workers" / "fleet.py"
MIB = "x" * 1024 * 1024


@pytest.fixture(scope="module")
def home(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Runner:
    folder = tmp_path_factory.mktemp("home")
    (folder / "script").mkdir()
    (folder / "script" / "worker.py").write_text(WORKER.read_text())
    return Runner(redis_url, folder)


@pytest.fixture(scope="module")
def agent(home: Runner) -> Iterator[Agent]:
    found = Agent(home, "t", "u", "--most", "25")
    wait_for(lambda: found.says("serving t, u "))
    yield found
    found.kill()


@pytest.fixture
def f(r: redis.Redis, home: Runner) -> redis.Redis:
    for type_ in "tu":
        r.hset(f"{type_}:h", mapping={"version": "local", "url": str(home.home / "script")})
    return r


def forge(r: redis.Redis, **fields: str) -> None:
    """A run that nobody has started."""
    r.hset("t:7:h", mapping={"pid": "1", "pidHost": "elsewhere", "pidStarted": "1", **fields})
    r.lpush("t:started:q", "7")


@pytest.mark.parametrize("seen", ["²", "9" * 5000, MIB])
def test_a_forged_lease_does_not_end_the_agent(f: redis.Redis, agent: Agent, seen: str) -> None:
    forge(f, pidSeen=seen, pidAgent="nobody")
    f.hset("t:8:h", "pidAgent", "nobody")
    f.lpush("t:started:q", "8")
    wait_for(lambda: f.hget("t:8:h", "pid") or agent.process.poll() is not None)  # what is looked at together
    assert agent.process.poll() is None


def test_what_cannot_be_read_of_one_type_costs_no_connection(f: redis.Redis, agent: Agent) -> None:
    f.hset("t:h", "count", MIB)
    wait_for(lambda: agent.says("a field count that is too long"))
    f.lpush("u:start:q", "1")
    wait_for(lambda: f.hget("u:1:h", "pid"))
    assert not agent.has_said("waits for Redis")


def test_an_end_that_cannot_be_noted_keeps_no_other_worker_waiting(f: redis.Redis, agent: Agent) -> None:
    f.lpush("t:start:q", "1")
    wait_for(lambda: f.hget("t:1:h", "pid"))
    f.lpush("u:start:q", "1")
    wait_for(lambda: f.hget("u:1:h", "pid"))
    pid = f.hget("u:1:h", "pid")
    f.delete("t:started:q")
    f.set("t:started:q", "no list")
    f.hdel("t:1:h", "pid")
    wait_for(lambda: agent.says("Redis refuses a command: WRONGTYPE"))
    f.hdel("u:1:h", "pid")
    wait_for(lambda: f.hget("u:1:h", "pid") not in (None, pid))
    assert not agent.has_said("waits for Redis")


@pytest.mark.parametrize("key", ["sandboxrun:agents", "sandboxrun:drain"])
def test_a_key_of_the_agents_that_is_no_hash_is_said_and_stops_nothing(f: redis.Redis, agent: Agent, key: str) -> None:
    f.delete(key)
    f.set(key, "no hash")
    wait_for(lambda: agent.says(f"{key} is no hash"))
    f.lpush("u:start:q", "1")
    wait_for(lambda: f.hget("u:1:h", "pid"))
    assert not agent.has_said("waits for Redis")


def test_an_agent_makes_room_among_what_others_have_left(f: redis.Redis, agent: Agent) -> None:
    f.hset("sandboxrun:agents", mapping={str(number): "x" * 1024 for number in range(1000)})
    if own := [name for name in f.hkeys("sandboxrun:agents") if len(name) == 32]:  # else it is not written yet
        f.hdel("sandboxrun:agents", *own)
    wait_for(lambda: f.hlen("sandboxrun:agents") == 1)
    assert agent.says("entries of agents that are gone from sandboxrun:agents")
