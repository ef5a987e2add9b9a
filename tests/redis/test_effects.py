"""Effects that join a reply: `request.emit` and `worker.state`, what is refused of them, and that nobody else's reply suffers.

test_effects_state.py has what happens when others change a state.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis
import servers
from arena import wait_for
from effect_workers import KINDS, emitted, plain
from hints import is_of, paste
from loop_workers import answer, answered, pending, send
from runner import Runner

from sandboxrun.config.fields import parse_loop
from sandboxrun.redis.replies import ReplyError
from sandboxrun.worker.claims import Claims
from sandboxrun.worker.context import Context
from sandboxrun.worker.effects import Emit
from sandboxrun.worker.joined import Joined
from sandboxrun.worker.rendering import Entry, Renderer
from sandboxrun.worker.request import Encoder, Request

HEAD = """
import asyncio, os, threading, time
import redis
from sandboxrun import worker

@worker.handler
"""
RUN = "\nworker.run()\n"


@pytest.mark.parametrize("kind", KINDS)
def test_effects_are_written_with_the_reply_and_never_with_an_error(
    r: redis.Redis, redis_url: str, tmp_path: Path, kind: str
) -> None:
    """Many at once change the same hashes, in two workers: each that is answered 200 counts once."""
    trace = {"traceparent": "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"}
    with plain(r, redis_url, tmp_path, KINDS[kind]), plain(r, redis_url, tmp_path, KINDS[kind], "2"):
        refs = []
        for n in range(60):
            data = {"n": n, "user": "ann" if n % 2 else "bob", "fail": {7: 400, 8: 500}.get(n % 10)}
            refs.append(f"ref-{n}")
            r.xadd("t:req:x", {"ref": refs[-1], "type": "t", "data": json.dumps(data), **trace})
        replies = [answer(r, ref) for ref in refs]
        wait_for(lambda: pending(r) == 0)
    assert [reply["code"] for reply in replies] == [{7: 400, 8: 500}.get(n % 10, 200) for n in range(60)]
    good = {n for n in range(60) if n % 10 not in (7, 8)}
    assert sorted(data["n"] for data in emitted(r)) == sorted(good)
    totals = [r.hgetall(f"count:{user}:h") for user in ("ann", "bob")]
    assert totals == [{"total": str(len([n for n in good if n % 2 == odd]))} for odd in (1, 0)]
    assert set(answered(r).values()) == {1}
    for _, entry in r.xrange("log:req:x", count=3):
        assert len(entry["ref"]) == 40
        assert (entry["type"], entry["path"], "deadline" in entry) == ("log", "t", False)
        kept = r.hgetall(f"req:{entry['ref']}:h")
        assert (kept["caller"], kept["requestData"]) == ("t", entry["data"])
        assert kept["traceparent"] == entry["traceparent"]
        assert entry["traceparent"][:36] == trace["traceparent"][:36]
        assert kept["parentSpan"] == entry["traceparent"][36:52] != "cd" * 8
        assert 0 < r.ttl(f"req:{entry['ref']}:h") <= 120


BOUNDS = (
    HEAD
    + """
def handle(request):
    found = {}
    def attempt(name, function):
        try:
            function()
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    attempt("large", lambda: request.emit("log", "x" * 1024 * 1024))
    attempt("nan", lambda: request.emit("log", {"a": [1, float("nan")]}))
    attempt("type", lambda: request.emit("Log", 1))
    attempt("method", lambda: request.emit("log", 1, method="a b"))
    attempt("timeout", lambda: request.emit("log", 1, timeout=0))
    attempt("in all", lambda: [request.emit("log", "x" * 1000 * 1000) for _ in range(9)])
    attempt("number", lambda: [request.emit("log") for _ in range(1000)])
    attempt("key", lambda: worker.state("x" * 513))
    attempt("no hash", lambda: dict(worker.state("a:list")))
    attempt("huge", lambda: dict(worker.state("a:huge:h")))
    attempt("states", lambda: [worker.state(f"a:{n}:h") for n in range(101)])
    state = worker.state("a:1:h")
    attempt("change", lambda: state.update({"a": "x" * 1024 * 1024}))
    for _ in range(4):
        state["b"] = "x" * 500 * 1000
    state.clear()
    attempt("value", lambda: state.update({"a": float("inf")}))
    attempt("name", lambda: state.update({1: 2}))
    return found
"""
    + RUN
)


def test_what_is_too_much_or_no_json_is_an_error_for_the_handler_at_once(
    r: redis.Redis, redis_url: str, tmp_path: Path
) -> None:
    r.rpush("a:list", "x")
    r.hset("a:huge:h", "a", "x" * 2 * 1024 * 1024)
    with plain(r, redis_url, tmp_path, BOUNDS):
        found = answer(r, send(r))
    assert {name: text.partition(":")[0] for name, text in found.items() if name not in ("ref", "source", "code", "time")} == {
        "large": "ValueError", "nan": "ValueError", "type": "ConfigError", "method": "ValueError", "timeout": "ValueError",
        "in all": "ValueError", "number": "ValueError", "key": "ValueError", "no hash": "TypeError", "huge": "ValueError",
        "states": "ValueError", "change": "ValueError", "value": "ValueError", "name": "TypeError",
    }  # fmt: skip
    assert found["nan"] == "ValueError: data.a[1]: nan is not JSON"
    assert r.xlen("log:req:x") == 1000  # those that were accepted before the one that was not
    assert not r.exists("a:1:h")


LATE = (
    HEAD
    + """
def handle(request):
    state = worker.state("a:1:h")
    len(state)
    if request.data["n"] == "fork":
        child = os.fork()
        if child == 0:
            try:
                request.emit("log", 1)
            except RuntimeError:
                os._exit(7)
            os._exit(0)
        return {"code of the child": os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}
    if request.data["n"] == "late":
        answered = threading.Event()
        def work():
            answered.wait(20)
            found = []
            for attempt in (lambda: request.emit("log", 1), lambda: state.update(a=1), lambda: worker.state("a:2:h")):
                try:
                    attempt()
                except RuntimeError as error:
                    found.append(str(error))
            with worker.connect() as r:
                r.set("a:found", len(found))
        threading.Thread(target=work).start()
        events.append(answered)
        if request.data.get("fail"):
            raise worker.BadRequest("as asked")
    else:
        events.pop().set()  # the reply to the request before was made

events = []
"""
    + RUN
)


@pytest.mark.parametrize("fail", [False, True], ids=["200", "400"])
def test_an_effect_after_the_reply_is_made_or_in_a_forked_process_is_an_error(
    r: redis.Redis, redis_url: str, tmp_path: Path, fail: bool
) -> None:
    with plain(r, redis_url, tmp_path, LATE):
        assert answer(r, send(r, n="fork"))["code of the child"] == 7
        assert answer(r, send(r, n="late", fail=fail))["code"] == (400 if fail else 200)
        assert answer(r, send(r, n="next"))["code"] == 200
        wait_for(lambda: r.get("a:found") == "3")
    assert not r.exists("log:req:x")
    assert not r.exists("a:1:h")


def test_a_late_emit_is_an_error_even_if_the_handler_has_emitted_nothing(
    r: redis.Redis, redis_url: str, tmp_path: Path
) -> None:
    code = LATE.replace("    len(state)\n", "").replace('state = worker.state("a:1:h")', "state = {}")
    with plain(r, redis_url, tmp_path, code.replace(", lambda: state.update(a=1)", "")):
        assert [answer(r, send(r, n=n))["code"] for n in ("late", "next")] == [200, 200]
        wait_for(lambda: r.get("a:found") == "2")
    assert not r.exists("log:req:x")


RULES = "reset on >x ~t:* ~res:* ~req:* ~count:* ~log:req:x +@all -@dangerous -@admin".split()


def limited(r: redis.Redis, redis_url: str, *rules: str) -> str:
    """The URL of a login that may do less; it can be changed while a worker uses it."""
    r.execute_command("ACL", "SETUSER", "w", *RULES, *rules)
    parts = urlsplit(redis_url)
    return f"redis://w:x@{parts.hostname}:{parts.port}"


@pytest.mark.parametrize("kind", KINDS)
def test_a_right_that_is_withdrawn_fails_the_requests_that_need_it_and_no_others(
    r: redis.Redis, redis_url: str, tmp_path: Path, kind: str
) -> None:
    """Redis refuses the whole transaction for one command of it, after the handler was told that it may emit."""
    code = KINDS[kind].replace('request.emit("log"', 'data.get("emit") and request.emit("log"')
    with plain(r, limited(r, redis_url), tmp_path, code) as worker:
        assert answer(r, send(r, n=0, emit=1))["code"] == 200
        limited(r, redis_url, "resetkeys", "~t:*", "~res:*", "~req:*", "~count:*")
        slow = [send(r, n=n, user=f"u{n}", emit=n % 2, sleep=0.05 if n == 1 else 0) for n in range(1, 20)]
        replies = [answer(r, ref) for ref in slow]
        wait_for(lambda: pending(r) == 0)
        limited(r, redis_url)
        assert answer(r, send(r, n=20, emit=1))["code"] == 200
    assert [reply["code"] for reply in replies] == [500 if n % 2 else 200 for n in range(1, 20)]
    assert emitted(r) == [{"n": 0}, {"n": 20}]
    assert [bool(r.exists(f"count:u{n}:h")) for n in range(1, 20)] == [n % 2 == 0 for n in range(1, 20)]
    assert set(answered(r).values()) == {1}
    assert "answered 500: Redis refused an effect of the handler, so no effect was written" in worker.errors.read_text()


def test_the_trace_of_a_reply_without_its_effects_expires_with_redis_6_as_well(tmp_path: Path) -> None:
    with (
        servers.Own(program=servers.program("redis-6.2")) as server,
        redis.Redis.from_url(server.url, decode_responses=True, socket_timeout=40) as r,
        plain(r, limited(r, server.url), tmp_path, KINDS["plain"]),
    ):
        assert answer(r, send(r, n=0))["code"] == 200
        limited(r, server.url, "resetkeys", "~t:*", "~res:*", "~req:*", "~count:*")
        ref = send(r, n=1)
        assert answer(r, ref)["code"] == 500
        assert 0 < r.ttl(f"req:{ref}:h") <= 120


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_a_state_that_may_be_read_and_not_written_fails_its_request_alone(
    r: redis.Redis, redis_url: str, tmp_path: Path, kind: str
) -> None:
    r.hset("count:bob:h", "total", 7)
    rules = "resetkeys ~t:* ~res:* ~req:* ~log:req:x ~count:ann:h %R~count:bob:h".split()
    with plain(r, limited(r, redis_url, *rules), tmp_path, KINDS[kind]):
        refs = [send(r, n=n, user="bob" if n == 1 else "ann") for n in range(4)]
        assert [answer(r, ref)["code"] for ref in refs] == [200, 500, 200, 200]
        reply = answer(r, send(r, n=5, user="eve"))
        assert (reply["code"], "is not granted its state 'count:eve:h'" in reply["err"]["message"]) == (500, True)
    assert (r.hget("count:ann:h", "total"), r.hget("count:bob:h", "total")) == ("3", "7")
    assert sorted(data["n"] for data in emitted(r)) == [0, 2, 3]


def test_without_the_grant_emit_is_refused_at_once_with_the_command_that_grants_it(
    r: redis.Redis, redis_url: str, tmp_path: Path
) -> None:
    url = limited(r, redis_url, "resetkeys", "~t:*", "~res:*", "~req:*", "~count:*")
    with plain(r, url, tmp_path, KINDS["plain"], allowCall="bank") as worker:
        reply = answer(r, send(r, n=1))
        assert (reply["code"], reply["err"]["message"]) == (
            500, "worker t 1 is not allowed to call log: allowCall did not list it at start",
        )  # fmt: skip
    assert "hint: sandboxrun set t 1 allowCall=bank,log && sandboxrun approve t 1" in worker.errors.read_text()
    assert (r.exists("log:req:x"), r.exists("count:ann:h")) == (0, 0)


def test_an_event_loop_does_not_wait_to_be_told_that_it_may_emit(
    r: redis.Redis, redis_url: str, tmp_path: Path
) -> None:
    """Redis refuses the transaction of the reply, and was asked nothing before."""
    url = limited(r, redis_url, "resetkeys", "~t:*", "~res:*", "~req:*", "~count:*")
    r.execute_command("ACL", "LOG", "RESET")
    with plain(r, url, tmp_path, KINDS["async"].replace("request.emit", 'data["n"] and request.emit')):
        replies = [answer(r, ref) for ref in [send(r, n=n) for n in range(4)]]
    assert [reply["code"] for reply in replies] == [200, 500, 500, 500]
    assert replies[1]["err"]["message"].endswith(
        "no effect was written: worker t 1 is not allowed to call log: allowCall did not list it at start"
    )
    assert (r.exists("log:req:x"), r.hget("count:ann:h", "total")) == (0, "1")
    assert {found["context"] for found in r.acl_log() if found["object"] == "log:req:x"} == {"multi"}


def test_without_selectors_emit_is_refused_at_once(
    r: redis.Redis, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There the request loop's login may not call, and the login for calls may not answer."""
    monkeypatch.setenv("SANDBOXRUN_CALL_URL", redis_url)
    with plain(r, redis_url, tmp_path, KINDS["plain"]):
        reply = answer(r, send(r, n=1))
    assert (reply["code"], "expected Redis 7 or later, or Valkey" in reply["err"]["message"]) == (500, True)


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_an_emit_to_what_is_no_stream_is_a_dead_letter_beside_the_reply(
    r: redis.Redis, redis_url: str, tmp_path: Path, kind: str
) -> None:
    """EXEC takes nothing back: the reply and the state are written, and the request of the emit is kept elsewhere."""
    r.set("log:req:x", "no stream")
    with plain(r, redis_url, tmp_path, KINDS[kind]):
        replies = [answer(r, send(r, n=n)) for n in (1, 2)]
        wait_for(lambda: r.xlen("t:dead:x") == 2)
    assert [reply["total"] for reply in replies] == [1, 2]
    (_, letter), _ = r.xrange("t:dead:x")
    assert (letter["emitted"], letter["request.type"], json.loads(letter["request.data"])) == ("log", "log", {"n": 1})
    assert letter["ref"] == letter["request.ref"]
    assert "WRONGTYPE" in letter["reason"]


# --- in the sandbox, with the login that its grants make


def test_each_effect_is_granted_by_the_command_that_its_refusal_prints(
    r: redis.Redis, run: Runner, local: Callable[..., Path]
) -> None:
    local(KINDS["plain"], allowRedis="other:*")
    for field in ("allowRedis", "allowCall"):
        with run.start("t", "1", "--yes") as process:
            reply = answer(r, send(r, n=1))
            assert reply["code"] == 500
            process.terminate()
            _, err = process.communicate(timeout=20)
        assert (r.exists("log:req:x"), r.exists("count:ann:h")) == (0, 0)
        hints = [line for line in err.decode().splitlines() if line.strip().startswith("hint: ")]
        hint = hints[-1].strip().removeprefix("hint: ")
        assert is_of("sandboxrun set {} {} && sandboxrun approve {}", hint), err
        assert field in hint
        pasted = paste(hint, run.env, run.home)
        assert pasted.returncode == 0, pasted
    assert r.hget("t:1:h", "allowRedis") == "other:*,count:ann:h"
    with run.start("t", "1"):
        assert [answer(r, send(r, n=n))["total"] for n in (1, 2)] == [1, 2]
    assert emitted(r) == [{"n": 1}, {"n": 2}]


def test_a_dead_letter_of_an_emit_is_not_sent_to_whom_it_names_with_the_operators_login(
    r: redis.Redis, run: Runner
) -> None:
    """A worker writes its dead letters itself."""
    r.xadd("t:dead:x", {"ref": "r1", "emitted": "bank\x1b[1m", "request.ref": "r1", "request.data": "{}"})
    done = run("dead", "t", "requeue", "all")
    assert done.out == "sent once more: 0\n"
    assert r"is a request that t emitted to bank\x1b[1m, so it is not resent to t. It stays a dead letter" in done.err
    assert (r.xlen("t:dead:x"), r.exists("t:req:x"), r.exists("bank:req:x")) == (1, 0, 0)


# --- what an outage leaves


class Owner:
    """What a worker does with effects, without a loop."""

    def __init__(self, context: Context) -> None:
        self.context, self.pid = context, os.getpid()
        self.again: list[Entry] = []
        context.caller.joining = self

    def begin(self) -> None:
        pass

    def changed(self, entry: Entry, again: Entry) -> None:
        self.again.append(again)

    def committed(self, entry: Entry) -> None:
        pass

    def refused(self, entry: Entry, error: Exception) -> None:
        raise error

    refused_state = refused

    def undelivered(self, entry: Entry, emit: Emit, error: ReplyError) -> bytes:
        raise error


def test_a_reply_that_was_kept_is_never_written_after_its_state_has_changed(r: redis.Redis, redis_url: str) -> None:
    """A loop that has met an error while it sent its replies sends them all again, whatever has become of them."""
    r.hset("t:1:h", mapping={"pid": "7", "pidHost": "x"})
    r.xadd("t:req:x", {"ref": "r1", "type": "t"})
    context = Context("t:1:h", redis_url, None)
    claims = Claims(context.connection, parse_loop({}, "t", "1"), "t:1:h", "7")
    owner = Owner(context)
    claims.joined = Joined(claims, owner)
    claims.open()
    claims.ask(1, block=False)
    while not claims.arrived:
        claims.receive()
    ((entry,), _) = claims.arrived.popleft()
    request = Request("1-1", "r1", "t", {}, entry.raw, encoder=Encoder(), caller=context.caller)
    effects = request._joining()
    state = effects.state("a:1:h")
    state["n"] = int(state.get("n", 0)) + 1
    entry.ref = "r1"
    Renderer(claims.loop, "t", "t:dead:x").reply(entry, 200, "{}", "A", "B")
    effects.join(entry)
    r.hset("a:1:h", "n", 41)
    for _ in range(2):
        claims.write([entry])
        claims.flush()
        while claims.waiting:
            claims.receive()
    claims.verify()
    claims.flush()
    while claims.waiting:
        claims.receive()
    claims.connection.close()
    assert context.aside is not None
    context.aside._connection.close()
    assert (r.hget("a:1:h", "n"), r.exists("res:r1")) == ("41", 0)
    assert [(again.xid, again.conflicts) for again in owner.again] == [(entry.xid, 1)]
    assert pending(r) == 1
