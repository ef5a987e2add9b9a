"""An agent runs the ids of its types' queues and keeps them running, beside tools, loops and other agents."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis
from agents import Agent, wait_for
from runner import Runner

from sandboxrun.redis.lease import PID_FIELDS

WORKER = Path(__file__).parent / "workers" / "fleet.py"
Starts = Callable[..., Agent]


@pytest.fixture(scope="module")
def home(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Runner:
    folder = tmp_path_factory.mktemp("home")
    for name in ("script", "data"):
        (folder / name).mkdir()
    (folder / "script" / "worker.py").write_text(WORKER.read_text())
    return Runner(redis_url, folder)


@pytest.fixture(scope="module")
def agent(home: Runner) -> Iterator[Agent]:
    """One agent of type t for the tests that need no other: the database is emptied around it, which ends its workers."""
    found = Agent(home, "t", "--most", "25")
    wait_for(lambda: found.says("serving t "))
    yield found
    found.kill()


@pytest.fixture
def starts(home: Runner) -> Iterator[Starts]:
    found: list[Agent] = []

    def start(*args: str) -> Agent:
        found.append(Agent(home, *args))
        return found[-1]

    yield start
    for each in found:
        each.kill()


@pytest.fixture
def f(r: redis.Redis, home: Runner) -> redis.Redis:
    """A database with the hash of a type, and of no worker."""
    for type_ in "tu":
        fields = {"url": home.home / "script", "allowRead": home.home / "data", "allowWrite": home.home / "data"}
        r.hset(f"{type_}:h", mapping={"version": "local", **{name: str(path) for name, path in fields.items()}})
    return r


def pids(r: redis.Redis, *ids: str, type_: str = "t") -> list[str | None]:
    return [r.hget(f"{type_}:{id_}:h", "pid") for id_ in ids]


def is_running(r: redis.Redis, id_: str, *others: str | None, type_: str = "t") -> bool:
    """Under a pid that is none of the others."""
    return r.hget(f"{type_}:{id_}:h", "pid") not in (None, *others)


def queues(r: redis.Redis, type_: str = "t") -> list[list[str]]:
    """Waiting, started and stopped ids, sorted."""
    return [sorted(r.lrange(f"{type_}:{name}:q", 0, -1)) for name in ("start", "started", "stopped")]


def lives(pid: str | None) -> bool:
    return os.path.exists(f"/proc/{pid}")


def test_an_id_that_is_pushed_by_hand_runs_and_is_restarted_by_removing_its_pid(
    f: redis.Redis, agent: Agent, home: Runner
) -> None:
    f.lpush("t:start:q", "one")
    wait_for(lambda: is_running(f, "one"))
    assert queues(f) == [[], ["one"], []]
    assert set(f.hkeys("t:one:h")) == {*PID_FIELDS, "pidAgent"}
    before = f.hget("t:one:h", "pid")
    f.hdel("t:one:h", "pid")
    wait_for(lambda: is_running(f, "one", before))
    assert not lives(before)
    assert (f.hget("t:one:h", "pidRestarts"), f.hget("t:one:h", "pidExit")) in (("1", "0"), ("1", "143"))
    assert "field pid of t:one:h was removed" in (f.hget("t:one:h", "pidReason") or "")
    assert json.loads(home("call", "t", "{}").out)["pid"] == int(f.hget("t:one:h", "pid") or 0)


def test_twenty_workers_of_one_hash_come_and_go_by_a_number(f: redis.Redis, agent: Agent, home: Runner) -> None:
    ids = [str(number) for number in range(1, 21)]
    wait_for(lambda: f.exists("sandboxrun:agents"))
    assert "agents on " in home("scale", "t", "20").out
    wait_for(lambda: all(pids(f, *ids)))
    assert queues(f) == [[], sorted(ids), []]
    gone = f.hget("t:20:h", "pid")
    f.hset("t:h", "count", "2")  # as a tool may
    wait_for(lambda: sum(bool(f.exists(f"t:{id_}:h")) for id_ in ids) == 2)
    assert queues(f) == [[], ["1", "2"], []]
    assert not lives(gone)
    assert home("scale", "t", "0").code == 0
    wait_for(lambda: not f.exists("t:1:h", "t:2:h"))
    assert "no worker of type t is known to" in home("ps", "t", "--all").out


def test_a_worker_that_dies_is_started_again_and_its_request_is_begun_at_once(
    f: redis.Redis, agent: Agent, home: Runner, tmp_path: Path
) -> None:
    f.hset("t:h", "takeoverMillis", 3_600_000)
    f.lpush("t:start:q", "a", "b")
    wait_for(lambda: all(pids(f, "a", "b")))
    hold, until = home.home / "data" / "held", home.home / "data" / "until"
    request = json.dumps({"hold": str(hold), "until": str(until)})
    with home.start("call", "t", request, "--timeout", "50") as call:
        wait_for(lambda: hold.exists() and bool(hold.read_text()))
        pid = hold.read_text().strip()
        id_ = "a" if pid == f.hget("t:a:h", "pid") else "b"
        os.kill(int(pid), signal.SIGKILL)
        wait_for(lambda: len(hold.read_text().split()) == 2)  # long before takeoverMillis
        until.touch()
        assert call.wait(30) == 0
    wait_for(lambda: is_running(f, id_, pid))
    assert (f.hget(f"t:{id_}:h", "pidExit"), f.hget(f"t:{id_}:h", "pidRestarts")) == ("137", "1")
    assert "SIGKILL" in (f.hget(f"t:{id_}:h", "pidReason") or "")
    assert agent.says(f"t {id_} has ended with signal SIGKILL; it is started again")


def test_what_keeps_ending_fails_and_says_so(f: redis.Redis, agent: Agent, home: Runner) -> None:
    (home.home / "script" / "ends.py").write_text("raise SystemExit(3)\n")
    f.hset("t:bad:h", "url", str(home.home / "script" / "ends.py"))
    f.lpush("t:start:q", "bad")
    wait_for(lambda: agent.says("t bad has ended with exit code 3; it fails, and is tried every 30 s"))
    assert (f.hget("t:bad:h", "pidRestarts"), f.hget("t:bad:h", "pidExit")) == ("5", "3")
    assert agent.says("t bad has ended with exit code 3; it is started again", 1)
    f.hset("t:bad:h", "url", str(home.home / "script"))
    assert home("start", "t", "bad").out.startswith("t bad is ordered\n")  # and is not waited for
    wait_for(lambda: is_running(f, "bad"))


def test_stop_lasts_until_start(f: redis.Redis, agent: Agent, home: Runner) -> None:
    home("scale", "t", "2")
    wait_for(lambda: all(pids(f, "1", "2")))
    before = f.hget("t:1:h", "pid")
    done = home("stop", "t", "1")
    assert (done.code, done.out.startswith(f"t 1 has ended (process {before})")) == (0, True), done
    assert queues(f) == [[], ["2"], ["1"]]
    assert f.hkeys("t:1:h") == ["pidStopped"]
    wait_for(lambda: "t 1 is stopped for " in home("health", "t", "1").out)
    assert ", 1 is stopped\n" in home("health").out
    assert home("stop", "t", "1").out == "t 1 does not run, and is not started until: sandboxrun start t 1\n"
    assert home("scale", "t", "2").out.startswith("t has count 2\n")
    assert home("start", "t").out.startswith("t 1 is ordered\n")
    wait_for(lambda: is_running(f, "1"))
    assert queues(f) == [[], ["1", "2"], []]
    assert home("start", "t", "1").out == "t 1 runs already\n"


def test_what_the_policy_refuses_waits_and_goes_on_after_the_approval(
    f: redis.Redis, agent: Agent, home: Runner
) -> None:
    f.lpush("t:start:q", "p")
    wait_for(lambda: is_running(f, "p"))
    f.hset("t:p:h", "allowNet", "a.example:443")
    f.hdel("t:p:h", "pid")
    wait_for(lambda: agent.says("it waits for a change of its hash, its approval or the policy"))
    wait_for(lambda: f.hget("t:p:h", "pidExit") == "77")
    assert queues(f) == [[], ["p"], []]
    assert home("approve", "t", "p").code == 0
    wait_for(lambda: is_running(f, "p"))
    f.hset("t:p:h", "allowNett", "x")
    f.hdel("t:p:h", "pid")
    wait_for(lambda: f.hget("t:p:h", "pidExit") == "78")
    f.hdel("t:p:h", "allowNett")
    wait_for(lambda: is_running(f, "p"))


def test_foreign_entries_end_nothing_and_are_said_once(f: redis.Redis, agent: Agent) -> None:
    f.lpush("t:start:q", "x y", "\x1b[2J", "9" * 1_000_000, "good")
    wait_for(lambda: is_running(f, "good"))
    assert f.llen("t:start:q") == 3
    f.lpush("t:start:q", "more")
    wait_for(lambda: is_running(f, "more"))
    assert sum("t:start:q has 3 entries that are no id" in line for line in agent.lines) == 1
    f.delete("t:start:q")
    f.set("t:start:q", "no list")
    wait_for(lambda: agent.says("t:start:q is no list"))
    f.delete("t:start:q")
    f.lpush("t:start:q", "last")
    wait_for(lambda: is_running(f, "last"))
    assert agent.process.poll() is None


def test_a_shell_loop_and_an_agent_share_the_queues(f: redis.Redis, starts: Starts, home: Runner) -> None:
    """The loop runs one worker at a time, so the agent takes whatever else there is."""
    url = urlsplit(home.env["REDIS_URL"])
    loop = subprocess.Popen(
        ["sh", str(Path(__file__).parent / "workers" / "loop.sh"), "u"],
        env={
            **home.env,
            "SANDBOXRUN": home.command()[0],
            "REDIS_PORT": str(url.port),
            "REDISCLI_AUTH": url.password or "",
        },
        cwd=home.home,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        f.lpush("u:start:q", "one")
        wait_for(lambda: is_running(f, "one", type_="u"))
        agent = starts("u")
        wait_for(lambda: agent.says("serving u "))
        f.lpush("u:start:q", "two")
        wait_for(lambda: is_running(f, "two", type_="u"))
        assert (f.hget("u:one:h", "pidAgent"), bool(f.hget("u:two:h", "pidAgent"))) == (None, True)
        assert queues(f, "u") == [[], ["one", "two"], []]
        before = pids(f, "one", "two", type_="u")
        f.hdel("u:one:h", "pid")  # the loop pushes it again, for itself or the agent
        f.hdel("u:two:h", "pid")
        wait_for(lambda: all(is_running(f, id_, *before, type_="u") for id_ in ("one", "two")))
        wait_for(lambda: queues(f, "u") == [[], ["one", "two"], []])
    finally:
        os.killpg(loop.pid, signal.SIGKILL)
        loop.wait(30)


def test_a_drained_agent_hands_over_to_another(f: redis.Redis, starts: Starts, home: Runner) -> None:
    first = starts("u")
    home("scale", "u", "3")
    wait_for(lambda: all(pids(f, "1", "2", "3", type_="u")))
    second = starts("u")
    wait_for(lambda: second.says("serving u "))
    wait_for(lambda: f.hlen("sandboxrun:agents") >= 2)
    before = pids(f, "1", "2", "3", type_="u")
    first.process.terminate()
    assert first.ends() == 0
    assert [line for line in first.lines if "drain" in line or "ending" in line] == [
        "sandboxrun: draining: signal SIGTERM; 3 workers end, and others may take them"
    ]
    wait_for(lambda: all(is_running(f, id_, *before, type_="u") for id_ in "123"))
    assert queues(f, "u") == [[], ["1", "2", "3"], []]
    assert not any(map(lives, before))
    done = home("drain", "--timeout", "50")
    assert (done.code, second.ends()) == (0, 0), done
    assert queues(f, "u") == [["1", "2", "3"], [], []]
    assert f.lrange("u:start:q", 0, -1)[-1] in "123"
    assert not f.exists("sandboxrun:drain")


def test_a_killed_agent_leaves_nothing_and_another_takes_over_at_once(
    f: redis.Redis, starts: Starts, home: Runner
) -> None:
    """And its requests are begun again at once, long before takeoverMillis."""
    f.hset("u:h", "takeoverMillis", 3_600_000)
    first = starts("u")
    home("scale", "u", "3")
    wait_for(lambda: all(pids(f, "1", "2", "3", type_="u")))
    before = pids(f, "1", "2", "3", type_="u")
    hold, until = home.home / "data" / "held-by-u", home.home / "data" / "until-u"
    f.xadd("u:req:x", {"ref": "r", "type": "u", "data": json.dumps({"hold": str(hold), "until": str(until)})})
    wait_for(lambda: hold.exists() and bool(hold.read_text()))
    first.kill()
    wait_for(lambda: not any(map(lives, before)))
    second = starts("u")
    wait_for(lambda: all(is_running(f, id_, *before, type_="u") for id_ in "123"))
    assert queues(f, "u") == [[], ["1", "2", "3"], []]
    wait_for(lambda: len(hold.read_text().split()) == 2)
    until.touch()
    wait_for(lambda: f.exists("res:r"))
    users = [user for user in f.acl_users() if user.startswith("sandboxrun:u:")]
    assert len(users) == 3
    second.process.terminate()
    assert second.ends() == 0
    assert not any(user.startswith("sandboxrun:u:") for user in f.acl_users())
    assert not list((home.home / ".cache/sandboxrun/scratch").glob("u*"))


def test_two_agents_share_and_keep_to_their_room(f: redis.Redis, starts: Starts) -> None:
    both = [starts("u", "--most", "3"), starts("u", "--most", "3")]
    wait_for(lambda: all(each.says("serving u ") for each in both))
    f.lpush("u:start:q", *range(8))
    wait_for(lambda: f.llen("u:started:q") == 6)
    wait_for(lambda: sum(bool(pid) for pid in pids(f, *map(str, range(8)), type_="u")) == 6)
    owners = [f.hget(f"u:{id_}:h", "pidAgent") for id_ in f.lrange("u:started:q", 0, -1)]
    assert sorted(owners.count(owner) for owner in set(owners)) == [3, 3]
    assert f.llen("u:start:q") == 2
