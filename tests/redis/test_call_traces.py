"""The trace of a request with its inner calls: W3C trace context, the records of replies, and `sandboxrun trace`."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
import redis
from plain_workers import MODES, plain_workers
from runner import Runner

from sandboxrun import client
from sandboxrun.errors import StoreError
from sandboxrun.protocol.tracing import new_traceparent, parse

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01"
SECONDS = 30


def record(r: redis.Redis, type_: str, ref: str = "") -> dict[str, str]:
    return next(fields for _, fields in r.xrevrange(f"{type_}:res:x") if ref in ("", fields["ref"]))


def traced(run: Runner, ref: str) -> dict[str, Any]:
    done = run("trace", ref, "--json")
    assert done.code == 0, done.err
    found: dict[str, Any] = json.loads(done.out)
    return found


def send(r: redis.Redis, type_: str, data: dict[str, Any], **fields: str) -> dict[str, Any]:
    r.xadd(f"{type_}:req:x", {"ref": "r", "data": json.dumps(data), **fields})
    popped: Any = r.brpop(["res:r"], timeout=SECONDS)
    found: dict[str, Any] = json.loads(popped[1])
    return found


@MODES
def test_each_handler_has_a_span_under_that_of_its_caller(
    r: redis.Redis, redis_url: str, c: client.Client, mode: str
) -> None:
    bank = {"type": "bank", "method": "pay.now"}
    price = {"type": "price", "data": {"calls": [bank]}}
    with plain_workers(r, redis_url, "order", "price", "bank", MODE=mode):
        first = c.call("order", {"calls": [price]}, timeout=20, traceparent=PARENT)
    second = first["calls"][0]
    third = second["calls"][0]
    spans = [parse(reply["traceparent"]) for reply in (first, second, third)]
    assert [span and span[0] for span in spans] == [TRACE] * 3
    ids = [SPAN, *[span[1] for span in spans if span]]
    assert len(set(ids)) == 4
    for type_, reply, parent, caller, method in (
        ("order", first, ids[0], "", ""),
        ("price", second, ids[1], "order", ""),
        ("bank", third, ids[2], "price", "pay.now"),
    ):
        found = record(r, type_)
        assert (found["traceparent"], found["parentSpan"]) == (reply["traceparent"], parent)
        assert (found["caller"], found["method"], found["code"]) == (caller, method, "200")
        assert found["received"] <= found["completed"]
        trace = r.hgetall(f"req:{reply['ref']}:h")
        assert (trace["parentSpan"], trace.get("caller", "")) == (parent, caller)
        assert trace["traceparent"] == f"00-{TRACE}-{parent}-01"


@MODES
def test_errors_are_spans_too(r: redis.Redis, redis_url: str, mode: str) -> None:
    with plain_workers(r, redis_url, "order", MODE=mode):
        for code, data, fields in (
            (500, {"fail": "no"}, {}),
            (400, {}, {"method": "a b", "path": "../x"}),
            (504, {}, {"deadline": "1", "path": "shop"}),
        ):
            assert send(r, "order", data, traceparent=PARENT, **fields)["code"] == code
            found = record(r, "order")
            assert (found["code"], found["parentSpan"], found["method"]) == (str(code), SPAN, "")
            assert found["caller"] == ("shop" if code == 504 else "")
            assert parse(found["traceparent"]) == (TRACE, found["traceparent"][36:52], 1)
        r.xadd("order:req:x", {"data": "{}", "traceparent": PARENT})  # no ref
        send(r, "order", {})
        assert [len(fields) for _, fields in r.xrange("order:res:x")] == [11, 11, 11, 11, 5]


def test_a_request_that_is_not_traced_has_the_record_that_it_always_had(
    r: redis.Redis, redis_url: str, c: client.Client
) -> None:
    with plain_workers(r, redis_url, "order", "price"):
        reply = send(r, "order", {"calls": [{"type": "price"}]}, traceparent="00-malformed")
        assert (reply["traceparent"], reply["calls"][0]["traceparent"]) == ("", "")
        ignored = c.call("order", {}, timeout=20, traceparent="x" * 100_000)
        assert "traceparent" not in r.xrevrange("order:req:x", count=1)[0][1]
        for type_, ref in (("order", "r"), ("price", ""), ("order", ignored["ref"])):
            assert set(record(r, type_, ref)) == {"ref", "type", "xid", "code", "res"}


def test_a_trace_that_begins_with_the_request_has_no_parent(r: redis.Redis, redis_url: str, c: client.Client) -> None:
    with plain_workers(r, redis_url, "order"):
        reply = c.call("order", {}, timeout=20, traceparent=new_traceparent())
        assert record(r, "order")["parentSpan"] == ""
        assert record(r, "order")["traceparent"] == reply["traceparent"]


def test_the_tree_of_a_request_has_its_calls_with_times_errors_and_what_they_noted(
    r: redis.Redis, redis_url: str, c: client.Client, run: Runner
) -> None:
    bank = {"type": "bank", "data": {"fail": "no\x1b[31m money"}, "method": "pay"}
    price = {"type": "price", "data": {"calls": [bank]}}
    with plain_workers(r, redis_url, "order", "price", "bank", "stock"):
        r.hset("price:1:h", "name", "price")
        reply = c.call("order", {"calls": [price, {"type": "stock"}, {"type": "order"}]}, timeout=20)
    ref = reply["ref"]
    found = traced(run, ref)
    assert [(call["type"], call["code"], call["error"]) for call in found["calls"]] == [
        ("price", 200, None),
        ("stock", 200, None),
    ]
    inner = found["calls"][0]
    assert inner["ref"] == reply["calls"][0]["ref"]
    assert inner["created"] <= inner["received"] <= inner["completed"]
    assert inner["trace"] == {"seen": "by me"}
    (paid,) = inner["calls"]
    assert (paid["type"], paid["method"], paid["code"], paid["calls"]) == ("bank", "pay", 500, [])
    assert "no\x1b" in paid["error"]
    out = run("trace", ref).out.splitlines()
    at = out.index("  calls")
    shown = [" ".join(line.split()) for line in out[at + 1 :]]
    assert [line.split(" ms ")[-1].split("code")[0].strip() for line in shown if "code" in line] == [
        "price",
        "bank pay",
        "stock",
    ]
    assert "\x1b" not in "".join(out)
    assert "seen by me" in shown
    own = traced(run, inner["ref"])
    assert (own["trace"]["caller"], own["trace"]["callerRef"]) == ("order", ref)
    assert [call["type"] for call in own["calls"]] == ["bank"]


def test_a_hostile_trace_makes_neither_an_endless_nor_an_unbounded_tree(r: redis.Redis, run: Runner) -> None:
    def note(ref: str, *calls: str, **fields: str) -> None:
        r.hset(f"req:{ref}:h", mapping={"ref": ref, **{f"call:{inner}": "t" for inner in calls}, **fields})

    note("a", "b", "a", "\x1b[31m", "x" * 300, "gone", tTrace="[1]")
    note("b", "a", "c", created="no time", tTrace='{"res": {"code": "200", "err": []}}')
    r.set("req:c:h", "no hash")
    found = traced(run, "a")
    assert {call["ref"]: call["known"] for call in found["calls"]} == {"b": True, "gone": False}
    (b,) = (call for call in found["calls"] if call["ref"] == "b")
    assert (b["code"], b["error"], [call["ref"] for call in b["calls"]]) == (None, None, ["c"])
    assert "req:c:h is not a hash, and was not read" in found["notes"]
    assert run("trace", "a").code == 0

    note("many", *(f"m{n}" for n in range(400)))
    found = traced(run, "many")
    assert len(found["calls"]) == 300
    assert "only 300 calls are shown" in found["notes"]


def test_any_service_may_note_in_a_trace(r: redis.Redis, redis_url: str, c: client.Client) -> None:
    c.trace("r1", step="paid", amount={"eur": 3}, ref="named ref")
    assert r.hgetall("req:r1:h") == {"step": "paid", "amount": '{"eur": 3}', "ref": "named ref"}
    assert 0 < r.ttl("req:r1:h") <= 120
    r.expire("req:r1:h", 1000)
    c.trace("r1", step="sent")
    assert r.ttl("req:r1:h") > 900

    async def note() -> None:
        async with client.AsyncClient(redis_url) as a:
            await asyncio.gather(*(a.trace("r1", **{f"n{n}": n}) for n in range(50)))
            with pytest.raises(ValueError, match="is not a ref"):
                await a.trace("a\nb", x=1)

    asyncio.run(note())
    assert r.hget("req:r1:h", "n49") == "49"
    for wrong in ({}, {"x": "y" * 1_100_000}, {"x": float("nan")}):
        with pytest.raises(ValueError, match=r"no field|more than|not JSON|JSON"):
            c.trace("r2", **wrong)
    with pytest.raises(TypeError):
        c.trace("r2", x={1, 2})
    assert not r.exists("req:r2:h")
    r.set("req:r3:h", "no hash")
    with pytest.raises(StoreError, match="WRONGTYPE"):
        c.trace("r3", x=1)
