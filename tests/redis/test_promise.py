"""At least once, and one reply: moments in which a request could be lost, or answered twice. Each is held still by a relay
that stands between a worker's connection and the server, and stops before a command that the test names."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import servers
from arena import wait_for
from runner import Runner

from sandboxrun.config.fields import parse_loop
from sandboxrun.errors import ConnectionLost
from sandboxrun.redis.connection import Connection
from sandboxrun.worker.claims import Claims
from sandboxrun.worker.rendering import Entry, Renderer
from sandboxrun.worker.sweep import look_around, remove_gone

Make = Callable[[int, str], Claims]


class Relay:
    """Passes on one connection's bytes. Where `stop_before` is set, what follows it stays here until `go`."""

    def __init__(self, port: int) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._target = port
        self.port = self._listener.getsockname()[1]
        self.stop_before = b""
        self.held, self._go = threading.Event(), threading.Event()
        self._pair: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._serve, daemon=True)]
        self._threads[0].start()

    def go(self, *, stop_before: bytes = b"") -> None:
        self.stop_before = stop_before
        self.held.clear()
        self._go.set()

    def close(self) -> None:
        self._go.set()
        for sock in (self._listener, *self._pair):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        for sock in (self._listener, *self._pair):
            sock.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            client, _ = self._listener.accept()
            server = socket.create_connection(("127.0.0.1", self._target))
            self._pair += client, server
            back = threading.Thread(target=self._back, daemon=True)
            self._threads.append(back)
            back.start()
            while data := client.recv(1 << 20):
                at = data.find(self.stop_before) if self.stop_before else -1
                if at >= 0:
                    server.sendall(data[:at])
                    self._go.clear()
                    self.held.set()
                    self._go.wait(30)
                    data = data[at:]
                server.sendall(data)

    def _back(self) -> None:
        with contextlib.suppress(OSError):
            client, server = self._pair
            while data := server.recv(1 << 20):
                client.sendall(data)
            client.shutdown(socket.SHUT_RDWR)


def word(text: str) -> bytes:
    """As it stands in a command."""
    return b"$%d\r\n%b\r\n" % (len(text), text.encode())


FIRST = b"*1\r\n"  # MULTI has one word; what is held begins with its count
MULTI = FIRST + word("MULTI")


@pytest.fixture
def server() -> Iterator[servers.Own]:
    with servers.Own("maxmemory-policy noeviction") as found:
        yield found


@pytest.fixture
def r(server: servers.Own) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server.url, decode_responses=True, socket_timeout=30) as found:
        yield found


@pytest.fixture
def relay(server: servers.Own) -> Iterator[Relay]:
    found = Relay(server.port)
    yield found
    found.close()


@pytest.fixture
def claims(r: redis.Redis) -> Iterator[Make]:
    """Of a worker whose hash says that it runs, opened: `claims(port, id)`."""
    made: list[Claims] = []

    def make(port: int, id_: str) -> Claims:
        r.hset(f"t:{id_}:h", mapping={"pid": "7", "pidHost": "x"})
        settings = parse_loop({"takeoverMillis": "500"}, "t", id_)
        made.append(Claims(Connection(f"redis://127.0.0.1:{port}"), settings, f"t:{id_}:h", "7"))
        made[-1].open()
        return made[-1]

    yield make
    for one in made:
        one.connection.close()


def read(of: Claims) -> list[Entry]:
    of.ask(100, block=False)
    of.flush()
    while not of.arrived:
        of.receive()
    return of.arrived.popleft()[0]


def settle(of: Claims) -> None:
    of.flush()
    while of.waiting:
        of.receive()


def reply_to(of: Claims, entries: list[Entry]) -> None:
    render = Renderer(of.loop, "t", "t:dead:x")
    for entry in entries:
        entry.ref = entry.raw[b"ref"].decode()
        render.reply(entry, 200, json.dumps({"by": of.loop.consumer_id}), "A", "B")


def take_all(of: Claims) -> list[Entry]:
    """What a look around takes from others, begun."""
    deadline = time.monotonic() + 10
    while not of.suspects:
        assert time.monotonic() < deadline
        look_around(of)
    return [entry for entry in (of.begin(xid) for xid in list(of.suspects)) if entry is not None]


def test_a_reply_that_arrives_while_the_server_comes_out_of_an_error_is_fenced_still(
    server: servers.Own, r: redis.Redis, relay: Relay, claims: Make
) -> None:
    """What guards it is refused, as the server is full; what it guards is not, as it is not full any more."""
    first, second = claims(relay.port, "1"), claims(server.port, "2")
    r.xadd("t:req:x", {"ref": "r1", "type": "t"})
    entries = read(first)
    assert [entry.raw[b"ref"] for entry in entries] == [b"r1"]
    (taken,) = take_all(second)  # the first is frozen, as far as anyone can see
    r.config_set("maxmemory", 1)
    relay.stop_before = MULTI
    reply_to(first, entries)
    first.write(entries)
    with contextlib.suppress(ConnectionLost):
        first.flush()
        if relay.held.wait(5):
            for _ in range(3):
                r.ping()  # what came before it is done with
            r.config_set("maxmemory", 0)
            relay.go()
        settle(first)
    r.config_set("maxmemory", 0)
    assert r.lrange("res:r1", 0, -1) == []
    reply_to(second, [taken])
    second.write([taken])
    settle(second)
    assert [json.loads(reply) for reply in r.lrange("res:r1", 0, -1)] == [{"by": "2"}]


def test_a_reply_whose_refusal_somebody_else_heard_is_written_later(
    server: servers.Own, r: redis.Redis, claims: Make
) -> None:
    """As `request.progress` does, which makes no promise, and so keeps an error that passes to itself."""
    only = claims(server.port, "1")
    for ref in ("r1", "r2"):
        r.xadd("t:req:x", {"ref": ref, "type": "t"})
    one, two = read(only)
    reply_to(only, [one, two])
    r.config_set("maxmemory", 1)
    only.write([one])
    with pytest.raises(ConnectionLost, match="OOM"):
        only.exchange(("ECHO", "x"))
    r.config_set("maxmemory", 0)
    only.write([two])  # not before it is known again that the fence holds
    assert only.broken
    only.verify()
    settle(only)
    assert [r.llen("res:r1"), r.llen("res:r2"), r.xpending("t:req:x", "worker")["pending"]] == [1, 1, 0]


@pytest.mark.parametrize("when", ["before the transaction", "after it was sent"])
def test_a_claim_that_is_taken_between_two_transactions_breaks_the_second(
    server: servers.Own, r: redis.Redis, relay: Relay, claims: Make, when: str
) -> None:
    first, second = claims(relay.port, "1"), claims(server.port, "2")
    for ref in ("r1", "r2"):
        r.xadd("t:req:x", {"ref": ref, "type": "t"})
    one, two = read(first)
    reply_to(first, [one, two])
    first.write([one])
    if when == "before the transaction":
        settle(first)
    else:
        relay.stop_before = MULTI
        first.flush()
        assert relay.held.wait(5)
    taken = take_all(second)
    relay.go()
    first.write([two])
    settle(first)
    assert first.broken
    reply_to(second, taken)
    second.write(taken)
    settle(second)
    first.verify()
    settle(first)
    assert not first.hand
    by = [json.loads(r.lrange(f"res:{ref}", 0, -1)[0])["by"] for ref in ("r1", "r2")]
    assert [r.llen("res:r1"), r.llen("res:r2")] == [1, 1]
    assert by == (["1", "2"] if when == "before the transaction" else ["2", "2"])
    assert r.xpending("t:req:x", "worker")["pending"] == 0


@pytest.mark.parametrize("came", ["meanwhile", "before"])
def test_a_consumer_that_wakes_while_it_is_removed_loses_nothing(
    server: servers.Own, r: redis.Redis, relay: Relay, claims: Make, came: str
) -> None:
    """The one who removes it ends in the next moment, and so cannot mend anything afterwards."""
    remover = claims(relay.port, "1")
    r.xgroup_createconsumer("t:req:x", "worker", "old")
    time.sleep(0.01)  # so that it has been idle for a while
    if came == "before":
        r.xadd("t:req:x", {"ref": "r1", "type": "t"})
    relay.stop_before = MULTI

    def remove() -> None:
        with contextlib.suppress(ConnectionLost):
            remove_gone(remover, idle_millis=1)

    thread = threading.Thread(target=remove)
    thread.start()
    wait_for(lambda: relay.held.is_set() or not thread.is_alive())
    if came == "meanwhile":
        r.xadd("t:req:x", {"ref": "r1", "type": "t"})
    ((_, ((xid, _),)),) = r.xreadgroup("worker", "old", {"t:req:x": ">"})
    relay.go(stop_before=word("XCLAIM"))
    wait_for(lambda: relay.held.is_set() or not thread.is_alive())
    relay.close()
    thread.join(10)
    assert [row["message_id"] for row in r.xpending_range("t:req:x", "worker", "-", "+", 10)] == [xid]


def test_a_consumer_that_is_gone_is_removed(server: servers.Own, r: redis.Redis, claims: Make) -> None:
    remover = claims(server.port, "1")
    r.xgroup_createconsumer("t:req:x", "worker", "old")
    time.sleep(0.01)
    remove_gone(remover, idle_millis=1)
    assert "old" not in {consumer["name"] for consumer in r.xinfo_consumers("t:req:x", "worker")}


def test_a_handler_that_is_interrupted_while_it_tells_its_progress_disturbs_no_other_reply(
    server: servers.Own, r: redis.Redis, run: Runner, tmp_path: Path
) -> None:
    """Its time is up in the midst of a command, sooner or later: what comes next would be taken for another's reply."""
    code = """
import sys
from sandboxrun import worker

sys.excepthook = lambda *_: None  # nobody reads it before the end

@worker.handler(timeout=0.01)
def handle(request):
    while request.data["n"] % 2:
        request.progress("x" * 30000)
    return {"n": request.data["n"]}

worker.run()
"""
    (tmp_path / "worker.py").write_text(code)
    r.hset("t:1:h", mapping={"url": str(tmp_path), "version": "local"})
    run.env["REDIS_URL"] = server.url
    refs = [os.urandom(8).hex() for _ in range(400)]
    for n, ref in enumerate(refs):
        r.xadd("t:req:x", {"ref": ref, "type": "t", "data": json.dumps({"n": n})})
    with run.start("t", "1", "--quiet") as process:
        for n, ref in enumerate(refs):
            found: Any = r.brpop([f"res:{ref}"], timeout=20)
            assert found is not None, f"no reply to the {n}th"
            reply = json.loads(found[1])
            assert (reply["code"], reply.get("n")) == ((500, None) if n % 2 else (200, n))
        wait_for(lambda: r.xpending("t:req:x", "worker")["pending"] == 0)
        process.terminate()
        _, err = process.communicate(timeout=20)
    assert b"connecting again" not in err
    assert sorted(fields["ref"] for _, fields in r.xrange("t:res:x")) == sorted(refs)


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_a_slow_request_is_not_taken_where_claims_cannot_be_renewed_as_the_server_is_full(
    server: servers.Own, r: redis.Redis, run: Runner, tmp_path: Path, kind: str
) -> None:
    code = """
import asyncio, time
from sandboxrun import worker

@worker.handler
def handle(request):
    time.sleep(request.data)
    return {"deliveries": request.deliveries}

worker.run()
"""
    if kind == "async":
        code = code.replace("def handle", "async def handle").replace("time.sleep", "await asyncio.sleep")
    (tmp_path / "worker.py").write_text(code)
    run.env["REDIS_URL"] = server.url
    for id_ in "12":
        r.hset(f"t:{id_}:h", mapping={"url": str(tmp_path), "version": "local", "takeoverMillis": "600"})
    with run.start("t", "1"), run.start("t", "2"):
        wait_for(lambda: len(r.keys("t:req:x:fence:?:f")) == 2)  # both have begun
        r.xadd("t:req:x", {"ref": "slow", "type": "t", "data": "4"})
        wait_for(lambda: r.xpending("t:req:x", "worker")["pending"] == 1)
        r.config_set("maxmemory", 1)
        time.sleep(2.5)  # four times what makes a claim stale
        (row,) = r.xpending_range("t:req:x", "worker", "-", "+", 10)
        assert row["time_since_delivered"] > 2000  # so anyone may take it, in the moment in which there is room again
        r.config_set("maxmemory", 0)
        assert json.loads(r.brpop(["res:slow"], timeout=20)[1])["deliveries"] == 1
