"""Processes of granted programs: their number is held to the limit, and a fork is never trapped."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from arena import Arena, Listener

from sandboxrun.config.limits import LIMITS
from sandboxrun.sandbox.supervisor import group


def line(limit: int) -> str:
    return LIMITS["threads"].reached(limit, "test:1:h")


def test_the_newest_processes_beyond_the_limit_are_killed_and_the_others_go_on(arena: Arena) -> None:
    code = """
    def attempt():
        import subprocess, time
        started = [subprocess.Popen(["sleep", "60"]) for _ in range(V["count"])]
        end = time.monotonic() + 30
        while time.monotonic() < end and sum(p.poll() is None for p in started) >= V["limit"]:
            time.sleep(0.01)
        lives = [p.poll() is None for p in started]
        return [sum(lives), lives[: sum(lives)] == [True] * sum(lives)]
    """
    held = arena.confined(code, allow={"run": "sleep"}, limits={"threads": 12}, count=40, limit=12)
    assert held.value == [11, True], held
    assert line(12) in held.stderr
    assert arena.confined(code, allow={"run": "sleep"}, count=40, limit=41).value == [40, True]


BOMBS = {
    "a shell's": ("subprocess.run(['sh', '-c', 'f() { f | f & }; f; sleep 2'], stderr=subprocess.DEVNULL)", "sh,sleep"),
    "of forks": ("fork()\ntime.sleep(3)", "true"),
    "of chains": ("for _ in range(6):\n    if os.fork() == 0: chain()\ntime.sleep(3)", "true"),
}


@pytest.mark.alone
@pytest.mark.parametrize("bomb", BOMBS)
def test_a_fork_bomb_is_held_or_ended_and_nothing_is_left(arena: Arena, bomb: str) -> None:
    body, run = BOMBS[bomb]
    code = f"""
import subprocess, time
def fork():
    if os.fork() == 0:
        while True:
            try:
                os.fork()
            except OSError:
                time.sleep(0.01)
def chain():
    while True:
        if os.fork():
            os._exit(0)
        time.sleep(0.01)
def attempt():
    exec({body!r})
    return "lives"
"""
    held = arena.confined(code, allow={"run": run}, limits={"threads": 40, "time": 20})
    if bomb == "of chains":  # six processes at a time
        assert (held.value, held.stderr) == ("lives", ""), held
    else:
        assert held.value == "lives" or held.code == 128 + signal.SIGKILL, held
        assert line(40) in held.stderr


ZOMBIES = """
def attempt():
    import time
    made = 0
    for _ in range(V["count"]):
        if os.fork() == 0:
            os._exit(0)
        made += 1
    time.sleep(V["seconds"])
    return made
"""


ZOMBIES_AND_SLEEP = """
import os, time
pids = [os.fork() or os._exit(0) for _ in range(20)]
for pid in pids:
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # until it is a zombie
print(flush=True)
time.sleep(60)
"""


def test_zombies_that_the_worker_does_not_reap_count(arena: Arena) -> None:
    held = arena.confined(ZOMBIES, allow={"run": "true"}, limits={"threads": 30}, count=200, seconds=60)
    assert held.code == 128 + signal.SIGKILL, held
    assert f"{line(30)}: ending the worker" in held.stderr
    assert arena.confined(ZOMBIES, allow={"run": "true"}, count=200, seconds=0).value == 200


@pytest.fixture
def leader() -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Of a group with 20 zombies, and its pidfd."""
    process = subprocess.Popen([sys.executable, "-c", ZOMBIES_AND_SLEEP], process_group=0, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    pidfd = os.pidfd_open(process.pid)
    yield process, pidfd
    os.close(pidfd)
    process.kill()
    process.communicate()


def test_a_bomb_that_is_over_before_the_first_look_is_told(
    leader: tuple[subprocess.Popen[bytes], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """RLIMIT_NPROC has refused its forks, and only ended processes are left."""
    process, pidfd = leader
    told: list[bytes] = []
    monkeypatch.setattr(group, "_REFUSED_MIN", 15)
    monkeypatch.setattr("os.geteuid", lambda: 65534)
    group.Watch(process.pid, pidfd, limit=10, say=told.append).look()
    assert (told, process.poll()) == ([group.REACHED], None)


def test_the_reason_is_told_before_the_worker_is_killed(leader: tuple[subprocess.Popen[bytes], int]) -> None:
    """A supervisor asks for it once the worker is dead, and then no longer: told afterwards it would be lost by chance."""
    process, pidfd = leader
    told = []

    def say(word: bytes) -> None:
        ended = bool(select.select([pidfd], [], [], 0.5)[0])
        told.append((word, ended))

    watch = group.Watch(process.pid, pidfd, limit=10, say=say)
    end = time.monotonic() + 30
    while process.poll() is None and time.monotonic() < end:
        watch.look()
    assert (told, process.wait(timeout=30)) == ([(group.ENDED, False)], -signal.SIGKILL)


def test_a_worker_with_as_many_zombies_as_it_may_have_gets_no_thread_more(arena: Arena) -> None:
    code = ZOMBIES.replace("return made", "import threading\n    threading.Thread(target=int).start()")
    held = arena.confined(code, allow={"run": "true"}, limits={"threads": 30}, count=29, seconds=0)
    assert "can't start new thread" in held.stderr
    assert line(30) in held.stderr


PIPELINES = """
def attempt():
    import subprocess
    failed = []
    for _ in range(V["times"]):
        done = subprocess.run([V["shell"], "-c", "echo a | cat | cat"], capture_output=True, text=True)
        if (done.returncode, done.stdout, done.stderr) != (0, "a\\n", ""):
            failed.append([done.returncode, done.stderr])
    return failed
"""


@pytest.mark.parametrize("shell", ["/bin/dash", "/bin/bash"])
def test_pipelines_of_a_shell_work_every_time(arena: Arena, shell: str) -> None:
    assert arena.confined(PIPELINES, allow={"run": f"{shell},cat"}, times=200, shell=shell).value == []


FORKS = {
    "os.fork": """
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        if len(seen) % 3 == 0:
            reap()""",
    "subprocess": "if _ % 5 == 0: subprocess.run(['true'], check=True)",
    "posix_spawn": "if _ % 5 == 0: os.waitpid(os.posix_spawn('/bin/true', ['true'], {}), 0)",
    "threads": "thread = threading.Thread(target=int)\n        thread.start()\n        thread.join()",
}


@pytest.mark.parametrize("way", FORKS)
@pytest.mark.parametrize("storm", ["children", "alarms"])
def test_no_fork_fails_because_a_signal_arrives(arena: Arena, way: str, storm: str) -> None:
    code = f"""
import signal, subprocess, threading
seen = []
def reap():
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
def attempt():
    number = signal.SIGCHLD if V["storm"] == "children" else signal.SIGALRM
    signal.signal(number, lambda *_: seen.append(1))
    if V["storm"] == "alarms":
        signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    for _ in range(500):
        {FORKS[way]}
    signal.setitimer(signal.ITIMER_REAL, 0)
    reap()
    return "all"
"""
    assert arena.confined(code, allow={"run": "true"}, storm=storm).value == "all"


CALLS = {
    "connect": "with socket.create_connection(('127.0.0.1', V['port'])) as s: s.recv(5)",
    "bind and listen": "s = socket.socket()\n        s.bind(('127.0.0.1', 0))\n        s.listen()\n        s.close()",
    "chmod": "os.chmod('file', 0o600)",
    "fchmod": "os.fchmod(file.fileno(), 0o600)",
    "utime": "os.utime('file')\n        os.utime(file.fileno(), (1, 2))\n        os.utime('file', follow_symlinks=False)",
    "copystat": "shutil.copystat('file', 'other', follow_symlinks=False)",
}


@pytest.mark.parametrize("call", CALLS)
def test_no_call_that_the_supervisor_answers_fails_because_a_signal_arrives(
    arena: Arena, listener: Listener, call: str
) -> None:
    code = f"""
import shutil, signal
def attempt():
    file = open("file", "w")
    open("other", "w").close()
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    for _ in range(200):
        {CALLS[call]}
    signal.setitimer(signal.ITIMER_REAL, 0)
    return os.chmod in os.supports_dir_fd
"""
    allow = {"net": f"127.0.0.1:{listener.port}", "listen": "127.0.0.1:0"}
    assert arena.unconfined(code, port=listener.port).value is True
    assert arena.confined(code, allow=allow, port=listener.port).value is True
