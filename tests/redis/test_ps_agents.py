"""sandboxrun ps of agents, and of workers that an agent has and that do not run."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
import redis
from agent_status import WORKER, with_workers
from runner import Runner

from sandboxrun.fleet import agents
from sandboxrun.fleet import workers as fleet
from sandboxrun.fleet.status import as_json
from sandboxrun.host.statuses import StatusSocket
from sandboxrun.records import replace
from sandboxrun.redis.connection import Connection
from sandboxrun.redis.lease import start_time, this_host


def agent(r: redis.Redis, token: str = "a1", **changes: Any) -> None:
    """This process as an agent, in the hash of agents."""
    now = int(r.time()[0])
    entry = {
        "name": "web-1", "host": this_host(), "pid": os.getpid(), "started": start_time(os.getpid()), "since": now, "seen": now,
        "types": ["bot"], "workers": 2, "most": 200, "draining": False,
    }  # fmt: skip
    r.hset(agents.AGENTS, token, json.dumps(entry | changes))


def waiting(r: redis.Redis, id_: str, **changes: Any) -> None:
    r.rpush("bot:started:q", id_)
    fields = {"pidAgent": "a1", "pidExit": 1, "pidReason": "KeyError: 'chat_id'", "pidRestarts": 2}
    r.hset(f"bot:{id_}:h", mapping=fields | changes)


def test_workers_that_wait_or_fail_are_shown_with_their_reason(r: redis.Redis, run: Runner) -> None:
    agent(r)
    waiting(r, "1")
    waiting(r, "2", pidRestarts=7)
    r.rpush("bot:stopped:q", "3")
    r.hset("bot:3:h", mapping={"pidStopped": int(r.time()[0]), "pidExit": 0, "pidReason": ""})
    done = run("ps")
    assert done.code == 0, done
    head, *lines = done.out.splitlines()
    assert head.endswith("RESTARTS  LAST END")
    assert [line.split()[:3] for line in lines[:2]] == [["bot", "1", "waiting"], ["bot", "2", "failing"]]
    assert lines[1].endswith("7         KeyError: 'chat_id'")
    assert lines[2:] == [f"agent web-1 (process {os.getpid()}): 2 of at most 200 workers of bot"]
    rows = {row["id"]: row for row in json.loads(run("ps", "--all", "--json").out)}
    assert (rows["1"]["state"], rows["1"]["agent"], rows["1"]["last_exit"]) == ("waiting", "a1", 1)
    assert rows["3"]["state"] == "stopped" and rows["3"]["stopped"] and rows["3"]["last_end"] == "exit code 0"
    assert [row["id"] for row in json.loads(run("ps", "--here", "--json").out)] == ["1", "2"]


def test_a_stuck_worker_is_stuck_wherever_it_is_shown(r: redis.Redis, run: Runner) -> None:
    """Also to ps, which learns it from the agent of this host; a worker with another pid is another Redis's."""
    pid = os.getpid()
    held = {"pid": pid, "pidHost": this_host(), "pidStarted": start_time(pid)}
    for id_ in "12":
        r.hset(f"bot:{id_}:h", mapping={**held, "pidAgent": "a1"})
    stuck = replace(WORKER, type="bot", state="stuck", pid=pid)
    status = as_json(with_workers(stuck, replace(stuck, id="2", pid=pid + 1)))
    said = StatusSocket(str(run.home / ".local/state/sandboxrun/agent"), lambda: status)
    try:
        assert {row["id"]: row["state"] for row in json.loads(run("ps", "--json").out)} == {
            "1": "stuck",
            "2": "running",
        }
        r.xgroup_create("bot:req:x", "worker", "0", mkstream=True)
        assert "worker 1 is stuck" in run("info", "bot").out
    finally:
        said.close()


def test_agents_that_are_gone_or_drain_are_told_apart(r: redis.Redis, run: Runner) -> None:
    now = int(r.time()[0])
    agent(r, "a1", draining=True)
    agent(r, "a2", name="\x1b[2J\u202e", host="elsewhere/1", seen=now - 120)
    agent(r, "a3", name="web-3", host="elsewhere/2", types=[f"t{n}" for n in range(50)])
    r.hset(agents.AGENTS, "a4", "no JSON")
    out = run("ps").out
    assert f"agent web-1 (process {os.getpid()}): draining, 2 workers left\n" in out
    assert "agent \\x1b[2J\\u202e (process" in out and "gone: not seen for 2 min" in out
    assert "t6, t7 …\n" in out and "a4" not in out


@pytest.mark.parametrize("count", [0, 1])
def test_a_large_database_is_not_scanned_if_agents_name_the_workers(
    r: redis.Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr(fleet, "SCAN_KEYS_MAX", 5)
    for number in range(8):
        r.set(f"k{number}", "")
    r.hset("lost:1:h", "url", "/x")
    waiting(r, "1")
    for _ in range(count):
        agent(r)
    connection = Connection(redis_url, protocol=2)
    connection.open()
    before = r.info("commandstats").get("cmdstat_scan", {"calls": 0})["calls"]
    found = fleet.find(connection)
    scanned = r.info("commandstats").get("cmdstat_scan", {"calls": 0})["calls"] - before
    assert bool(scanned) is not bool(count)
    assert ("bot", "1") in found.workers and (("lost", "1") in found.workers) is not bool(count)
    assert (found.cut == fleet.NOT_SCANNED) is bool(count)
    assert ("lost", "1") in fleet.find(connection, everything=True).workers
    connection.close()


def test_hostile_queues_fill_no_memory_and_no_terminal(r: redis.Redis, run: Runner) -> None:
    agent(r, types=["bot", "b:d", "\x00", "x" * 500])
    r.rpush("bot:started:q", "\x1b[2J", "x" * (4 << 20), "..", "1")
    r.hset(
        "bot:1:h",
        mapping={"pidAgent": "a1", "pidReason": "\x1b[2J\u202e" * 50, "pidRestarts": "9" * 50, "pidExit": "x"},
    )
    done = run("ps")
    assert done.code == 0 and not set(done.out + done.err) & {"\x1b", "\u202e"}
    assert "bot 1" in done.out and "waiting" in done.out


def test_doctor_says_what_agents_leave_undone(r: redis.Redis, run: Runner) -> None:
    def said() -> dict[str, tuple[str, ...]]:
        findings = json.loads(run("doctor", "--json").out)["findings"]
        return {each["text"]: tuple(each["hint"]) for each in findings if each["area"] == "agents"}

    assert said() == {}
    agent(r)
    assert said() == {"1 agent on 1 host, and no worker waits for one": ()}
    agent(r, "a2", name="web-2", host="elsewhere/1", seen=int(r.time()[0]) - 120)
    r.rpush("bot:start:q", "8", "9")
    r.rpush("chat:start:q", "1")
    r.hset("chat:1:h", "url", "/x")
    found = said()
    assert found.pop("1 worker of chat waits, and no agent runs workers of this type") == ("sandboxrun agent chat",)
    assert sorted(text.partition(": ")[0] for text in found) == [
        "2 workers of bot wait for an agent with room", f"the agent on web-2 (process {os.getpid()}) is gone",
    ]  # fmt: skip
