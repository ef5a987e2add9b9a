"""Output that cannot be written is lost, and said once; no request fails for it."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from runner import Runner

from sandboxrun import client

Local = Callable[..., Path]
CODE = """
import logging, sys
from sandboxrun import worker

logging.basicConfig(stream=sys.stdout, level="INFO")
print("started")

@worker.handler
{a}def handle(request):
    for stream in (sys.stdout, sys.stderr):
        print("x" * 1000, file=stream, flush=True)
    logging.info("to a handler that has the stream already")
    sys.stdout.buffer.write(b"bytes\\n")
    sys.stdout.flush()
    if request.data.get("fail"):
        raise ValueError("why")
    return {{"done": True}}

worker.run({n})
"""
MODES = {"plain": ("", ""), "threads": ("", "concurrency=4"), "async": ("async ", "")}


@pytest.fixture(params=["sandboxrun", "by hand"])
def command(request: pytest.FixtureRequest, r: redis.Redis, run: Runner, tmp_path: Path) -> list[str]:
    script = str(tmp_path / "worker" / "worker.py")
    return run.command("t", "1") if request.param == "sandboxrun" else [sys.executable, script, "t:1:h"]


def ask(url: str, fail: bool = False) -> dict[str, Any]:
    with client.Client(url) as asked:
        try:
            return asked.call("t", {"fail": fail}, timeout=20)
        except client.RemoteError as error:
            return {"error": str(error)}


def served(run: Runner, command: list[str], stdout: Any, stderr: Any, then: Callable[[], None] = lambda: None) -> int:
    """Three requests that print much, one of which fails, while a worker has these for its output; its exit code."""
    process = subprocess.Popen(
        command, env=run.env, cwd=run.home, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr
    )
    try:
        then()
        url = run.env["REDIS_URL"]
        for _ in range(10):
            assert ask(url)["done"] is True
        assert "why" in ask(url, fail=True)["error"]
        assert ask(url)["done"] is True
        process.terminate()
        return process.wait(20)
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("mode", MODES)
def test_a_full_disk_fails_no_request(run: Runner, local: Local, command: list[str], mode: str) -> None:
    local(CODE.format(a=MODES[mode][0], n=MODES[mode][1]))
    with open("/dev/full", "wb") as full, (run.home / "err").open("wb") as err:
        assert served(run, command, full, err) == 0
    said = (run.home / "err").read_text()
    assert said.count("standard output cannot be written (No space left on device)") == 1
    assert "Traceback" in said  # of the request that fails, and of nothing of ours
    assert said.count("Traceback") == said.count("ValueError: why") == 1


def test_a_full_disk_for_both_streams(run: Runner, local: Local, command: list[str]) -> None:
    local(CODE.format(a="", n=""))
    with open("/dev/full", "wb") as full:
        assert served(run, command, full, full) == 0


@pytest.mark.parametrize("which", ["stdout", "stderr"])
def test_a_reader_that_has_gone_fails_no_request(run: Runner, local: Local, command: list[str], which: str) -> None:
    local(CODE.format(a="", n=""))
    read, write = os.pipe()
    with (run.home / "other").open("wb") as other:
        streams = (write, other) if which == "stdout" else (other, write)
        assert served(run, command, *streams, then=lambda: os.close(read)) == 0
    os.close(write)
    said = (run.home / "other").read_text()
    assert said.count("standard output cannot be written (Broken pipe)") == (which == "stdout")


def test_a_non_blocking_output_that_is_full_is_waited_for(run: Runner, local: Local, command: list[str]) -> None:
    """As a terminal becomes that is shared with a program that makes it so."""
    local(CODE.format(a="", n=""))
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(write, False)
    got = []

    def slow_reader() -> None:
        while data := os.read(read, 500):
            got.append(data)
            time.sleep(0.002)

    reader = threading.Thread(target=slow_reader)
    reader.start()
    try:
        assert served(run, command, write, subprocess.DEVNULL) == 0
    finally:
        os.close(write)
        reader.join()
        os.close(read)
    assert b"".join(got).count(b"x" * 1000) == 12
    assert b"".join(got).count(b"bytes\n") == 12
