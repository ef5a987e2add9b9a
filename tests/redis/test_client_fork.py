"""A client in a process that forks, is interrupted, or uses several threads and event loops: each call gets its own reply."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import pickle
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import certificates
import pytest
import redis
import servers
from answering import Answering, plain
from arena import wait_for

from sandboxrun import client

CALLS = 150


@pytest.fixture
def r(server: servers.Own) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server.url, decode_responses=True, socket_timeout=30) as found:
        yield found


class Child:
    """`function()` in a forked child; `result` is what it returns, or raises what it raised."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._read, write = os.pipe()
        self.pid = os.fork()
        if self.pid:
            os.close(write)
            return
        try:
            try:
                found = function()
            except BaseException as error:
                found = error
            with os.fdopen(write, "wb") as stream:
                pickle.dump(found, stream)
        finally:
            os._exit(0)

    def result(self) -> Any:
        with os.fdopen(self._read, "rb") as stream:
            text = stream.read()
        os.waitpid(self.pid, 0)
        found = pickle.loads(text)
        if isinstance(found, BaseException):
            raise found
        return found


def call_all(c: client.Client, name: str) -> None:
    for number in range(CALLS):
        data = f"{name} {number}"
        assert c.call("t", data, timeout=30)["data"] == data


def call_all_awaiting(c: client.AsyncClient, name: str) -> None:
    async def main() -> None:
        items = [f"{name} {number}" for number in range(CALLS)]
        replies = await asyncio.gather(*(c.call("t", item, timeout=30) for item in items))
        assert [reply["data"] for reply in replies] == items

    asyncio.run(main())


def of_client(r: redis.Redis) -> set[str]:
    return {row["id"] for row in r.client_list() if row["name"].startswith("sandboxrun-client")}


def test_parent_and_children_get_their_own_replies(server: servers.Own, r: redis.Redis) -> None:
    with Answering(server.url), client.Client(server.url) as c:
        call_all(c, "before")
        ours = of_client(r)
        children = [Child(lambda n=n: call_all(c, f"child {n}")) for n in range(3)]
        call_all(c, "parent")
        for child in children:
            child.result()
        call_all(c, "after")
        assert of_client(r) == ours  # the parent's connection is the same one, and the children's are gone


def test_a_child_that_ends_says_nothing_on_the_parents_tls(tmp_path: Path) -> None:
    made = certificates.make(tmp_path)
    settings = (
        f"tls-cert-file {made.certificate}", f"tls-key-file {made.key}",
        f"tls-ca-cert-file {made.authority}", "tls-auth-clients no",
    )  # fmt: skip
    with servers.Own(*settings, tls=True) as server:
        url = f"{server.url}?ssl_ca_certs={made.authority}"
        with redis.Redis.from_url(url, decode_responses=True) as r, Answering(url), client.Client(url) as c:
            call_all(c, "before")
            ours = of_client(r)
            Child(lambda: None).result()  # which never uses it
            Child(lambda: call_all(c, "child")).result()
            call_all(c, "after")
            assert of_client(r) == ours


def test_children_of_children_and_of_threads_at_work(server: servers.Own) -> None:
    with Answering(server.url), client.Client(server.url) as c:
        over = threading.Event()
        problems: list[BaseException] = []

        def work(name: str) -> None:
            try:
                while not over.is_set():
                    call_all(c, name)
            except BaseException as error:
                problems.append(error)

        threads = [threading.Thread(target=work, args=(f"thread {n}",)) for n in range(3)]
        for thread in threads:
            thread.start()

        def grandparent() -> None:
            call_all(c, "child")
            Child(lambda: call_all(c, "grandchild")).result()
            call_all(c, "child again")

        for _ in range(3):
            Child(grandparent).result()
        over.set()
        for thread in threads:
            thread.join()
        assert problems == []


def test_call_many_on_its_way_is_the_parents(server: servers.Own) -> None:
    with Answering(server.url), client.Client(server.url) as c:
        rows = c.call_many("t", range(1000), timeout=30)
        found = [next(rows) for _ in range(100)]

        def child() -> str:
            with pytest.raises(client.CallError, match="forked during the call") as error:
                list(rows)
            call_all(c, "child")
            return str(error.value)

        children = [Child(child) for _ in range(2)]
        found += rows
        for one in children:
            one.result()
        assert sorted(row[1]["data"] for row in found) == list(range(1000))


def test_a_fork_by_a_signal_handler_during_a_call(server: servers.Own) -> None:
    """The child is within the parent's call: it gets an error, and the parent the reply."""
    go = threading.Event()

    def answer(data: Any, ref: str) -> str:
        go.wait(20)
        return plain(data, ref)

    with Answering(server.url, answer) as worker, client.Client(server.url) as c:
        read, write = os.pipe()
        before = signal.signal(signal.SIGUSR1, lambda *_: children.append(os.fork()))
        children: list[int] = []

        def interrupt() -> None:
            wait_for(lambda: worker.seen)
            os.kill(os.getpid(), signal.SIGUSR1)
            os.read(read, 100)  # the child's word
            go.set()

        thread = threading.Thread(target=interrupt)
        thread.start()
        parent = os.getpid()
        try:
            reply = c.call("t", "x", timeout=60)
        except client.CallError as error:
            if os.getpid() != parent:
                os.write(write, b"error: " + str(error).encode())
            raise
        finally:
            if os.getpid() != parent:
                os._exit(0)
            signal.signal(signal.SIGUSR1, before)
        thread.join()
        os.waitpid(children[0], 0)
        assert reply["data"] == "x"
        assert worker.seen == ["x"]


def test_an_async_client_in_a_child(server: servers.Own, r: redis.Redis) -> None:
    with Answering(server.url):
        c = client.AsyncClient(server.url)

        async def main() -> None:
            waits = [asyncio.create_task(c.call("t", f"parent {n}", timeout=30)) for n in range(CALLS)]
            await c.call("t", "first", timeout=30)
            loop = asyncio.get_running_loop()
            ours = of_client(r)
            # By a thread, as a running loop cannot be used in a child.
            children = [
                await loop.run_in_executor(None, lambda n=n: Child(lambda: call_all_awaiting(c, f"child {n}")))
                for n in range(2)
            ]
            assert [(await wait)["data"] for wait in waits] == [f"parent {n}" for n in range(CALLS)]
            for child in children:
                await loop.run_in_executor(None, child.result)
            assert (await c.call("t", "last", timeout=30))["data"] == "last"
            assert of_client(r) == ours
            await c.aclose()

        asyncio.run(main())


def _of_spawned(c: client.Client, name: str) -> bool:
    call_all(c, name)
    return True


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_pool_of_processes(server: servers.Own, method: str) -> None:
    with Answering(server.url), client.Client(server.url) as c:
        call_all(c, "parent")
        with multiprocessing.get_context(method).Pool(2) as pool:
            assert pool.starmap(_of_spawned, [(c, "a"), (c, "b"), (c, "c")]) == [True] * 3
        call_all(c, "parent again")


# An interrupt between the making of a socket and its first use leaves the socket to Python, which closes it with a warning.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_call_that_was_interrupted_leaves_no_reply_to_the_next(server: servers.Own) -> None:
    class Interrupted(BaseException):
        pass

    def interrupt(*_: object) -> None:
        raise Interrupted

    def answer(data: Any, ref: str) -> str:
        time.sleep(random.random() / 500)
        return plain(data, ref)

    before = signal.signal(signal.SIGALRM, interrupt)
    interrupted = 0
    try:
        with Answering(server.url, answer), client.Client(server.url) as c:
            for number in range(300):
                try:
                    signal.setitimer(signal.ITIMER_REAL, 0.0002 + random.random() / 250)
                    c.call("t", f"interrupted {number}", timeout=30)
                    signal.setitimer(signal.ITIMER_REAL, 0)
                except Interrupted:
                    interrupted += 1
                assert c.call("t", number, timeout=30)["data"] == number
            assert interrupted > 20
            # After a time-out: the reply comes when the connection is used by the next call.
            for number in range(30):
                try:
                    c.call("t", f"late {number}", timeout=0.001)
                except client.CallError:
                    pass
                assert c.call("t", number, timeout=30)["data"] == number
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_async_calls_that_are_cancelled_anywhere_disturb_no_other(server: servers.Own) -> None:
    async def main() -> None:
        async with client.AsyncClient(server.url) as c:
            for number in range(150):
                task = asyncio.create_task(c.call("t", f"cancelled {number}", timeout=30))
                for _ in range(number % 15):
                    await asyncio.sleep(0)
                await asyncio.sleep(random.random() / 1000)
                task.cancel()
                assert (await c.call("t", number, timeout=30))["data"] == number
                await asyncio.gather(task, return_exceptions=True)

    with Answering(server.url):
        asyncio.run(main())


def test_an_async_client_whose_loop_was_closed_under_it(server: servers.Own) -> None:
    def child() -> None:  # in a process of its own: asyncio warns of what was left open
        c = client.AsyncClient(server.url)
        for n in range(3):
            loop = asyncio.new_event_loop()
            assert loop.run_until_complete(c.call("t", n, timeout=30))["data"] == n
            loop.close()

    with Answering(server.url):
        Child(child).result()


def test_an_async_client_without_a_block_in_several_loops_and_threads(server: servers.Own, r: redis.Redis) -> None:
    with Answering(server.url):
        c = client.AsyncClient(server.url)
        for n in range(3):  # one loop after another; none closes it
            call_all_awaiting(c, f"loop {n}")
        wait_for(lambda: not of_client(r))
        errors: list[BaseException] = []

        def work(name: str) -> None:
            try:
                call_all_awaiting(c, name)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(f"thread {n}",)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []

        async def twice() -> None:
            for n in range(2):
                async with c:
                    assert (await c.call("t", n, timeout=30))["data"] == n
            assert (await c.call("t", "after", timeout=30))["data"] == "after"
            await c.aclose()
            await c.aclose()

        asyncio.run(twice())
        blocking = client.Client(server.url)
        for n in range(2):
            with blocking:
                call_all(blocking, f"block {n}")
        assert blocking.call("t", "after", timeout=30)["data"] == "after"
        blocking.close()
        wait_for(lambda: not of_client(r))
