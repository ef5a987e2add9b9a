"""sandboxrun doctor: every trouble is named with what helps, and no secret is shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import redis
from leases import lease
from runner import Done, Runner
from servers import Own

from sandboxrun.redis.address import parse_url


@pytest.fixture
def healthy(run: Runner, r: redis.Redis) -> Runner:
    run.set_policy(None)
    return run


def findings(done: Done) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(done.out)["findings"]
    assert json.loads(done.out)["ok"] == (done.code == 0) == all(each["level"] != "FAILS" for each in found)
    assert all(isinstance(each["hint"], list) for each in found)
    return found


def texts(done: Done, level: str) -> str:
    return "\n".join(
        f"{each['area']}: {each['text']} → {' '.join(each['hint'])}"
        for each in findings(done)
        if each["level"] == level
    )


def test_all_is_well(healthy: Runner, redis_url: str) -> None:
    done = healthy("doctor")
    assert done.code == 0, done.out
    assert done.out.splitlines()[0] == "kernel"
    for part in ("the sandbox holds, ", "and make users for workers", "nothing can be written without a password",
                 "the first start makes it", "so the default policy applies", "libseccomp 2.", "0 of 0 run"):  # fmt: skip
        assert part in done.out
    assert done.out.splitlines()[-1].startswith("Workers can run here")
    password = parse_url(redis_url).password
    assert len(password) > 8 and password not in done.out + done.err
    assert findings(healthy("doctor", "--json"))
    with redis.Redis.from_url(redis_url) as client:
        assert not [name for name in client.acl_users() if "doctor" in str(name)]


def test_redis_that_is_away_is_one_finding_among_others(healthy: Runner) -> None:
    done = healthy("doctor", "--json", "--redis", "redis://me:s3cret@127.0.0.1:1")
    assert done.code == 71
    assert "redis: Redis at redis://127.0.0.1:1 cannot be reached" in texts(done, "FAILS")
    assert "versions" in {each["area"] for each in findings(done)}
    assert "s3cret" not in done.out + done.err
    assert "is not valid" in healthy("doctor", "--json", "--redis", "redis://:s3cret@host:nonsense").out


def test_a_server_that_asks_for_no_password_fails(healthy: Runner) -> None:
    with Own("maxmemory 100mb", "maxmemory-policy allkeys-lru") as server:
        done = healthy("doctor", "--json", "--redis", server.url)
        assert done.code == 71
        assert "without a password, so a worker could ignore its restricted login" in texts(done, "FAILS")
        assert "evicts any key (allkeys-lru)" in texts(done, "FAILS")
        assert "it does not log writes (AOF)" in texts(done, "note")
        with Own(f"replicaof 127.0.0.1 {server.port}", "replica-read-only yes") as replica:
            done = healthy("doctor", "--json", "--redis", replica.url)
            assert "replica that cannot be written" in texts(done, "FAILS")


def test_a_login_with_too_few_rights_is_told_which(healthy: Runner, r: redis.Redis, redis_url: str) -> None:
    place = redis_url.rpartition("@")[2]
    try:
        r.acl_setuser(
            "few", enabled=True, passwords=["+p4ss"], keys=["*"], commands=["+@all", "-acl", "-hdel", "-info"]
        )
        done = healthy("doctor", "--json", "--redis", f"redis://few:p4ss@{place}")
        assert done.code == 71
        assert "the login 'few' may not run commands that a start needs: HDEL: " in texts(done, "FAILS")
        assert "+acl|setuser" in texts(done, "FAILS")
        assert "this login may not run INFO" in texts(done, "note")
        assert "p4ss" not in done.out + done.err
        assert "refuses the login" in texts(
            healthy("doctor", "--json", "--redis", f"redis://few:wrong@{place}"), "FAILS"
        )
    finally:
        r.acl_deluser("few")


def test_what_killed_runs_left_is_counted_and_cleared(healthy: Runner, r: redis.Redis) -> None:
    r.hset("t:1:h", mapping={"url": "/x", **lease(r, age=60)})
    r.hset("t:2:h", mapping={"url": "/x", "pid": "4000000000"})
    r.acl_setuser("sandboxrun:t:1:0123456789abcdef:1.2.3", enabled=False)
    done = healthy("doctor", "--json")
    assert done.code == 0
    assert "2 stale pids: t 1, t 2 → sandboxrun stop --stale" in texts(done, "note")
    assert "1 Redis user of killed runs" in texts(done, "note")
    assert healthy("stop", "--stale").out.splitlines()[-1] == "removed 1 Redis user of killed runs"
    assert "killed runs have left nothing" in texts(healthy("doctor", "--json"), "ok")


def test_folders_and_policies_that_are_wrong_are_named(healthy: Runner) -> None:
    cache = healthy.home / ".cache/sandboxrun"
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    healthy.set_policy("[worker.x]\nnonsense = 1\n")
    done = healthy("doctor", "--json")
    assert done.code == 71
    assert f"cache {cache} is writable for others (mode 777)" in texts(done, "FAILS")
    assert f"{healthy.policy}:2" in texts(done, "FAILS")
    cache.chmod(0o700)
    healthy.set_policy('[worker."*"]\nallow-net = []\n')
    done = healthy("doctor", "--json")
    assert done.code == 0
    assert f"{healthy.policy} applies, with 1 sections: '*'" in texts(done, "ok")
    healthy.env["HOME"] = "relative"
    assert "HOME is 'relative', and must be an absolute path" in texts(healthy("doctor", "--json"), "FAILS")


def test_nothing_in_redis_drives_the_terminal(healthy: Runner, r: redis.Redis, tmp_path: Path) -> None:
    r.hset("t:1:h", mapping=lease(r, age=60, pid="\x1b[2J", pidName="\x1b[2J"))
    assert "\x1b" not in healthy("doctor").out
