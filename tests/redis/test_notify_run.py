"""`sandboxrun TYPE ID` under a service manager: sd_notify(3), and `sandboxrun health` beside it."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from runner import Runner

Local = Callable[..., Path]
SECONDS = 60
WORKER = """\
import os, time
from sandboxrun import worker

print(sorted(name for name in os.environ if "NOTIFY" in name or "WATCHDOG" in name), flush=True)

@worker.handler
def handle(request):
    time.sleep(600)

worker.run()
"""
BARE = "import time\nprint('ready', flush=True)\ntime.sleep(600)\n"


@pytest.fixture
def manager(run: Runner) -> Iterator[socket.socket]:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    name = f"manager-{os.urandom(6).hex()}"
    made.bind(f"\0{name}")
    made.settimeout(SECONDS)
    run.env["NOTIFY_SOCKET"] = f"@{name}"
    yield made
    made.close()


def heard(manager: socket.socket, wanted: str) -> str:
    while not (text := manager.recv(4096).decode()).startswith(wanted):
        assert text == "WATCHDOG=1"
    return text


def test_a_run_says_that_it_reads_lives_and_ends(
    r: redis.Redis, run: Runner, local: Local, manager: socket.socket
) -> None:
    local(WORKER)
    assert run("health", "t", "1").code == 1
    run.env["WATCHDOG_USEC"] = "400000"
    with run.start("t", "1") as process:
        assert process.stdout is not None and process.stdout.readline() == b"[]\n"
        assert heard(manager, "READY=1") == "READY=1\nSTATUS=t 1 reads"
        assert heard(manager, "WATCHDOG=1")
        done = run("health", "t", "1")
        assert done.code == 0 and done.out.startswith("t 1 is running for ")
        r.xadd("t:req:x", {"ref": "r", "type": "t", "data": "{}"})  # its handler does not return
        manager.settimeout(1.0)  # a watchdog that is fed hears every 0.2 s
        with pytest.raises(TimeoutError):
            heard(manager, "never")
        manager.settimeout(SECONDS)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        assert heard(manager, "STOPPING=1") == "STOPPING=1"
        process.wait(SECONDS)
    done = run("health", "t", "1")
    assert done.code == 1 and "t 1 does not run: it ended " in done.out and "with exit code 1" in done.out


def test_a_script_without_the_loop_counts_as_ready_after_a_while(
    r: redis.Redis, run: Runner, local: Local, manager: socket.socket
) -> None:
    local(BARE)
    with run.start("t", "1"):
        assert heard(manager, "READY=1") == "READY=1\nSTATUS=t 1 runs"
