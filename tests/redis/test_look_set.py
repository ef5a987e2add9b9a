"""`sandboxrun set`: what a run would refuse never gets into the hash; what gets in is shown, whole and unchanged by others."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from raw_host import RawHost
from runner import Done, Runner

from sandboxrun.errors import StoreError
from sandboxrun.redis import hashes
from sandboxrun.redis.connection import Connection

Local = Callable[..., Path]
SCRIPT = "print('ran')\n"


@pytest.fixture
def tags(r: redis.Redis, host: RawHost) -> RawHost:
    """A worker at v1.0.0, which is not fetched yet; v1.1.0 is there too."""
    host.files["/v1.0.0/w.py"], host.files["/v1.1.0/w.py"] = SCRIPT, "print('newer')\n"
    r.hset("t:1:h", mapping={"url": host.url + "/{version}/w.py", "version": "v1.0.0"})
    return host


def refused(r: redis.Redis, done: Done, code: int, *words: str) -> None:
    """Nothing was written, and it is said why."""
    assert done.code == code, done.err
    assert done.out == ""
    assert all(word in done.err for word in words), done.err
    assert done.err.partition("\nhint: ")[0].strip("\n").count("\n") == 0


def test_a_worker_is_made_changed_and_run(r: redis.Redis, run: Runner, tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(SCRIPT)
    done = run("set", "t", "1", f"url={tmp_path}", "version=local", "greeting=a=b c")
    assert done == Done(
        0,
        f"t:1:h\n+ greeting             a=b c\n+ url                  {tmp_path}\n+ version              local\nwritten\n",
        "",
    )
    assert r.hgetall("t:1:h") == {"url": str(tmp_path), "version": "local", "greeting": "a=b c"}
    done = run("set", "t", "1", "allowNet=a.example:443", "greeting=hello")
    assert done.out == (
        "t:1:h\n+ allowNet             a.example:443\n- greeting             a=b c\n+ greeting             hello\n"
        "  may now: connect to a.example, port 443\nwritten\n"
    )
    assert run("t", "1").out == "ran\n"
    done = run("set", "t", "1", "allowNet=a.example:443,b.example")
    assert "next: the next start asks for approval of what was added: sandboxrun approve t 1\n" in done.out
    assert run("set", "t", "1", "greeting=hello").out == "t:1:h\nnothing to change\n"


@pytest.mark.parametrize(
    ("word", "code", "said"),
    [
        ("allowNet=example.com:99999", 78, "field allowNet of t:1:h has 'example.com:99999'"),
        ("allowFoo=x", 78, "field allowFoo of t:1:h is not a permission"),
        ("allownet=x", 78, "is spelt allowNet"),
        ("allowRead=/no/such", 78, "which does not exist"),
        ("allowWrite=/usr", 78, "would let the worker change code"),
        ("allowRun=no-such-program", 78, "is no program here"),
        ("limitMemory=much", 78, "field limitMemory"),
        ("options=--allow-all", 78, "would allow everything"),
        ("requestStream=another", 78, "nor does allowRedis list it"),
        ("denyRedis=chat:*", 78, "allowRedis does not list"),
        ("type=other", 78, "the key says 't'"),
        ("version=", 78, "would have no version"),
        ("url=/no/such", 78, "does not exist"),
        ("allowEnv=TZ", 77, "policy.toml:2 does not allow"),
        ("allowNet=*", 77, "the default policy does not allow"),
        (f"sha256={'0' * 64}", 65, "field sha256 pins"),
    ],
    ids=lambda value: value.partition("=")[0] if isinstance(value, str) and "=" in value else None,
)
def test_what_a_run_refuses_never_gets_in(
    r: redis.Redis, run: Runner, local: Local, word: str, code: int, said: str
) -> None:
    run.set_policy('[worker."t"]\nallow-env = []\nallow-read = ["*"]\nallow-write = ["*"]\nallow-run = ["*"]\n')
    local(SCRIPT)
    before = r.hgetall("t:1:h")
    refused(r, run("set", "t", "1", "good=yes", word), code, said, "nothing was written")
    assert r.hgetall("t:1:h") == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pid=1"], "sandboxrun stop t 1"),
        (["--delete", "pidHost"], "sandboxrun stop t 1"),
        (["encryptedJson=x"], "sandboxrun encrypt t 1 --key-file FILE"),
        (["a=1", "a=2"], "field a is given twice"),
        (["version=v1", "workerVersion=v2"], "given twice"),
        (["a=1", "--delete", "a"], "given twice"),
        ([f"a={'x' * 70_000}"], "field a of t:1:h has 70000 bytes: at most 65536 are read"),
        (["a\x1b=1"], "is not the name of a field"),
        ([], "there is nothing to set"),
    ],
)
def test_what_is_not_to_be_set(r: redis.Redis, run: Runner, local: Local, words: list[str], said: str) -> None:
    local(SCRIPT)
    before = r.hgetall("t:1:h")
    refused(r, run("set", "t", "1", *words), 64, said)
    assert r.hgetall("t:1:h") == before


def test_an_empty_value_is_nothing_and_a_deleted_one_is_the_types(r: redis.Redis, run: Runner, local: Local) -> None:
    local(SCRIPT, allowNet="a.example", note="x")
    out = run("set", "t", "1", "allowNet=", "note=").out
    assert (
        out
        == "t:1:h\n- allowNet             a.example\n- note                 x\n  may no longer: connect to a.example, any port\nwritten\n"
    )
    assert not {"allowNet", "note"} & set(r.hgetall("t:1:h"))
    r.hset("t:h", "allowNet", "shared.example")
    out = run("set", "t", "1", "allowNet=").out
    assert "+ allowNet             (empty)\n  may no longer: connect to shared.example, any port\n" in out
    assert r.hget("t:1:h", "allowNet") == ""
    out = run("set", "t", "1", "--delete", "allowNet").out
    assert "+ allowNet             shared.example  (of t:h)\n  may now: connect to shared.example, any port\n" in out
    assert r.hget("t:1:h", "allowNet") is None
    assert "warning: t:1:h has no field allowNet" in run("set", "t", "1", "--delete", "allowNet").err


def test_a_field_with_two_names_is_written_under_the_one_that_is_there(
    r: redis.Redis, run: Runner, tags: RawHost
) -> None:
    r.hdel("t:1:h", "version")
    r.hset("t:1:h", "workerVersion", "v1.0.0")
    assert run("set", "t", "1", "version=v1.1.0").code == 0
    assert r.hgetall("t:1:h") == {"url": tags.url + "/{version}/w.py", "workerVersion": "v1.1.0"}
    r.hset("t:1:h", "version", "v1.1.0")
    assert run("set", "t", "1", "workerVersion=v1.0.0").code == 0
    assert (r.hget("t:1:h", "version"), r.hget("t:1:h", "workerVersion")) == ("v1.0.0", "v1.0.0")


def test_a_field_of_the_scripts_own_is_kept_and_one_that_looks_misspelt_is_said(
    r: redis.Redis, run: Runner, local: Local
) -> None:
    local(SCRIPT)
    assert run("set", "t", "1", "colour=red").err == ""
    done = run("set", "t", "1", "alowNet=a.example")
    assert (
        done.err
        == "warning: sandboxrun does not read field alowNet: did you mean allowNet? The field is kept for the script\n"
    )
    assert (r.hget("t:1:h", "colour"), r.hget("t:1:h", "alowNet")) == ("red", "a.example")


def test_a_new_version_is_fetched_and_verified_first(r: redis.Redis, run: Runner, tags: RawHost) -> None:
    assert run("set", "t", "1", "version=v1.1.0").code == 0
    assert [path for path, _ in tags.requests] == ["/v1.1.0/w.py"]
    assert run("t", "1", "--cached-only").out == "newer\n"
    for version, body, said in (
        ("v1.2.0", None, "answers 404"),
        ("v1.3.0", "<html>", "is a page of HTML"),
        ("v1.4.0", "def f(:\n", "is not valid Python"),
    ):
        if body is not None:
            tags.files[f"/{version}/w.py"] = body
        refused(r, run("set", "t", "1", f"version={version}"), 69, said)
        assert r.hget("t:1:h", "version") == "v1.1.0"
    refused(r, run("set", "t", "1", "version=v1.0.0", "--cached-only"), 69, "is not in the cache")
    refused(r, run("set", "t", "1", "url=https://elsewhere.example/{version}/w.py"), 69, "is not among the hosts")
    tags.files["/v1.1.0/w.py"] = "print('moved')\n"
    assert run("set", "t", "1", "note=x").code == 0  # nobody asks again while nothing moves
    assert len([path for path, _ in tags.requests if path == "/v1.1.0/w.py"]) == 1


def test_a_tag_that_moved_is_refused_in_a_dry_run_too_until_it_is_reloaded(
    r: redis.Redis, run: Runner, tags: RawHost
) -> None:
    assert run("t", "1").code == 0
    run("cache", "--clean")
    tags.files["/v1.0.0/w.py"] = "print('moved')\n"
    for more in (["--dry-run"], []):
        refused(r, run("set", "t", "1", "url=" + tags.url + "/{version}/w.py", f"sha256={'0' * 64}", *more), 65, "pins")
        r.hset("t:1:h", "version", "v1.1.0")
        refused(r, run("set", "t", "1", "version=v1.0.0", *more), 65, "has changed under version v1.0.0")
        r.hset("t:1:h", "version", "v1.0.0")
    r.hset("t:1:h", "version", "v1.1.0")
    assert run("set", "t", "1", "version=v1.0.0", "--reload").code == 0
    assert run("t", "1").out == "moved\n"


def test_what_the_policy_refuses_is_not_even_fetched(r: redis.Redis, run: Runner, tags: RawHost) -> None:
    run.set_policy('[worker."t"]\npinned = true\nallow-net = []\n')
    refused(r, run("set", "t", "1", "version=v1.1.0", "allowNet=a.example"), 77, "policy.toml:3 does not allow")
    refused(r, run("set", "t", "1", "version=main"), 77, "a branch")
    assert tags.requests == []


def test_a_dry_run_checks_all_and_writes_nothing(r: redis.Redis, run: Runner, tags: RawHost) -> None:
    before = r.hgetall("t:1:h")
    done = run("set", "t", "1", "version=v1.1.0", "allowNet=a.example", "--dry-run")
    assert "+ version              v1.1.0\n" in done.out
    assert done.out.endswith("not written: --dry-run\n")
    assert r.hgetall("t:1:h") == before
    assert [path for path, _ in tags.requests] == ["/v1.1.0/w.py"]
    assert run("cache").out == ""
    refused(r, run("set", "t", "1", "version=v9", "--dry-run"), 69, "answers 404")


def test_a_hash_that_changes_meanwhile_is_not_written(r: redis.Redis, run: Runner, tags: RawHost) -> None:
    asked, go_on = threading.Event(), threading.Event()

    def slow(handler: http.server.BaseHTTPRequestHandler) -> None:
        asked.set()
        go_on.wait(20)
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(SCRIPT)))
        handler.end_headers()
        handler.wfile.write(SCRIPT.encode())

    for key, field, changes in (("t:1:h", "note", True), ("t:h", "allowNet", True), ("t:1:h", "pidSeen", False)):
        r.delete("t:h")
        asked.clear(), go_on.clear()
        version = f"v2.0.{len(tags.files)}"
        tags.files[f"/{version}/w.py"] = slow
        with run.start("set", "t", "1", f"version={version}") as process:
            assert asked.wait(20)
            r.hset(key, field, "b.example")
            go_on.set()
            _, err = process.communicate(timeout=30)
        assert process.returncode == (75 if changes else 0), err
        if changes:
            said = f"error: field {field} of {key} changed meanwhile, so nothing was written\nhint: sandboxrun show t 1"
            assert err.decode().startswith(said)
        assert (r.hget("t:1:h", "version") == version) is not changes


def test_a_write_between_the_comparison_and_ours_makes_it_start_over(
    r: redis.Redis, redis_url: str, local: Local
) -> None:
    local(SCRIPT)
    connection = Connection(redis_url, protocol=2)
    connection.open()
    before = hashes.read(connection, "t", "1")
    stop = threading.Event()

    def renew() -> None:  # as a supervisor does, only far more often
        with redis.Redis.from_url(redis_url) as other:
            while not stop.is_set():
                other.hset("t:1:h", "pidSeen", time.time_ns())
                time.sleep(0.02)

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        for n in range(20):
            hashes.write(connection, before, {"note": str(n)}, [])
            before = hashes.read(connection, "t", "1")
    finally:
        stop.set()
        thread.join()
    r.hset("t:1:h", "note", "another's")
    with pytest.raises(StoreError, match="field note of t:1:h changed meanwhile"):
        hashes.write(connection, before, {"note": "ours"}, ["url"])
    assert r.hget("t:1:h", "note") == "another's"
    connection.close()


def test_a_worker_that_runs_goes_on_with_what_it_had_and_this_is_said(
    r: redis.Redis, run: Runner, local: Local
) -> None:
    local("import time\ntime.sleep(60)\n")
    with run.start("t", "1") as process:
        while not (pid := r.hget("t:1:h", "pid")):
            assert process.poll() is None
            time.sleep(0.02)
        done = run("set", "t", "1", "note=x")
        assert done.out.endswith(
            f"next: process {pid} goes on with what it had: sandboxrun stop t 1, then start it again\n"
        )
        assert process.poll() is None
        assert r.hget("t:1:h", "pid") == pid


def test_secrets_are_masked_and_nothing_drives_the_terminal(r: redis.Redis, run: Runner, local: Local) -> None:
    local(SCRIPT, botToken="GEHEIM1", note="\x1b[2J\u202e")
    for args in (
        ["botToken=GEHEIM2", "note=\x1b]0;x\x07\n"],
        ["botToken=GEHEIM3", "--json"],
        ["url=https://u:GEHEIM4@example.com/{version}", "version=v1"],
    ):
        done = run("set", "t", "1", *args)
        assert "GEHEIM" not in done.out + done.err
        assert all(c.isprintable() or c == "\n" for c in done.out + done.err)
    assert r.hget("t:1:h", "botToken") == "GEHEIM3"
    r.hset("t:1:h", mapping={"encryptedJson": "GEHEIM5", "encryptedIv": "GEHEIM6"})
    done = run("set", "t", "1", "--delete", "encryptedJson", "--delete", "encryptedIv")
    assert done.out == "t:1:h\n- encryptedIv          set\n- encryptedJson        set\nwritten\n"


def test_a_faulty_hash_is_mended_in_one_command(r: redis.Redis, run: Runner, local: Local) -> None:
    local(SCRIPT, allowNet="x" * 70_000, allowFoo="y")
    refused(r, run("set", "t", "1", "allowNet=a.example"), 78, "allowFoo")
    assert run("set", "t", "1", "allowNet=a.example", "--delete", "allowFoo").code == 0
    assert run("t", "1").out == "ran\n"
    r.delete("t:1:h")
    r.rpush("t:1:h", "x")
    refused(r, run("set", "t", "1", "url=/x", "version=local"), 78, "t:1:h is a list, not a hash")


def test_json(run: Runner, local: Local) -> None:
    local(SCRIPT)
    found = json.loads(run("set", "t", "1", "allowNet=a.example", "--json").out)
    assert list(found) == ["key", "written", "changes", "words", "sha256", "next"]
    assert found["changes"] == [{"field": "allowNet", "old": None, "new": "a.example", "from": None, "secret": False}]
    assert found["words"] == {"may now": ["connect to a.example, any port"]}


def test_the_policy_and_the_hosts_of_the_command_line_hold(
    r: redis.Redis, run: Runner, local: Local, tmp_path: Path
) -> None:
    run.set_policy(None)
    local(SCRIPT)
    wide = tmp_path / "wide.toml"
    wide.write_text('[worker."*"]\nallow-net = ["*"]\n')
    wide.chmod(0o600)
    refused(r, run("set", "t", "1", "allowNet=*"), 77, "the default policy")
    assert run("set", "t", "1", "allowNet=*", "--policy", str(wide)).code == 0
    assert run("perms", "t", "1", "--net", "a.example:1").out.startswith("no  net a.example:1: granted by * in ")
    assert run("perms", "t", "1", "--net", "a.example:1", "--policy", str(wide)).code == 0
    url = "url=https://127.1.2.3:9/{version}/w.py"
    refused(r, run("set", "t", "1", url, "version=v1", "allowNet="), 69, "is not among the hosts")
    done = run("set", "t", "1", url, "version=v1", "allowNet=", "--allow-import=127.1.2.3:9")
    refused(r, done, 69, "https://127.1.2.3:9/v1/w.py")
