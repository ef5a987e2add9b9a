"""The workers of a pool are as far apart as if each had a supervisor of its own, and end with the one that they have."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from arena import Listener
from pooled import pooled, wait_for
from runner import Runner

from sandboxrun.sandbox.supervisor import group
from sandboxrun.sandbox.supervisor.child import readable

SUPPORT = Path(__file__).parent.parent / "support"
CANARY = "canary-in-the-environment-of-the-pool"
WAITS = "import signal\nprint('there', flush=True)\nwhile True: signal.pause()\n"
RUNS = "import subprocess\nsubprocess.Popen(['sleep', '600'])\n" + WAITS
CONNECTS = """\
import socket
for _ in range(20):
    socket.create_connection(("localhost", PORT), 20).close()
print("connected")
"""
FLOOD = """\
import socket, threading, time
def flood():
    while True:
        try:
            socket.create_connection(("127.0.0.1", 1), 1)
        except OSError:
            pass
for _ in range(4):
    threading.Thread(target=flood).start()
print("floods", flush=True)
"""


@pytest.fixture
def write(r: redis.Redis, tmp_path: Path) -> Callable[..., None]:
    def write(type_: str, code: str, **fields: str) -> None:
        folder = tmp_path / type_
        folder.mkdir()
        (folder / "worker.py").write_text(code)
        r.hset(f"{type_}:h", mapping={"url": str(folder), "version": "local", **fields})

    return write


@contextlib.contextmanager
def pool_process(url: str, run: Runner, type_: str, count: int) -> Iterator[tuple[subprocess.Popen[bytes], list[int]]]:
    """The process, and the pids of its workers and its spare."""
    command = [sys.executable, str(SUPPORT / "pool_process.py"), url, type_, str(count)]
    with subprocess.Popen(command, env={**run.env, "CANARY": CANARY}, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            yield process, list(map(int, process.stdout.readline().split()))
        finally:
            process.kill()


def test_if_its_process_is_killed_no_worker_no_program_of_one_and_no_spare_lives(
    redis_url: str, r: redis.Redis, run: Runner, write: Callable[..., None]
) -> None:
    write("waits", RUNS, allowRun="sleep")
    with pool_process(redis_url, run, "waits", 3) as (process, pids):
        assert len(pids) == 4
        for pid in pids[:-1]:
            wait_for(lambda pid=pid: len(group.living(pid)) == 2)  # type: ignore[misc]
            pids += [member for member in group.living(pid) if member != pid]
        assert len(pids) == 7
        pidfds = [os.pidfd_open(pid) for pid in pids]
        process.kill()
        process.wait()
        for pidfd in pidfds:
            assert readable(pidfd, 20)
            os.close(pidfd)
    with pooled(redis_url, str(run.home)) as pool:  # and the next start removes what they have left
        pool.runs("waits")
        assert sum(user.startswith("sandboxrun:") for user in r.acl_users()) == 1
    assert list((run.home / ".cache/sandboxrun/scratch").iterdir()) == []


def test_nothing_of_its_environment_is_in_the_memory_of_a_worker_or_a_spare(
    redis_url: str, run: Runner, write: Callable[..., None]
) -> None:
    write("waits", WAITS)
    with pool_process(redis_url, run, "waits", 1) as (process, pids):
        assert CANARY.encode() in _memory(process.pid)
        for pid in pids:
            memory = _memory(pid)
            assert b"sandboxrun" in memory and CANARY.encode() not in memory
            assert CANARY.encode() not in Path(f"/proc/{pid}/environ").read_bytes()


def _memory(pid: int) -> bytes:
    """All that can be written of a process: stack, heap, and what it has mapped for itself."""
    found = []
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for begin, end in re.findall(r"^(\w+)-(\w+) rw", Path(f"/proc/{pid}/maps").read_text(), re.MULTILINE):
            memory.seek(int(begin, 16))
            with contextlib.suppress(OSError):
                found.append(memory.read(int(end, 16) - int(begin, 16)))
    return b"".join(found)


def test_descriptors_above_those_of_select_serve_as_well(
    redis_url: str, run: Runner, write: Callable[..., None], listener: Listener
) -> None:
    write("connects", CONNECTS.replace("PORT", str(listener.port)), allowNet=f"localhost:{listener.port}")
    with pooled(redis_url, str(run.home)) as pool:
        taken = [os.dup(0) for _ in range(1100)]
        try:
            workers = [pool.start("connects", str(number)) for number in range(1, 5)]
            for running in workers:
                assert pool.on.end(running).code == 0 and pool.on.of(running)[-1] == "connected"
        finally:
            for fd in taken:
                os.close(fd)
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 1100


def test_one_that_floods_its_supervisor_with_connects_stops_no_other(
    redis_url: str, run: Runner, write: Callable[..., None], listener: Listener
) -> None:
    write("floods", FLOOD)
    write("connects", CONNECTS.replace("PORT", str(listener.port)), allowNet=f"localhost:{listener.port}")
    with pooled(redis_url, str(run.home)) as pool:
        floods = pool.runs("floods")
        pool.says(floods, "floods")
        wait_for(lambda: sum(floods.denials.values()) > 100)
        connects = pool.start("connects")
        assert pool.on.end(connects).code == 0 and pool.on.of(connects) == ["connected"]
        assert connects.denials == {} and not pool.on.of(connects, "denied")
        assert floods.state == "running" and len(pool.on.of(floods, "denied")) == 1


def test_hundreds_of_starts_leave_no_descriptor_and_no_thread(
    redis_url: str, run: Runner, write: Callable[..., None]
) -> None:
    write("short", "print('x')\n")
    with pooled(redis_url, str(run.home)) as pool:
        for running in [pool.start("short", str(number)) for number in range(2, 10)]:
            pool.on.end(running)
        pool.on.ends.clear()
        wait_for(lambda: pool.pool.spares.waiting == 1 and pool.pool.watch.tracks)
        pool.pool.connections.close_idle(0)
        before = len(os.listdir("/proc/self/fd"))
        threads = threading.active_count()
        for _ in range(3):
            for running in [pool.start("short", str(number)) for number in range(2, 10)]:
                assert pool.on.end(running).code == 0
            pool.on.ends.clear()
        wait_for(lambda: pool.pool.spares.waiting == 1 and threading.active_count() <= threads)
        pool.pool.connections.close_idle(0)
        # What the watch asks Redis meanwhile has descriptors of its own for a moment.
        wait_for(lambda: len(os.listdir("/proc/self/fd")) <= before)
