"""Calls inside of a handler: what they inherit, and how they end, whatever becomes of caller and callee."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from arena import wait_for
from plain_workers import MODES, plain_workers
from runner import Runner
from scripts import script

from sandboxrun import client
from sandboxrun.errors import StoreError
from sandboxrun.protocol.calling import Caller, Calling, current
from sandboxrun.protocol.tracing import new_traceparent

SECONDS = 30


def step(type_: str, *calls: dict[str, Any], **more: Any) -> dict[str, Any]:
    data = {"calls": list(calls), **{name: more.pop(name) for name in ("sleep", "kill", "fail") if name in more}}
    return {"type": type_, "data": data, **more}


def data_of(*calls: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"calls": list(calls), **more}


@MODES
def test_deadline_and_path_are_handed_on_through_three_services(
    r: redis.Redis, redis_url: str, c: client.Client, mode: str
) -> None:
    with plain_workers(r, redis_url, "order", "price", "bank", MODE=mode):
        first = c.call("order", data_of(step("price", step("bank", timeout=1000), timeout=None)), timeout=20)
        second = first["calls"][0]
        third = second["calls"][0]
        assert [found["path"] for found in (first, second, third)] == [[], ["order"], ["order", "price"]]
        assert first["deadline"] >= second["deadline"] >= third["deadline"] > first["deadline"] - 1
        shorter = c.call("order", data_of(step("price", timeout=3)), timeout=20)
        assert shorter["calls"][0]["deadline"] < shorter["deadline"] - 10
        unlimited = c.call("order", data_of(step("price", timeout=None)), timeout=None)
        assert (unlimited["deadline"], unlimited["calls"][0]["deadline"]) == (None, None)
    trace = r.hgetall(f"req:{second['ref']}:h")
    assert (trace["caller"], trace["callerRef"]) == ("order", first["ref"])
    assert "traceparent" not in trace


@MODES
def test_requests_of_a_process_do_not_see_each_others_deadline(r: redis.Redis, redis_url: str, mode: str) -> None:
    """Requests without a deadline are after and beside those with one."""
    with plain_workers(r, redis_url, "order", "price", MODE=mode):
        data = json.dumps(data_of(step("price", sleep=0.01, timeout=None)))
        far = int(time.time() * 1000) + 1_000_000
        for n in range(20):
            due = {} if n % 4 == 0 else {"deadline": far + n}
            r.xadd("order:req:x", {"ref": f"r{n}", "data": data, **due})
        for n in range(20):
            popped: Any = r.brpop([f"res:r{n}"], timeout=SECONDS)
            found = json.loads(popped[1])
            assert found["deadline"] == found["calls"][0]["deadline"] == (None if n % 4 == 0 else (far + n) / 1000)


@MODES
def test_a_call_cycle_is_refused_at_once(r: redis.Redis, redis_url: str, c: client.Client, mode: str) -> None:
    with plain_workers(r, redis_url, "order", "price", MODE=mode):
        own = c.call("order", data_of(step("order")), timeout=20)["calls"][0]
        assert own["error"] == "BadRequest"
        assert own["message"].startswith("order calls itself: order → order; ")
        round_trip = c.call("order", data_of(step("price", step("order"))), timeout=20)
        refused = round_trip["calls"][0]["calls"][0]
        assert refused["message"].startswith("order calls itself: order → price → order; ")
        assert refused["ran"] is False
        assert r.xlen("order:req:x") == 2


def test_a_hostile_path_or_method_is_answered_400_and_does_not_run(
    r: redis.Redis, redis_url: str, c: client.Client
) -> None:
    with plain_workers(r, redis_url, "order"):
        for name, value in (("path", "a,,b"), ("path", "Order"), ("method", "a b"), ("path", ",".join("a" * 17))):
            r.xadd("order:req:x", {"ref": "bad", "data": '{"kill": true}', name: value})
            reply: Any = r.brpop(["res:bad"], timeout=SECONDS)
            found = json.loads(reply[1])
            assert (found["code"], found["err"]["message"].split(" is ")[0]) == (400, f"the request's {name}")
        r.xadd(
            "order:req:x", {"ref": "good", "data": "{}", "traceparent": "\xff\x00", "path": "shop", "method": "p.of"}
        )
        reply = r.brpop(["res:good"], timeout=SECONDS)
        found = json.loads(reply[1])
        assert (found["code"], found["path"], found["method"], found["traceparent"]) == (200, ["shop"], "p.of", "")


@MODES
def test_a_call_without_time_left_is_not_sent(r: redis.Redis, redis_url: str, mode: str) -> None:
    """The first call takes all the time: what the handler calls then would begin after its own caller has given up."""
    with plain_workers(r, redis_url, "order", "price", MODE=mode):
        data = json.dumps(data_of(step("price", sleep=3), step("price")))
        r.xadd("order:req:x", {"ref": "r", "data": data, "deadline": int(time.time() * 1000) + 1000})
        popped: Any = r.brpop(["res:r"], timeout=SECONDS)
        calls = json.loads(popped[1])["calls"]
        assert [call["error"] for call in calls] == ["CallTimeout", "Expired"]
        assert calls[1]["message"].startswith("price was not called: the deadline of the current request")
        assert r.xlen("price:req:x") == 1


@MODES
def test_every_error_of_a_callee_reaches_the_caller(
    r: redis.Redis, redis_url: str, c: client.Client, mode: str
) -> None:
    with plain_workers(r, redis_url, "order", "price", MODE=mode):
        steps = [
            step("price", fail="no price"),
            {"type": "price", "data": "unserialisable"},
            {"type": "price", "data": "oversized"},
            {"type": "price", "method": "no such"},
            {"type": "price", "timeout": -1},
            {"type": "Price"},
            {"type": "nobody", "timeout": 0.2},
        ]
        found = c.call("order", data_of(*steps), timeout=20)["calls"]
        assert [(call["error"], call["ran"]) for call in found] == [
            ("RemoteError", True),
            ("TypeError", ""),
            ("BadRequest", False),
            ("ValueError", ""),
            ("ValueError", ""),
            ("ConfigError", ""),
            ("CallTimeout", True),
        ]
        assert "no price" in found[0]["message"]
        assert "more than 1048576 bytes" in found[2]["message"]


def test_a_thousand_calls_at_once_inside_of_a_handler(r: redis.Redis, redis_url: str, c: client.Client) -> None:
    with plain_workers(r, redis_url, "order", "price", MODE="tasks"):
        found = c.call("order", data_of(step("price", times=1000)), timeout=SECONDS)
        assert len({call["ref"] for call in found["calls"]}) == 1000
        assert {tuple(call["path"]) for call in found["calls"]} == {("order",)}
        assert max(call["deadline"] for call in found["calls"]) <= found["deadline"]
        noted = [name for name in r.hkeys(f"req:{found['ref']}:h") if name.startswith("call:")]
        assert len(noted) == 100


def test_a_caller_that_is_killed_while_it_waits_leaves_the_callee_to_its_work(
    r: redis.Redis, redis_url: str, c: client.Client
) -> None:
    with plain_workers(r, redis_url, "price"):
        with plain_workers(r, redis_url, "order") as workers:
            r.xadd("order:req:x", {"ref": "first", "data": json.dumps(data_of(step("price", sleep=1)))})
            wait_for(lambda: any(g["pending"] for g in r.xinfo_groups("price:req:x")), SECONDS, "the callee to begin")
            workers["order"].kill()
        wait_for(lambda: r.xlen("price:res:x") == 1, SECONDS, "the callee to reply")
        assert c.call("price", {}, timeout=20)["path"] == []  # it goes on
        with plain_workers(r, redis_url, "order", id_="2"):  # takes the request over, and calls again
            reply: Any = r.brpop(["res:first"], timeout=SECONDS)
        assert json.loads(reply[1])["code"] == 200
        assert len({fields["ref"] for _, fields in r.xrange("price:req:x")}) == 3
        noted = [name for name in r.hkeys("req:first:h") if name.startswith("call:")]
        assert len(noted) == 2  # of both attempts


def test_a_callee_that_is_killed_is_replaced_within_the_same_call(
    r: redis.Redis, redis_url: str, c: client.Client
) -> None:
    with (
        plain_workers(r, redis_url, "order", "price") as workers,
        plain_workers(r, redis_url, "price", id_="2") as second,
    ):
        found = c.call("order", data_of(step("price", kill=True)), timeout=20)["calls"][0]
        killed, replaced = sorted([workers["price"], second["price"]], key=lambda process: process.poll() is None)
        assert (killed.wait(SECONDS), found["pid"]) == (-9, replaced.pid)


def test_a_request_over_redis_py_inherits_as_well(r: redis.Redis) -> None:
    caller = Caller("order:1:h", "order", "ab" * 8)
    calling = Calling("order", 1e10, ("shop", "order"), new_traceparent(), "own", caller.nonce, caller)
    token = current.set(calling)
    try:
        ref = client.send(r, "price", {}, now="2026-01-02T03:04:05.000Z")
        with pytest.raises(client.BadRequest, match="shop calls itself: shop → order → shop"):
            client.send(r, "shop", {}, now="2026-01-02T03:04:05.000Z")
    finally:
        current.reset(token)
    ((_, fields),) = r.xrange("price:req:x")
    assert (fields["ref"], fields["path"], fields["deadline"]) == (ref, "shop,order", "10000000000000")
    assert (ref[:16], fields["traceparent"]) == (caller.nonce, calling.traceparent)
    assert r.hget(f"req:{ref}:h", "callerRef") == "own"


def test_a_refusal_of_another_redis_is_no_missing_grant(r: redis.Redis, redis_url: str) -> None:
    """A client with a URL of its own: the worker's grant says nothing about that server."""
    r.acl_setuser("other", enabled=True, passwords=["+pw"], reset=True, commands=["+@all"], keys=["res:*", "req:*"])
    url = f"redis://other:pw@{redis_url.rpartition('@')[2].removeprefix('redis://')}"
    token = current.set(Calling("order", None, ("order",), "", "own", "ab" * 8))
    try:
        with client.Client(url) as c, pytest.raises(StoreError, match="NOPERM") as error:
            c.call("price", {}, timeout=5)
        assert not isinstance(error.value, client.CallDenied)
    finally:
        current.reset(token)
        r.acl_deluser("other")


def test_a_client_outside_of_a_handler_sends_what_it_always_did(r: redis.Redis, c: client.Client) -> None:
    with pytest.raises(client.CallTimeout):
        c.call("t", {"n": 1}, timeout=0.2)
    ((_, fields),) = r.xrange("t:req:x")
    assert set(fields) == {"ref", "type", "data", "time", "deadline"}
    assert len(fields["ref"]) == 24
    assert set(r.hgetall(f"req:{fields['ref']}:h")) == {"ref", "type", "requestData", "created"}


@MODES
def test_a_worker_without_the_grant_calls_nobody_and_says_which_is_missing(
    r: redis.Redis, c: client.Client, run: Runner, local: Callable[..., Path], mode: str
) -> None:
    local(script("calling"), key="order:1:h", mode=mode)
    with run.start("order", "1") as process:
        found = c.call("order", data_of(step("price")), timeout=SECONDS)["calls"][0]
        assert (found["error"], found["ran"]) == ("CallDenied", False)
        assert found["message"] == "worker order 1 is not allowed to call price: allowCall did not list it at start"
        assert found["hint"] == ["sandboxrun set order 1 allowCall=price && sandboxrun approve order 1"]
        if mode == "serial":
            with pytest.raises(client.RemoteError, match="is not allowed to call price"):
                c.call("order", data_of({**step("price"), "raise": True}), timeout=SECONDS)
        assert not r.exists("price:req:x")
        process.terminate()
        _, err = process.communicate(timeout=SECONDS)
    if mode == "serial":
        line = 'Requires call access to "price"; grant it with: --allow-call=price (field allowCall of order:1:h)'
        assert err.decode().count(line) == 1
