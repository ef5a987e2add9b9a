"""The audit log by the whole command: every decision one line, bounded, without secrets."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from raw_host import RawHost
from runner import Runner

Local = Callable[..., Path]
RAN = "print('ran')\n"
HAMMER = """
import socket
for _ in range(3):
    for port in range(1, 401):
        socket.socket().connect_ex(("192.0.2.1", port))
"""


@pytest.fixture
def log(run: Runner) -> Path:
    return run.home / "audit.log"


def read(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def events(log: Path) -> list[tuple[str, str]]:
    return [(line["event"], line["outcome"]) for line in read(log)]


def test_a_run_from_its_start_to_its_end(r: redis.Redis, run: Runner, host: RawHost, log: Path) -> None:
    host.files["/v1/worker.py"] = "import socket, sys\nsocket.socket().connect_ex(('192.0.2.1', 80))\nsys.exit(7)\n"
    r.hset("t:1:h", mapping={"url": host.url + "/{version}/worker.py", "version": "v1", "allowNet": "a.example"})
    run.env |= {"TOKEN": "s3cret"}
    assert run("t", "1", "--quiet", "--allow-env=TOKEN", "--audit", str(log)).code == 7
    assert events(log) == [
        ("run", "asked"),
        ("pin", "pinned"),
        ("approval", "allowed"),
        ("grant", "allowed"),
        ("start", "running"),
        ("denial", "refused"),
        ("end", "ended"),
    ]
    lines = read(log)
    assert {(line["worker"], line["uid"]) for line in lines} == {("t:1:h", os.getuid())}
    assert {line.get("version") for line in lines[1:]} == {"v1"}
    assert len({line["sha256"] for line in lines[1:]}) == 1
    by = {line["event"]: line["details"] for line in lines}
    assert by["grant"]["allow"] == {"net": ["a.example"], "env": ["TOKEN"]}
    assert (by["denial"]["kind"], by["denial"]["target"], by["denial"]["grant"]) == ("net", *["192.0.2.1:80"] * 2)
    assert by["end"] == {"exit_code": 7}
    assert log.stat().st_mode & 0o777 == 0o600
    password = run.env["REDIS_URL"].partition("@")[0].rpartition(":")[2]
    assert len(password) == 32
    assert password not in log.read_text()
    assert "s3cret" not in log.read_text()


def test_refusals_growth_reload_and_approval(r: redis.Redis, run: Runner, host: RawHost, log: Path) -> None:
    host.files["/v1/worker.py"] = RAN
    r.hset("t:1:h", mapping={"url": host.url + "/{version}/worker.py", "version": "v1"})
    assert run("t", "1").code == 0
    host.files["/v1/worker.py"] = "print('moved')\n"
    assert run("t", "1", "--reload", "--audit", str(log)).code == 0
    assert ("pin", "reloaded") in events(log)
    r.hset("t:1:h", "allowNet", "a.example")
    for args, last in [
        (("t", "1"), ("error", "refused")),
        (("approve", "t", "1"), ("approval", "allowed")),
        (("t", "1"), ("end", "ended")),
    ]:
        run(*args, "--audit", str(log))
        assert events(log)[-1] == last
    run.set_policy('[worker."*"]\nallow-net = []\n')
    assert run("t", "1", "--audit", str(log)).code == 77
    last = read(log)[-1]
    assert last["details"]["exit_code"] == 77
    assert f"{run.policy}:2" in last["details"]["message"]
    assert "start" not in [line["event"] for line in read(log)[-2:]]


def test_how_a_worker_was_ended(r: redis.Redis, run: Runner, local: Local, log: Path) -> None:
    local("import time\nprint('ready', flush=True)\ntime.sleep(60)\n")
    for end, reason in [
        (lambda process: r.hdel("t:1:h", "pid"), "field pid of t:1:h was removed: ending the worker"),
        (lambda process: process.send_signal(signal.SIGTERM), "SIGTERM: ending the worker"),
    ]:
        with run.start("t", "1", "--audit", str(log)) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            end(process)
            assert process.wait(20) == 128 + 15
        assert events(log)[-2:] == [("stop", "ended"), ("end", "ended")]
        assert [line["details"] for line in read(log)[-2:]] == [{"message": reason}, {"exit_code": 143}]


def test_a_worker_that_hammers_a_denial_does_not_fill_the_log(
    r: redis.Redis, run: Runner, local: Local, log: Path
) -> None:
    local(HAMMER)
    assert run("t", "1", "--audit", str(log)).code == 0
    denials = [line for line in read(log) if line["event"] == "denial"]
    assert len(denials) == 101
    assert "further ones are not shown" in denials[-1]["details"]["message"]


def test_a_log_that_cannot_be_written_runs_nothing(r: redis.Redis, run: Runner, local: Local) -> None:
    local(RAN)
    for place in (run.home / "no" / "log", run.home, Path("/dev/full")):
        done = run("t", "1", "--audit", str(place))
        assert (done.code, done.out) == (78, "")
        assert f"the audit log {place} " in done.err
        assert len(done.err.partition("hint: ")[0].splitlines()) == 1


def test_audit_reads_it_for_people(r: redis.Redis, run: Runner, local: Local, log: Path) -> None:
    local("open('/etc/\\x1b[2J\\u202ehostname')\n")
    assert run("t", "1", "--audit", str(log)).code == 1
    local(RAN, key="t:2:h")
    assert run("t", "2", "--audit", str(log)).code == 0
    count = len(read(log))
    done = run("audit", str(log))
    assert (done.code, len(done.out.splitlines())) == (0, count)
    assert not set(done.out) & {"\x1b", "\u202e"}
    assert all(" t:2:h " in line for line in run("audit", str(log), "--worker", "t:2").out.splitlines())
    assert len(run("audit", str(log), "--worker", "t").out.splitlines()) == count
    assert run("audit", str(log), "--worker", "x").out == ""
    ends = run("audit", str(log), "--event", "end").out.splitlines()
    assert [line.rpartition("  ")[2] for line in ends] == ["exit_code=1", "exit_code=0"]
    assert [json.loads(line) for line in run("audit", str(log), "--json").out.splitlines()] == read(log)
    with log.open("a") as file:
        file.write('{"torn": \n{"worker": 1}\n[]\n')
    done = run("audit", str(log), "--event", "end")
    assert (done.code, len(done.out.splitlines())) == (65, 2)
    assert done.err == "".join(f"warning: line {count + n} is damaged\n" for n in (1, 2, 3))
    assert run("audit", str(run.home / "none")).code == 78
