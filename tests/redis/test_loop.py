"""The request loop's promises: what is answered, once, in which order, and what happens to what is not."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from arena import wait_for
from runner import Runner

from sandboxrun.config.fields import parse_loop
from sandboxrun.redis.connection import Connection
from sandboxrun.worker.claims import Claims
from sandboxrun.worker.sweep import remove_gone

Local = Callable[..., Path]
HEAD = "import asyncio, os, time\nfrom sandboxrun import worker\n"
FAST = HEAD + "worker.handler(lambda request: {'n': request.data['n']})\nworker.run()\n"
# Begins are counted in a list, so that a test sees how often a handler ran.
COUNTING = (
    HEAD
    + """
r = worker.connect()

@worker.handler
def handle(request):
    n = request.data["n"]
    r.rpush("begun", n)
    if request.data.get("kill"):
        os.kill(os.getpid(), 9)
    time.sleep(request.data.get("sleep", 0))
    r.rpush("ended", n)
    return {"n": n, "deliveries": request.deliveries}

worker.run()
"""
)


def send(r: redis.Redis, data: Any, **fields: str) -> str:
    """A request as a client by hand sends it, without a trace; its ref."""
    ref = os.urandom(8).hex()
    r.xadd("t:req:x", {"ref": ref, "type": "t", "data": json.dumps(data), **fields})
    return ref


def answer(r: redis.Redis, ref: str, seconds: int = 20) -> dict[str, Any]:
    found = r.brpop([f"res:{ref}"], timeout=seconds)
    assert found is not None, "no reply"
    reply: dict[str, Any] = json.loads(found[1])
    return reply


def pending(r: redis.Redis) -> int:
    return int(r.xpending("t:req:x", "worker")["pending"])


@pytest.fixture
def local(local: Local) -> Local:
    """As the others' `local`, with a grant for the lists by which these workers and tests tell each other things."""
    return lambda code, key="t:1:h", **fields: local(code, key, allowRedis="begun,ended,slept,go,order:*", **fields)


@pytest.fixture
def two(r: redis.Redis, local: Local) -> Callable[..., None]:
    """Write a worker and the hashes t:1:h and t:2:h."""

    def write(code: str, **fields: str) -> None:
        local(code, "t:1:h", **fields)
        local(code, "t:2:h", **fields)

    return write


# --- how handlers are called


def test_async_handlers_work_at_the_same_time_and_replies_are_whole(r: redis.Redis, run: Runner, local: Local) -> None:
    # Each waits until all forty have begun, so one after another they would never end.
    code = """
begun = 0
@worker.handler
async def handle(request):
    global begun
    begun += 1
    while begun < 40:
        await asyncio.sleep(0.01)
    return {"n": request.data["n"]}
worker.run(concurrency=40)
"""
    local(HEAD + code)
    refs = [send(r, {"n": n}) for n in range(40)]
    with run.start("t", "1") as process:
        assert [answer(r, ref)["n"] for ref in refs] == list(range(40))
        assert all(answer(r, send(r, {"n": n}))["n"] == n for n in range(50))
        process.terminate()
        assert process.wait(20) == 0
    assert pending(r) == 0
    assert r.xlen("t:res:x") == 90


def test_plain_handlers_run_in_threads_where_asked(r: redis.Redis, run: Runner, local: Local) -> None:
    code = """
import threading
together = threading.Barrier(4)
@worker.handler
def handle(request):
    together.wait(20)
    return {"n": request.data["n"]}
worker.run(concurrency=4)
"""
    local(HEAD + code, requestLimit="8")
    refs = [send(r, {"n": n}) for n in range(8)]
    done = run("t", "1")
    assert done.code == 0, done.err
    assert [answer(r, ref)["n"] for ref in refs] == list(range(8))


def test_with_a_key_requests_are_handled_in_order_and_other_keys_do_not_wait(
    r: redis.Redis, run: Runner, local: Local
) -> None:
    code = """
now = set()
r = worker.connect()
@worker.handler
async def handle(request):
    key = request.data["key"]
    assert key not in now
    now.add(key)
    r.rpush("order:" + key, request.data["n"])
    await asyncio.sleep(0.02 if key == "slow" else 0)
    now.remove(key)
worker.run(concurrency=20, key=lambda request: request.data["key"])
"""
    local(HEAD + code)
    refs = [send(r, {"key": key, "n": n}) for n in range(10) for key in ("slow", "fast")]
    with run.start("t", "1"):
        assert [answer(r, ref)["code"] for ref in refs] == [200] * 20
    for key in ("slow", "fast"):
        assert r.lrange(f"order:{key}", 0, -1) == [str(n) for n in range(10)]


@pytest.mark.parametrize("kind", ["async", "plain"])
def test_a_handler_that_takes_too_long_is_given_up(r: redis.Redis, run: Runner, local: Local, kind: str) -> None:
    if kind == "async":
        code = "@worker.handler(timeout=0.2)\nasync def handle(request):\n    await asyncio.sleep(request.data)\n"
    else:
        code = "@worker.handler(timeout=0.2)\ndef handle(request):\n    time.sleep(request.data)\n"
    local(HEAD + code + "worker.run()\n")
    slow, quick = send(r, 60), send(r, 0)
    with run.start("t", "1"):
        reply = answer(r, slow)
        assert (reply["code"], "took longer than its timeout of 0.2 s" in reply["err"]["message"]) == (500, True)
        assert answer(r, quick)["code"] == 200


def test_an_expired_request_is_answered_504_without_running(r: redis.Redis, run: Runner, local: Local) -> None:
    local(COUNTING)
    now = int(time.time() * 1000)
    late, timely, odd = (
        send(r, {"n": n}, deadline=deadline) for n, deadline in enumerate([str(now - 1), str(now + 60_000), "soon"])
    )
    with run.start("t", "1"):
        assert answer(r, late)["code"] == 504
        assert answer(r, timely)["code"] == 200
        assert (odd_reply := answer(r, odd))["code"] == 400
        assert "deadline" in odd_reply["err"]["message"]
    assert r.lrange("begun", 0, -1) == ["1"]


def test_trace_and_progress_are_written_to_the_requests_hash(r: redis.Redis, run: Runner, local: Local) -> None:
    code = """
r = worker.connect()
@worker.handler
def handle(request):
    request.progress({"done": 1, "of": 2})
    request.trace(model="m1", tokens=7)
    r.blpop("go", 20)
    return {"left": request.remaining() is None}
worker.run()
"""
    local(HEAD + code.replace("worker.connect()", "__import__('redis').Redis.from_url(os.environ['REDIS_URL'])"))
    with run.start("t", "1"):
        ref = send(r, {})
        wait_for(lambda: r.hget(f"req:{ref}:h", "progress"), 20, "progress")
        assert json.loads(r.hget(f"req:{ref}:h", "progress")) == {"done": 1, "of": 2}
        assert r.hget(f"req:{ref}:h", "model") is None
        r.rpush("go", 1)
        assert answer(r, ref)["left"] is True
    assert r.hmget(f"req:{ref}:h", "model", "tokens") == ["m1", "7"]
    assert 0 < r.ttl(f"req:{ref}:h") <= 120


# --- who answers


def test_what_waits_behind_a_slow_request_goes_to_another_worker_and_its_reply_does_not_wait(
    r: redis.Redis, run: Runner, two: Callable[..., None]
) -> None:
    two(COUNTING, takeoverMillis="5000")
    with run.start("t", "1"):
        for n in range(40):  # so that the worker reads many at once
            answer(r, send(r, {"n": n}))
        with r.pipeline() as pipe:
            refs = [os.urandom(8).hex() for _ in range(20)]
            for n, ref in enumerate(refs):
                data = {"n": 100 + n, "sleep": 30 if n == 5 else 0}
                pipe.xadd("t:req:x", {"ref": ref, "type": "t", "data": json.dumps(data)})
            pipe.execute()
        for ref in refs[:5]:
            answer(r, ref, 5)
        with run.start("t", "2"):
            for ref in refs[6:]:
                assert answer(r, ref, 10)["deliveries"] == 1
    assert r.lrange("begun", 0, -1).count("105") == 1


def test_a_slow_handler_is_never_run_twice(r: redis.Redis, run: Runner, two: Callable[..., None]) -> None:
    two(COUNTING, takeoverMillis="500")
    with run.start("t", "1"), run.start("t", "2"):
        ref = send(r, {"n": 1, "sleep": 3})
        assert answer(r, ref)["deliveries"] == 1
        assert all(answer(r, send(r, {"n": n}))["code"] == 200 for n in range(2, 10))
    assert r.lrange("begun", 0, -1).count("1") == 1
    assert pending(r) == 0


def test_a_killed_workers_requests_are_taken_by_another(r: redis.Redis, run: Runner, two: Callable[..., None]) -> None:
    two(COUNTING, takeoverMillis="600")
    with run.start("t", "1") as first:
        ref = send(r, {"n": 1, "sleep": 1})
        wait_for(lambda: r.llen("begun"), 20, "the first worker to begin")
        first.kill()
    with run.start("t", "2"):
        assert answer(r, ref)["deliveries"] == 2
        wait_for(lambda: pending(r) == 0, 20, "the acknowledgement")
    assert r.llen("res:" + ref) == 0
    assert r.lrange("ended", 0, -1) == ["1"]


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_a_frozen_worker_whose_claim_was_taken_writes_no_second_reply(
    r: redis.Redis, run: Runner, two: Callable[..., None], kind: str
) -> None:
    code = COUNTING
    if kind == "async":
        code = COUNTING.replace("def handle", "async def handle")
    two(code, takeoverMillis="1000")
    with run.start("t", "1") as first:
        ref = send(r, {"n": 1, "sleep": 0.5})
        wait_for(lambda: r.llen("begun") == 1, 20, "the first worker to begin")
        pid = int(r.hget("t:1:h", "pid"))
        os.kill(pid, signal.SIGSTOP)
        with run.start("t", "2") as second:
            assert answer(r, ref)["deliveries"] == 2
            os.kill(pid, signal.SIGCONT)
            wait_for(lambda: r.lrange("ended", 0, -1) == ["1", "1"], 20, "the frozen one's handler to end")
            assert answer(r, send(r, {"n": 2}))["n"] == 2
            second.terminate()
            second.wait(20)
        # The one that was frozen goes on: its fence is whole again.
        assert answer(r, send(r, {"n": 3}))["n"] == 3
        first.terminate()
        first.wait(20)
    assert not r.exists(f"res:{ref}")
    refs = [fields["ref"] for _, fields in r.xrange("t:res:x")]
    assert refs.count(ref) == 1
    assert len(refs) == 3


def test_a_request_that_ends_its_worker_is_buried_at_last_and_its_neighbours_are_not(
    r: redis.Redis, run: Runner, local: Local
) -> None:
    local(COUNTING, takeoverMillis="400", maxDeliveries="3")
    refs = [send(r, {"n": n, "kill": n == 5}) for n in range(10)]
    for _ in range(3):
        assert run("t", "1").code == 128 + 9
    with run.start("t", "1"):
        replies = [answer(r, ref) for ref in refs]
        assert answer(r, send(r, {"n": 11}))["n"] == 11
        wait_for(lambda: pending(r) == 0, 20, "the acknowledgements")
    assert [reply["code"] for reply in replies] == [200] * 5 + [500] + [200] * 4
    assert "given up after 3 deliveries" in replies[5]["err"]["message"]
    assert r.lrange("begun", 0, -1).count("5") == 3
    # What was answered in the same batch, and not sent when the worker was killed, is begun once more: no more than that.
    ended = [int(n) for n in r.lrange("ended", 0, -1)]
    assert set(ended) == {0, 1, 2, 3, 4, 6, 7, 8, 9, 11}
    assert all(ended.count(n) <= 2 for n in ended)
    ((_, letter),) = r.xrange("t:dead:x")
    assert (letter["ref"], letter["deliveries"], letter["consumer"]) == (refs[5], "3", "1")
    assert json.loads(letter["request.data"]) == {"n": 5, "kill": True}


# --- ends


def test_sigterm_finishes_what_runs_and_hands_the_rest_back(
    r: redis.Redis, run: Runner, two: Callable[..., None]
) -> None:
    two(COUNTING)
    with run.start("t", "1") as first:
        for n in range(20):
            answer(r, send(r, {"n": n}))
        refs = []
        with r.pipeline() as pipe:
            for n in range(100, 104):
                refs.append(os.urandom(8).hex())
                pipe.xadd("t:req:x", {"ref": refs[-1], "type": "t", "data": json.dumps({"n": n, "sleep": 0.6})})
            pipe.execute()
        wait_for(lambda: "100" in r.lrange("begun", 0, -1), 20, "the first worker to begin")
        first.terminate()
        assert first.wait(20) == 0
    with run.start("t", "2") as second:
        assert [answer(r, ref)["deliveries"] for ref in refs] == [1] * 4
        second.terminate()
        assert second.wait(20) == 0
    begun = r.lrange("begun", 0, -1)
    assert len(begun) == len(set(begun)) == 24
    assert pending(r) == 0
    assert r.keys("t:req:x:fence:*") == []  # the fences


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_rolling_restarts_lose_and_repeat_nothing(
    r: redis.Redis, run: Runner, two: Callable[..., None], kind: str
) -> None:
    code = COUNTING.replace('time.sleep(request.data.get("sleep", 0))', "time.sleep(0.01)")
    if kind == "async":
        code = COUNTING.replace("def handle", "async def handle").replace("time.sleep", "await asyncio.sleep")
    two(code)
    refs = [send(r, {"n": n, "sleep": 0.01}) for n in range(250)]
    with contextlib.ExitStack() as stack:
        running = {id_: stack.enter_context(run.start("t", id_)) for id_ in ("1", "2")}
        for turn in range(4):
            id_ = "12"[turn % 2]
            wait_for(lambda turn=turn: r.llen("ended") > 40 * (turn + 1), 20, "progress")
            wait_for(lambda id_=id_: r.hget(f"t:{id_}:h", "pid"), 20, "the worker to start")
            if turn % 2:
                r.hdel(f"t:{id_}:h", "pid")
            else:
                running[id_].terminate()
            running[id_].wait(20)
            running[id_] = stack.enter_context(run.start("t", id_))
        assert [answer(r, ref)["n"] for ref in refs] == list(range(250))
        wait_for(lambda: pending(r) == 0, 20, "the acknowledgements")
    begun = r.lrange("begun", 0, -1)
    assert len(begun) == len(set(begun)) == 250
    assert not any(r.exists(f"res:{ref}") for ref in refs)


# --- what can happen to Redis


def test_a_worker_needs_no_more_than_its_own_keys_and_may_not_read_replies(
    r: redis.Redis, redis_url: str, run: Runner, local: Local, tmp_path: Path
) -> None:
    """The login that a worker can be given. It runs without sandboxrun, as only the worker has this login."""
    if int(r.info("server")["redis_version"].split(".")[0]) < 7:
        pytest.skip("key permissions by direction need Redis 7")
    keys = "%R~t:h %R~t:1:h ~t:req:x ~t:res:x ~t:dead:x ~t:req:x:fence:*:f %W~res:* %W~req:*:h".split()
    commands = (
        "xreadgroup xack xadd xclaim xpending xinfo|consumers xinfo|groups xlen xrange xtrim xgroup|create xgroup|delconsumer "
        "lpush expire hset hexists del multi exec watch unwatch hget hmget hgetall exists client|setname ttl xinfo|stream"
    ).split()
    r.acl_setuser("w", enabled=True, passwords=["+p"], reset=True)
    r.execute_command("ACL", "SETUSER", "w", *keys, *[f"+{command}" for command in commands])
    folder = local(
        COUNTING.replace("r = worker.connect()", "").replace("    r.rpush", "    0 and r.rpush"),
        takeoverMillis="400", maxDeliveries="1", requestStreamLimit="10", pid="0", pidHost="x",
    )  # fmt: skip
    where = redis_url.partition("@")[2]

    def start() -> subprocess.Popen[bytes]:
        # As the supervisor does it: `pid` is set before the script runs, and the worker cannot set it.
        code = "import os, sys; sys.argv = ['worker.py', 't:1:h']; input(); exec(open('worker.py').read())"
        process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=folder, stdin=subprocess.PIPE, stderr=subprocess.PIPE,
            env={"REDIS_URL": f"redis://w:p@{where}", "PATH": "/usr/bin"},
        )  # fmt: skip
        r.hset("t:1:h", "pid", process.pid)
        assert process.stdin is not None
        process.stdin.write(b"\n")
        process.stdin.flush()
        return process

    with start() as process:
        poison = send(r, {"n": 0, "kill": True})
        assert process.wait(20) == -9
    with start() as process:
        assert answer(r, poison)["code"] == 500
        assert [answer(r, send(r, {"n": n}))["code"] for n in range(500)] == [200] * 500
        wait_for(lambda: r.xlen("t:req:x") < 400, 20, "the stream to be trimmed")
        process.terminate()
        assert process.wait(20) == 0
        assert process.stderr is not None
        assert b"refuse" not in process.stderr.read()
    assert [(entry["reason"], entry["object"]) for entry in r.acl_log() if entry["username"] == "w"] == []


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_a_group_or_database_that_is_removed_is_made_again(
    r: redis.Redis, run: Runner, local: Local, kind: str
) -> None:
    folder = local(FAST if kind == "plain" else FAST.replace("worker.run()", "worker.run(concurrency=4)"))
    with run.start("t", "1"):
        assert answer(r, send(r, {"n": 1}))["n"] == 1
        r.xgroup_destroy("t:req:x", "worker")
        assert answer(r, send(r, {"n": 2}))["n"] in (1, 2)
        hash_ = r.hgetall("t:1:h")
        with r.pipeline() as pipe:
            pipe.flushall()
            pipe.hset("t:1:h", mapping=hash_)
            pipe.execute()
        assert answer(r, send(r, {"n": 3}))["n"] == 3
        assert answer(r, send(r, {"n": 4}))["n"] == 4
    assert folder.exists()


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_a_server_that_cannot_write_for_a_while_gets_the_replies_later(
    r: redis.Redis, run: Runner, local: Local, kind: str
) -> None:
    """READONLY, as after a failover: the handler's work is kept, and not done again."""
    code = COUNTING if kind == "plain" else COUNTING.replace("def handle", "async def handle")
    until_readonly = """
    import redis
    while True:
        try:
            r.rpush("ended", n)
        except redis.ReadOnlyError:
            break
        time.sleep(0.01)
"""
    local(code.replace('    r.rpush("ended", n)\n', until_readonly))
    with run.start("t", "1"):
        ref = send(r, {"n": 1})
        wait_for(lambda: r.llen("begun") == 1, 20, "the handler")
        r.execute_command("REPLICAOF", "127.0.0.1", "1")
        time.sleep(0.3)  # so that the worker has tried
        assert not r.exists(f"res:{ref}")
        r.execute_command("REPLICAOF", "NO", "ONE")
        assert answer(r, ref)["deliveries"] == 1
    assert r.llen("begun") == 1


def test_the_request_stream_is_trimmed_but_not_what_another_group_still_needs(
    r: redis.Redis, run: Runner, local: Local
) -> None:
    local(FAST, requestStreamLimit="100")
    r.xgroup_create("t:req:x", "audit", id="0", mkstream=True)
    refs = [send(r, {"n": n}) for n in range(1500)]
    with run.start("t", "1"):
        answer(r, refs[-1])
        time.sleep(2)  # two looks at least
        assert r.xlen("t:req:x") == 1500
        r.xreadgroup("audit", "a", {"t:req:x": ">"}, count=1000)
        pending_from = r.xpending("t:req:x", "audit")["min"]
        r.xack("t:req:x", "audit", *[row["message_id"] for row in r.xpending_range("t:req:x", "audit", "-", "+", 700)])
        wait_for(lambda: r.xlen("t:req:x") < 1000, 20, "the stream to be trimmed")
        kept = r.xpending("t:req:x", "audit")["min"]
        assert kept > pending_from
        assert r.xrange("t:req:x", kept, kept)
        r.xgroup_destroy("t:req:x", "audit")
        wait_for(lambda: r.xlen("t:req:x") <= 300, 20, "the rest to be trimmed")
    assert r.xlen("t:req:x") >= 100


def test_consumers_that_are_gone_are_removed_once_there_is_nothing_that_could_go_with_them(
    r: redis.Redis, redis_url: str
) -> None:
    r.xgroup_create("t:req:x", "worker", id="0", mkstream=True)
    send(r, {})
    r.xreadgroup("worker", "busy", {"t:req:x": ">"})
    for name in ("gone", "me"):
        r.xgroup_createconsumer("t:req:x", "worker", name)
    connection = Connection(redis_url)
    claims = Claims(connection, parse_loop({"consumerId": "me"}, "t", "1"), "t:1:h", "1")
    claims.open()
    time.sleep(0.01)
    remove_gone(claims, 1_000_000)
    assert len(r.xinfo_consumers("t:req:x", "worker")) == 3
    remove_gone(claims, 0)  # one that wakes now could take what is pending, and it would go with it
    assert len(r.xinfo_consumers("t:req:x", "worker")) == 3
    assert pending(r) == 1
    r.xack("t:req:x", "worker", r.xpending("t:req:x", "worker")["min"])
    send(r, {})
    remove_gone(claims, 0)  # or be given what is there to be read
    assert len(r.xinfo_consumers("t:req:x", "worker")) == 3
    found = r.xreadgroup("worker", "me", {"t:req:x": ">"})
    r.xack("t:req:x", "worker", found[0][1][0][0])
    time.sleep(0.01)
    remove_gone(claims, 0)
    assert [c["name"] for c in r.xinfo_consumers("t:req:x", "worker")] == ["me"]
    connection.close()


@pytest.mark.parametrize("protocol", [2, 3])
def test_both_protocols_are_spoken(r: redis.Redis, redis_url: str, run: Runner, local: Local, protocol: int) -> None:
    run.env["REDIS_URL"] = f"{redis_url}?protocol={protocol}"
    local(COUNTING, takeoverMillis="400", maxDeliveries="2")
    with run.start("t", "1") as process:
        ref = send(r, {"n": 1, "kill": True})
        assert process.wait(20) == 137
    assert run("t", "1").code == 137
    with run.start("t", "1"):
        assert answer(r, ref)["code"] == 500
        assert answer(r, send(r, {"n": 2}))["n"] == 2
    assert r.lrange("begun", 0, -1) == ["1", "1", "2"]


def test_what_a_frozen_async_worker_had_read_but_not_begun_is_not_answered_by_it(
    r: redis.Redis, run: Runner, two: Callable[..., None]
) -> None:
    """Its reader has the entries in a buffer of its own, and the fence is whole again by the time they arrive."""
    code = """
r = __import__("redis").Redis.from_url(os.environ["REDIS_URL"])
@worker.handler
async def handle(request):
    r.rpush("begun", request.data["n"])
    if request.data["n"] == 0:
        time.sleep(0.5)  # keeps the loop, so that what is read meanwhile is not begun
        r.rpush("slept", 1)
    return {}
worker.run(concurrency=50)
"""
    two(HEAD + code, takeoverMillis="600")
    with run.start("t", "1") as first:
        refs = [send(r, {"n": 0})]
        wait_for(lambda: r.llen("begun") == 1, 20, "the first worker to begin")
        refs += [send(r, {"n": n}) for n in range(1, 10)]
        wait_for(lambda: pending(r) == 10, 20, "all to be read")
        pid = int(r.hget("t:1:h", "pid"))
        os.kill(pid, signal.SIGSTOP)
        with run.start("t", "2"):
            assert [answer(r, ref)["code"] for ref in refs] == [200] * 10
            os.kill(pid, signal.SIGCONT)
            wait_for(lambda: r.llen("slept") == 2, 20, "the frozen one to go on")
            assert answer(r, send(r, {"n": 11}))["code"] == 200
        first.terminate()
        first.wait(20)
    assert not any(r.exists(f"res:{ref}") for ref in refs)
    answered = [fields["ref"] for _, fields in r.xrange("t:res:x")]
    assert sorted(answered) == sorted(set(answered))


def test_what_an_async_worker_cannot_finish_in_time_is_begun_by_another_at_once(
    r: redis.Redis, run: Runner, two: Callable[..., None]
) -> None:
    two(COUNTING.replace("def handle", "async def handle").replace("time.sleep", "await asyncio.sleep"))
    with run.start("t", "1") as first:
        slow = send(r, {"n": 1, "sleep": 8})
        wait_for(lambda: r.llen("begun") == 1, 20, "the first worker to begin")
        first.terminate()
        assert first.wait(20) == 0
    assert r.xpending_range("t:req:x", "worker", "-", "+", 1)[0]["time_since_delivered"] > 10**10
    r.xadd("t:req:x", {"ref": "x", "type": "t", "data": '{"n": 2}'})
    with run.start("t", "2"):
        wait_for(lambda: r.lrange("begun", 0, -1).count("1") == 2, 10, "the second worker to begin")
        assert answer(r, slow)["deliveries"] == 2


FAILING = (
    HEAD
    + """
def read():
    open("/etc/passwd")

def fail(request):
    try:
        read()
    except OSError as error:
        raise ValueError("on purpose") from error
"""
)


@pytest.mark.parametrize("kind", ["plain", "async", "threads"])
def test_the_traceback_of_a_handler_shows_the_scripts_own_lines_and_the_grant(
    r: redis.Redis, run: Runner, local: Local, kind: str
) -> None:
    word, options = ("async def", "") if kind == "async" else ("def", "concurrency=2" if kind == "threads" else "")
    local(
        f"{FAILING}\n@worker.handler\n{word} handle(request):\n    fail(request)\n\nworker.run({options})\n",
        requestLimit="1",
    )
    ref = send(r, {"n": 1})
    done = run("t", "1", "--quiet")
    assert answer(r, ref)["code"] == 500
    files = [line.split('"')[1] for line in done.err.splitlines() if line.startswith('  File "')]
    assert {os.path.basename(path) for path in files} == {"worker.py"}
    assert [line.rpartition(" ")[2] for line in done.err.splitlines() if line.startswith('  File "')] == [
        "fail", "read", "handle", "fail",
    ]  # fmt: skip
    assert "ValueError: on purpose" in done.err
    assert done.err.splitlines()[-1].startswith('Requires read access to "/etc/passwd"')
