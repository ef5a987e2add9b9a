"""`sandboxrun show`: what a hash means, what is wrong with it, in the words of the run; and nothing secret, nothing that drives
a terminal."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pexpect
import pytest
import redis
from arena import wait_for
from raw_host import RawHost
from runner import Runner

from sandboxrun.host.plain import from_plain
from sandboxrun.redis.address import parse_url

Local = Callable[..., Path]
SCRIPT = "print('ran')\n"
SLEEPS = "import time\ntime.sleep(60)\n"


def shown(run: Runner, *args: str) -> dict[str, Any]:
    done = run("show", "t", "1", "--json", *args)
    assert done.code == 0, done.err
    found: dict[str, Any] = json.loads(done.out)
    return found


def as_printed(fault: dict[str, Any]) -> str:
    """The lines that a run prints for a fault."""
    hint = "\n".join(fault["hint"])
    return f"error: {fault['error']}\n" + (f"hint: {hint}\n" if hint else "")


def test_it_says_in_words_what_the_worker_may_do_and_which_hash_says_so(
    r: redis.Redis, run: Runner, local: Local
) -> None:
    r.hset("t:h", mapping={"allowNet": "api.example:443,10.0.0.0/8", "limitMemory": "1G"})
    local(SCRIPT, allowRead="/etc/hosts", denyNet="evil.example", options="--allow-env=TZ")
    out = run("show", "t", "1").out
    for line in (
        "  connect to api.example, port 443  (allowNet of t:h)",
        "  connect to all addresses of 10.0.0.0/8, any port  (allowNet of t:h)",
        "  read /etc/hosts and what is below it  (allowRead)",
        "  see the variable TZ of the operator's environment  (--allow-env in field options)",
        "may not\n  connect to evil.example, any port  (denyNet)",
        "  memory         1G  (hash)",
        "  the hash       lies within it",
        "  allowNet               api.example:443,10.0.0.0/8  (t:h)",
    ):
        assert line + "\n" in out, out
    assert "\x1b" not in out


def test_the_services_of_the_hash_are_shown(r: redis.Redis, run: Runner, local: Local) -> None:
    local(SCRIPT, services="price, stock")
    assert "  serves         price, stock  (of its script's services)\n" in run("show", "t", "1").out
    assert "serves, of its script's services\n  price, stock\n" in run("perms", "t", "1").out
    assert shown(run)["code"]["services"] == ["price", "stock"]
    assert json.loads(run("perms", "t", "1", "--json").out)["services"] == ["price", "stock"]
    assert shown(run)["fields"]["services"]["own"] is False


def test_secrets_are_never_shown(r: redis.Redis, run: Runner, local: Local, redis_url: str) -> None:
    password = parse_url(redis_url).password
    assert password
    local(
        SCRIPT, encryptedJson="GEHEIM", encryptedIv="GEHEIM", encryptedAlg="GEHEIM", botToken="GEHEIM", db_password="GEHEIM",
        backend="https://me:GEHEIM@example.com/?api_key=GEHEIM&a=b", line=f"worker-v0 {'ab' * 32}",
    )  # fmt: skip
    r.hset("t:h", "apiKey", "GEHEIM")
    for done in (run("show", "t", "1"), run("show", "t", "1", "--json"), run("perms", "t", "1", "--json")):
        assert done.code == 0
        assert "GEHEIM" not in done.out + done.err
        assert password not in done.out + done.err
        assert "abab" not in done.out
    fields = shown(run)["fields"]
    assert fields["encryptedJson"] == {"value": "set", "from": "t:1:h", "secret": True, "own": False}
    assert fields["backend"]["value"] == "https://***@example.com/?api_key=***&a=b"


def test_a_login_in_the_url_is_masked_in_the_fault_too(r: redis.Redis, run: Runner) -> None:
    for url in ("https://me:GEHEIM@raw.githubusercontent.com/o/r/main/w.py", "ftp://me:GEHEIM@example.com/{version}"):
        r.hset("t:1:h", mapping={"url": url, "version": "v1"})
        for args in ((), ("--json",)):
            done = run("show", "t", "1", *args)
            assert done.code == 0
            assert "GEHEIM" not in done.out + done.err


def test_nothing_in_the_hash_drives_the_terminal(r: redis.Redis, run: Runner) -> None:
    hostile = "\x7f\x1b[2J\x9b2J\u202e\r\n\x00x"
    r.hset(
        "t:1:h",
        mapping={
            "url": f"/{hostile}",
            "version": hostile,
            f"own{hostile}": hostile,
            "allowNet": hostile,
            "pid": hostile,
        },
    )
    r.hset("t:1:h", b"\xff\xfe", b"\xff\x1b[2J")
    for done in (run("show", "t", "1"), run("show", "t", "1", "--json")):
        assert done.code == 0
        assert all(c.isprintable() or c == "\n" for c in done.out + done.err)


def test_a_giant_value_is_named_by_its_size(r: redis.Redis, run: Runner, local: Local) -> None:
    local(SCRIPT, note="n" * 1000, giant="g" * 5_000_000, **{"k" * 3000: "v"})
    done = run("show", "t", "1")
    assert done.code == 0
    assert len(done.out) < 10_000
    assert "(5000000 bytes, more than is read)  (the script's own)" in done.out
    assert f"{'n' * 200}... (1000 characters)" in done.out


@pytest.mark.parametrize(
    "fields",
    [
        {"version": None},
        {"version": "no such/../version"},
        {"type": "other"},
        {"workerUrl": "/elsewhere"},
        {"allowFoo": "x"},
        {"allownet": "x"},
        {"allowNet": "example.com:99999"},
        {"options": "--allow-net"},
        {"limitMemory": "much"},
        {"sha256": "xyz"},
        {"requestLimit": "-1"},
        {"requestStream": "another:stream"},
        {"denyRedis": "chat:*"},
        {"allowNet": "x" * 70_000},
        {"allowRead": "/no/such/place"},
        {"allowWrite": "/usr/lib"},
        {"allowRun": "no-such-program"},
        {"url": "/no/such/folder"},
        {"sha256": "0" * 64},
        {"url": "https://example.com/{version}/w.py", "version": "v1"},
        {"allowNet": "a.example", "allowListen": "127.0.0.1:80", "allowRun": "true"},
        {"options": "--inspect=127.0.0.1:9229"},
        {"limitMemory": "64G"},
    ],
    ids=lambda fields: ",".join(fields),
)
def test_a_fault_is_named_as_the_run_names_it(
    r: redis.Redis, run: Runner, local: Local, fields: dict[str, str | None]
) -> None:
    if {"allowListen", "options", "limitMemory"} & set(fields):
        run.set_policy('[worker."*"]\nallow-net = []\nlimit-memory = "8G"\nsha256 = []\n')
    local(SCRIPT)
    for name, value in fields.items():
        r.hdel("t:1:h", name) if value is None else r.hset("t:1:h", name, value)
    found, done = shown(run), run("t", "1")
    assert done.out == ""
    assert done.err == as_printed(found["faults"][0])
    assert done.code == found["faults"][0]["exit_code"]
    assert f"sandboxrun t 1 would end with exit code {done.code}\n  error: " in run("show", "t", "1").out


def test_a_worker_that_runs_has_no_faults(run: Runner, local: Local) -> None:
    local(SCRIPT, allowRead="/etc/hosts", allowNet="127.0.0.1:1")
    assert shown(run)["faults"] == []
    assert run("t", "1").code == 0
    assert shown(run)["faults"] == []


def test_all_that_the_policy_refuses_is_named_not_the_first_alone(run: Runner, local: Local) -> None:
    run.set_policy(None)
    local(SCRIPT, allowNet="*,a.example,10.0.0.0/8", allowEnv="TZ")
    policy = shown(run)["policy"]
    assert policy["within"] is False
    assert [text.partition(", which")[0].rpartition(" has ")[2] for text in policy["refused"]] == [
        "'*'",
        "'10.0.0.0/8'",
        "'TZ'",
    ]
    assert policy["allows"]["env"] == [{"entries": ["nothing"], "where": "default policy"}]


def test_a_policy_file_that_is_wrong_is_a_fault_and_the_rest_is_shown(run: Runner, local: Local) -> None:
    local(SCRIPT, allowNet="a.example")
    run.set_policy("worker = 5\n")
    found, done = shown(run), run("t", "1")
    assert done.err == as_printed(found["faults"][0])
    assert (found["policy"], found["allow"]["net"][0]["entry"]) == (None, "a.example")
    assert run("perms", "t", "1", "--net", "a.example:1").err == done.err


def test_the_policy_files_line_is_named(run: Runner, local: Local) -> None:
    run.set_policy('[worker."t"]\nallow-listen = ["127.0.0.1:*"]\npinned = true\nlocal = true\nlimit-memory = "1G"\n')
    local(SCRIPT, limitMemory="512M")
    found = shown(run)
    assert found["policy"]["allows"]["listen"] == [{"entries": ["127.0.0.1:*"], "where": f"{run.policy}:2"}]
    assert found["policy"]["requires"] == [
        f"pinned versions ({run.policy}:3)",
        f"limitMemory of at most 1G ({run.policy}:5)",
    ]
    assert found["limits"]["memory"] == {"value": 512 << 20, "shown": "512M", "set_by": "hash"}


def test_a_worker_that_may_be_forked_is_shown_as_one(run: Runner, local: Local) -> None:
    local(SCRIPT)
    line = "an agent may fork the worker from a process that it shares pages with"
    assert shown(run)["policy"]["shares_memory"] is False
    assert line not in run("show", "t", "1").out
    run.set_policy('[worker."t"]\nshare-memory = true\n')
    assert shown(run)["policy"]["shares_memory"] is True
    assert line in run("show", "t", "1").out


def test_where_the_code_comes_from_is_shown_without_asking_anybody(r: redis.Redis, run: Runner, host: RawHost) -> None:
    host.files["/v1.0.0/w.py"] = SCRIPT
    r.hset("t:1:h", mapping={"url": host.url + "/{version}/w.py", "version": "v1.0.0"})
    before = shown(run)["code"]
    assert (before["resolved"], before["kind"], before["sha256"]) == (host.url + "/v1.0.0/w.py", "tag", None)
    assert "not fetched here yet" in run("show", "t", "1").out
    assert host.requests == []
    assert run("t", "1").code == 0
    after = shown(run)
    assert after["code"]["sha256"] == hashlib.sha256(SCRIPT.encode()).hexdigest()
    assert after["code"]["here"] is True
    assert after["last_run"]["same_code"] is True
    run("cache", "--clean")
    assert "; removed from the cache)" in run("show", "t", "1").out
    assert len(host.requests) == 1
    r.hset("t:1:h", "version", "main")
    assert shown(run)["code"]["kind"] == "branch"


def test_what_would_be_asked_at_the_next_start_is_shown(r: redis.Redis, run: Runner, local: Local) -> None:
    local(SCRIPT)
    assert run("t", "1").code == 0
    r.hset("t:1:h", "allowNet", "a.example")
    assert shown(run)["agreed"] == {"recorded": True, "grown": ["--allow-net a.example"]}
    assert "approve with: sandboxrun approve t 1" in run("show", "t", "1").out


def test_whether_it_runs_now(r: redis.Redis, run: Runner, local: Local) -> None:
    local(SLEEPS)
    assert shown(run)["running"] is None
    with run.start("t", "1") as process:
        while not (pid := r.hget("t:1:h", "pid")):
            assert process.poll() is None
            time.sleep(0.02)
        assert f"  runs now       yes, as process {pid}, seen " in run("show", "t", "1").out
        found = shown(run)["running"]
        assert (found["alive"], found["pid"], found["here"]) == (True, pid, True)
    r.hset("t:1:h", mapping={"pid": "1", "pidHost": "elsewhere/1", "pidSeen": str(int(time.time()))})
    assert "yes, as process 1 on another host (elsewhere/1)" in run("show", "t", "1").out
    r.hset("t:1:h", mapping={"pid": "999999999", "pidHost": "elsewhere/1", "pidSeen": "1"})
    assert "no: process 999999999 on another host (elsewhere/1) is gone" in run("show", "t", "1").out


def test_what_is_no_hash_of_a_worker(r: redis.Redis, run: Runner) -> None:
    done = run("show", "t", "1")
    assert (done.code, done.out) == (78, "")
    assert done.err == "error: t:1:h does not exist\nhint: sandboxrun set t 1 url=URL version=VERSION\n"
    r.rpush("t:1:h", "x")
    assert "t:1:h is a list, not a hash" in run("show", "t", "1").out
    r.delete("t:1:h")
    r.hset("t:1:h", mapping={f"f{n}": "x" for n in range(600)})
    assert "t:1:h has 600 fields: at most 512 are read" in run("show", "t", "1").out
    r.delete("t:1:h")
    r.hset("t:1:h", mapping={f"{n:0100000}": "x" for n in range(400)})
    done = run("show", "t", "1")
    assert (done.code, done.out) == (78, "")
    assert done.err.startswith("error: t:h and t:1:h have more than 32 MiB\nhint: ")


def test_the_names_in_json_are_always_the_same(r: redis.Redis, run: Runner, local: Local) -> None:
    local(SCRIPT)
    good = shown(run)
    r.hset("t:1:h", "allowFoo", "x")
    bad = shown(run)
    assert list(good) == list(bad) == [
        "worker", "key", "hashes", "redis", "running", "code", "allow", "deny", "always", "limits", "policy", "agreed", "faults",
        "last_run", "fields",
    ]  # fmt: skip
    assert list(good["allow"]) == list(bad["deny"]) == ["net", "read", "write", "run", "listen", "env", "redis", "call"]


def test_colours_are_for_a_terminal_that_wants_them(run: Runner, local: Local) -> None:
    local(SCRIPT)
    for no_color, coloured in (("", True), ("1", False)):
        command, *args = run.command("show", "t", "1")
        out = pexpect.run(
            " ".join([command, *args]), env={**run.env, "NO_COLOR": no_color, "TERM": "xterm"}, timeout=30
        )
        assert (b"\x1b[1mt 1\x1b[0m" in out) is coloured
        assert (b"\x1b" in out) is coloured


# --- the plan


def test_the_plan_that_is_shown_is_that_of_the_run(r: redis.Redis, run: Runner, local: Local) -> None:
    folder = local("import time\ntime.sleep(600)\n", allowNet="a.example:443", allowEnv="TZ", limitMemory="1G")
    done = run("show", "t", "1", "--plan", "--json")
    assert (done.code, done.err) == (0, "")
    plan = from_plain(json.loads(done.out))
    with run.start("t", "1"):
        wait_for(lambda: r.hexists("t:1:h", "pid"))
        assert run("show", "t", "1", "--plan", "--json").out == done.out
    recorded = json.loads((run.home / ".local/state/sandboxrun/runs/t:1.json").read_text())
    assert (recorded["origin"], recorded["sha256"]) == (plan.script.origin, plan.script.sha256)
    assert recorded["allow"] == {"net": ["a.example:443"], "env": ["TZ"]}
    assert recorded["limits"]["memory"] == plan.limits.memory == 1 << 30
    assert (plan.script.origin, plan.env, plan.stands_on) == (str(folder / "worker.py"), ("TZ",), ("t:1:h",))
    out = run("show", "t", "1", "--plan").out
    for line in ("  net            a.example:443", "  memory         1G", f"  comes from     {folder}/worker.py"):
        assert line + "\n" in out, out


def test_where_there_is_no_plan_the_error_is_that_of_the_run(r: redis.Redis, run: Runner, local: Local) -> None:
    local(SCRIPT, allowRead="/nowhere")
    for args in ((), ("--json",)):
        done = run("show", "t", "1", "--plan", *args)
        assert (done.code, done.out, done.err) == (78, "", run("t", "1").err)
    r.hset(
        "t:1:h", mapping={"url": "https://raw.githubusercontent.com/o/r/main/w.py", "version": "v1", "allowRead": ""}
    )
    done = run("show", "t", "1", "--plan")
    assert (done.code, done.out, "was not fetched here yet" in done.err) == (69, "", True)
