"""What the commands print to somebody who has just begun."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pexpect
import pytest
import redis
from answering import Answering
from runner import Runner

from sandboxrun.cli.commands import COMMANDS
from sandboxrun.cli.help import GROUPS, overview

Local = Callable[..., Path]
WAITS = "import time\nprint('ready', flush=True)\ntime.sleep(600)\n"


def test_the_overview_has_each_command_once_and_fits_a_screen() -> None:
    named = [name for commands in GROUPS.values() for name in commands]
    assert sorted(named) == sorted(COMMANDS)
    lines = overview().splitlines()
    assert len(lines) <= 60 and max(map(len, lines)) <= 110


def test_the_options_in_the_overview_are_those_of_a_run() -> None:
    from sandboxrun.cli import run as command
    from sandboxrun.cli.help import _OPTIONS

    known = {spelling for action in command._parser()._actions for spelling in action.option_strings}
    for options in _OPTIONS.values():
        for option in options:
            word = option.split()[0].replace("KIND", "net").replace("NAME", "memory")
            assert word in known or not word.startswith("-"), option


@pytest.mark.parametrize("args", [("call", "--timeout", "0.3", "t", "x=1"), ("call", "t", "--timeout", "0.3", "x=1")])
def test_options_stand_anywhere(run: Runner, r: redis.Redis, redis_url: str, args: tuple[str, ...]) -> None:
    r.xgroup_create("t:req:x", "worker", "0", mkstream=True)
    done = run(*args)
    assert (done.code, "within 0.3 s" in done.err) == (75, True), done.err


def test_a_call_of_an_unknown_type_ends_at_once_and_leaves_nothing(run: Runner, r: redis.Redis) -> None:
    began = time.monotonic()
    done = run("call", "nobody", "x=1", "--timeout", "60")
    assert (done.code, done.out) == (78, "")
    assert time.monotonic() - began < 30
    assert r.keys() == []
    r.hset("greeter:1:h", "url", "/x")
    done = run("call", "greter", "--timeout", "60", "x=1")
    assert done.err.endswith("; did you mean greeter?\nhint: sandboxrun call greeter --timeout 60 x=1\n")
    assert r.keys() == ["greeter:1:h"]


def test_a_call_goes_on_if_the_login_may_not_look(run: Runner, r: redis.Redis, redis_url: str) -> None:
    r.acl_setuser("few", enabled=True, passwords=["+p4ss"], keys=["*"], commands=["+@all", "-scan"])
    try:
        run.env["REDIS_URL"] = f"redis://few:p4ss@{redis_url.rpartition('@')[2]}"
        done = run("call", "nobody", "x=1", "--timeout", "0.3")
        assert (done.code, "no reply of nobody" in done.err) == (75, True), done.err
    finally:
        r.acl_deluser("few")


def test_call_has_json_also_if_it_fails(run: Runner, r: redis.Redis, redis_url: str) -> None:
    r.xgroup_create("t:req:x", "worker", "0", mkstream=True)
    with Answering(redis_url):
        done = run("call", "t", "x=1", "--json", "--timeout", "20")
        found = json.loads(done.out)
        assert (done.code, found["ok"], found["exit_code"], found["reply"]["code"]) == (0, True, 0, 200)
        many = json.loads(run("call", "t", "x=1", "-n", "20", "--json", "--timeout", "20").out)
        assert (many["sent"], many["answered"], many["errors"]) == (20, 20, [])
        assert set(many["millis"]) == {"p50", "p90", "p99", "most"}
    done = run("call", "t", "x=1", "--json", "--timeout", "0.3")
    found = json.loads(done.out)
    assert (done.code, found["ok"], found["exit_code"], found["reply"]) == (75, False, 75, None)
    assert "no reply of t" in found["error"]


def test_encrypt_writes_the_hash_itself(run: Runner, r: redis.Redis, local: Local) -> None:
    local("from sandboxrun import worker\nprint(worker.secrets()['token'])\n")
    secrets = json.dumps({"token": "t0ken"})
    done = run("encrypt", "t", "1", "--key-file", "demo.key", "--write", stdin=secrets)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("t:1:h: wrote encrypted") and done.out.endswith("\nnext: sandboxrun t 1 < demo.key\n")
    assert "t0ken" not in done.out
    assert run("t", "1", stdin=(run.home / "demo.key").read_bytes()).out == "t0ken\n"
    done = run("encrypt", "t", "2", "--key-file", "demo.key", "--write", "--json", stdin=secrets)
    assert json.loads(done.out)["key"] == "t:2:h" and r.hexists("t:2:h", "encryptedJson")
    r.rpush("t:3:h", "x")
    done = run("encrypt", "t", "3", "--key-file", "demo.key", "--write", stdin=secrets)
    assert (done.code, "t:3:h is a list, not a hash" in done.err) == (78, True)
    assert run("encrypt", "t", "1", "--key-file", "demo.key", stdin=secrets).out.startswith("HSET t:1:h ")


def test_approve_and_diff_work_while_the_worker_runs(run: Runner, r: redis.Redis, local: Local) -> None:
    local(WAITS)
    with run.start("t", "1") as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        out = run("set", "t", "1", "allowNet=a.example").out
        assert "sandboxrun approve t 1\n" in out
        assert run("diff", "t", "1").out == "  + --allow-net a.example\n"
        assert run("approve", "t", "1").out == "  + --allow-net a.example\napproved\n"
        assert "asks for nothing more" in run("diff", "t", "1").out
        assert process.poll() is None


def test_stop_has_json(run: Runner, r: redis.Redis, local: Local) -> None:
    local(WAITS)
    with run.start("t", "1") as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        pid = int(r.hget("t:1:h", "pid"))
        found = json.loads(run("stop", "t", "1", "--json").out)
        (outcome,) = found["workers"]
        assert (outcome["end"], outcome["pid"], outcome["exit_code"]) == ("ended", pid, 143)
        assert outcome["text"].startswith("t 1 has ended (process ")
        process.wait(20)
    assert json.loads(run("stop", "--stale", "--json").out) == {"workers": [], "redis_users_removed": 0}


def test_doctor_breaks_lines_between_words_on_a_terminal(run: Runner, r: redis.Redis) -> None:
    run.set_policy(None)
    env = {**run.env, "NO_COLOR": "1", "TERM": "xterm"}
    command, *args = run.command("doctor")
    terminal = pexpect.spawn(command, args, env=env, timeout=60, dimensions=(50, 80), encoding="utf-8")
    terminal.expect(pexpect.EOF)
    shown = terminal.before.replace("\r\n", "\n")
    lines = shown.splitlines()
    assert all(len(line) <= 80 or "/" in line or "hint:" in line for line in lines), shown
    whole = {word for line in run("doctor").out.splitlines() for word in line.split()}
    stable = {word for line in lines for word in line.split() if word.isalpha()}
    assert stable <= whole, stable - whole


def test_a_hint_names_the_redis_that_was_named(run: Runner, r: redis.Redis) -> None:
    from servers import Own

    with Own() as server:
        done = run("show", "t", "1", "--redis", server.url)
        assert done.err.endswith(f"\nhint: sandboxrun set t 1 url=URL version=VERSION --redis {server.url}\n")
