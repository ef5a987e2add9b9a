"""What an agent, and `sandboxrun info`, show of the streams of a type."""

from __future__ import annotations

import json

import redis
from agent_status import STATUS
from runner import Runner

from sandboxrun.fleet.backlog import Backlog, backlog
from sandboxrun.fleet.status import as_json
from sandboxrun.host.statuses import StatusSocket
from sandboxrun.redis.connection import Connection

SECONDS = 60


def connected(url: str) -> Connection:
    connection = Connection(url, protocol=2)
    connection.open()
    return connection


def test_figures_of_a_stream(r: redis.Redis, redis_url: str) -> None:
    connection = connected(redis_url)
    assert backlog(connection, "greeter") == Backlog(dead=0)
    r.xgroup_create("greeter:req:x", "worker", "0", mkstream=True)
    assert backlog(connection, "greeter") == Backlog(lag=0, pending=0, dead=0)
    now = r.time()[0] * 1000
    for seconds in (90, 60, 30):
        r.xadd("greeter:req:x", {"ref": "r"}, id=f"{now - seconds * 1000}-0")
    r.xreadgroup("worker", "1", {"greeter:req:x": ">"}, count=1)
    r.xadd("greeter:dead:x", {"ref": "r"})
    found = backlog(connection, "greeter")
    assert (found.lag, found.pending, found.dead) == (2, 1, 1)
    assert found.oldest_handling is not None and found.oldest_waiting is not None
    assert 0 <= found.oldest_handling - 90 < SECONDS and 0 <= found.oldest_waiting - 60 < SECONDS
    connection.close()


def test_hostile_streams_have_no_figures(r: redis.Redis, redis_url: str) -> None:
    connection = connected(redis_url)
    r.set("a:req:x", "no stream")
    r.set("a:dead:x", "x")
    r.xgroup_create("b:req:x", "worker", "0", mkstream=True)
    r.xadd("b:req:x", {"data": "x" * (20 << 20)})
    r.xadd("c:req:x", {"ref": "r"}, id="18446744073709551615-1")
    r.xgroup_create("c:req:x", "worker", "0")
    r.xgroup_create("d:req:x", "other", "0", mkstream=True)
    found = {type_: backlog(connection, type_) for type_ in "abcd"}
    assert found["a"] == Backlog()
    assert (found["b"].lag, found["b"].oldest_waiting) == (1, None)
    assert found["c"].oldest_waiting is None
    assert found["d"] == Backlog(dead=0)
    connection.close()


def test_info_says_how_old_a_request_in_hand_is_and_what_workers_here_answered(r: redis.Redis, run: Runner) -> None:
    """An endless handler renews its claim, so that the idle time of its entry says nothing."""
    now = r.time()[0] * 1000
    r.xgroup_create("greeter:req:x", "worker", "0", mkstream=True)
    r.xadd("greeter:req:x", {"ref": "r"}, id=f"{now - 90_000}-0")
    r.xreadgroup("worker", "1", {"greeter:req:x": ">"})
    socket_ = StatusSocket(str(run.home / ".local/state/sandboxrun/agent"), lambda: as_json(STATUS))
    found = json.loads(run("info", "greeter", "--json").out)
    assert found["pending"][0]["idle"] < 60_000 and 90_000 <= found["pending"][0]["age"] < 90_000 + SECONDS * 1000
    (worker,) = found["workers"]
    assert (worker["id"], worker["codes"]) == ("1", {"200": 10, "500": 2}) and worker["handling"] > 0
    lines = run("info", "greeter").out.splitlines()
    assert any(
        line.startswith("  worker 1 is running, has handled 12 (10 with 200, 2 with 500), p50 ") for line in lines
    )
    assert any(" sent " in line and " ago, with 1 for " in line for line in lines)
    socket_.close()
