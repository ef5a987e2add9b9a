"""Two runs whose pid numbers are equal, as in two containers: which one goes on, and how the other ends."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from arena import wait_for
from leases import lease
from runner import Runner

from sandboxrun import client
from sandboxrun.config import keys
from sandboxrun.config.fields import parse_loop
from sandboxrun.errors import AlreadyRunningError, TakenOver
from sandboxrun.redis.connection import Connection
from sandboxrun.redis.lease import Run, new_token, this_host
from sandboxrun.redis.store import Store
from sandboxrun.redis.watch import look
from sandboxrun.worker.claims import Claims

Local = Callable[..., Path]
ECHO = """
from sandboxrun import worker

@worker.handler
def handle(request):
    return {"text": "done"}

worker.run()
"""
LONG = "import time\nprint('ready', flush=True)\ntime.sleep(60)\n"
ASYNC = ECHO.replace("def handle", "async def handle")


def ask(r: redis.Redis) -> None:
    reply = client.wait(r, client.send(r, "t", {}, now="2026-01-01T00:00:00.000Z"), timeout_seconds=20)
    assert reply is not None and reply["code"] == 200


class Line:
    """A TCP proxy to Redis that can be cut and joined again; a cut one drops its connections and takes no others."""

    def __init__(self, port: int) -> None:
        self._target, self._cut = port, threading.Event()
        self._pairs: list[socket.socket] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self._cut.set()
        for sock in self._pairs:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def join(self) -> None:
        self._cut.clear()

    def close(self) -> None:
        self.cut()
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
            except OSError:
                return
            if self._cut.is_set():
                near.close()
                continue
            far = socket.create_connection(("127.0.0.1", self._target))
            self._pairs += [near, far]
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._pass_on, args=(one, other), daemon=True).start()

    def _pass_on(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                other.sendall(data)
        with contextlib.suppress(OSError):
            other.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def line(redis_url: str) -> Iterator[tuple[Line, str]]:
    """A proxy, and the URL that goes through it."""
    port = int(redis_url.rpartition(":")[2].partition("/")[0])
    found = Line(port)
    yield found, redis_url.replace(f":{port}", f":{found.port}")
    found.close()


def container(command: list[str]) -> list[str]:
    """The command in a pid namespace of its own, where pid numbers begin at 1."""
    words = ["unshare", *([] if os.geteuid() == 0 else ["-U", "-r"]), "--pid", "--fork", "--kill-child", "--mount-proc"]
    if subprocess.run([*words, "true"], capture_output=True).returncode != 0:
        pytest.skip("no pid namespace can be made here")
    return [*words, "sh", "-c", '"$@"; exit $?', "sh", *command]


@pytest.mark.parametrize("code", [ECHO, ASYNC, LONG], ids=["plain", "async", "by hand"])
def test_after_a_partition_one_of_two_with_equal_pids_goes_on(
    r: redis.Redis, run: Runner, local: Local, tmp_path: Path, line: tuple[Line, str], code: str
) -> None:
    local(code)
    proxy, url = line
    second = tmp_path / "second"
    second.mkdir()
    other = Runner(run.env["REDIS_URL"], second)
    with contextlib.ExitStack() as stack:

        def start(by: Runner, *args: str) -> subprocess.Popen[bytes]:
            command = container(by.command("t", "1", *args))
            pipe = subprocess.PIPE
            found = subprocess.Popen(command, env=by.env, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe)
            stack.enter_context(found)
            stack.callback(found.kill)
            return found

        cut_off = start(run, "--redis", url)
        assert cut_off.stderr is not None and b" runs " in cut_off.stderr.readline()  # it knows that it has the pid
        if code != LONG:
            ask(r)
        before = r.hgetall("t:1:h")
        proxy.cut()
        r.hset("t:1:h", "pidSeen", int(before["pidSeen"]) - 60)  # as after a partition of a minute
        goes_on = start(other)
        wait_for(lambda: r.hget("t:1:h", "pidToken") != before["pidToken"])
        after = r.hgetall("t:1:h")
        assert after["pid"] == before["pid"]  # else this test shows nothing
        proxy.join()
        _, err = cut_off.communicate(timeout=20)
        assert cut_off.returncode == 73
        assert f"t:1:h was taken over by another run on {os.uname().nodename} as process {after['pid']}" in err.decode()
        assert goes_on.poll() is None
        if code != LONG:
            for _ in range(20):
                ask(r)
            assert r.xlen("t:req:x") == r.xlen("t:res:x") == 21
        assert r.hget("t:1:h", "pidToken") == after["pidToken"]
        assert len([name for name in r.acl_users() if name.startswith("sandboxrun:t:1:")]) == 1
        r.hdel("t:1:h", "pid")
        goes_on.wait(20)
    assert not [name for name in r.hkeys("t:1:h") if name.startswith("pid")]


def test_the_store_of_the_loser_neither_renews_nor_releases_nor_watches_the_winners_pid(
    r: redis.Redis, redis_url: str
) -> None:
    r.hset("t:1:h", "url", "x")
    lost, won = (Run("t:1:h", os.getpid(), new_token(), ("t:1:h",)) for _ in range(2))
    with contextlib.closing(Store(redis_url)) as first, contextlib.closing(Store(redis_url)) as second:
        first.claim(lost, version="v1")
        with pytest.raises(AlreadyRunningError):
            second.claim(won, version="v2")
        r.hset("t:1:h", mapping={"pidHost": "elsewhere/1", "pidSeen": "1"})  # it was cut off for long
        second.claim(won, version="v2")
        seen: list[str] = []
        first.watch(lost, lost=lambda loss: seen.append(loss.reason), warn=lambda message: None)
        wait_for(lambda: seen)
        assert "taken over" in seen[0]
        before = r.hgetall("t:1:h")
        loss = first.release(lost)
        assert loss is not None and loss.exit_code == TakenOver.exit_code
        assert r.hgetall("t:1:h") == before
        assert second.release(won) is None
    assert r.hgetall("t:1:h") == {"url": "x"}


@pytest.mark.parametrize(
    ("change", "reason", "code"),
    [
        (lambda r: r.hdel("t:1:h", "pid"), "field pid of t:1:h was removed", None),
        (lambda r: r.hdel("t:1:h", "pidToken"), "field pidToken of t:1:h was removed", None),
        (lambda r: r.hset("t:1:h", "pid", "5"), "field pid of t:1:h was changed to '5'", None),
        (lambda r: r.hset("t:1:h", "pid", "x" * (1 << 20)), "field pid of t:1:h was changed", None),
        (lambda r: r.hset("t:1:h", "pidToken", "5"), "taken over", 73),
        (lambda r: r.hset("t:1:h", mapping=lease(r, pid=str(os.getpid()), pidToken="f" * 32)), "taken over", 73),
        # by one that knows no token
        (lambda r: r.hset("t:1:h", mapping=lease(r, pid=str(os.getpid()))), "taken over by another run on far", 73),
        (lambda r: r.hdel("t:1:h", "pidHost", "pidSeen", "pidName"), None, None),
    ],
)
def test_whoever_changes_pid_or_token_ends_the_run(
    r: redis.Redis, redis_url: str, change: Callable[[redis.Redis], object], reason: str | None, code: int | None
) -> None:
    r.hset("t:1:h", "url", "x")
    mine = Run("t:1:h", os.getpid(), new_token(), ("t:1:h",))
    with contextlib.closing(Store(redis_url)) as store, contextlib.closing(Connection(redis_url)) as connection:
        store.claim(mine, version="v1")
        connection.open()
        assert look(connection, mine) is None
        change(r)
        loss = look(connection, mine)
        assert (loss is None) == (reason is None)
        if loss is not None:
            assert reason in loss.reason and loss.exit_code == code


def test_what_an_old_tool_leaves_behind_confuses_no_next_start(r: redis.Redis, run: Runner, local: Local) -> None:
    """It knows `pid` alone: a token, a host and a start time stay where a supervisor was killed."""
    local("print('ran')")
    r.hset("t:1:h", mapping=lease(r, pidToken="f" * 32, pidHost=this_host()))
    r.hdel("t:1:h", "pid")
    assert run("t", "1").out == "ran\n"
    assert not [name for name in r.hkeys("t:1:h") if name.startswith("pid")]


def test_a_pid_set_by_hand_keeps_nothing_of_the_run_that_it_ends(r: redis.Redis, run: Runner, local: Local) -> None:
    local(LONG)
    with run.start("t", "1") as process:
        assert process.stdout is not None
        process.stdout.readline()
        r.hset("t:1:h", "pid", "5")
        assert process.wait(20) == 128 + 15
    assert {name: value for name, value in r.hgetall("t:1:h").items() if name.startswith("pid")} == {"pid": "5"}


# --- the worker's own look


@contextlib.contextmanager
def claims(redis_url: str, token: str) -> Iterator[Claims]:
    """Of a process 7."""
    with contextlib.closing(Connection(redis_url)) as connection:
        yield Claims(connection, parse_loop({}, "t", "1"), "t:1:h", "7", token=token)


def test_a_worker_without_a_token_is_compared_by_its_number_alone(r: redis.Redis, redis_url: str) -> None:
    r.hset("t:1:h", mapping={"pid": "7", "pidToken": "left behind"})
    with claims(redis_url, "") as worker:
        worker.open()
        assert not worker.lost_pid
        r.hset("t:1:h", "pid", "8")
        with pytest.raises(TakenOver):
            worker.verify()


@pytest.mark.parametrize("change", [{"pid": "8"}, {"pidToken": "other"}, {"pid": "8", "pidToken": "other"}])
def test_a_worker_that_was_taken_over_makes_no_fence_and_begins_nothing(
    r: redis.Redis, redis_url: str, change: dict[str, str]
) -> None:
    r.hset("t:1:h", mapping={"pid": "7", "pidToken": "mine"})
    with claims(redis_url, "mine") as worker:
        worker.open()
        client.send(r, "t", {"n": 1}, now="x")
        worker.ask(1, block=False)
        worker.receive()
        assert len(worker.hand) == 1 and not worker.lost_pid
        r.hset("t:1:h", mapping=change)
        fence = keys.fence_key("t:req:x", "1")
        r.delete(fence)
        r.hset(fence, "the winner's", 1)
        with pytest.raises(TakenOver):
            worker.verify()
        worker.leave()
        assert r.hgetall(fence) == {"the winner's": "1"}
        client.send(r, "t", {"n": 2}, now="x")
        worker.ask(1, block=False)
        worker.receive()
        assert next(reversed(worker.arrived))[0] == []


def test_a_removed_token_is_a_removed_pid(r: redis.Redis, run: Runner, local: Local) -> None:
    local(ECHO)
    with run.start("t", "1") as process:
        ask(r)
        r.hdel("t:1:h", "pidToken")
        _, err = process.communicate(timeout=20)
    assert process.returncode == 0
    assert b"field pidToken of t:1:h was removed" in err
    assert not [name for name in r.hkeys("t:1:h") if name.startswith("pid")]
