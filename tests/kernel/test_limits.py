"""Each limit is hit, and the operator is told which, and how to raise it."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from arena import CONFINE, Arena
from raw_calls import RAW, numbers

from sandboxrun.config.limits import LIMITS, Limits
from sandboxrun.sandbox.supervisor.killed import message
from sandboxrun.sandbox.supervisor.output import Relay


def line(name: str, value: int) -> str:
    return LIMITS[name].reached(value, "test:1:h")


def killed(name: str, because: str) -> str:
    return message("test:1:h", signal.Signals[name], because=because, out_of_memory=False)


def test_memory(arena: Arena) -> None:
    code = "def attempt():\n    return len(bytearray(V['size']))"
    assert arena.unconfined(code, size=300 << 20).value == 300 << 20
    held = arena.confined(code, limits={"memory": 200 << 20}, size=300 << 20)
    assert held.code == 1
    assert held.stderr.splitlines()[-2:] == ["MemoryError", line("memory", 200 << 20)]
    assert arena.confined(code, size=300 << 20).value == 300 << 20
    assert arena.confined(code, limits={"memory": 0}, size=5 << 30).value == 5 << 30


THREADS = """
def attempt():
    import threading
    stop = threading.Event()
    threads = []
    try:
        for _ in range(V["count"]):
            thread = threading.Thread(target=stop.wait)
            thread.start()
            threads.append(thread)
    except RuntimeError as error:
        assert str(error) == "can't start new thread"
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    # Those that ended make room again.
    again = threading.Thread(target=int)
    again.start()
    again.join()
    return len(threads) + 1
"""


def test_threads(arena: Arena) -> None:
    assert arena.unconfined(THREADS, count=300).value == 301
    held = arena.confined(THREADS, limits={"threads": 20}, count=300)
    assert held.value == 20
    assert held.stderr == f"warning: {line('threads', 20)}\n"
    assert arena.confined(THREADS, count=300).value == 256
    assert arena.confined(THREADS, limits={"threads": 0}, count=300).value == 301


def test_threads_started_by_many_at_once_pass_the_limit_by_no_more_than_a_few(arena: Arena) -> None:
    code = """
    def attempt():
        import _thread, time
        stop = []
        def breed():
            while not stop:
                try:
                    _thread.start_new_thread(breed, ())
                except RuntimeError:
                    time.sleep(0.01)
        most = 0
        _thread.start_new_thread(breed, ())
        end = time.monotonic() + 1
        while time.monotonic() < end:
            most = max(most, len(os.listdir("/proc/self/task")))
        stop.append(1)
        return most
    """
    held = arena.confined(code, limits={"threads": 30}, allow={"read": "/proc"})
    assert held.value is not None and 25 <= held.value <= 40, held


def test_open_files(arena: Arena) -> None:
    code = "def attempt():\n    return [os.dup(0) for _ in range(100)][-1] > 0"
    held = arena.confined(code, limits={"files": 50})
    assert held.errno == "EMFILE"
    raised = arena.confined("[os.dup(0) for _ in range(100)]\ndef attempt(): pass", limits={"files": 50})
    assert raised.stderr.splitlines()[-1] == line("files", 50)
    assert arena.confined(code).value is True


def test_threads_share_the_limit_of_open_files(arena: Arena) -> None:
    # close_range(2) can give the calling thread a table of descriptors of its own.
    code = RAW + """
def attempt():
    import resource, threading
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(50, soft), hard))
    opened, refused, together = [], [], threading.Barrier(2)
    def hold():
        try:
            raw("close_range", 1000, 1000, 2)
        except OSError as error:
            refused.append(error.errno)
        try:
            while True:
                opened.append(os.dup(0))
        except OSError:
            together.wait(10)
    threads = [threading.Thread(target=hold) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if refused:
        raise OSError(refused[0], "close_range")
    return len(opened) > 50
"""  # fmt: skip
    arena.refused(code, "EPERM", works=True, numbers=numbers(code))


def test_the_longest_file(arena: Arena) -> None:
    code = "def attempt():\n    with open('big', 'wb') as file:\n        file.truncate(V['size'])\n    return 'big'"
    held = arena.refused(code, "EFBIG", works="big", size=300 << 20)
    assert held.code == 0
    assert arena.confined(code, limits={"scratch": 400 << 20}, size=300 << 20).value == "big"


def test_scratch(arena: Arena) -> None:
    code = """
    def attempt():
        import time
        for number in range(5):
            with open(f"part{number}", "wb") as file:
                os.posix_fallocate(file.fileno(), 0, 3 << 20)
        time.sleep(30)
    """
    held = arena.confined(code, limits={"scratch": 10 << 20})
    assert held.code == 128 + signal.SIGTERM
    assert f"{line('scratch', 10 << 20)}: ending the worker" in held.stderr


HOLDER = """
def attempt():
    import time
    fds = []
    for number in range(V["count"]):
        fds.append(os.open(f"part{number}", os.O_RDWR | os.O_CREAT))
        os.posix_fallocate(fds[-1], 0, 4 << 20)
        os.unlink(f"part{number}")
    for _ in range(4):
        if os.fork() == 0:
            time.sleep(60)
    if V["leave"]:
        for fd in fds: os.close(fd)
    time.sleep(2.5)
    return "lives"
"""


def test_deleted_files_that_other_processes_hold_count_as_scratch_and_each_once(arena: Arena) -> None:
    allow, limits = {"run": "true"}, {"scratch": 10 << 20}
    held = arena.confined(HOLDER, allow=allow, limits=limits, count=3, leave=True)
    assert held.code == 128 + signal.SIGTERM
    assert f"{line('scratch', 10 << 20)}: ending the worker" in held.stderr
    assert arena.confined(HOLDER, allow=allow, limits=limits, count=2, leave=False).value == "lives"


def test_many_small_files_count_as_scratch(arena: Arena) -> None:
    code = """
    def attempt():
        import time
        for number in range(25_000):
            os.mkdir(str(number))
        time.sleep(30)
    """
    held = arena.confined(code, limits={"scratch": 1 << 30})
    assert held.code == 128 + signal.SIGTERM


def test_cpu(arena: Arena) -> None:
    code = "def attempt():\n    while True: pass"
    held = arena.confined(code, limits={"cpu": 1})
    assert held.code == 128 + signal.SIGXCPU
    assert held.stderr.splitlines() == [
        f"warning: {line('cpu', 1)}",
        f"warning: {killed('SIGXCPU', 'because of its limit')}",
    ]
    stubborn = arena.confined(
        "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\n" + code, limits={"cpu": 1}
    )
    assert stubborn.code == 128 + signal.SIGKILL
    said = [f"warning: {line('cpu', 1)}", f"warning: {killed('SIGKILL', 'because of its limit')}"]
    assert stubborn.stderr.splitlines() == said


def test_time(arena: Arena) -> None:
    code = "import time\ndef attempt():\n    time.sleep(30)"
    held = arena.confined(code, limits={"time": 1})
    assert held.code == 128 + signal.SIGTERM
    assert held.stderr == f"warning: {line('time', 1)}\n"
    stubborn = arena.confined(
        "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + code, limits={"time": 1}
    )
    assert stubborn.code == 128 + signal.SIGKILL


def test_output_to_a_terminal_waits_and_nothing_is_lost(arena: Arena, tmp_path: Path) -> None:
    script = tmp_path / "print.py"
    script.write_text("import sys\nfor number in range(6000):\n    print(f'{number:050}')\n")
    spec = json.dumps({"script": str(script), "scratch": str(arena.scratch), "limits": {"output": 100_000}})
    ours, theirs = pty.openpty()
    seen = b""
    with subprocess.Popen(
        [sys.executable, str(CONFINE), spec], stdout=theirs, stderr=subprocess.PIPE, env=arena.env
    ) as process:
        os.close(theirs)
        while b"5999\r\n" not in seen:
            seen += os.read(ours, 65536)
        assert process.stderr is not None
        assert process.stderr.read().decode() == f"warning: {line('output', 100_000)}\n"
    os.close(ours)
    assert seen.split() == [b"%050d" % number for number in range(6000)]


def test_output_elsewhere_is_not_limited_unless_said(arena: Arena) -> None:
    code = "def attempt():\n    print('x' * 5_000_000)\n    return 'printed'"
    assert arena.confined(code).value == "printed"
    assert "output" not in arena.confined(code).stderr


def test_a_stalled_reader_of_our_output_does_not_keep_the_end_from_coming() -> None:
    source, pipe = os.pipe()
    full, target = os.pipe()
    os.write(pipe, b"x" * 65536)
    os.set_blocking(target, False)
    with contextlib.suppress(BlockingIOError):
        while os.write(target, b"y" * 4096):
            pass
    with open(source, "rb", buffering=0) as worker:
        relay = Relay(worker, target, limit=0, slowed=lambda: None)
        relay.start()
        os.close(pipe)
        relay.close()  # comes back at all: the reader never reads
    threading.Thread(target=lambda: os.read(full, 1 << 20), daemon=True).start()


@pytest.mark.parametrize("name", LIMITS)
def test_every_limit_has_a_field_a_flag_and_bounds(name: str) -> None:
    limit = LIMITS[name]
    assert (limit.field, limit.flag) == (f"limit{name.capitalize()}", f"--limit-{name}")
    assert limit.read(limit.show(limit.most), "x") == limit.most
    assert limit.read("0", "x") == 0
    assert name == "output" or getattr(Limits(), name) == limit.default
