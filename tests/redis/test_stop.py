"""sandboxrun stop: by the hash alone, for workers of any host."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from arena import wait_for
from leases import lease
from runner import Runner

from sandboxrun.fleet import desired
from sandboxrun.fleet.workers import State
from sandboxrun.host.stop import End, stop
from sandboxrun.redis.connection import Connection
from sandboxrun.redis.lease import PID_FIELDS, this_host

Local = Callable[..., Path]
WAITS = "import time\nprint('ready', flush=True)\ntime.sleep(600)\n"
STUBBORN = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + WAITS


def ready(process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"


def test_a_worker_ends_gently(r: redis.Redis, run: Runner, local: Local) -> None:
    local(WAITS)
    with run.start("t", "1") as process:
        ready(process)
        pid = r.hget("t:1:h", "pid")
        done = run("stop", "t", "1")
        assert done.code == 0, done.err
        assert done.out.startswith(f"t 1 has ended (process {pid}), after ")
        assert done.out.endswith(" s with exit code 143\n")
        assert process.wait(20) == 128 + 15
    assert not set(PID_FIELDS) & set(r.hkeys("t:1:h"))
    done = run("stop", "t", "1")
    assert (done.code, done.out) == (0, "t 1 does not run\n")


def test_all_of_a_type_are_asked_at_once(r: redis.Redis, run: Runner, local: Local) -> None:
    for id_ in "123":
        local(STUBBORN if id_ == "1" else WAITS, key=f"t:{id_}:h")
    local(WAITS, key="u:1:h")
    with run.start("t", "1") as one, run.start("t", "2") as two, run.start("u", "1") as other:
        for process in (one, two, other):
            ready(process)
        done = run("stop", "t", "--all")
        assert done.code == 0, done.err
        assert sorted(line[:14] for line in done.out.splitlines()) == ["t 1 has ended ", "t 2 has ended "]
        assert (one.wait(20), two.wait(20)) == (128 + 9, 128 + 15) or (one.wait(), two.wait()) == (128 + 15, 128 + 15)
        assert other.poll() is None
    assert run("stop", "t", "--all").out == "no worker of type t runs\n"


@pytest.mark.parametrize("state", [State.RUNNING, State.ENDING])
def test_one_that_its_agent_ends_at_once_has_ended(
    r: redis.Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch, state: State
) -> None:
    r.rpush("t:started:q", "1")
    r.hset("t:1:h", mapping={"url": "/w", "version": "local", **lease(r)})
    if state == State.ENDING:
        r.hdel("t:1:h", "pid")
    keep_stopped = desired.keep_stopped

    def ended_meanwhile(*args: Any) -> bool:
        kept = keep_stopped(*args)
        r.hdel("t:1:h", *PID_FIELDS)
        return kept

    monkeypatch.setattr(desired, "keep_stopped", ended_meanwhile)
    with contextlib.closing(Connection(redis_url, protocol=2)) as connection:
        connection.open()
        (outcome,) = stop(connection, [("t", "1")], timeout=20)
    assert (outcome.end, outcome.is_kept, outcome.before) == (End.ENDED, True, state)


def test_one_that_was_kept_stopped_and_does_not_run_has_not_ended_now(r: redis.Redis, redis_url: str) -> None:
    r.rpush("t:started:q", "1")
    r.hset("t:1:h", mapping={"url": "/w", "version": "local"})
    with contextlib.closing(Connection(redis_url, protocol=2)) as connection:
        connection.open()
        (outcome,) = stop(connection, [("t", "1")], timeout=20)
    assert (outcome.end, outcome.is_kept, outcome.before) == (End.NOT_RUNNING, True, State.STOPPED)


def test_one_that_does_not_end_in_time_is_said(r: redis.Redis, run: Runner, local: Local) -> None:
    local(STUBBORN)
    with run.start("t", "1") as process:
        ready(process)
        pid = r.hget("t:1:h", "pid")
        done = run("stop", "t", "1", "--timeout", "0.5")
        assert done.code == 75
        assert done.out.startswith(f"t 1 still runs (process {pid}) after ")
        assert f"kill -KILL {process.pid} ends both" in done.out
        assert process.wait(20) == 128 + 9


def test_one_on_another_host_ends_when_its_supervisor_says_so(r: redis.Redis, run: Runner) -> None:
    r.hset("t:1:h", mapping={"url": "/x", **lease(r)})
    with run.start("stop", "t", "1", "--timeout", "60") as process:
        wait_for(lambda: not r.hexists("t:1:h", "pid"))
        assert r.hexists("t:1:h", "pidHost")
        r.hdel("t:1:h", *PID_FIELDS)  # as it does there, once the worker is buried
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"t 1 has ended on far (process 7), after ")
        assert process.wait(20) == 0
    r.hset("t:1:h", mapping=lease(r))
    with run.start("stop", "t", "1", "--timeout", "60") as process:
        wait_for(lambda: not r.hexists("t:1:h", "pid"))
        r.hset("t:1:h", mapping=lease(r, pid="8"))
        assert process.stdout is not None
        assert b"was started again as process 8: stop the service that starts it" in process.stdout.readline()
        assert process.wait(20) == 0


def test_what_dead_ones_left_is_removed(r: redis.Redis, run: Runner) -> None:
    def reset() -> None:
        r.hset("t:1:h", mapping={"url": "/x", **lease(r, age=60)})
        r.hset("t:2:h", mapping={"url": "/x", **lease(r, pidHost=this_host())})
        r.hset("u:1:h", mapping={"url": "/x", "pid": "4000000000"})
        r.hset("u:2:h", mapping={"url": "/x", **lease(r)})

    reset()
    done = run("stop", "t", "1", "2")
    assert done.code == 0
    far, near = done.out.splitlines()
    assert far.startswith("t 1: removed the stale pid 7 on far, not renewed for 20 s; if it still runs there, it ends")
    assert near == "t 2: removed the stale pid 7, whose process is gone"
    assert "removed pid 4000000000, which no run of sandboxrun had set" in run("stop", "u", "1").out
    reset()
    assert run("stop", "t", "--stale").out.splitlines() == [far, near]
    done = run("stop", "--stale")
    assert done.out.startswith("u 1: removed pid") and len(done.out.splitlines()) == 1
    assert r.hget("u:2:h", "pid") == "7"
    for key in ("t:1:h", "t:2:h", "u:1:h"):
        assert r.hgetall(key) == {"url": "/x"}
    assert run("stop", "--stale").out == "no worker has left a pid behind\n"


def test_a_stranger_with_the_same_number_is_left_alone(r: redis.Redis, run: Runner) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as stranger:
        r.hset("t:1:h", mapping={"url": "/x", **lease(r, pid=stranger.pid, pidHost=this_host(), pidStarted="5")})
        assert run("stop", "t", "1").out == f"t 1: removed the stale pid {stranger.pid}, whose process is gone\n"
        r.hset("t:1:h", "pid", str(stranger.pid))
        assert run("stop", "t", "1").code == 0
        assert stranger.poll() is None
        os.kill(stranger.pid, 9)


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (("t",), 64), ((), 64), (("t", "1", "--all"), 64), (("t", "9"), 78), (("t", "a:b"), 78),
        (("t", "1", "--timeout", "-1"), 64), (("t", "1", "--redis", "redis://127.0.0.1:1"), 75),
    ],
)  # fmt: skip
def test_bad_arguments_are_one_line(run: Runner, r: redis.Redis, args: tuple[str, ...], code: int) -> None:
    done = run("stop", *args)
    assert done.code == code
    assert len(done.err.partition("\nhint: ")[0].splitlines()) == 1 and done.err.startswith("error: ")


def test_nothing_in_a_hash_drives_the_terminal(r: redis.Redis, run: Runner) -> None:
    r.hset("t:1:h", mapping=lease(r, age=60, pid="\x1b[2J" * 100, pidName="\u202e\n"))
    done = run("stop", "t", "1")
    assert done.code == 0 and len(done.out.splitlines()) == 1
    assert not set(done.out) & {"\x1b", "\u202e"}


# PTRACE_SEIZE with PTRACE_O_TRACEEXIT: a killed process stays where it ends, as one does that waits for a disk.
HOLD = """
import ctypes, sys
libc = ctypes.CDLL(None)
libc.ptrace.argtypes = [ctypes.c_long] * 4
print(libc.ptrace(0x4206, int(sys.argv[1]), 0, 0x40), flush=True)
sys.stdin.read()
"""


def test_a_program_that_cannot_be_ended_is_said_and_the_run_is_not_over(
    r: redis.Redis, run: Runner, local: Local
) -> None:
    local("import os, time\npid = os.fork()\nif pid: print(pid, flush=True)\ntime.sleep(600)\n", allowRun="/bin/true")
    pipe = subprocess.PIPE
    with run.start("t", "1") as process:
        assert process.stdout is not None
        program = process.stdout.readline().decode().strip()
        with subprocess.Popen([sys.executable, "-c", HOLD, program], stdin=pipe, stdout=pipe, text=True) as tracer:
            assert tracer.stdout is not None
            assert tracer.stdin is not None
            if tracer.stdout.readline() != "0\n":
                pytest.skip("no process can be traced here")
            done = run("stop", "t", "1", "--timeout", "7")
            assert done.code == 75
            assert (
                f"the worker itself has ended, but processes that it started have not, although they were killed ({program})"
                in done.out
            )
            assert r.hexists("t:1:h", "pidHost")
            tracer.stdin.close()
        assert process.wait(20) == 128 + 15
        assert process.stderr is not None
        assert f"were killed and have not ended ({program})".encode() in process.stderr.read()
        assert run("stop", "t", "1").out == "t 1 does not run\n"
