"""Nothing of a run outlives it, however it forks, however the run ends, and whatever the limit of processes is."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from arena import Arena, wait_for

from sandboxrun.sandbox.supervisor import group

# Each goes on writing in the granted folder, from processes that try to get away from the worker.
FORKERS = {
    "fork and exit": """
        def chain():
            while True:
                if os.fork():
                    os._exit(0)
                write()
        start(chain, 3)""",
    "double fork": """
        def daemons():
            while True:
                pid = os.fork()
                if pid == 0:
                    if os.fork() == 0:
                        for _ in range(20):
                            write()
                            time.sleep(0.005)
                    os._exit(0)
                os.waitpid(pid, 0)
        start(daemons, 2)""",
    "new sessions and groups": """
        def away():
            for leave in (os.setsid, lambda: os.setpgid(0, 0), lambda: os.setpgid(0, os.getppid()), os.setpgrp):
                if os.fork() == 0:
                    with contextlib.suppress(OSError):
                        leave()
                    while True:
                        write()
                        time.sleep(0.002)
            time.sleep(600)
        start(away, 1)""",
    "threads that fork": """
        def threads():
            def breed():
                while True:
                    pid = os.fork()
                    if pid == 0:
                        write()
                        os._exit(0)
                    os.waitpid(pid, 0)
            for _ in range(4):
                threading.Thread(target=breed).start()
            time.sleep(600)
        start(threads, 2)""",
    "clone of the parent's children": """
        def siblings():
            while True:
                libc.syscall(56, 0x8000 | 17, 0, 0, 0, 0)
                if libc.syscall(56, 17, 0, 0, 0, 0) == 0:
                    write()
                    os._exit(0)
                with contextlib.suppress(OSError):
                    while os.waitpid(-1, os.WNOHANG)[0]: pass
        start(siblings, 2)""",
    "vfork and exec": """
        def loop():
            while True:
                with contextlib.suppress(OSError):
                    subprocess.run(["sh", "-c", "echo >> $0 & (echo >> $0 &)", V["file"]])
        start(loop, 2)""",
    "exec of itself": """
        def again():
            os.execv("/bin/sh", ["sh", "-c", "echo >> $1; sleep 0.001; exec sh -c \\"$0\\" \\"$0\\" $1",
                     "echo >> $1; sleep 0.001; exec sh -c \\"$0\\" \\"$0\\" $1", V["file"]])
        start(again, 3)""",
    "stopped and continued": """
        def stopping():
            other = os.fork()
            if other == 0:
                while True:
                    write()
            while True:
                os.kill(other, signal.SIGSTOP)
                time.sleep(0.002)
                os.kill(other, signal.SIGCONT)
                time.sleep(0.002)
        start(stopping, 2)""",
    "stopped": """
        def stopped():
            os.kill(os.getpid(), signal.SIGSTOP)
            while True: write()
        start(stopped, 3)""",
    "deaf": """
        def deaf():
            for number in set(signal.Signals) - {9, 19}:
                signal.signal(number, signal.SIG_IGN)
            while True:
                if os.fork():
                    os._exit(0)
                write()
        start(deaf, 3)""",
    "zombies of killed parents": """
        def zombies():
            while True:
                parent = os.fork()
                if parent == 0:
                    for _ in range(5):
                        if os.fork() == 0:
                            write()
                            os._exit(0)
                    time.sleep(600)
                time.sleep(0.003)
                os.kill(parent, 9)
                os.waitpid(parent, 0)
        start(zombies, 2)""",
}
FRAME = """
import contextlib, ctypes, signal, subprocess, threading, time
libc = ctypes.CDLL(None)
def write():
    fd = os.open(V["file"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, b"x")
    os.close(fd)
def start(what, count):
    for _ in range(count):
        if os.fork() == 0:
            what()
            os._exit(0)
def attempt():
    exec(V["body"], globals())
    print("PID", os.getpid(), flush=True)
    {end}
"""
ENDS = {
    "return": "time.sleep(0.3)",
    "exception": "time.sleep(0.3)\n    raise OSError(5, 'on purpose')",
    "SIGTERM": "time.sleep(600)",
    "SIGTERM, deaf": "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n    time.sleep(600)",
    "SIGKILL of the worker": "time.sleep(600)",
    "SIGKILL of the supervisor": "time.sleep(600)",
    "time": "time.sleep(600)",
}
LIMITS = {"no limit": 0, "default": 256, "high": 100_000}


def lines_after(path: Path) -> bool:
    """Whether somebody still writes there."""
    size = path.stat().st_size if path.exists() else 0
    time.sleep(0.3)
    return path.exists() and path.stat().st_size != size


def end_of(arena: Arena, tmp_path: Path, forker: str, how: str, limit: int) -> str:
    """Run it, end it, and see that nothing is left; the supervisor's messages."""
    if "clone" in forker and os.uname().machine != "x86_64":
        pytest.skip("numbers of x86-64")
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    limits = {"threads": limit} | ({"time": 1} if how == "time" else {})
    with arena.running(
        FRAME.format(end=ENDS[how]),
        allow={"run": "/bin/sh,sleep", "write": str(data), "read": str(data)},
        limits=limits,
        variables={"body": textwrap.dedent(FORKERS[forker]), "file": str(data / "file")},
    ) as running:
        pid = int(running.line().split()[1])
        try:
            if forker != "stopped":
                wait_for((data / "file").exists)
            if how.startswith("SIGTERM"):
                running.process.terminate()
            elif how == "SIGKILL of the worker":
                os.kill(pid, signal.SIGKILL)
            elif how == "SIGKILL of the supervisor":
                running.process.kill()
            assert running.process.stderr is not None
            messages = running.process.stderr.read()  # until the last one of its processes has closed it
            running.process.wait(30)
            if how == "SIGKILL of the supervisor":
                wait_for(lambda: not group.living(pid))
            assert group.living(pid) == []
            assert not lines_after(data / "file")
            return messages
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if group.living(pid):
                    os.killpg(pid, signal.SIGKILL)


@pytest.mark.parametrize("forker", FORKERS)
@pytest.mark.parametrize("limit", LIMITS)
def test_nothing_outlives_a_worker_that_returns(arena: Arena, tmp_path: Path, forker: str, limit: str) -> None:
    assert "left" not in end_of(arena, tmp_path, forker, "return", LIMITS[limit])


@pytest.mark.parametrize(
    ("forker", "how"),
    # A deaf worker takes five seconds to end.
    [(f, h) for f in FORKERS for h in ENDS if h != "return" and (h != "SIGTERM, deaf" or f in ("deaf", "stopped"))],
)
def test_nothing_outlives_a_run_however_it_ends(arena: Arena, tmp_path: Path, forker: str, how: str) -> None:
    assert "left" not in end_of(arena, tmp_path, forker, how, 0)


# PTRACE_SEIZE with PTRACE_O_TRACEEXIT: a killed process stays where it ends until its tracer lets it go, as one stays
# that waits for a disk.
HOLD = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long] * 4
if libc.ptrace(0x4206, int(sys.argv[1]), 0, 0x40):
    sys.exit(os.strerror(ctypes.get_errno()))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("patient", [True, False], ids=["until it has ended", "until it is stopped again"])
def test_a_run_is_not_over_before_the_last_process_and_says_what_it_waits_for(arena: Arena, patient: bool) -> None:
    code = """
    import time
    def attempt():
        pid = os.fork()
        if pid == 0:
            time.sleep(600)
        print(os.getpid(), pid, flush=True)
        told("end")
        return "done"
    """
    with arena.running(code, allow={"run": "true"}) as running:
        worker, program = map(int, running.line().split())
        pipe = subprocess.PIPE
        with subprocess.Popen(
            [sys.executable, "-c", HOLD, str(program)], stdin=pipe, stdout=pipe, stderr=pipe, text=True
        ) as tracer:
            assert tracer.stdout is not None and tracer.stderr is not None and tracer.stdin is not None
            if tracer.stdout.readline() != "held\n":
                pytest.skip(f"no process can be traced here: {tracer.stderr.read()}")
            running.tell("end")
            assert running.process.stderr is not None
            line = running.process.stderr.readline()
            assert f"were killed and have not ended ({program})" in line
            assert "the run ends once they have" in line
            assert running.process.poll() is None
            assert group.living(worker) == [program]
            if patient:
                tracer.stdin.close()
            else:
                running.process.terminate()
                assert "are left behind" in running.process.stderr.readline()
                running.process.wait(30)
                tracer.stdin.close()
        running.process.wait(30)
        wait_for(lambda: not group.living(worker))
        assert running.process.returncode == 0
