"""Commands that read what others wrote to Redis, with too much of it there: bounded in memory, and what is cut is said."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator

import pytest
import redis
from leases import lease
from runner import Done, Runner

from sandboxrun.redis import pages
from sandboxrun.redis.connection import Connection

LARGE = 24 << 20
COUNT = 8
MEMORY_KIB = 320 * 1024  # of address space: less than half of what the letters have together with a copy of them


@pytest.fixture
def letters(r: redis.Redis) -> Iterator[list[str]]:
    """A small one before, between and after large ones."""
    value = "x" * LARGE
    ids = []
    for n in range(COUNT):
        about = {"ref": f"r{n}", "time": "now", "deliveries": "5"}
        ids.append(r.xadd("t:dead:x", {**about, "request.ref": f"r{n}", "request.data": f'{{"n": {n}}}'}))
        r.xadd("t:dead:x", {**about, "request.data": value})
    ids.append(r.xadd("t:dead:x", {"ref": "last", "request.ref": "last", "request.data": "{}"}))
    yield ids
    r.delete("t:dead:x")


def bounded(run: Runner, *args: str) -> Done:
    command = ["sh", "-c", f'ulimit -v {MEMORY_KIB}; exec "$@"', "sh", *run.command(*args)]
    done = subprocess.run(command, env=run.env, cwd=run.home, capture_output=True, timeout=120)
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


def test_dead_letters_are_listed_past_those_that_are_too_large(r: redis.Redis, run: Runner, letters: list[str]) -> None:
    done = bounded(run, "dead", "t")
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert len(lines) == 2 * COUNT + 1
    assert [line.split()[0] for line in lines[::2]] == letters
    assert all("more than 16 MiB, so not read: sandboxrun dead t drop" in line for line in lines[1::2])
    shown = json.loads(bounded(run, "dead", "t", "--json").out)
    assert [letter.get("ref") for letter in shown[::2]] == [f"r{n}" for n in range(COUNT)] + ["last"]
    assert {letter["note"] for letter in shown[1::2]} == {"more than 16 MiB, so not read"}


def test_letters_are_requeued_but_for_the_too_large_and_dropped_whatever_their_size(
    r: redis.Redis, run: Runner, letters: list[str]
) -> None:
    done = bounded(run, "dead", "t", "requeue", "all")
    assert (done.code, done.out) == (0, f"sent once more: {COUNT + 1}\n")
    assert done.err.count("more than 16 MiB, so not read: it stays where it is") == COUNT
    assert [fields["data"] for _, fields in r.xrange("t:req:x")] == [f'{{"n": {n}}}' for n in range(COUNT)] + ["{}"]
    large = bounded(run, "dead", "t", "-n", "1").out.split()[0]
    assert "more than 16 MiB" in bounded(run, "dead", "t", "show", large).out
    assert bounded(run, "dead", "t", "drop", large).out == "removed: 1\n"
    assert bounded(run, "dead", "t", "drop", "all").out == f"removed: {COUNT - 1}\n"
    assert r.xlen("t:dead:x") == 0


def test_a_list_is_paged_and_says_how_it_goes_on(r: redis.Redis, run: Runner) -> None:
    for n in range(25):
        r.xadd("t:dead:x", {"ref": f"r{n}", "request.data": "é" * n})
    refs: list[str] = []
    args = ["dead", "t", "-n", "10"]
    while True:
        done = run(*args)
        assert done.code == 0
        refs += [line.split()[2] for line in done.out.splitlines()]
        if not done.err:
            break
        assert done.err.startswith("note: there are more: sandboxrun dead t --after ")
        args = done.err.split("sandboxrun ")[1].split()
    assert refs == [f"r{n}" for n in range(25)]
    assert run("dead", "t", "-n", "0").code == 64


def test_a_requeued_payload_keeps_its_bytes(r: redis.Redis, run: Runner, redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as raw:
        raw.xadd("t:dead:x", {"ref": "r1", "request.ref": "r1", "request.data": b"\xff\x00\n", "request.deadline": "1"})
        assert run("dead", "t", "requeue", "all").out == "sent once more: 1\n"
        ((_, fields),) = raw.xrange("t:req:x")
        assert fields == {b"ref": b"r1", b"data": b"\xff\x00\n"}


@pytest.mark.parametrize("stream", ["requests", "responses"])
def test_streams_are_shown_and_trimmed_past_entries_that_are_too_large(
    r: redis.Redis, run: Runner, stream: str
) -> None:
    name = f"t:{stream[:3]}:x"
    r.xgroup_create("t:req:x", "worker", "0", mkstream=True)
    for n in range(COUNT):
        r.xadd(name, {"ref": f"r{n}", "data": "x" * (LARGE if n % 2 else 1)})
    shown = json.loads(bounded(run, "stream", "t", stream, "-n", "5", "--json").out)
    assert [entry.get("ref") for entry in shown] == [None, "r4", None, "r6", None]
    assert bounded(run, "stream", "t", "trim", "-n", "1000").code == 0
    if stream == "requests":
        assert f"has {COUNT} unanswered requests" in bounded(run, "stream", "t", "delete").err
    assert bounded(run, "stream", "t", "delete", "--force").code == 0


def test_info_does_without_what_is_too_large(r: redis.Redis, run: Runner) -> None:
    """XINFO STREAM brings the first and the last entry along."""
    r.xgroup_create("t:req:x", "worker", "0", mkstream=True)
    for _ in range(2):
        r.xadd("t:req:x", {"data": "x" * LARGE})
    found = json.loads(bounded(run, "info", "t", "--json").out)
    assert (found["requests"], found["group"]["pending"], found["per_second"]["came"]) == (2, 0, None)
    assert found["notes"] == ["XINFO STREAM t:req:x: more than 16 MiB, so not read"]
    for n in range(130):
        r.xgroup_createconsumer("t:req:x", "worker", f"c{n}")
    shown = bounded(run, "info", "t").out
    assert "and 30 further consumers" in shown and "note: XINFO STREAM" in shown


def test_a_trace_is_found_between_entries_that_are_too_large(r: redis.Redis, run: Runner) -> None:
    r.lpush("res:wanted", "x" * LARGE)
    for n in range(COUNT):
        r.xadd("t:req:x", {"ref": "wanted" if n == 4 else "other", "type": "t", "data": "x" * (1 if n == 4 else LARGE)})
    done = bounded(run, "trace", "wanted", "--type", "t")
    assert done.code == 0, done.err
    assert "more than 16 MiB, and was not read" in done.out


@pytest.mark.parametrize("field", ["pidName", "pidVersion", "version"])
def test_ps_and_stop_do_without_fields_that_are_too_large(r: redis.Redis, run: Runner, field: str) -> None:
    r.hset("t:1:h", mapping={"url": "/x", **lease(r), field: "x" * LARGE})
    r.hset("t:2:h", mapping={"url": "/x", **lease(r)})
    done = bounded(run, "ps", "t")
    assert done.code == 0
    assert "t 2" in done.out and "unreadable" in done.out
    if field != "version":
        done = bounded(run, "stop", "t", "1", "--timeout", "1")
        assert done.code == 75
        assert "the pid fields of t:1:h" in done.err and len(done.err.splitlines()) == 1


def test_consumers_by_the_million_are_not_counted_by_ps(r: redis.Redis, run: Runner) -> None:
    r.hset("t:1:h", mapping={"url": "/x", **lease(r)})
    r.xgroup_create("t:req:x", "worker", "0", mkstream=True)
    r.xadd("t:req:x", {"a": "b"})
    r.xreadgroup("worker", "x" * (10 << 20), {"t:req:x": ">"})
    rows = json.loads(bounded(run, "ps", "t", "--json").out)
    assert [row["pending"] for row in rows] == [None]


@pytest.mark.parametrize("newest_first", [False, True])
@pytest.mark.parametrize("sizes", [[], [1], [1] * 700, [200_000] * 90 + [1] * 40, [LARGE], [1, LARGE, LARGE, 1]])
def test_pages_bring_every_entry_once_and_in_order(
    r: redis.Redis, redis_url: str, sizes: list[int], newest_first: bool
) -> None:
    ids = [r.xadd("s", {"n": "x" * size}) for size in sizes]
    connection = Connection(redis_url, protocol=2)
    connection.open()
    try:
        found = [(e.xid, e.fields is None) for e in pages.entries(connection, "s", newest_first=newest_first)]
        assert connection.call("PING") == b"PONG" or connection.call("PING") == "PONG"
    finally:
        connection.close()
    expected = [(xid, size == LARGE) for xid, size in zip(ids, sizes, strict=True)]
    assert found == (expected[::-1] if newest_first else expected)
