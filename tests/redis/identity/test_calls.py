"""What a worker can do at Redis with `allowCall`: send requests to the types that it lists, and read the replies to its own.

Every attempt on others works for the operator first, so that only the worker's login can be what refuses.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import redis
from logins import Probe, Server, users
from runner import Runner

NONCE = "0123456789abcdef"  # of another caller
REF = f"{NONCE}0123456789abcdef01234567"


@pytest.fixture
def caller(server: Server, run: Runner, tmp_path: Path) -> Probe:
    return Probe(server, run, tmp_path, allowCall="price")


def prepare(r: Any) -> None:
    """A callee with one request that its worker has, another that waits, and replies and traces of others."""
    for type_ in ("price", "bank"):
        r.xgroup_create(f"{type_}:req:x", "worker", id="0", mkstream=True)
        r.xadd(f"{type_}:req:x", {"ref": REF, "data": "canary"}, id="1-1")
        r.xadd(f"{type_}:req:x", {"ref": "plain", "data": "canary"}, id="2-1")
        r.xreadgroup("worker", "1", {f"{type_}:req:x": ">"}, count=1)
        r.xadd(f"{type_}:res:x", {"ref": REF, "res": "canary"})
    for ref in (REF, "plain"):
        r.lpush(f"res:{ref}", "canary")
        r.hset(f"req:{ref}:h", mapping={"requestData": "canary", "priceTrace": "canary"})


REFUSED: dict[str, tuple[Any, ...]] = {
    "reads the callee's requests as its worker": ("XREADGROUP", "GROUP", "worker", "2", "STREAMS", "price:req:x", ">"),
    "reads the callee's requests": ("XREAD", "STREAMS", "price:req:x", "0"),
    "lists the callee's requests": ("XRANGE", "price:req:x", "-", "+"),
    "lists them from the end": ("XREVRANGE", "price:req:x", "+", "-"),
    "counts them": ("XLEN", "price:req:x"),
    "looks at the stream": ("XINFO", "STREAM", "price:req:x"),
    "looks at its groups": ("XINFO", "GROUPS", "price:req:x"),
    "looks at what is pending": ("XPENDING", "price:req:x", "worker"),
    "deletes a request": ("XDEL", "price:req:x", "1-1"),
    "trims the stream": ("XTRIM", "price:req:x", "MAXLEN", "0"),
    "acknowledges a request": ("XACK", "price:req:x", "worker", "1-1"),
    "claims a request": ("XCLAIM", "price:req:x", "worker", "2", "0", "1-1"),
    "claims all requests": ("XAUTOCLAIM", "price:req:x", "worker", "2", "0", "0"),
    "destroys the callee's group": ("XGROUP", "DESTROY", "price:req:x", "worker"),
    "makes a group": ("XGROUP", "CREATE", "price:req:x", "mine", "0"),
    "moves the group": ("XGROUP", "SETID", "price:req:x", "worker", "$"),
    "removes a consumer": ("XGROUP", "DELCONSUMER", "price:req:x", "worker", "1"),
    "moves the stream's last id": ("XSETID", "price:req:x", "99-0"),
    "deletes the callee's stream": ("DEL", "price:req:x"),
    "unlinks the callee's stream": ("UNLINK", "price:req:x"),
    "renames the callee's stream": ("RENAME", "price:req:x", "t:x"),
    "dumps the callee's stream": ("DUMP", "price:req:x"),
    "writes another response of the callee": ("XADD", "price:res:x", "*", "ref", "forged"),
    "reads the callee's responses": ("XRANGE", "price:res:x", "-", "+"),
    "writes a dead letter of the callee": ("XADD", "price:dead:x", "*", "ref", "forged"),
    "starts a worker of the callee": ("LPUSH", "price:start:q", "2"),
    "reads the callee's hash": ("HGETALL", "price:h"),
    "writes the callee's hash": ("HSET", "price:h", "allowNet", "*"),
    "writes the hash of the callee's worker": ("HSET", "price:1:h", "allowNet", "*"),
    "fences the callee off": ("HSET", "price:req:x:fence:1:f", "c", "1"),
    "breaks the callee's fence": ("DEL", "price:req:x:fence:1:f"),
    "sends a request to a type that is not listed": ("XADD", "bank:req:x", "*", "ref", "{NONCE}1"),
    "sends one to a type whose name begins alike": ("XADD", "pricey:req:x", "*", "ref", "{NONCE}1"),
    "reads the requests of such a type": ("XRANGE", "bank:req:x", "-", "+"),
    **{
        f"{what} {whose}": command
        for whose, ref in (("of another caller", REF), ("of a plain client", "plain"))
        for what, command in {
            "reads the reply": ("LRANGE", f"res:{ref}", "0", "-1"),
            "reads the end of the reply": ("LINDEX", f"res:{ref}", "0"),
            "counts the replies": ("LLEN", f"res:{ref}"),
            "pops the reply": ("RPOP", f"res:{ref}"),
            "pops the reply from the left": ("LPOP", f"res:{ref}"),
            "waits for the reply": ("BRPOP", f"res:{ref}", "1"),
            "waits for it from the left": ("BLPOP", f"res:{ref}", "1"),
            "waits for it among its own": ("BRPOP", "res:{NONCE}1", f"res:{ref}", "1"),
            "moves the reply": ("LMOVE", f"res:{ref}", "res:{NONCE}1", "LEFT", "LEFT"),
            "trims the reply": ("LTRIM", f"res:{ref}", "1", "0"),
            "changes the reply": ("LSET", f"res:{ref}", "0", "forged"),
            "deletes the reply": ("DEL", f"res:{ref}"),
            "deletes it with its own": ("DEL", "res:{NONCE}1", f"res:{ref}"),
            "unlinks the reply": ("UNLINK", f"res:{ref}"),
            "overwrites the reply": ("SET", f"res:{ref}", "x"),
            "asks for its type": ("TYPE", f"res:{ref}"),
            "reads the trace": ("HGETALL", f"req:{ref}:h"),
            "reads the request in the trace": ("HGET", f"req:{ref}:h", "requestData"),
            "reads the reply in the trace": ("HMGET", f"req:{ref}:h", "priceTrace"),
            "measures the reply in the trace": ("HSTRLEN", f"req:{ref}:h", "priceTrace"),
            "removes a field of the trace": ("HDEL", f"req:{ref}:h", "priceTrace"),
            "deletes the trace": ("DEL", f"req:{ref}:h"),
        }.items()
    },
    "lists its own replies": ("KEYS", "res:{NONCE}*"),
    "reads all of its own trace": ("HGETALL", "req:{NONCE}1:h"),
}
# Without selectors, what breaks fences deletes replies and traces too, and HSTRLEN and TYPE are not bound to keys of one kind.
BEYOND_FLAT = {
    f"{what} {whose}"
    for what in (
        "deletes the reply",
        "deletes it with its own",
        "unlinks the reply",
        "asks for its type",
        "deletes the trace",
    )
    for whose in ("of another caller", "of a plain client")
}


def as_operator(server: Server, name: str, command: tuple[Any, ...]) -> None:
    """The same command with the operator's login: whatever Redis answers, it is not a refusal of the login."""
    server.r.flushall()
    prepare(server.r)
    with redis.Redis.from_url(server.url, socket_timeout=10) as mine:
        try:
            mine.execute_command(*command)
        except redis.ResponseError as error:
            if "no such key" not in str(error):
                pytest.fail(f"{name}: {error}")


def test_what_a_caller_must_not_do_works_for_the_operator_and_not_for_the_caller(server: Server, caller: Probe) -> None:
    r = server.r
    for name, command in REFUSED.items():
        as_operator(server, name, command)
    r.flushall()
    prepare(r)
    r.hset("t:h", "xreadGroupBlockMillis", "100")
    before = {key: r.dump(key) for key in r.scan_iter() if key != "t:1:h"}
    names = [name for name in REFUSED if server.selectors or name not in BEYOND_FLAT]
    logins = [()] if server.selectors else [(), ("call",)]
    for login in logins:
        answers = caller(*((*login, *REFUSED[name]) for name in names))
        for name, answer in zip(names, answers, strict=True):
            assert isinstance(answer, str) and answer.startswith("-NOPERM"), f"{name} {login}: {answer}"
    assert {key: r.dump(key) for key in r.scan_iter() if key != "t:1:h"} == before
    assert users(server) == []


def test_all_that_a_client_sends_for_a_call_works(server: Server, caller: Probe) -> None:
    """client/put.py, request.py and line.py: a fenced transaction, a wait, a wake, and a look after a lost connection."""
    server.r.hset("price:h", "version", "local")
    asked = [
        ("WATCH", "req:fence-1:h"),
        ("MULTI",),
        ("HSET", "req:{NONCE}1:h", "ref", "{NONCE}1"),
        ("EXPIRE", "req:{NONCE}1:h", "120"),
        ("XADD", "price:req:x", "5-1", "ref", "{NONCE}1"),
        ("EXEC",),
        ("WATCH", "req:fence-1:h"),
        ("MULTI",),
        ("HSET", "req:fence-1:h", "broken", "1"),
        ("EXPIRE", "req:fence-1:h", "5"),
        ("EXEC",),
        ("HSTRLEN", "req:{NONCE}1:h", "ref"),
        ("EXISTS", "req:{NONCE}1:h"),
        ("HGET", "req:{NONCE}1:h", "ref"),
        ("LPUSH", "res:{NONCE}wake", "1"),
        ("EXPIRE", "res:{NONCE}wake", "5"),
        ("BRPOP", "res:{NONCE}1", "res:{NONCE}wake", "1"),
        ("LPUSH", "res:{NONCE}1", "b", "a"),
        ("TYPE", "res:{NONCE}1"),
        ("BLPOP", "res:{NONCE}1", "1"),
        ("RPOP", "res:{NONCE}1"),
        ("LPOP", "res:{NONCE}1"),
    ]
    answers = caller(*(("call", *command) for command in asked))
    assert [answer for answer in answers if isinstance(answer, str) and answer.startswith("-")] == []
    nonce = answers[13].removesuffix("1")
    assert len(nonce) == 16
    assert not nonce.strip("0123456789abcdef")
    assert answers[5][2] == "5-1"
    assert answers[16] == [f"res:{nonce}wake", "1"]
    assert answers[18:] == ["+list", [f"res:{nonce}1", "a"], "b", None]
    assert server.r.xrange("price:req:x") == [("5-1", {"ref": f"{nonce}1"})]


def test_every_run_has_a_nonce_of_its_own_and_only_one_with_the_grant_has_any(server: Server, caller: Probe) -> None:
    reads = ("call", "HGET", "req:{NONCE}1:h", "n")
    nonces = set()
    for _ in range(2):
        *_, answer = caller(("call", "HSET", "req:{NONCE}1:h", "n", "{NONCE}"), reads)
        nonces.add(answer)
    assert [len(nonce) for nonce in nonces] == [16, 16]
    # The earlier run's reply, if somebody still knows its ref.
    old = min(nonces)
    server.r.lpush(f"res:{old}1", "canary")
    assert all(
        answer.startswith("-NOPERM") for answer in caller(("call", "RPOP", f"res:{old}1"), ("RPOP", f"res:{old}1"))
    )
    denied = caller(
        ("HSET", "req:{NONCE}:h", "n", "{NONCE}"), ("XADD", "price:req:x", "*", "ref", "1"), denyCall="price"
    )
    assert denied[1].startswith("-NOPERM")
    assert server.r.hget("req::h", "n") == ""


def test_the_types_add_up_and_one_that_is_denied_is_left_out(server: Server, caller: Probe) -> None:
    server.r.hset("t:h", "allowCall", "x")  # the worker's own field wins
    caller.fields = {"allowCall": "price,bank,cash", "denyCall": "bank"}
    answers = caller(*(("call", "XADD", f"{type_}:req:x", "*", "ref", "1") for type_ in ("price", "cash", "bank", "x")))
    assert [answer.startswith("-NOPERM") for answer in answers] == [False, False, True, True]


@pytest.mark.parametrize("command", [("XADD", "price:req:x", "*", "ref", "1"), ("BRPOP", "res:0123456789abcdef1", "1")])
def test_a_worker_without_the_grant_calls_nobody(server: Server, caller: Probe, command: tuple[str, ...]) -> None:
    caller.fields = {}
    with contextlib.suppress(redis.TimeoutError):
        server.r.execute_command(*command)
    (answer,) = caller(command)
    assert answer.startswith("-NOPERM")
