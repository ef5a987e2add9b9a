"""A worker that a signal has ended: one line names the signal, and says what becomes of its request."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from arena import wait_for
from runner import Runner

from sandboxrun import client

Local = Callable[..., Path]
FATE = (
    "a request that it had begun is not lost: the next start, or another worker of the type, begins it again, at most "
    "maxDeliveries times in all"
)
OUTSIDE = "sent by the worker itself or by another process, not by sandboxrun"
HANDLER = """
from sandboxrun import worker
import ctypes, os, signal, sys, time

@worker.handler
def handle(request):
    if request.deliveries > 1:
        return {"ok": 1}
    {act}

worker.run()
"""


def ended(signal_name: str, because: str) -> str:
    return f"warning: t:1:h was ended by {signal_name} {because}; {FATE}"


@pytest.mark.parametrize(
    ("act", "name", "because"),
    [
        ("ctypes.string_at(0)", "SIGSEGV", "(native code used memory that it does not have)"),
        ("os.abort()", "SIGABRT", "(the worker or a library called abort())"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL", f"({OUTSIDE})"),
        (
            "os.kill(os.getpid(), signal.SIGBUS)",
            "SIGBUS",
            "(native code used memory behind which there is no file or device)",
        ),
        ("os.kill(os.getpid(), signal.SIGRTMIN + 2)", "signal 36", f"({OUTSIDE})"),
        ("os.kill(os.getpid(), signal.SIGHUP)", "SIGHUP", f"({OUTSIDE})"),
        ("signal.alarm(1); time.sleep(30)", "SIGALRM", "(a timer of the worker has run out)"),
    ],
)
def test_a_handler_that_is_killed_is_said_and_its_request_is_answered_by_the_next_start(
    r: redis.Redis, run: Runner, local: Local, act: str, name: str, because: str
) -> None:
    local(HANDLER.replace("{act}", act), requestLimit="1", takeoverMillis="200")
    ref = client.send(r, "t", {}, now="x")
    done = run("t", "1")
    assert done.code > 128
    assert done.err.splitlines()[-1] == ended(name, because), done.err
    again = run("t", "1")
    assert again.code == 0, again.err
    assert r.llen(f"res:{ref}") == 1


def test_a_worker_that_does_not_end_in_time_is_said(r: redis.Redis, run: Runner, local: Local) -> None:
    local(
        "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('ready', flush=True)\ntime.sleep(60)"
    )
    with run.start("t", "1") as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 128 + 9
        said = process.stderr.read().decode().splitlines()
    assert said[-1] == ended("SIGKILL", "because it had not ended 5 s after SIGTERM")


def test_a_worker_that_is_stopped_twice_is_said(r: redis.Redis, run: Runner, local: Local) -> None:
    local(
        "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('ready', flush=True)\ntime.sleep(60)"
    )
    with run.start("t", "1") as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == b"ready\n"
        wait_for(lambda: r.hget("t:1:h", "pid"))
        process.send_signal(signal.SIGINT)
        wait_for(lambda: process.poll() is not None or process.send_signal(signal.SIGINT))  # until it has ended
        assert process.wait(20) == 128 + 9
        said = process.stderr.read().decode().splitlines()
    assert said[-1] == ended("SIGKILL", "because it was stopped once more before it had ended")


@pytest.mark.parametrize("code", ["raise SystemExit(139)", "import os; os._exit(137)", "raise SystemExit(3)"])
def test_an_exit_code_that_looks_like_a_signal_is_none(r: redis.Redis, run: Runner, local: Local, code: str) -> None:
    local(code)
    assert "was ended by" not in run("t", "1").err


def test_a_worker_that_ends_by_the_sigterm_of_a_stop_is_nothing_to_report(
    r: redis.Redis, run: Runner, local: Local
) -> None:
    local("import time\nprint('ready', flush=True)\ntime.sleep(60)")
    with run.start("t", "1") as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 128 + 15
        assert b"was ended by" not in process.stderr.read()


def test_the_limit_of_cpu_time_is_said_and_what_it_ended(r: redis.Redis, run: Runner, local: Local) -> None:
    local(HANDLER.replace("{act}", "\n    while True: pass"), limitCpu="1s")
    client.send(r, "t", {}, now="x")
    done = run("t", "1")
    assert done.code == 128 + signal.SIGXCPU
    limit, said = done.err.splitlines()[-2:]
    assert limit.startswith("warning: the CPU time of a process has reached its limit of 1s; raise it with:")
    assert said == ended("SIGXCPU", "because of its limit")


def test_the_kernels_out_of_memory_killer_is_named_if_it_was_at_work() -> None:
    from sandboxrun.sandbox.supervisor import killed

    said = killed.message("t:1:h", signal.SIGKILL, because="", out_of_memory=True)
    assert (
        said
        == f"t:1:h was ended by SIGKILL (the machine had no memory left, and the kernel has ended a process); {FATE}"
    )
    assert OUTSIDE in killed.message("t:1:h", signal.SIGHUP, because="", out_of_memory=True)
