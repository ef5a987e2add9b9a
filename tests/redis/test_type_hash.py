"""The hash of a type alone is enough to look at its workers and to run them, and `set TYPE` writes it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import redis
from arena import wait_for
from runner import Runner

WAITS = "import time\nprint('ready', flush=True)\ntime.sleep(600)\n"


@pytest.fixture
def typed(r: redis.Redis, run: Runner, tmp_path: Path) -> Runner:
    """`t:h` names a script, and there is no hash of a worker."""
    (tmp_path / "worker.py").write_text("print('ran')\n")
    done = run("set", "t", f"url={tmp_path}", "version=local", "allowNet=a.example:443")
    assert done.code == 0, done.err
    assert done.out.startswith("t:h\n+ allowNet             a.example:443\n")
    assert done.out.endswith("  may now: connect to a.example, port 443\nwritten\n")
    assert r.keys() == ["t:h"]
    return run


def test_every_command_finds_the_worker(r: redis.Redis, typed: Runner) -> None:
    out = typed("show", "t", "7").out
    assert "  hash           t:h, because t:7:h does not exist\n" in out, out
    assert "  connect to a.example, port 443  (allowNet of t:h)\n" in out
    assert "would end with" not in out
    assert json.loads(typed("show", "t", "7", "--json").out)["hashes"] == ["t:h"]
    done = typed("perms", "t", "7", "--net", "a.example:443")
    assert done.code == 0 and "field allowNet of t:h" in done.out, done
    assert "  + --allow-net a.example:443\n" in typed("diff", "t", "7").out
    assert typed("approve", "t", "7").code == 0
    assert typed("t", "7").out == "ran\n"
    assert r.keys() == ["t:h"]
    assert typed("stop", "t", "7").out == "t 7 does not run\n"


def test_it_runs_until_its_pid_or_the_hash_of_its_type_is_removed(
    r: redis.Redis, typed: Runner, tmp_path: Path
) -> None:
    (tmp_path / "worker.py").write_text(WAITS)
    for remove, code in ((lambda: r.hdel("t:1:h", "pid"), 128 + 15), (lambda: r.delete("t:1:h", "t:h"), 66)):
        with typed.start("t", "1") as process:
            assert process.stdout is not None and process.stdout.readline() == b"ready\n"
            plan = json.loads(typed("show", "t", "1", "--plan", "--json").out)
            assert plan["stands_on"] == ["t:h"]
            remove()
            assert process.wait(30) == code
    wait_for(lambda: not r.keys())


def test_a_change_of_a_type_is_checked_as_one_of_a_worker_is(r: redis.Redis, typed: Runner) -> None:
    before = r.hgetall("t:h")
    for word, code, text in (
        ("allowFoo=x", 78, "field allowFoo of t:h is not a permission"),
        ("allowNet=a:99999", 78, "field allowNet of t:h has 'a:99999'"),
        ("url=/no/such", 78, "/no/such"),
        ("version=", 78, ""),
    ):
        done = typed("set", "t", word)
        if word == "version=":  # each worker may have its own
            assert done.code == 0, done
            r.hset("t:h", mapping=before)
            continue
        assert (done.code, text in done.err, "t:ID:h" in done.err) == (code, True, False), done.err
        assert r.hgetall("t:h") == before
    typed.set_policy('[worker."t"]\nallow-net = []\n')
    assert typed("set", "t", "allowNet=b.example").code == 77
    assert typed("set", "t", "allowNet=").code == 0
    assert r.hget("t:h", "allowNet") is None


def test_fields_about_processes_and_numbers_are_no_defaults(r: redis.Redis, typed: Runner, tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(
        "from sandboxrun import worker\n"
        "print(sorted(n for n in worker.config() if n == 'pidAgent' or not n.startswith('pid')))\n"
    )
    r.hset(
        "t:h", mapping={"pid": "1", "pidAgent": "x", "count": "2", "workerCount": "2", "startedCount": "1", "own": "1"}
    )
    done = typed("t", "7")
    assert (done.code, done.out) == (0, "['allowNet', 'own', 'url', 'version']\n"), done
    fields = json.loads(typed("show", "t", "7", "--json").out)["fields"]
    assert sorted(fields) == ["allowNet", "own", "url", "version"]
    for word in ("count=3", "workerCount=3"):
        done = typed("set", "t", word)
        assert done.code == 64 and "hint: sandboxrun scale t 3\n" in done.err
    assert typed("set", "t", "pidAgent=x").code == 64
    assert typed("set", "t", "--delete", "count").code == 0


def test_defaults_need_no_script(r: redis.Redis, run: Runner) -> None:
    done = run("set", "t", "limitMemory=1G", "--json")
    assert (done.code, json.loads(done.out)["key"]) == (0, "t:h"), done
    assert run("set", "t", "limitMemory=much").code == 78
    assert run("set", "t", "pid=1").err == (
        "error: field pid belongs to the running worker\nhint: sandboxrun stop t --all\n"
    )
    assert r.hgetall("t:h") == {"limitMemory": "1G"}
    done = run("t", "1")
    assert (done.code, "t:1:h has no url" in done.err) == (78, True), done.err


def test_a_dry_run_and_a_deletion(r: redis.Redis, typed: Runner) -> None:
    assert typed("set", "t", "--delete", "allowNet", "--dry-run").out.endswith("not written: --dry-run\n")
    assert r.hget("t:h", "allowNet") == "a.example:443"
    assert "may no longer: connect to a.example" in typed("set", "t", "--delete", "allowNet").out
    assert r.hget("t:h", "allowNet") is None


def test_the_workers_own_field_still_wins(r: redis.Redis, typed: Runner) -> None:
    assert typed("set", "t", "1", "allowNet=").code == 0
    assert r.hgetall("t:1:h") == {"allowNet": ""}
    assert typed("perms", "t", "1", "--net", "a.example:443").code == 77
    assert typed("t", "1").out == "ran\n"
