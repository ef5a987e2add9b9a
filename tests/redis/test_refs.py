"""Under which ref a request is answered, and what becomes of one that cannot be."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from runner import Runner

from sandboxrun.config import keys

Local = Callable[..., Path]
HEAD = "from sandboxrun import worker\n"
WORKERS = {
    "plain": HEAD + "worker.handler(lambda request: {'ref was': request.ref})\nworker.run()\n",
    "threads": HEAD + "worker.handler(lambda request: {'ref was': request.ref})\nworker.run(concurrency=4)\n",
    "async": HEAD + "@worker.handler\nasync def handle(request):\n    return {'ref was': request.ref}\nworker.run()\n",
}
REFS = {
    "a space": "order 7",
    "spaces around": "  7  ",
    "another alphabet": "заказ-7",
    "an emoji": "\U0001f600",
    "a line separator": "a\u2028b",
    "a no-break space": "a\u00a0b",
    "right to left": "\u202e7",
    "the longest": "é" * 256,
    "what keys are made of": "t:req:x",
    "glob characters": "*[a]?\\",
    "percent and braces": "%s{}%%d",
    "a private character": "\ue000\U0010ffff",
}
NO_REFS = {
    "none": None,
    "an empty one": b"",
    "a newline": b"a\nb",
    "a carriage return": b"a\r\n",
    "a tab": b"a\tb",
    "NUL": b"\0",
    "DEL": b"a\x7f",
    "C1": "a\x85".encode(),
    "257 characters": b"x" * 257,
    "no UTF-8": b"\xff\xfe",
    "a surrogate": b"\xed\xa0\x80",
    "a cut-off character": "é".encode()[:1],
}


@pytest.mark.parametrize("mode", WORKERS)
def test_any_text_without_control_characters_is_a_ref(r: redis.Redis, run: Runner, local: Local, mode: str) -> None:
    local(WORKERS[mode], requestLimit=str(len(REFS)))
    for ref in REFS.values():
        r.xadd("t:req:x", {"ref": ref, "type": "t", "data": "{}"})
    done = run("t", "1")
    assert done.code == 0, done.err
    for ref in REFS.values():
        reply = json.loads(r.rpop(f"res:{ref}") or "null")  # type: ignore[arg-type]
        assert reply is not None, ref
        assert (reply["code"], reply["ref"], reply["ref was"]) == (200, ref, ref)
        assert "tTrace" in r.hgetall(f"req:{ref}:h")  # type: ignore[operator]
        shown = run("trace", ref, "--type", "t")
        assert shown.code == 0, shown.err
        assert all(c.isprintable() or c == "\n" for c in shown.out + shown.err)
    assert r.xlen("t:dead:x") == 0
    assert len({fields["ref"] for _, fields in r.xrange("t:res:x")} & {*REFS.values()}) == len(REFS)  # type: ignore[union-attr]


@pytest.mark.parametrize("mode", WORKERS)
def test_an_entry_without_a_ref_gets_a_warning_a_record_and_a_dead_letter(
    r: redis.Redis, run: Runner, local: Local, mode: str
) -> None:
    local(WORKERS[mode], requestLimit=str(len(NO_REFS) + 1))
    sent = {}
    for label, ref in NO_REFS.items():
        fields: dict[Any, Any] = {"type": "t", "data": "{}"} if ref is None else {"ref": ref, "type": "t", "data": "{}"}
        sent[label] = r.xadd("t:req:x", fields)
    r.xadd("t:req:x", {"ref": "last", "type": "t", "data": "{}"})
    done = run("t", "1")
    assert done.code == 0, done.err
    with redis.Redis(connection_pool=redis.ConnectionPool.from_url(run.env["REDIS_URL"])) as raw:
        dead = {fields[b"xid"].decode(): fields for _, fields in raw.xrange("t:dead:x")}  # type: ignore[union-attr]
        records = {fields[b"xid"].decode(): fields for _, fields in raw.xrange("t:res:x")}  # type: ignore[union-attr]
    for label, xid in sent.items():
        assert dead[xid][b"ref"] == b"", label
        assert b"no ref" in dead[xid][b"reason"], label
        assert dead[xid].get(b"request.ref") == NO_REFS[label]
        assert (records[xid][b"code"], records[xid][b"ref"]) == (b"400", b""), label
    assert len(dead) == len(NO_REFS)
    assert json.loads(r.rpop("res:last"))["code"] == 200  # type: ignore[arg-type]
    assert [key for key in r.scan_iter() if key.startswith("res:")] == []
    assert r.xpending("t:req:x", "worker")["pending"] == 0
    said = re.findall(r"worker: (\d+) requests? without a ref that can be answered: moved to t:dead:x", done.err)
    assert sum(map(int, said)) == len(NO_REFS)
    assert run("dead", "t").code == 0


def test_a_flood_of_entries_without_a_ref_is_counted_and_not_printed_one_by_one(
    r: redis.Redis, run: Runner, local: Local
) -> None:
    local(WORKERS["plain"], requestLimit="3000")
    with r.pipeline() as pipe:
        for _ in range(3000):
            pipe.xadd("t:req:x", {"type": "t", "data": "{}"})
        pipe.execute()
    done = run("t", "1")
    assert done.code == 0, done.err
    said = [int(n) for n in re.findall(r"worker: (\d+) requests? without a ref", done.err)]
    assert sum(said) == 3000
    assert len(said) < 100
    assert r.xlen("t:dead:x") == 3000


@pytest.mark.parametrize("text", ["\x00", "\x1f", "\x7f", "\x80", "\x9f", "\ud800", "a\n", "", "x" * 257])
def test_what_is_no_ref(text: str) -> None:
    assert not keys.is_ref(text)


@pytest.mark.parametrize("text", [" ", "\xa0", "\u200b", "\u2029", "\ue000", "\U000e0001", "~", "x" * 256])
def test_what_is_a_ref(text: str) -> None:
    assert keys.is_ref(text)
