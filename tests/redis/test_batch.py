"""Batch handlers: full and old batches, one poison request among many, what is unavailable, kills, and other groups."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import redis
from arena import wait_for
from loop_workers import answer, answered, pending, send
from runner import Runner
from scripts import script

from sandboxrun import worker
from sandboxrun.errors import ConfigError
from sandboxrun.worker.app import App
from sandboxrun.worker.context import Context

GRANT = {"allowRedis": "noted:*", "takeoverMillis": "1000", "replyExpireSeconds": "600"}


@pytest.fixture
def batch(r: redis.Redis, run: Runner, tmp_path: Path) -> Runner:
    """The worker t of workers/batch.py, with ids 1 and 2."""
    (tmp_path / "worker.py").write_text(script("batch"))
    for id_ in "12":
        r.hset(f"t:{id_}:h", mapping={"url": str(tmp_path), "version": "local", **GRANT})
    return run


def calls(r: redis.Redis) -> list[int]:
    return [int(size) for size in r.lrange("noted:calls", 0, -1)]


def event(r: redis.Redis, **data: Any) -> str:
    """An entry that nobody waits for; its ID."""
    return str(r.xadd("t:req:x", {"data": json.dumps(data)}))


def group(r: redis.Redis, stream: str, name: str) -> dict[str, Any]:
    groups = r.xinfo_groups(stream) if r.exists(stream) else []
    return next((each for each in groups if each["name"] == name), {"pending": -1, "lag": -1})


def all_done(r: redis.Redis, stream: str = "t:req:x", name: str = "worker") -> bool:
    found = group(r, stream, name)
    return found["pending"] == 0 and found["lag"] == 0


def test_a_backlog_is_handled_in_full_batches_and_each_request_is_answered(r: redis.Redis, batch: Runner) -> None:
    refs = [send(r, n=n) for n in range(450)]
    with batch.start("t", "1"):
        replies = [answer(r, ref) for ref in refs]
    assert [reply["n"] for reply in replies] == list(range(450))
    assert {reply["code"] for reply in replies} == {200}
    assert calls(r) == [100, 100, 100, 100, 50]
    assert answered(r) == dict.fromkeys(refs, 1)
    assert pending(r) == 0


def test_a_few_requests_wait_for_no_more_than_the_age_of_a_batch(r: redis.Redis, batch: Runner) -> None:
    with batch.start("t", "1"):
        assert answer(r, send(r, n=1))["of"] == 1
        refs = [send(r, n=n) for n in range(3)]
        assert [answer(r, ref)["n"] for ref in refs] == [0, 1, 2]
    assert sum(calls(r)) == 4


def test_an_entry_without_a_ref_is_handled_and_not_answered(r: redis.Redis, batch: Runner) -> None:
    ids = [event(r, n=n) for n in range(5)]
    with batch.start("t", "1"):
        wait_for(lambda: all_done(r), 20)
        assert answer(r, send(r, n=7))["n"] == 7
    assert set(r.hkeys("noted:stored")) > set(ids)
    assert r.xlen("t:res:x") == 1
    assert not r.exists("t:dead:x")


def test_poison_is_found_by_halving_and_all_others_are_handled(r: redis.Redis, batch: Runner) -> None:
    refs = [send(r, n=n, fail=n in (3, 40)) for n in range(64)]
    ids = [event(r, n=n, fail=n == 9) for n in range(30)]
    with batch.start("t", "1") as process:
        replies = [answer(r, ref) for ref in refs]
        wait_for(lambda: all_done(r), 20)
        process.send_signal(signal.SIGTERM)
        err = process.communicate(timeout=20)[1].decode()
    assert [n for n, reply in enumerate(replies) if reply["code"] == 500] == [3, 40]
    assert [n for n, reply in enumerate(replies) if reply["code"] == 200] == [n for n in range(64) if n not in (3, 40)]
    dead = [fields for _, fields in r.xrange("t:dead:x")]
    assert {(fields["ref"], fields["reason"]) for fields in dead} == {
        (refs[3], "poison"),
        (refs[40], "poison"),
        ("", "poison"),
    }
    assert len(r.hkeys("noted:stored")) == 91
    assert ids[9] in [fields["xid"] for fields in dead]
    assert "moved to t:dead:x" in err
    assert err.count("hint: sandboxrun dead t") <= 3


def test_a_request_is_refused_alone_and_one_that_is_malformed_is_never_given(r: redis.Redis, batch: Runner) -> None:
    refs = [send(r, n=0), send(r, n=1, refuse=True)]
    r.xadd("t:req:x", {"ref": "bad", "type": "t", "data": "{no"})
    r.xadd("t:req:x", {"ref": "late", "type": "t", "data": "{}", "deadline": "1"})
    broken = str(r.xadd("t:req:x", {"data": "{no"}))
    with batch.start("t", "1"):
        found = {ref: answer(r, ref)["code"] for ref in (*refs, "bad", "late")}
        wait_for(lambda: all_done(r), 20)
    assert list(found.values()) == [200, 400, 400, 504]
    assert [fields["xid"] for _, fields in r.xrange("t:dead:x")] == [broken]
    assert len(r.hkeys("noted:given")) == 3


def test_a_wrong_number_of_results_answers_all_of_them_500(r: redis.Redis, batch: Runner) -> None:
    r.set("noted:short", 1)
    refs = [send(r, n=n) for n in range(3)]
    with batch.start("t", "1"):
        replies = [answer(r, ref) for ref in refs]
    assert {reply["code"] for reply in replies} == {500}
    assert "store returned 2 results for 3 requests: expected a list with one each, or None" in json.dumps(replies)


def test_what_is_unavailable_keeps_the_batch_until_it_is_back(r: redis.Redis, batch: Runner) -> None:
    """Also for longer than takeoverMillis, with another worker beside: nothing is taken over, and nothing counts as tried."""
    r.set("noted:away", 1)
    refs = [send(r, n=n) for n in range(150)]
    with batch.start("t", "1") as first, batch.start("t", "2"):
        wait_for(lambda: len(calls(r)) > 6, 30)
        r.execute_command("WAIT", 0, 2500)
        wait_for(lambda: len(calls(r)) > 8, 30)
        assert not r.hlen("noted:given")
        r.delete("noted:away")
        assert {answer(r, ref)["code"] for ref in refs} == {200}
        assert set(r.hvals("noted:stored")) == {"1"}
        first.send_signal(signal.SIGTERM)
        err = first.communicate(timeout=20)[1].decode()
    assert answered(r) == dict.fromkeys(refs, 1)
    assert err.count("the batch waits, because this is unavailable: the store is away") <= 1
    assert pending(r) == 0


def test_a_deadline_that_passes_while_the_batch_waits_is_answered(r: redis.Redis, batch: Runner) -> None:
    r.set("noted:away", 1)
    in_a_moment = str(int(time.time() * 1000) + 3000)
    r.xadd("t:req:x", {"ref": "late", "type": "t", "data": '{"n": 1}', "deadline": in_a_moment})
    ref = send(r, n=2)
    with batch.start("t", "1"):
        assert answer(r, "late")["code"] == 504
        r.delete("noted:away")
        assert answer(r, ref)["n"] == 2
    assert r.hlen("noted:given") == 1


def test_requests_that_a_batch_emits_leave_with_the_replies(r: redis.Redis, run: Runner, tmp_path: Path) -> None:
    code = (
        "from sandboxrun import worker\n@worker.batch(size=10)\ndef handle(requests):\n"
        "    for request in requests:\n        request.emit('other', request.data)\nworker.run()\n"
    )
    (tmp_path / "worker.py").write_text(code)
    r.hset("t:1:h", mapping={"url": str(tmp_path), "version": "local", "allowCall": "other"})
    r.xgroup_create("other:req:x", "worker", "0", mkstream=True)
    refs = [send(r, n=n) for n in range(25)]
    with run.start("t", "1"):
        assert {answer(r, ref)["code"] for ref in refs} == {200}
    emitted = [json.loads(fields["data"])["n"] for _, fields in r.xrange("other:req:x")]
    assert emitted == list(range(25))


def test_a_stop_while_something_is_unavailable_hands_the_batch_back_as_never_delivered(
    r: redis.Redis, batch: Runner
) -> None:
    r.set("noted:away", 1)
    refs = [send(r, n=n) for n in range(20)]
    with batch.start("t", "1") as process:
        wait_for(lambda: len(calls(r)) > 1, 20)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    r.delete("noted:away")
    with batch.start("t", "2"):
        assert {answer(r, ref, 10)["code"] for ref in refs} == {200}
    assert set(r.hvals("noted:stored")) == {"1"}


def test_what_kills_its_worker_is_given_up_and_its_neighbours_are_answered(r: redis.Redis, batch: Runner) -> None:
    refs = [send(r, n=n, kill=n == 30) for n in range(60)]
    ended = 0
    while len(answered(r)) < 60:
        with batch.start("t", "1") as process:
            wait_for(lambda: process.poll() is not None or len(answered(r)) == 60, 30)
        ended += 1
        assert ended < 8
    codes = [answer(r, ref)["code"] for ref in refs]
    assert [n for n, code in enumerate(codes) if code == 500] == [30]
    assert answered(r) == dict.fromkeys(refs, 1)
    assert [fields["ref"] for _, fields in r.xrange("t:dead:x")] == [refs[30]]
    assert int(r.hget("noted:given", r.xrange("t:dead:x")[0][1]["xid"])) == 5


def test_entries_that_were_trimmed_while_they_were_pending_are_counted_aloud(r: redis.Redis, batch: Runner) -> None:
    ids = [event(r, n=n) for n in range(4)]
    r.xgroup_create("t:req:x", "worker", "0")
    r.xreadgroup("worker", "lost", {"t:req:x": ">"}, count=4)
    r.execute_command("XCLAIM", "t:req:x", "worker", "lost", 0, *ids, "IDLE", 60_000, "JUSTID")
    r.xdel("t:req:x", *ids[:3])
    with batch.start("t", "1") as process:
        wait_for(lambda: all_done(r), 20)
        process.send_signal(signal.SIGTERM)
        err = process.communicate(timeout=20)[1].decode()
    assert f"3 of the entries that were delivered are gone from t:req:x, such as {ids[0]}" in err
    assert r.hkeys("noted:stored") == [ids[3]]


def test_entries_that_were_removed_before_the_group_has_read_them_are_counted_aloud(
    r: redis.Redis, batch: Runner
) -> None:
    r.hset(
        "t:1:h", mapping={"requestStream": "price:res:x", "consumerGroup": "copy", "allowRedis": "noted:*,price:res:x"}
    )
    ids = [str(r.xadd("price:res:x", {"data": "{}"})) for _ in range(10)]
    r.xgroup_create("price:res:x", "copy", "0")
    r.xreadgroup("copy", "1", {"price:res:x": ">"}, count=2)
    r.xack("price:res:x", "copy", *ids[:2])
    r.xtrim("price:res:x", maxlen=5, approximate=False)
    with batch.start("t", "1") as process:
        wait_for(lambda: r.hlen("noted:stored") == 5, 20)
        process.send_signal(signal.SIGTERM)
        err = process.communicate(timeout=20)[1].decode()
    assert err.count("3 entries were removed from price:res:x before group copy has read them") == 1
    assert {*r.hkeys("noted:stored")} == {*ids[5:]}


def test_a_group_of_its_own_reads_another_stream_and_answers_nobody(r: redis.Redis, batch: Runner) -> None:
    """Requests to others are answered by others; requests to this type are answered from any stream."""
    r.hset(
        "t:1:h", mapping={"requestStream": "price:req:x", "consumerGroup": "copy", "allowRedis": "noted:*,price:req:x"}
    )
    for n in range(5):
        r.xadd("price:req:x", {"ref": f"p{n}", "type": "price", "data": json.dumps({"n": n})})
    poison = str(r.xadd("price:req:x", {"ref": "p9", "type": "price", "data": '{"fail": 1}'}))
    r.xadd("price:req:x", {"ref": "own", "type": "t", "data": '{"n": 8}'})
    with batch.start("t", "1"):
        assert answer(r, "own")["n"] == 8
        wait_for(lambda: all_done(r, "price:req:x", "copy"), 20)
    assert len(r.hkeys("noted:stored")) == 6
    assert not r.keys("res:p*")
    assert not r.keys("req:p*")
    assert [fields["ref"] for _, fields in r.xrange("t:res:x")] == ["own"]
    assert [fields["xid"] for _, fields in r.xrange("t:dead:x")] == [poison]
    assert group(r, "price:req:x", "worker")["pending"] == -1


def test_two_groups_with_one_consumer_name_do_not_break_each_others_fence(
    r: redis.Redis, batch: Runner, tmp_path: Path
) -> None:
    r.hset("t:1:h", mapping={"requestStream": "u:req:x", "consumerGroup": "copy", "allowRedis": "noted:*,u:req:x"})
    (tmp_path / "u").mkdir()
    (tmp_path / "u" / "worker.py").write_text(
        "from sandboxrun import worker\nworker.handler(lambda request: {'n': request.data['n']})\nworker.run()\n"
    )
    r.hset("u:1:h", mapping={"url": str(tmp_path / "u"), "version": "local"})
    with batch.start("t", "1"), batch.start("u", "1"):
        refs = []
        for n in range(300):
            refs.append(f"u{n}")
            r.xadd("u:req:x", {"ref": f"u{n}", "type": "u", "data": json.dumps({"n": n})})
        assert [answer(r, ref)["n"] for ref in refs] == list(range(300))
        wait_for(lambda: all_done(r, "u:req:x", "copy") and all_done(r, "u:req:x"), 20)
        assert {*r.hvals("noted:given")} == {"1"}
        assert {*r.keys("u:req:x:fence:*")} == {"u:req:x:fence:1:f", "u:req:x:fence:copy/1:f"}


ORDINARY = """
import time
from sandboxrun import worker
r = worker.connect()

@worker.handler("price")
@worker.handler
def handle(request):
    r.hincrby("noted:given", request.xid, 1)
    return {"n": request.data["n"]}

worker.run()
"""


@pytest.mark.parametrize("kind", ["plain", "threads"])
def test_an_ordinary_handler_in_a_group_of_its_own_answers_only_its_own_type(
    r: redis.Redis, run: Runner, tmp_path: Path, kind: str
) -> None:
    text = ORDINARY if kind == "plain" else ORDINARY.replace("worker.run()", "worker.run(concurrency=3)")
    (tmp_path / "worker.py").write_text(text)
    fields = {"requestStream": "price:req:x", "consumerGroup": "copy", "allowRedis": "noted:*,price:req:x"}
    r.hset("t:1:h", mapping={"url": str(tmp_path), "version": "local", **fields})
    r.xadd("price:req:x", {"ref": "p1", "type": "price", "data": '{"n": 1}'})
    r.xadd("price:req:x", {"ref": "p2", "type": "other", "data": '{"n": 2}'})
    r.xadd("price:req:x", {"ref": "own", "type": "t", "data": '{"n": 3}'})
    with run.start("t", "1"):
        assert answer(r, "own")["n"] == 3
        wait_for(lambda: all_done(r, "price:req:x", "copy"), 20)
    assert not r.keys("res:p*")
    assert len(r.hkeys("noted:given")) == 2
    assert [fields["ref"] for _, fields in r.xrange("t:dead:x")] == [""]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda app: app.batch(size=0)(print), "size 0: expected 1 to 10000"),
        (lambda app: app.batch(size=10_001)(print), "size 10001"),
        (lambda app: app.batch(seconds=-1)(print), "seconds -1: expected 0 to 60"),
        (lambda app: app.batch()(3), "which cannot be called"),
    ],
    ids=["no size", "too many", "no time", "no function"],
)
def test_a_wrong_decorator_is_one_line(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        make(App())
    assert error.value.hint


def test_a_batch_handler_is_not_async_and_takes_the_list() -> None:
    async def coroutine(requests: list[worker.Request]) -> None: ...

    with pytest.raises(ConfigError, match="coroutine is async or a generator"):
        App().batch()(coroutine)
    with pytest.raises(ConfigError, match="takes no argument"):
        App().batch()(lambda: None)  # type: ignore[misc,arg-type]


def test_a_batch_handler_is_alone() -> None:
    app = App(Context("t:1:h", "redis://127.0.0.1:1", None))
    app.batch()(lambda requests: None)
    app.handler(lambda request: None)
    with pytest.raises(ConfigError, match="expected the batch handler alone"):
        app._check_batch(None, None)
    alone = App(Context("t:1:h", "redis://127.0.0.1:1", None))
    alone.batch()(lambda requests: None)
    with pytest.raises(ConfigError, match="one batch after another"):
        alone._check_batch(4, None)
