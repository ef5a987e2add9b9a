"""`redish` prints keys of Redis of every type, whatever somebody has put there, and writes nothing."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import hints
import pytest
import redis
from runner import Done, Runner

from sandboxrun.config.secrets import encrypt

LARGE = 24 << 20
MEMORY_KIB = 320 * 1024  # of address space
HASH = {
    "type": "demo-worker",
    "url": "https://raw.githubusercontent.com/OWNER/REPO/main/demo/worker.py",
    "version": "main",
    "requestLimit": "1",
    "pidSeen": "1795632248498",
}


def script(run: Runner, *args: str) -> Done:
    """The command `redish`, in little memory."""
    redish = Path(run.command()[0]).with_name("redish")
    command = ["sh", "-c", f'ulimit -v {MEMORY_KIB}; exec "$@"', "sh", str(redish), *args]
    done = subprocess.run(command, env=run.env, cwd=run.home, capture_output=True, timeout=60)
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


def test_a_hash_is_a_field_and_its_value_on_each_line(r: redis.Redis, run: Runner) -> None:
    r.hset("demo-worker:1:h", mapping=HASH)
    expected = [f"{name} {value}" for name, value in sorted({**HASH, "pidSeen": "2026-11-25T18:44:08.498Z"}.items())]
    done = script(run, "demo-worker:1:h")
    assert (done.code, done.out.splitlines(), done.err) == (0, expected, "")
    assert run("redish", "demo-worker:1:h") == done


def test_fields_are_printed_in_the_order_in_which_they_are_asked_for(r: redis.Redis, run: Runner) -> None:
    r.hset("t:1:h", mapping={"a": "1", "b": "2", "c": "3"})
    assert script(run, "t:1:h", "c", "none", "a") == Done(0, "c 3\na 1\n", "")
    assert script(run, "t:1:h", "none").err == "error: t:1:h has no field none\nhint: sandboxrun redish t:1:h\n"
    r.hset("--redis=redis://other:1", "a", "1")
    hint = hints.hint_of(script(run, "--", "--redis=redis://other:1", "none").err)
    assert hint == "sandboxrun redish -- --redis=redis://other:1"
    assert hints.paste(hint, run.env, run.home).stdout == "a 1\n"


def test_each_type_has_its_own_form(r: redis.Redis, run: Runner) -> None:
    r.set("t:s", "1795632248498")
    r.rpush("t:q", "one", "two")
    r.sadd("t:set", "member")
    r.zadd("t:z", {"ann": 1795632248498, "bob": 2.5})
    r.xadd("t:x", {"ref": "r1", "time": "1795632248498"}, id="1795632248498-0")
    r.xadd("t:x", {"ref": "r2"}, id="1795632248499-1")
    assert script(run, "t:s").out == "2026-11-25T18:44:08.498Z\n"
    assert script(run, "t:q").out == "0 one\n1 two\n"
    assert script(run, "t:set").out == "member\n"
    assert script(run, "t:z").out == "bob 2.5\nann 2026-11-25T18:44:08.498Z\n"
    assert script(run, "t:z", "bob").out == "bob 2.5\n"
    assert script(run, "t:x").out.splitlines() == [
        "1795632248499-1 2026-11-25T18:44:08.499Z",
        "  ref r2",
        "1795632248498-0 2026-11-25T18:44:08.498Z",
        "  ref r1",
        "  time 2026-11-25T18:44:08.498Z",
    ]
    assert script(run, "t:x", "time", "-n", "1") == Done(
        0, "1795632248499-1 2026-11-25T18:44:08.499Z\n", "note: t:x has 2 entries, of which 1 are shown: -n 2 shows them all\n"
    )  # fmt: skip


def test_a_pattern_shows_each_key_that_matches(r: redis.Redis, run: Runner) -> None:
    for key in ("t:1:h", "t:2:h", "other:1:h"):
        r.hset(key, mapping={"version": "main", "type": key})
    r.rpush("t:q:h", "one")
    assert script(run, "t:[12]:h").out == "t:1:h\n  type t:1:h\n  version main\nt:2:h\n  type t:2:h\n  version main\n"
    assert script(run, "*:h", "version").out.count("  version main\n") == 3
    assert script(run, "*:h", "none").err == "error: no key that matches '*:h' has a field none\n"
    r.hset("t:*:h", "version", "a key that is called like the pattern hides no other")
    assert script(run, "t:*:h", "version").out.count("version") == 3


def test_a_pattern_over_many_keys_shows_some_and_says_so(r: redis.Redis, run: Runner) -> None:
    with r.pipeline() as pipeline:
        for number in range(5000):
            pipeline.set(f"k:{number}", "v")
        pipeline.execute()
    done = script(run, "k:*")
    assert (done.code, len(done.out.splitlines())) == (0, 200)
    assert done.err == "note: more than 100 keys match; these are 100 of them\n"
    assert len(script(run, "k:*", "-n", "5000").out.splitlines()) == 10_000


@pytest.mark.parametrize("kind", ["hash", "string", "list", "set", "zset", "stream"])
def test_nothing_that_stands_there_drives_the_terminal_or_looks_like_a_note(
    r: redis.Redis, run: Runner, kind: str
) -> None:
    bad = b"note: \x1b[2J\xff\r\n\xe2\x80\xae"
    key = b"t:\x1b[31m:" + bad
    makers = {
        "hash": lambda: r.hset(key, bad, bad),
        "string": lambda: r.set(key, bad),
        "list": lambda: r.rpush(key, bad),
        "set": lambda: r.sadd(key, bad),
        "zset": lambda: r.zadd(key, {bad: 1}),
        "stream": lambda: r.xadd(key, {bad: bad}),
    }
    makers[kind]()
    for args in (("t:*",), (os.fsdecode(key),)):
        done = script(run, *args)
        assert done.code == 0, done
        assert done.err == ""
        assert done.out.replace("\n", "").isprintable()
        assert r"note: \x1b[2J\xff\r\n\u202e" in done.out


@pytest.mark.parametrize("kind", ["hash", "string", "list", "set", "zset", "stream", "key"])
def test_what_is_too_large_is_named_and_not_read(r: redis.Redis, run: Runner, kind: str) -> None:
    value = "x" * LARGE
    if kind == "hash":
        r.hset("t:big", mapping={"small": "1", **{f"f{n}": value for n in range(20)}})
    elif kind == "string":
        r.set("t:big", value)
    elif kind == "list":
        r.rpush("t:big", "small", *[value] * 8)
    elif kind == "set":
        r.sadd("t:big", value)
    elif kind == "zset":
        r.zadd("t:big", {value: 1})
    elif kind == "stream":
        for _ in range(8):
            r.xadd("t:big", {"f": value})
    else:
        r.set(f"t:{value}", "v")
    done = script(run, "t:*")
    r.flushall()
    if kind == "key":
        assert done.err == "error: a key that matches has a name of more than 16 MiB\n"
        return
    assert done.code == 0, done
    assert len(done.out) < 20_000
    assert f"({LARGE} bytes" in done.out or "more than 16 MiB" in done.out
    if kind in ("hash", "list"):
        assert "small" in done.out


def test_a_hash_of_many_fields_is_bounded(r: redis.Redis, run: Runner) -> None:
    with r.pipeline() as pipeline:
        for start in range(0, 150_000, 1000):
            pipeline.hset("t:h", mapping={f"field-{n}": n for n in range(start, start + 1000)})
        pipeline.execute()
    done = script(run, "t:h")
    assert len(done.out.splitlines()) == 100
    assert done.err == "note: t:h has 150000 fields, of which 100 are shown: -n 150000 shows them all\n"
    r.flushall()


def test_it_writes_nothing_and_needs_no_right_to(r: redis.Redis, redis_url: str, run: Runner) -> None:
    r.hset("t:1:h", "a", "1")
    r.xadd("t:x", {"a": "1"})
    r.execute_command("ACL", "SETUSER", "reader", "on", ">pw", "~*", "+@read", "+ping")
    try:
        address = redis_url.rpartition("@")[2]
        done = script(run, "t:*", "--redis", f"redis://reader:pw@{address}")
        assert (done.code, done.err) == (0, "")
        assert done.out.startswith("t:1:h\n  a 1\nt:x\n  ")
    finally:
        r.acl_deluser("reader")
    assert sorted(r.keys()) == ["t:1:h", "t:x"]


def test_a_name_that_is_nearly_right_is_a_hint_that_works(r: redis.Redis, run: Runner) -> None:
    r.hset("demo-worker:1:h", "version", "main")
    r.hset("it's:1:h", "version", "main")
    for name in ("demo-worker:1", "demo_worker:1:h", "demo-worker:2:h", "its:1:h"):
        done = script(run, name)
        assert (done.code, done.out) == (78, "")
        assert hints.paste(hints.hint_of(done.err), run.env, run.home).stdout == "version main\n"
    assert script(run, "nothing-like-it").err == "error: there is no key 'nothing-like-it'\n"


def test_an_encrypted_secret_stays_encrypted(r: redis.Redis, run: Runner) -> None:
    fields = encrypt({"token": "open"}, bytes(32), worker_key="t:1:h", type_="t", algorithm="aes-256-gcm")
    r.hset("t:1:h", mapping=fields)
    done = script(run, "t:1:h")
    assert done.code == 0 and "open" not in done.out
