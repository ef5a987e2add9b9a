"""A reply that the connection cannot carry takes the connection with it, again and again. All others are answered."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any

import pytest
import redis
import servers
from arena import wait_for
from loop_workers import KINDS, answer, answered, pending, send
from proxy import UP, Link, Proxy, Rule
from runner import Runner

from sandboxrun.config.fields import parse_loop
from sandboxrun.errors import ConnectionLost
from sandboxrun.redis.connection import Connection
from sandboxrun.worker.claims import TOGETHER_TRIES, UNSENDABLE_TRIES, Claims
from sandboxrun.worker.rendering import Entry, Renderer

MARK = b"the-one-that-is-not-let-through"
HOW = ("a proxy", "proto-max-bulk-len", "client-query-buffer-limit")


def refuse(how: str, r: redis.Redis, proxy: Proxy) -> None:
    if how == "a proxy":

        def when(link: Link, way: str, data: bytes) -> int | None:
            return 0 if way == UP and link.name.startswith("worker:") and MARK * 3 in data else None

        proxy._add(Rule(when, Link.cut, 10**9))
    else:
        r.config_set(how, 1024 * 1024)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("kind", KINDS)
def test_a_reply_that_cannot_be_sent_is_a_dead_letter_at_last_and_all_others_are_answered_meanwhile(
    server: servers.Own, run: Runner, tmp_path: Path, how: str, kind: str
) -> None:
    code = KINDS[kind].replace('"x" * request.data.get("size", 0)', 'request.data.get("text", "") * 40000')
    (tmp_path / "worker.py").write_text(code)
    with (
        redis.Redis.from_url(server.url, decode_responses=True, socket_timeout=40) as r,
        Proxy(("127.0.0.1", server.port)) as proxy,
    ):
        r.hset("t:1:h", mapping={"url": str(tmp_path), "version": "local", "replyExpireSeconds": "600"})
        run.env["REDIS_URL"] = f"redis://127.0.0.1:{proxy.port}"
        with run.start("t", "1") as process:
            assert answer(r, send(r, n=0))["n"] == 0
            refuse(how, r, proxy)
            accepted = proxy.accepted
            refs = [send(r, n=n) for n in range(1, 20)]
            bad = send(r, n=20, text=MARK.decode())
            refs += [send(r, n=n) for n in range(21, 40)]
            assert sorted(answer(r, ref, 15)["n"] for ref in refs) == [*range(1, 20), *range(21, 40)]
            assert not r.exists(f"res:{bad}")  # it has its tries still
            assert answer(r, send(r, n=41))["n"] == 41
            reply: dict[str, Any] = answer(r, bad, 30)
            assert (reply["code"], "cannot be sent" in reply["err"]["message"]) == (500, True)
            ((_, letter),) = r.xrange("t:dead:x")
            assert (letter["ref"], json.loads(letter["request.data"])["n"]) == (bad, 20)
            assert answer(r, send(r, n=42))["n"] == 42
            assert proxy.accepted - accepted < 60
            wait_for(lambda: pending(r) == 0)
            process.terminate()
            _, err = process.communicate(timeout=20)
        assert process.returncode == 0, err
        assert set(answered(r).values()) == {1}
        assert err.count(b"\nworker: ") < 8, err


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_a_few_lost_connections_cost_no_reply(server: servers.Own, run: Runner, tmp_path: Path, kind: str) -> None:
    """As often as it takes to send a reply alone, and not as often as it takes to give it up."""
    (tmp_path / "worker.py").write_text(KINDS[kind])
    with contextlib.ExitStack() as stack:
        r = stack.enter_context(redis.Redis.from_url(server.url, decode_responses=True, socket_timeout=40))
        proxy = stack.enter_context(Proxy(("127.0.0.1", server.port)))
        r.hset("t:1:h", mapping={"url": str(tmp_path), "version": "local", "replyExpireSeconds": "600"})
        run.env["REDIS_URL"] = f"redis://127.0.0.1:{proxy.port}"
        stack.enter_context(run.start("t", "1"))
        assert answer(r, send(r, n=0))["n"] == 0
        proxy.cut_before(b"LPUSH", times=5, prefix="worker:")
        refs = [send(r, n=n) for n in range(1, 30)]
        found = [answer(r, ref) for ref in refs]
        assert [(reply["code"], reply["n"], reply["begun"]) for reply in found] == [(200, n, 1) for n in range(1, 30)]
        assert proxy.faults == 5
        assert not r.exists("t:dead:x")


def test_replies_that_are_kept_apart_stay_apart_whoever_writes_them_again(server: servers.Own) -> None:
    """A worker that loses the connection while it flushes still lists them among its replies, and writes all of them."""
    with (
        redis.Redis.from_url(server.url, decode_responses=True, socket_timeout=40) as r,
        Proxy(("127.0.0.1", server.port)) as proxy,
    ):
        r.hset("t:1:h", "pid", "7")
        claims = Claims(Connection(f"redis://127.0.0.1:{proxy.port}"), parse_loop({}, "t", "1"), "t:1:h", "7")
        given_up: list[Entry] = []
        claims.unsendable = given_up.append
        claims.open()
        refs = [send(r, n=n) for n in range(3)]
        claims.ask(10, block=False)
        while not claims.arrived:
            claims.receive()
        ready, _ = claims.arrived.popleft()
        render = Renderer(claims.loop, "t", "t:dead:x")
        for entry, ref in zip(ready, refs, strict=True):
            entry.ref, entry.answered = ref, True
            render.reply(entry, 200, "{}", "A", "B")
        proxy.cut_before(b"LPUSH", times=UNSENDABLE_TRIES[0])
        for _ in range(UNSENDABLE_TRIES[0] + 1):
            with contextlib.suppress(ConnectionLost):
                if not claims.is_open:
                    claims.open()
                claims.write(ready)
                confirmed(claims)
                continue
            claims.close()
        assert given_up == [] and proxy.faults == TOGETHER_TRIES
        proxy.resume()
        for _ in ready:
            assert claims.write_alone(time.monotonic(), now=True)
            confirmed(claims)
        claims.close()
        assert sorted(answered(r).items()) == sorted((ref, 1) for ref in refs)


def confirmed(claims: Claims) -> None:
    claims.flush()
    while claims.waiting:
        claims.receive()
