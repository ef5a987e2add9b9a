"""What somebody who may only XADD can do to a stream, how it is shown, and that `stream TYPE repair` loses nothing that is there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import servers
from arena import wait_for
from logins import Probe, Server, started
from loop_workers import PLAIN, answer
from runner import Runner

LAST = "18446744073709551615-18446744073709551615"
STREAM = "t:req:x"


@pytest.fixture(scope="module", params=servers.NAMES)
def old_and_new(request: pytest.FixtureRequest) -> Iterator[Server]:
    with started(request.param) as found:
        yield found


@pytest.fixture
def server(old_and_new: Server) -> Server:
    old_and_new.r.flushall()
    return old_and_new


@pytest.fixture
def at(server: Server, tmp_path: Path) -> Runner:
    home = tmp_path / "at-home"
    home.mkdir()
    return Runner(server.url, home)


def faults(run: Runner) -> list[tuple[str, str]]:
    done = run("info", "t", "--json")
    assert done.code == 0, done.err
    return [(fault["stream"], fault["kind"]) for fault in json.loads(done.out)["faults"]]


def filled(r: Any) -> dict[str, Any]:
    """A stream with answered, pending and new requests, two groups, and one that is too old for its worker."""
    r.xgroup_create(STREAM, "worker", id="0", mkstream=True)
    r.xgroup_create(STREAM, "export", id="0")
    for number in range(700):
        r.xadd(STREAM, {"ref": f"r{number}", "data": "x" * 100, "n": number}, id=f"1000-{number}")
    r.xreadgroup("worker", "1", {STREAM: ">"}, count=600)
    r.xack(STREAM, "worker", *(f"1000-{number}" for number in range(595)))
    r.xgroup_createconsumer(STREAM, "worker", "idle")
    r.execute_command("XCLAIM", STREAM, "worker", "2", 0, "1000-599", "IDLE", 90_000, "RETRYCOUNT", 4)
    r.xreadgroup("export", "e", {STREAM: ">"}, count=3)
    r.hset(f"{STREAM}:fence:1:f", "c", "1")
    return state(r)


def state(r: Any) -> dict[str, Any]:
    pending = {
        group: [(row["message_id"], row["consumer"], row["times_delivered"]) for row in r.xpending_range(STREAM, group, "-", "+", 1000)]
        for group in ("worker", "export")
    }  # fmt: skip
    groups = {group["name"]: (group["last-delivered-id"], group["pending"]) for group in r.xinfo_groups(STREAM)}
    consumers = {group: sorted(c["name"] for c in r.xinfo_consumers(STREAM, group)) for group in pending}
    return {"entries": r.xrange(STREAM), "pending": pending, "groups": groups, "consumers": consumers}


def test_an_ended_stream_is_shown_and_mended_and_nothing_is_lost(server: Server, at: Runner) -> None:
    r = server.r
    before = filled(r)
    r.xadd(STREAM, {"ref": "evil"}, id=LAST)
    with pytest.raises(redis.ResponseError):
        r.xadd(STREAM, {"ref": "refused"})
    assert (STREAM, "exhausted") in faults(at)
    out = at("info", "t").out
    assert f"fault: {STREAM} is exhausted" in out
    assert "repair it with: sandboxrun stream t repair" in out
    done = at("stream", "t", "repair")
    assert done.code == 0, done.err
    assert f"{STREAM} is repaired: 1 of its entries has a new id" in done.out
    after = state(r)
    (moved, fields) = after["entries"].pop()
    assert fields == {"ref": "evil"}
    assert 0 < int(moved.partition("-")[0]) < 10**13
    assert after == before
    idle = r.xpending_range(STREAM, "worker", "1000-599", "1000-599", 1)[0]["time_since_delivered"]
    assert 90_000 <= idle < 600_000
    added = r.xadd(STREAM, {"ref": "next"})
    assert [xid for _, page in r.xreadgroup("worker", "2", {STREAM: ">"}) for xid, _ in page][-2:] == [moved, added]
    assert r.hgetall(f"{STREAM}:fence:1:f") == {"c": "1"}
    assert not r.exists(f"{STREAM}:repair")
    assert not {kind for _, kind in faults(at)} & {"exhausted", "ahead"}
    assert at("stream", "t", "repair").out.splitlines()[-1].endswith("has nothing to repair")


def test_entries_ahead_of_the_clock_get_ids_of_now_in_their_order(server: Server, at: Runner) -> None:
    r = server.r
    r.xgroup_create(STREAM, "worker", id="0", mkstream=True)
    r.xadd(STREAM, {"n": 0})
    for number in range(1, 6):
        r.xadd(STREAM, {"n": number}, id=f"9000000000000{number}-5")
    r.xreadgroup("worker", "1", {STREAM: ">"}, count=3)
    r.xack(STREAM, "worker", *(xid for xid, _ in r.xrange(STREAM, count=2)))
    # Whoever has the third is gone for a long time, with its claim.
    r.execute_command(
        "XCLAIM", STREAM, "worker", "1", 0, "90000000000002-5", "IDLE", 120_000, "RETRYCOUNT", 3, "JUSTID"
    )
    assert (STREAM, "ahead") in faults(at)
    done = at("stream", "t", "repair")
    assert done.code == 0, done.err
    entries = r.xrange(STREAM)
    assert [fields["n"] for _, fields in entries] == list("012345")
    assert all(int(xid.partition("-")[0]) < 10**13 for xid, _ in entries)
    (row,) = r.xpending_range(STREAM, "worker", "-", "+", 10)
    assert (row["message_id"], row["consumer"], row["times_delivered"]) == (entries[2][0], "1", 3)
    assert [fields["n"] for _, page in r.xreadgroup("worker", "1", {STREAM: ">"}) for _, fields in page] == list("345")


def test_an_answered_request_is_not_begun_again_because_the_next_one_was_deleted(server: Server, at: Runner) -> None:
    r = server.r
    r.xgroup_create(STREAM, "worker", id="0", mkstream=True)
    for number in range(2):
        r.xadd(STREAM, {"n": number}, id=f"9000000000000{number}-5")
    r.xreadgroup("worker", "1", {STREAM: ">"})
    r.xack(STREAM, "worker", "90000000000000-5")
    r.xclaim(STREAM, "worker", "1", 0, ["90000000000001-5"], idle=120_000, justid=True)
    r.xdel(STREAM, "90000000000001-5")
    assert at("stream", "t", "repair").code == 0
    assert [fields["n"] for _, fields in r.xrange(STREAM)] == ["0"]
    assert r.xpending(STREAM, "worker")["pending"] == 0


@pytest.mark.parametrize("groups", [True, False])
def test_an_ended_stream_without_entries_is_mended_too(server: Server, at: Runner, groups: bool) -> None:
    r = server.r
    if groups:
        r.xgroup_create(STREAM, "worker", id="0", mkstream=True)
    r.xadd(STREAM, {"n": 1}, id=LAST)
    r.xreadgroup("worker", "1", {STREAM: ">"}, noack=True) if groups else None
    r.xdel(STREAM, LAST)
    done = at("stream", "t", "repair")
    assert done.code == 0, done.err
    assert r.xlen(STREAM) == 0
    xid = r.xadd(STREAM, {"n": 2})
    if groups:
        assert r.xreadgroup("worker", "1", {STREAM: ">"}) == [[STREAM, [(xid, {"n": "2"})]]]


def test_requests_that_somebody_has_dropped_are_told_and_cannot_come_back(server: Server, at: Runner) -> None:
    r = server.r
    r.xgroup_create(STREAM, "worker", id="0", mkstream=True)
    for number in range(3):
        r.xadd(STREAM, {"n": number})
    r.xreadgroup("worker", "1", {STREAM: ">"}, count=1)
    assert faults(at) == []
    r.xadd(STREAM, {"n": "evil"}, maxlen=1, approximate=False)
    counted = server.selectors  # Redis 6.2 does not count the entries of a stream
    assert faults(at) == [(STREAM, "dropped")] * (1 + counted)
    out = at("info", "t").out
    assert (f"fault: {STREAM} lost 2 entries that group worker had not read" in out) is counted
    assert f"fault: {STREAM} lost entries that are pending in group worker" in out
    assert "repair it with" not in out
    done = at("stream", "t", "repair")
    assert done.out.splitlines() == [line.removeprefix("fault: ") for line in out.splitlines() if "fault: " in line] + [
        f"{STREAM} has nothing to repair"
    ]


def test_what_a_worker_trims_itself_is_no_loss(server: Server, at: Runner) -> None:
    r = server.r
    r.xgroup_create(STREAM, "worker", id="0", mkstream=True)
    for _ in range(5):
        ids = [r.xadd(STREAM, {"n": number}) for number in range(10)]
        r.xreadgroup("worker", "1", {STREAM: ">"})
        r.xack(STREAM, "worker", *ids)
        r.xtrim(STREAM, minid=ids[-1], approximate=False)
    assert faults(at) == []
    assert at("stream", "t", "trim", "-n", "0").code == 0
    assert faults(at) == []


def asked(r: Any, **data: int) -> str:
    ref = os.urandom(8).hex()
    r.xadd("price:req:x", {"ref": ref, "type": "price", "data": json.dumps(data)})
    return ref


def test_a_caller_ends_a_stream_and_its_worker_goes_on_after_the_repair(
    server: Server, at: Runner, tmp_path: Path
) -> None:
    """The worker waits for requests meanwhile."""
    r = server.r
    folder = tmp_path / "price"
    folder.mkdir()
    (folder / "worker.py").write_text(PLAIN)
    r.hset("price:1:h", mapping={"url": str(folder), "version": "local"})
    with at.start("price", "1") as worker:
        wait_for(lambda: r.hget("price:1:h", "pid") and r.exists("price:req:x"), 20)
        assert answer(r, asked(r, n=1))["n"] == 1
        ended, refused = Probe(server, at, tmp_path, allowCall="price")(
            ("call", "XADD", "price:req:x", LAST, "ref", "{NONCE}evil"),
            ("call", "XADD", "price:req:x", "*", "ref", "x"),
        )
        assert ended == LAST
        assert refused.startswith("-ERR")
        wait_for(lambda: not r.xpending("price:req:x", "worker")["pending"], 20)  # even this one is answered
        found = at("doctor")
        assert "price:req:x is exhausted" in found.out + found.err
        done = at("stream", "price", "repair")
        assert done.code == 0, done.err
        refs = [asked(r, n=number) for number in range(20)]
        assert [answer(r, ref)["n"] for ref in refs] == list(range(20))
        assert worker.poll() is None


def test_a_request_in_hand_whose_id_is_kept_is_answered_once(server: Server, at: Runner, tmp_path: Path) -> None:
    r = server.r
    folder = tmp_path / "price"
    folder.mkdir()
    (folder / "worker.py").write_text(PLAIN)
    r.hset("price:1:h", mapping={"url": str(folder), "version": "local", "takeoverMillis": "1000"})
    with at.start("price", "1") as worker:
        wait_for(lambda: r.hget("price:1:h", "pid") and r.exists("price:req:x"), 20)
        ref = asked(r, n=1, sleep=2)
        wait_for(lambda: r.xpending("price:req:x", "worker")["pending"], 20)
        r.xadd("price:req:x", {"ref": "last", "type": "price", "data": '{"n": 2}'}, id=LAST)
        # It waits for an entry whose id cannot be kept, and says so if that takes too long.
        wait_for(lambda: at("stream", "price", "repair").code == 0, 30)
        reply = answer(r, ref)
        assert (reply["begun"], reply["deliveries"]) == (1, 1)
        assert answer(r, "last")["begun"] == 1
        wait_for(lambda: not r.xpending("price:req:x", "worker")["pending"], 20)
        assert answer(r, asked(r, n=3))["begun"] == 1
        assert [fields["ref"] for _, fields in r.xrange("price:res:x")][:2] == [ref, "last"]
        assert worker.poll() is None


def test_trimming_by_hand_keeps_the_replies_that_a_group_has_not_read(server: Server, at: Runner) -> None:
    r = server.r
    for number in range(20):
        r.xadd("t:res:x", {"n": number})
    assert at("stream", "t", "trim", "-n", "15").code == 0
    assert r.xlen("t:res:x") == 15
    r.xgroup_create("t:res:x", "export", id="0")
    r.xreadgroup("export", "1", {"t:res:x": ">"}, count=4)
    r.xack("t:res:x", "export", *(xid for xid, _ in r.xrange("t:res:x", count=2)))
    assert at("stream", "t", "trim", "-n", "0").code == 0
    assert [fields["n"] for _, fields in r.xrange("t:res:x")] == [str(number) for number in range(7, 20)]
