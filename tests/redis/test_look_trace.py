"""`sandboxrun trace`: what became of a request, with whatever is left of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from arena import wait_for
from runner import Runner
from scripts import script

Local = Callable[..., Path]
SCRIPT = script("traced")


@pytest.fixture(autouse=True)
def _worker(local: Local) -> None:
    local(SCRIPT, takeoverMillis="400", maxDeliveries="2", allowRedis="go:on")


def traced(run: Runner, ref: str, *args: str) -> dict[str, Any]:
    done = run("trace", ref, "--json", *args)
    assert done.code == 0, done.err
    found: dict[str, Any] = json.loads(done.out)
    return found


def events(found: dict[str, Any]) -> list[str]:
    return [event["event"] for event in found["events"]]


def send(r: redis.Redis, ref: str, data: dict[str, Any], **fields: str) -> str:
    xid: str = r.xadd("t:req:x", {"ref": ref, "type": "t", "data": json.dumps(data), **fields})
    return xid


def called(run: Runner, *data: str) -> str:
    """The ref of a call that was answered."""
    reply = json.loads(run("call", "t", *data).out)
    return str(reply["ref"])


def test_the_life_of_a_request_and_what_is_left_of_it_later(r: redis.Redis, run: Runner) -> None:
    with run.start("t", "1"):
        ref, failed = called(run, "x=1"), called(run, "fail=1")
    found = traced(run, ref)
    assert (found["type"], found["outcome"], found["code"]) == ("t", "answered", 200)
    assert events(found) == ["created", "queued", "begun", "completed", "replied"]
    assert list(found["durations"]) == ["waiting", "handling", "replying", "all"]
    assert found["trace"] == {"seen": "by me"}
    assert (found["progress"], found["request"], found["pending"]) == ("half", '{"x": 1}', None)
    assert json.loads(found["reply"])["text"] == "hi"
    assert 0 < found["kept_millis"]["trace"] <= 120_000
    out = run("trace", ref).out
    assert out.startswith(f"{ref}: request of t, answered, code 200\n")
    assert f"  queued  as {r.xrange('t:req:x')[0][0]}\n" in out

    found = traced(run, failed)
    assert (found["outcome"], found["code"]) == ("failed", 500)

    r.delete(f"req:{ref}:h")  # as after two minutes
    found = traced(run, ref)
    assert (found["type"], found["outcome"], found["code"]) == ("t", "answered", 200)
    assert events(found) == ["created", "queued", "replied"]
    entry = r.xrange("t:req:x")[0]
    r.xdel("t:req:x", entry[0])
    found = traced(run, ref)
    assert events(found) == ["queued", "replied"]
    assert "which is trimmed by now" in found["events"][0]["detail"]
    r.xadd("t:req:x", entry[1])  # another entry with its ref
    r.delete("t:res:x")
    assert traced(run, ref)["outcome"] == "waiting"
    r.delete("t:req:x")
    done = run("trace", ref)
    assert (done.code, done.out) == (78, "")
    assert done.err == (
        f"error: Redis has no trace, no reply and no entry of request {ref}\nhint: sandboxrun stream TYPE responses\n"
    )


def test_a_request_that_nobody_has_taken_yet(r: redis.Redis, run: Runner) -> None:
    xid = send(r, "a", {})
    for _ in range(2):
        found = traced(run, "a")
        assert (found["outcome"], found["pending"], events(found)) == ("waiting", None, ["queued"])
        r.xgroup_create("t:req:x", "worker", "0", mkstream=True) if not r.xinfo_groups("t:req:x") else None
    assert "not delivered to any worker yet: see sandboxrun info t" in run("trace", "a").out
    r.xreadgroup("worker", "1", {"t:req:x": ">"})
    r.xack("t:req:x", "worker", xid)
    found = traced(run, "a")
    assert found["outcome"] == "done"
    assert "acknowledged by a worker" in run("trace", "a").out


def test_a_request_in_hand_and_the_reply_that_waits(r: redis.Redis, run: Runner) -> None:
    with run.start("t", "1"):
        send(r, "a", {"wait": 1})
        wait_for(lambda: r.hget("req:a:h", "progress"), 20)
        found = traced(run, "a")
        assert (found["outcome"], found["progress"]) == ("being handled", "half")
        assert found["pending"]["consumer"] == "1"
        assert (found["pending"]["deliveries"], found["pending"]["handed_back"]) == (1, False)
        assert "delivered 1 time, now to consumer 1, whose last sign of life for it is " in run("trace", "a").out
        r.rpush("go:on", "x")
        wait_for(lambda: r.exists("res:a"), 20)
        found = traced(run, "a")
        assert found["outcome"] == "answered"
        assert 0 < found["kept_millis"]["reply"] <= 8000


def test_what_was_handed_back_is_free(r: redis.Redis, run: Runner) -> None:
    xid = send(r, "a", {})
    r.xgroup_create("t:req:x", "worker", "0")
    r.xreadgroup("worker", "1", {"t:req:x": ">"})
    r.execute_command("XCLAIM", "t:req:x", "worker", "1", 0, xid, "IDLE", 10**11, "JUSTID")
    found = traced(run, "a")
    assert (found["outcome"], found["pending"]["handed_back"]) == ("waiting", True)
    assert "handed back by its worker, free for any other to take" in run("trace", "a").out


def test_a_worker_by_hand_that_replies_without_acknowledging(r: redis.Redis, run: Runner) -> None:
    xid = send(r, "a", {}, deadline="1795629358830")
    r.xgroup_create("t:req:x", "worker", "0")
    r.xreadgroup("worker", "hand", {"t:req:x": ">"})
    assert traced(run, "a")["outcome"] == "being handled"
    r.xadd("t:res:x", {"ref": "a", "type": "t", "xid": xid, "code": "200", "res": '{"ref": "a", "code": 200}'})
    assert traced(run, "a")["outcome"] == "answered"
    out = run("trace", "a").out
    assert "answered, but never acknowledged by consumer hand: another will be given it again\n" in out
    assert "deadline       2026-11-25T17:55:58.830Z, " in out


def test_a_dead_letter_and_its_second_life(r: redis.Redis, run: Runner) -> None:
    send(r, "a", {"kill": 1})
    for _ in range(2):
        assert run("t", "1").code == 137
    with run.start("t", "1"):
        wait_for(lambda: r.xlen("t:dead:x"), 20)
    found = traced(run, "a")
    assert (found["outcome"], found["code"]) == ("dead", 500)
    assert events(found)[0] == "queued"  # the reply has the worker's time, the letter that of Redis, a moment later
    assert sorted(events(found)) == ["given up", "queued", "replied"]
    assert "by 1 after 2 deliveries" in found["events"][events(found).index("given up")]["detail"]
    assert "see sandboxrun dead t\n" in run("trace", "a").out
    letters = r.xrange("t:dead:x")
    assert run("dead", "t", "requeue", "all").code == 0
    assert traced(run, "a")["outcome"] == "waiting"
    r.delete("t:dead:x")
    r.xadd("t:dead:x", letters[0][1], id=letters[0][0])  # as where the letter is kept beside the new request
    found = traced(run, "a")
    assert (found["outcome"], found["durations"]) == ("waiting", {})
    assert "sent once more" in events(found)


def test_the_type_is_found_where_nothing_names_it(r: redis.Redis, run: Runner) -> None:
    r.xadd("other:req:x", {"ref": "b"})
    send(r, "a", {})
    r.xadd("t:req:x", {"ref": "c", "type": "t"})
    assert traced(run, "a")["type"] == "t"
    assert traced(run, "b")["type"] == "other"
    assert traced(run, "a", "--type", "t")["type"] == "t"
    assert run("trace", "a", "--type", "other").code == 78
    r.hset("t:h", "requestStream", "t:mine:x")
    r.xadd("t:mine:x", {"ref": "d", "type": "t"})
    assert traced(run, "d", "--type", "t")["outcome"] == "waiting"


def test_a_request_far_back_in_a_long_stream_is_found_by_its_time_and_a_search_is_bounded(
    r: redis.Redis, run: Runner
) -> None:
    with r.pipeline() as many:
        many.xadd("t:req:x", {"ref": "first"}, id="1000000000000-0")
        for n in range(21_000):
            many.xadd("t:req:x", {"ref": f"r{n}"}, id=f"{1_000_000_001_000 + n}-0")
        many.execute()
    found = run("trace", "first", "--type", "t")
    assert found.code == 78
    assert "only 20" in found.err
    r.hset("req:first:h", mapping={"type": "t", "created": "2001-09-09T01:46:41.500Z"})
    assert events(traced(run, "first")) == ["queued", "created"]  # a clock that is ahead
    assert events(traced(run, "r20999", "--type", "t")) == ["queued"]


def test_giant_and_hostile_content_is_bounded_and_escaped(r: redis.Redis, run: Runner) -> None:
    nasty = "\x7f\x1b[2J\x9b\u202e\r\n"
    r.hset("req:a:h", mapping={
        "type": "t", "created": nasty, "progress": nasty, f"own{nasty}": nasty, "tTrace": '{"received": "\\u001b", "res": []}',
        "otherTrace": "[" * 100_000, "giant": "g" * 10_000_000, "requestData": "d" * 1_000_000,
    })  # fmt: skip
    r.xadd("t:req:x", {"ref": "a", "data": nasty, "time": nasty})
    r.xadd("t:res:x", {"ref": "a", "code": nasty, "xid": nasty, "res": nasty})
    r.xadd("t:dead:x", {"ref": "a", "consumer": nasty, "reason": nasty, "deliveries": nasty})
    r.lpush("res:a", nasty)
    for args in ((), ("--json",)):
        done = run("trace", "a", *args)
        assert done.code == 0, done.err
        assert len(done.out) < 20_000
        assert all(c.isprintable() or c == "\n" for c in done.out + done.err)
    assert "field giant of req:a:h has 10000000 bytes, and was not read" in done.out


def test_keys_of_another_kind_are_no_trouble(r: redis.Redis, run: Runner) -> None:
    r.set("req:a:h", "x")
    r.set("res:a", "x")
    r.set("t:res:x", "x")
    send(r, "a", {})
    found = traced(run, "a", "--type", "t")
    assert found["outcome"] == "waiting"
    assert any("req:a:h is not a hash" in note for note in found["notes"])
    assert any("t:res:x could not be read" in note for note in found["notes"])
