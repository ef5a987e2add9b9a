"""plugins/otel-export: spans that a collector takes by the protocol's own definitions, each request at least once."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from arena import wait_for
from effect_workers import plain
from otlp import Collector
from runner import Runner

from sandboxrun import client

ROOT = Path(__file__).parents[2]
TRACE = "ab" * 16


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as found:
        yield found


@contextlib.contextmanager
def exporter(r: redis.Redis, run: Runner, collector: Collector, **fields: str) -> Iterator[subprocess.Popen[bytes]]:
    r.hset(
        "otel-export:1:h",
        mapping={
            "url": str(ROOT / "plugins/otel-export"),
            "version": "local",
            "allowNet": f"127.0.0.1:{collector.port}",
            "allowRedis": "order:res:x,price:res:x",
            **fields,
        },
    )
    with run.start("otel-export", "1", "--yes") as process:
        try:
            yield process
        finally:
            process.terminate()


def record(r: redis.Redis, type_: str, span: int, parent: str = "", code: int = 200, **fields: str) -> None:
    """The record of a reply, as a worker writes it."""
    res = {"code": code, **({"err": {"message": "of stock\ud800"}} if code != 200 else {})}
    r.xadd(
        f"{type_}:res:x",
        {
            "ref": f"r{span}", "type": type_, "xid": "1-1", "code": str(code), "res": json.dumps(res),
            "traceparent": f"00-{TRACE}-{span:016x}-01", "parentSpan": parent, "caller": "order" if parent else "",
            "received": "2026-01-02T03:04:05.678Z", "completed": "2026-01-02T03:04:05.701Z", **fields,
        },
    )  # fmt: skip


def ids(collector: Collector) -> list[int]:
    return [int.from_bytes(span.span_id) for _, span in collector.spans]


def counts(run: Runner) -> dict[str, Any]:
    with client.Client(run.env["REDIS_URL"]) as c:
        found = c.call("otel-export", {}, timeout=30)
    return {name: found[name] for name in ("exported", "skipped", "untraced", "waiting")}


def test_a_tree_of_requests_is_a_tree_of_spans(r: redis.Redis, run: Runner, collector: Collector) -> None:
    record(r, "price", 2, f"{1:016x}")
    record(r, "price", 3, f"{1:016x}", code=500)
    record(r, "order", 1, code=200)
    with exporter(r, run, collector):
        wait_for(lambda: len(collector.spans) == 3, 30)
        record(r, "order", 4, code=400)
        wait_for(lambda: len(collector.spans) == 4, 30)
        wait_for(lambda: counts(run) == {"exported": 4, "skipped": 0, "untraced": 0, "waiting": ""})
    assert collector.faults == []
    by_id = {int.from_bytes(span.span_id): (service, span) for service, span in collector.spans}
    assert {number: service for number, (service, _) in by_id.items()} == {
        1: "order",
        2: "price",
        3: "price",
        4: "order",
    }
    assert {number: int.from_bytes(span.parent_span_id) for number, (_, span) in by_id.items()} == {
        1: 0,
        2: 1,
        3: 1,
        4: 0,
    }
    assert {span.trace_id.hex() for _, span in by_id.values()} == {TRACE}
    assert {number: span.status.code for number, (_, span) in by_id.items()} == {1: 0, 2: 0, 3: 2, 4: 2}
    assert by_id[3][1].status.message == "of stock?"
    first = by_id[2][1]
    assert (first.name, first.kind) == ("price", 2)
    assert (first.start_time_unix_nano % 10**9, first.end_time_unix_nano - first.start_time_unix_nano) == (
        678_000_000,
        23_000_000,
    )
    attributes = {a.key: a.value.string_value or a.value.int_value for a in first.attributes}
    assert attributes == {
        "rpc.system": "sandboxrun", "rpc.service": "price", "sandboxrun.ref": "r2", "sandboxrun.code": 200,
        "sandboxrun.caller": "order",
    }  # fmt: skip
    assert [r.xpending(f"{type_}:res:x", "otel-export")["pending"] for type_ in ("order", "price")] == [0, 0]


ORDER = """
import os
from sandboxrun import client, worker

prices = client.Client(os.environ["REDIS_URL"])

@worker.handler
def handle(request):
    request.emit("mail", {"to": "ann"})
    try:
        prices.call("price", {}, timeout=20, method="of")
    except client.RemoteError as error:
        return {"no": "price"}

worker.run()
"""
PRICE = """
from sandboxrun import worker

@worker.handler
def handle(request):
    raise ValueError("no price")

worker.run()
"""
MAIL = PRICE.replace('raise ValueError("no price")', "return {}")


def test_calls_and_emits_of_real_workers_are_one_trace(
    r: redis.Redis, redis_url: str, run: Runner, collector: Collector, tmp_path: Path
) -> None:
    with contextlib.ExitStack() as stack:
        for type_, code in (("order", ORDER), ("price", PRICE), ("mail", MAIL)):
            stack.enter_context(plain(r, redis_url, tmp_path, code, type_=type_))
        stack.enter_context(exporter(r, run, collector, allowRedis="order:res:x,price:res:x,mail:res:x"))
        traceparent = f"00-{TRACE}-{'cd' * 8}-01"
        r.xadd("order:req:x", {"ref": "r1", "type": "order", "data": "{}", "traceparent": traceparent})
        wait_for(lambda: len(collector.spans) == 3, 30)
    assert collector.faults == []
    spans = dict(collector.spans)
    root = spans["order"]
    assert (root.trace_id.hex(), root.parent_span_id.hex()) == (TRACE, "cd" * 8)
    assert {name: span.parent_span_id for name, span in spans.items() if name != "order"} == {
        "price": root.span_id,
        "mail": root.span_id,
    }
    assert {span.trace_id for span in spans.values()} == {root.trace_id}
    assert {name: span.status.code for name, span in spans.items()} == {"order": 0, "price": 2, "mail": 0}
    assert (spans["price"].name, spans["price"].status.message) == ("price.of", "no price")


def test_what_is_malformed_is_skipped_and_counted(r: redis.Redis, run: Runner, collector: Collector) -> None:
    record(r, "order", 1)
    for fields in (
        {"traceparent": "00-zz"},
        {"traceparent": f"00-{'0' * 32}-{1:016x}-01"},
        {"traceparent": f"00-{TRACE.upper()}-{1:016x}-01"},
        {"parentSpan": "1"},
        {"received": "yesterday"},
        {"completed": "0001-01-01T00:00:00+23:59"},
        {"received": "1969-12-31T23:59:59Z"},
        {"code": "9" * 5000},
        {"code": "x"},
        {"type": ""},
        {"traceparent": "\x00ü" * 1000},
    ):
        record(r, "order", 9, **fields)
    record(r, "order", 10, traceparent="")
    record(r, "order", 11, code=500, res="[" * 100000)
    record(r, "order", 12, code=500, res='{"err": {"message": 7}}')
    record(r, "order", 2)
    with exporter(r, run, collector):
        wait_for(lambda: 2 in ids(collector), 30)
        wait_for(lambda: counts(run) == {"exported": 4, "skipped": 11, "untraced": 1, "waiting": ""})
    assert (sorted(ids(collector)), collector.faults) == ([1, 2, 11, 12], [])


def test_a_collector_that_is_away_is_waited_for_and_loses_nothing(
    r: redis.Redis, run: Runner, collector: Collector
) -> None:
    collector.statuses = [503, 429, 404]
    for number in range(1, 40):
        record(r, "order", number)
    with exporter(r, run, collector) as process:
        wait_for(lambda: len(collector.spans) == 39, 30)
        collector.__exit__()
        record(r, "order", 40)
        wait_for(lambda: "cannot be reached" in counts(run)["waiting"], 30)
        process.kill()
        process.wait(20)
    with Collector(collector.port) as again, exporter(r, run, again):
        wait_for(lambda: 40 in ids(again), 30)
        assert set(ids(again)) == {40}
    collector.__enter__()


def test_a_span_that_the_collector_refuses_takes_no_other_with_it(
    r: redis.Redis, run: Runner, collector: Collector
) -> None:
    collector.refuses = '"r7"'
    for number in range(1, 17):
        record(r, "order", number)
    with exporter(r, run, collector):
        wait_for(lambda: len(collector.spans) == 15, 30)
        wait_for(lambda: counts(run) == {"exported": 15, "skipped": 1, "untraced": 0, "waiting": ""}, 30)
        collector.refuses = "resourceSpans"  # everything: it is no collector
        record(r, "order", 17)
        wait_for(lambda: "to a request without spans" in counts(run)["waiting"], 30)
        collector.refuses = ""
        wait_for(lambda: 17 in ids(collector), 60)
    assert sorted(set(ids(collector))) == [number for number in range(1, 18) if number != 7]


def test_no_worker_and_no_plugin_imports_opentelemetry() -> None:
    for path in [*(ROOT / "sandboxrun").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")]:
        assert "import opentelemetry" not in path.read_text() and "from opentelemetry" not in path.read_text(), path
