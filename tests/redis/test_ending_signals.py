"""Signals to sandboxrun, before, while and after its worker runs: each ends the run in order or leaves it alone."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from arena import wait_for
from runner import Runner

from sandboxrun.sandbox.supervisor.ending import ENDING

Local = Callable[..., Path]
LONG = "import time\nprint('ready', flush=True)\ntime.sleep(60)\n"
DEAF = "import signal, time\nsignal.signal(15, signal.SIG_IGN)\nprint('ready', flush=True)\ntime.sleep(60)\n"
HARMLESS = ("SIGCHLD", "SIGCONT", "SIGURG", "SIGWINCH", "SIGPIPE", "SIGXFSZ")
STOPPING = ("SIGTSTP", "SIGTTIN", "SIGTTOU", "SIGSTOP")
FAULTS = ("SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGTRAP", "SIGSYS", "SIGKILL")


def left(r: redis.Redis, run: Runner) -> list[str]:
    """What a run must not leave behind."""
    scratch = run.home / ".cache/sandboxrun/scratch"
    return [
        *(name for name in r.hkeys("t:1:h") if name.startswith("pid")),
        *(name for name in r.acl_users() if name.startswith("sandboxrun:")),
        *(str(path) for path in (scratch.iterdir() if scratch.exists() else ())),
    ]


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_every_signal_is_decided() -> None:
    named = {int(getattr(signal, name)) for name in (*HARMLESS, *STOPPING, *FAULTS)}
    assert named | set(ENDING) == set(map(int, signal.valid_signals()))
    assert not named & set(ENDING)


@pytest.mark.parametrize("number", ENDING)
def test_each_signal_that_would_end_it_ends_the_run_in_order(
    r: redis.Redis, run: Runner, local: Local, number: int
) -> None:
    local(LONG)
    with run.start("t", "1") as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(number)
        assert process.wait(20) == 128 + signal.SIGTERM
    assert left(r, run) == []


@pytest.mark.parametrize("name", HARMLESS)
def test_others_leave_it_alone(r: redis.Redis, run: Runner, local: Local, name: str) -> None:
    local(LONG)
    with run.start("t", "1") as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(getattr(signal, name))
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)  # the worker's own code: it had not ended by the first
        assert process.wait(20) == 128 + signal.SIGTERM
    assert left(r, run) == []


@pytest.mark.parametrize(("first", "second"), [("SIGINT", "SIGINT"), ("SIGQUIT", "SIGTERM"), ("SIGUSR2", "SIGALRM")])
def test_a_second_one_ends_a_deaf_worker_at_once(
    r: redis.Redis, run: Runner, local: Local, first: str, second: str
) -> None:
    local(DEAF)
    with run.start("t", "1") as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(getattr(signal, first))
        time.sleep(0.3)
        assert process.poll() is None
        began = time.monotonic()
        process.send_signal(getattr(signal, second))
        assert process.wait(20) == 128 + signal.SIGKILL
        assert time.monotonic() - began < 4.5  # not the grace period of 5 s
    assert left(r, run) == []


def test_what_nohup_ignores_stays_ignored(r: redis.Redis, run: Runner, local: Local) -> None:
    local(LONG)
    command = ["sh", "-c", "trap '' HUP; exec \"$@\"", "sh", *run.command("t", "1")]
    with subprocess.Popen(command, env=run.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.send_signal(signal.SIGTERM)
        process.wait(20)
    assert left(r, run) == []


def test_shells_that_ignore_int_and_quit_for_background_jobs_change_nothing(
    r: redis.Redis, run: Runner, local: Local
) -> None:
    local(LONG)
    for number in (signal.SIGINT, signal.SIGQUIT):
        command = ["sh", "-c", "trap '' INT QUIT; exec \"$@\"", "sh", *run.command("t", "1")]
        with subprocess.Popen(command, env=run.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            process.send_signal(number)
            assert process.wait(20) == 128 + signal.SIGTERM
        assert left(r, run) == []


def test_a_timer_of_whoever_started_it_ends_it_in_order(r: redis.Redis, run: Runner, local: Local) -> None:
    """As in perl -e 'alarm 10; exec @ARGV': a timer outlives execve(2)."""
    local(LONG)
    command = ["python3", "-c", "import os, signal, sys\nsignal.alarm(2)\nos.execv(sys.argv[1], sys.argv[1:])"]
    done = subprocess.run([*command, *run.command("t", "1")], env=run.env, stdin=subprocess.DEVNULL, timeout=30)
    assert done.returncode == 128 + signal.SIGTERM
    assert left(r, run) == []


# --- while it starts


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGRTMIN + 3])
def test_a_signal_at_any_moment_of_the_start_leaves_nothing(
    r: redis.Redis, run: Runner, local: Local, number: int
) -> None:
    local(LONG)
    codes = set()
    for step in range(24):
        with run.start("t", "1") as process:
            time.sleep(step * 0.02)
            with contextlib.suppress(FileNotFoundError):
                born = children(process.pid)
            process.send_signal(number)
            codes.add(process.wait(20))
        assert left(r, run) == [], step
        wait_for(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in born))  # noqa: B023
    # Before Python runs, by its default action; before the worker does; and then the worker's own.
    interrupted = {1} if number == signal.SIGINT else set()  # KeyboardInterrupt, while Python itself starts
    assert codes <= {-number, 128 + number, 128 + signal.SIGTERM, *interrupted}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT])
def test_a_signal_between_the_user_and_the_worker_leaves_nothing(
    r: redis.Redis, run: Runner, local: Local, number: int
) -> None:
    """The start is held up there by a child that is stopped, so that it does not confine itself."""
    local(LONG)
    with run.start("t", "1") as process:
        wait_for(lambda: children(process.pid))
        child = children(process.pid)[0]
        # Stopped before it runs Python, it would hold up the supervisor too, which waits for that (vfork(2)).
        wait_for(lambda: b"bootstrap" in Path(f"/proc/{child}/cmdline").read_bytes())
        os.kill(child, signal.SIGSTOP)
        wait_for(lambda: len(left(r, run)) >= 2)  # user and folder
        process.send_signal(number)
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)  # and what is undone is not cut off by another
        with contextlib.suppress(ProcessLookupError):  # it was killed, stopped as it was, and is reaped
            os.kill(child, signal.SIGCONT)
        assert process.wait(30) == 128 + number
    assert left(r, run) == []
    assert not os.path.exists(f"/proc/{child}")


def test_a_signal_while_a_key_is_awaited_leaves_nothing(r: redis.Redis, run: Runner, local: Local) -> None:
    local(LONG, encryptedAlg="AES-CBC", encryptedIv="00" * 16, encryptedJson="AAAA")
    with subprocess.Popen(run.command("t", "1"), env=run.env, stdin=subprocess.PIPE) as process:
        wait_for(lambda: children(process.pid))
        time.sleep(1)  # until it waits for its key
        process.send_signal(signal.SIGUSR2)
        assert process.wait(20) == 128 + signal.SIGUSR2
    assert left(r, run) == []


# --- stopped and continued


def test_a_run_that_was_stopped_renews_its_lease_at_once_or_ends_if_it_was_taken_over(
    r: redis.Redis, run: Runner, local: Local
) -> None:
    local(LONG)
    with run.start("t", "1") as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGSTOP)  # an orphaned process group ignores SIGTSTP
        wait_for(lambda: Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
        old = int(r.time()[0]) - 100
        r.hset("t:1:h", "pidSeen", old)
        time.sleep(6)  # past the next renewal
        process.send_signal(signal.SIGCONT)
        wait_for(lambda: int(r.hget("t:1:h", "pidSeen")) > old, 3)
        process.send_signal(signal.SIGSTOP)  # an orphaned process group ignores SIGTSTP
        r.hset("t:1:h", mapping={"pidToken": "f" * 32, "pidName": "far"})
        process.send_signal(signal.SIGCONT)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 73
    assert b"taken over by another run on far" in err
    assert r.hget("t:1:h", "pidToken") == "f" * 32
