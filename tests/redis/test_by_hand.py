"""docs/protocol.md is enough: a worker and a client with a plain socket, beside those of the SDK."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from arena import wait_for
from loop_workers import answer, pending
from runner import Runner

from sandboxrun import client

EXAMPLE = Path(__file__).parents[2] / "examples" / "by-hand"
Local = Callable[..., Path]
SDK = """
from sandboxrun import worker

@worker.handler
def handle(request):
    if not isinstance(request.data.get("text"), str):
        raise worker.BadRequest("the data has no text")
    return {"text": request.data["text"].upper()}

worker.run()
"""
SECONDS = 30


@pytest.fixture
def start(r: redis.Redis, run: Runner, tmp_path: Path) -> Callable[[], contextlib.AbstractContextManager[Any]]:
    """Start the worker of the example, in the sandbox, as t:1. It takes over after a second."""

    @contextlib.contextmanager
    def started() -> Iterator[subprocess.Popen[bytes]]:
        folder = shutil.copytree(EXAMPLE, tmp_path / "by-hand")
        r.hset("t:1:h", mapping={"url": str(folder), "version": "local", "takeoverMillis": "1000"})
        with run.start("t", "1") as process:
            wait_for(lambda: r.exists("t:req:x:fence:1:f"), SECONDS, "the worker to be there")
            yield process

    return started


@pytest.fixture
def by_hand(start: Callable[[], contextlib.AbstractContextManager[Any]]) -> Iterator[subprocess.Popen[bytes]]:
    with start() as process:
        yield process


@pytest.fixture
def alone(r: redis.Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The example's Worker in this process, with its fence, and one request in hand."""
    monkeypatch.syspath_prepend(str(EXAMPLE))
    spec = importlib.util.spec_from_file_location("by_hand_worker", EXAMPLE / "worker.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    worker = module.Worker("t:1:h", redis_url, redis_url)
    r.xgroup_create("t:req:x", "worker", 0, mkstream=True)
    worker.raise_fence()
    put(r, ref="r1", type="t", data='{"text": "hi"}')
    yield worker
    worker.redis.close()
    worker.hashes.close()


def call_by_hand(url: str, type_: str, data: Any, seconds: float = SECONDS) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLE / "client.py"), type_, json.dumps(data), str(seconds)]
    env = {"REDIS_URL": url, "PATH": os.environ["PATH"]}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=SECONDS + 30)


def put(r: redis.Redis, **fields: str | bytes) -> str:
    return r.xadd("t:req:x", fields)  # type: ignore[arg-type,return-value]


def test_the_sdks_client_calls_a_worker_by_hand(
    by_hand: subprocess.Popen[bytes], r: redis.Redis, redis_url: str
) -> None:
    with client.Client(redis_url) as calling:
        reply = calling.call("t", {"text": "hi"}, timeout=SECONDS)
        assert (reply["text"], reply["source"], reply["code"]) == ("HI", "t", 200)
        with pytest.raises(client.BadRequest, match="the data has no text"):
            calling.call("t", {"text": 5}, timeout=SECONDS)
    put(r, ref="late", type="t", data="{}", deadline="1")
    assert answer(r, "late", SECONDS)["code"] == 504
    put(r, ref="other", type="someone-else", data="{}")
    assert "expected t" in answer(r, "other", SECONDS)["err"]["message"]
    put(r, ref="fields", text="no json")
    assert answer(r, "fields", SECONDS)["text"] == "NO JSON"
    put(r, ref="wrong", data="{")
    assert answer(r, "wrong", SECONDS)["code"] == 400
    assert pending(r) == 0


@pytest.mark.parametrize("ref", ["", "a\nb", "x" * 257, b"\xff"])
def test_a_request_that_cannot_be_answered_is_recorded_and_a_dead_letter(
    by_hand: subprocess.Popen[bytes], r: redis.Redis, ref: str | bytes
) -> None:
    xid = put(r, ref=ref, type="t", data="{}")
    wait_for(lambda: r.xlen("t:dead:x"), SECONDS, "the dead letter")
    wait_for(lambda: pending(r) == 0, SECONDS, "its acknowledgement")
    ((_, record),) = r.xrange("t:res:x")
    assert (record["ref"], record["code"], record["xid"]) == ("", "400", xid)
    assert r.keys("res:*") == []


def test_a_client_by_hand_calls_a_worker_of_the_sdk(r: redis.Redis, run: Runner, local: Local, redis_url: str) -> None:
    local(SDK)
    with run.start("t", "1"):
        done = call_by_hand(redis_url, "t", {"text": "hi"})
        assert (done.returncode, done.stderr, json.loads(done.stdout)["text"]) == (0, "", "HI")
        done = call_by_hand(redis_url, "t", {})
        assert (done.returncode, json.loads(done.stdout)["err"]) == (1, {"message": "the data has no text"})
    assert call_by_hand(redis_url, "nobody", {}, 0.2).returncode == 75


def test_both_workers_leave_the_same_traces_and_records(
    by_hand: subprocess.Popen[bytes], r: redis.Redis, run: Runner, tmp_path: Path, redis_url: str
) -> None:
    (tmp_path / "sdk").mkdir()
    (tmp_path / "sdk/worker.py").write_text(SDK)
    r.hset("u:1:h", mapping={"url": str(tmp_path / "sdk"), "version": "local"})
    kept = []
    with run.start("u", "1"):
        for type_ in ("t", "u"):
            assert call_by_hand(redis_url, type_, {"text": "hi"}).returncode == 0
            ((_, record),) = r.xrange(f"{type_}:res:x")
            (trace,) = r.keys("req:*:h")
            story = json.loads(r.hget(trace, f"{type_}Trace"))  # type: ignore[arg-type]
            fields = set(r.hkeys(trace)) - {f"{type_}Trace"}  # type: ignore[arg-type]
            assert 0 < r.ttl(trace) <= 120  # type: ignore[operator]
            kept.append((set(record), fields, set(story), set(story["res"])))
            r.delete(trace)
    assert kept[0] == kept[1]


def lose(r: redis.Redis, *, deliveries: int = 1) -> str:
    """Put a request, and let a consumer that is gone have it."""
    r.xgroup_create("t:req:x", "worker", 0, mkstream=True)
    xid = put(r, ref="r1", type="t", data='{"text": "hi"}')
    r.xreadgroup("worker", "gone", {"t:req:x": ">"})
    r.xclaim("t:req:x", "worker", "gone", 0, [xid], retrycount=deliveries, justid=True)
    r.hset("t:req:x:fence:gone:f", "name", "1")
    return xid


def test_what_a_lost_worker_had_is_taken_over_and_its_fence_deleted(
    start: Callable[[], contextlib.AbstractContextManager[Any]], r: redis.Redis
) -> None:
    lose(r)
    with start():
        assert answer(r, "r1", SECONDS)["text"] == "HI"
        wait_for(lambda: pending(r) == 0, SECONDS, "the acknowledgement")
        assert not r.exists("t:req:x:fence:gone:f")


def test_a_request_that_was_delivered_too_often_is_given_up(
    start: Callable[[], contextlib.AbstractContextManager[Any]], r: redis.Redis
) -> None:
    xid = lose(r, deliveries=5)
    with start():
        assert "given up after 5 deliveries" in answer(r, "r1", SECONDS)["err"]["message"]
        ((_, letter),) = r.xrange("t:dead:x")
        assert (letter["xid"], letter["ref"], letter["request.data"]) == (xid, "r1", '{"text": "hi"}')


def in_hand(worker: Any) -> tuple[bytes, dict[bytes, bytes]]:
    found = worker.redis.one("XREADGROUP", "GROUP", "worker", "1", "STREAMS", "t:req:x", ">")
    xid, words = found[0][1][0]
    return xid, dict(zip(words[::2], words[1::2], strict=True))


def test_the_reply_of_a_worker_whose_claim_was_taken_is_not_written(alone: Any, r: redis.Redis) -> None:
    xid, raw = in_hand(alone)
    r.delete("t:req:x:fence:1:f")
    r.xclaim("t:req:x", "worker", "other", 0, [xid], justid=True)
    alone.answer(xid, raw, 1)
    assert r.xlen("t:res:x") == 0 and r.keys("res:*") == [] and pending(r) == 1
    (claim,) = r.xpending_range("t:req:x", "worker", "-", "+", 10)
    assert claim["consumer"] == "other"


def test_a_fence_that_was_broken_for_another_request_delays_the_reply_only(alone: Any, r: redis.Redis) -> None:
    xid, raw = in_hand(alone)
    r.delete("t:req:x:fence:1:f")
    alone.answer(xid, raw, 1)
    assert answer(r, "r1", SECONDS)["text"] == "HI"
    assert r.xlen("t:res:x") == 1 and pending(r) == 0


def test_it_ends_when_its_pid_is_removed(by_hand: subprocess.Popen[bytes], r: redis.Redis) -> None:
    r.hdel("t:1:h", "pid")
    assert by_hand.wait(SECONDS) == 0
    assert not r.exists("t:req:x:fence:1:f")
