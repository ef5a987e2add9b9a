"""sandboxrun ps: what runs, on this host by its processes, on others by the age of their lease."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from leases import lease
from runner import Runner

from sandboxrun.fleet import workers as fleet
from sandboxrun.redis.connection import Connection
from sandboxrun.redis.lease import this_host

Local = Callable[..., Path]
WAITS = "import time\nprint('ready', flush=True)\ntime.sleep(600)\n"


def shown(run: Runner, *args: str) -> dict[str, dict[str, Any]]:
    done = run("ps", "--json", *args)
    assert done.code == 0, done.err
    return {row["key"]: row for row in json.loads(done.out)}


def test_nothing_runs(run: Runner, r: redis.Redis) -> None:
    done = run("ps")
    assert done.code == 0
    assert done.out.startswith("no worker runs by redis://127.0.0.1:")
    assert run("ps", "t", "--here").out.startswith("no worker of type t runs by redis://")


def test_a_worker_of_this_host_is_looked_at(r: redis.Redis, run: Runner, local: Local) -> None:
    local(f"import time\nwhile time.process_time() < 0.1:  # the kernel counts in ticks of 0.01 s\n    pass\n{WAITS}")
    r.hset("t:2:h", mapping={"url": "/x", "version": "local"})
    with run.start("t", "1") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        found = shown(run)["t:1:h"]
        assert (found["state"], found["here"], found["version"]) == ("running", True, "local")
        assert (found["host"], found["pid"]) == (os.uname().nodename, int(r.hget("t:1:h", "pid")))
        assert found["memory"] > 1 << 20 and found["cpu"] > 0 and found["processes"] == 1
        assert abs(found["since"] - int(r.time()[0])) < 60
        r.hset("t:1:h", "version", "v9")
        lines = run("ps").out.splitlines()
        assert lines[0].split() == "TYPE ID HOST PID STATE SINCE MEMORY CPU VERSION PENDING".split()
        assert len(lines) == 2 and lines[1].startswith("t 1 ") and " local (next v9)" in lines[1]
        assert set(shown(run, "--all")) == {"t:1:h", "t:2:h"}
        process.kill()
        process.wait()
        done = run("ps")
        assert " stale " in done.out
        assert "hint: sandboxrun stop t 1\n" in done.err


def test_other_hosts_are_judged_by_their_lease(r: redis.Redis, run: Runner) -> None:
    r.hset("a:1:h", mapping=lease(r, age=3))
    r.hset("a:2:h", mapping=lease(r, age=60))
    r.hset("b:1:h", mapping={"pid": "4000000000"})
    r.hset("b:2:h", mapping={"pidHost": "elsewhere/1", "pidSeen": int(r.time()[0])})
    found = shown(run)
    assert {key: row["state"] for key, row in found.items()} == {
        "a:1:h": "running", "a:2:h": "stale", "b:1:h": "unknown", "b:2:h": "ending",
    }  # fmt: skip
    assert (found["a:1:h"]["host"], found["a:1:h"]["memory"]) == ("far", None)
    assert set(shown(run, "a")) == {"a:1:h", "a:2:h"}
    assert shown(run, "--here") == {}
    done = run("ps")
    assert "a 2 is stale: its host has not renewed the pid for 20 s" in done.err
    assert "b 1 has a pid that is no process of this host" in done.err
    assert "2 h" in done.out


def test_a_number_that_is_another_process_by_now_is_stale(r: redis.Redis, run: Runner) -> None:
    r.hset("t:1:h", mapping=lease(r, pid=os.getpid(), pidHost=this_host()))
    found = shown(run)["t:1:h"]
    assert (found["state"], found["here"], found["memory"]) == ("stale", True, None)


def test_what_it_has_begun_is_counted(r: redis.Redis, run: Runner) -> None:
    r.hset("t:1:h", mapping=lease(r, requestStream="t:own:x", consumerId="c"))
    r.hset("t:2:h", mapping=lease(r))
    r.xgroup_create("t:own:x", "worker", "0", mkstream=True)
    for _ in range(3):
        r.xadd("t:own:x", {"ref": "r"})
    r.xreadgroup("worker", "c", {"t:own:x": ">"}, count=2)
    found = shown(run)
    assert (found["t:1:h"]["pending"], found["t:2:h"]["pending"]) == (2, None)


def test_nothing_in_a_hash_drives_the_terminal_or_fills_our_memory(r: redis.Redis, run: Runner) -> None:
    evil = "\x1b[2J\u202e\n"
    r.hset("t:1:h", mapping=lease(r, pidName=evil, pidVersion=evil * 50, pid=evil, pidSince=evil, version=evil))
    r.hset("t:2:h", mapping=lease(r, pidVersion="x" * (20 << 20)))
    r.hset("t:3:h", mapping=lease(r))
    r.set("t:4:h", "no hash")
    r.hset("req:1:h", "ref", "1")
    r.hset("res:1:h", "ref", "1")
    done = run("ps")
    assert done.code == 0
    assert not set(done.out + done.err) & {"\x1b", "\u202e"}
    assert len(done.out.splitlines()) == 4
    assert {key: row["state"] for key, row in shown(run).items()} == {
        "t:1:h": "running", "t:2:h": "unreadable", "t:3:h": "running",
    }  # fmt: skip
    assert "t:2:h is no hash, or its fields are too long to be read" in done.err


def test_a_database_too_large_to_look_through_is_said(r: redis.Redis, redis_url: str) -> None:
    with r.pipeline() as pipe:
        for number in range(5000):
            pipe.set(f"k{number}", "")
        pipe.execute()
    r.hset("t:1:h", mapping=lease(r))
    r.hset("v:1:h", "url", "/x")
    r.acl_setuser("sandboxrun:u:1:0123456789abcdef:1.2.3", enabled=False)
    connection = Connection(redis_url, protocol=2)
    connection.open()
    try:
        found = fleet.find(connection, known=[("v", "1"), ("gone", "1")], seconds=0)
        assert "not all were looked at" in found.cut
        assert {("u", "1"), ("v", "1")} <= set(found.workers)
        assert ("gone", "1") not in found.workers  # nothing is left of it but the record of its run
        whole = fleet.find(connection, seconds=60)
        assert (whole.workers, whole.cut) == ([("t", "1"), ("u", "1"), ("v", "1")], "")
    finally:
        connection.close()
        r.acl_deluser("sandboxrun:u:1:0123456789abcdef:1.2.3")


@pytest.mark.parametrize("args", [("../x",), ("t", "1"), ("--redis", "nonsense://secret")])
def test_bad_arguments_are_one_line(run: Runner, r: redis.Redis, args: tuple[str, ...]) -> None:
    done = run("ps", *args)
    assert done.code in (64, 78)
    assert len(done.err.partition("\nhint: ")[0].splitlines()) == 1 and done.err.startswith("error: ")
    assert "secret" not in done.err
