"""An agent whose standard error nobody reads: it goes on, and says what is missing once somebody reads."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from agents import wait_for
from runner import Runner

from sandboxrun.host import queuedlog
from sandboxrun.host.queuedlog import QueuedLog


def test_a_standard_error_that_nobody_reads_stops_no_order(
    r: redis.Redis, run: Runner, local: Callable[..., Path]
) -> None:
    local("import time\ntime.sleep(600)\n", key="t:h")
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(writing, False)
    while True:  # until it is full
        try:
            os.write(writing, b"x")
        except BlockingIOError:
            break
    os.set_blocking(writing, True)
    agent = subprocess.Popen(run.command("agent", "t", "--spares", "0"), env=run.env, cwd=run.home, stderr=writing)
    try:
        r.lpush("t:start:q", "1", "2", "3")
        wait_for(lambda: all(r.hget(f"t:{id_}:h", "pid") for id_ in "123"))
        before = r.hget("t:1:h", "pid")
        r.hdel("t:1:h", "pid")
        wait_for(lambda: r.hget("t:1:h", "pid") not in (None, before))
        assert run("health").code == 0
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(60) == 0
    finally:
        agent.kill()
        agent.wait(60)
        os.close(writing)
        os.close(reading)


def test_what_does_not_fit_is_counted(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(queuedlog, "LINES_MAX", 3)
    reading, writing = os.pipe()
    kept = os.dup(2)
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    os.write(writing, b"x" * 4095 + b"\n")  # it is full
    os.dup2(writing, 2)
    os.close(writing)
    try:
        log = QueuedLog(json=True)
        for number in range(100):
            log.info("said", str(number))
        with open(reading, "rb") as file:
            file.readline()
            lines = [json.loads(file.readline())]
            while "missing" not in lines[-1]["message"]:
                lines.append(json.loads(file.readline()))
            log.info("said", "then")
            assert json.loads(file.readline())["message"] == "then"
        log.flush()
    finally:
        os.dup2(kept, 2)
        os.close(kept)
    *said, missing = (line["message"] for line in lines)
    assert said == [str(number) for number in range(len(said))] and len(said) in (3, 4)  # one is being written
    assert missing == f"{100 - len(said)} messages are missing here, because nobody read standard error"
