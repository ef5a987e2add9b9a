"""A popular package in a worker: locked, installed, started twice, and asked once by each run."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import machine
import redis
from raw_host import RawHost
from runner import Runner

from sandboxrun import client

SECONDS = 600  # to download a hundred megabytes


@dataclass(frozen=True)
class Result:
    version: str
    packages: int  # with those that it needs
    size: int  # bytes of its environment
    first_seconds: float  # of a run that downloads and installs
    second_seconds: float


def try_package(package: Any, run: Runner, r: redis.Redis, http: RawHost, folder: Path) -> Result:
    """Raises AssertionError with what was printed."""
    folder.mkdir(parents=True)
    (folder / "worker.py").write_text(package.script)
    http.files["/hello"] = "hello"
    _command(run, "lock", str(folder))
    ports = {"http": http.port, "free": _free_port()}
    r.delete("p:1:h")
    r.hset(
        "p:1:h",
        mapping={
            "url": str(folder),
            "version": "local",
            "requestLimit": "1",
            "limitMemory": "8G",
            **{field: value.format(**ports) for field, value in package.grants},
        },
    )
    seconds = []
    for _ in range(2):
        ref = client.send(r, "p", ports, now="x")
        start = time.monotonic()
        printed = _command(run, "p", "1")
        seconds.append(time.monotonic() - start)
        reply = client.wait(r, ref, timeout_seconds=10)
        assert reply is not None, printed
        assert {name: reply.get(name) for name in package.expected} == package.expected, (reply, printed)
    lock = (folder / "requirements.lock").read_text()
    name = re.sub(r"[-_.]+", "-", re.split(r"[\[<>=]", package.requirement)[0]).lower()
    version = re.search(rf"(?m)^{re.escape(name)}==([^ ;]+)", lock)
    assert version is not None, lock
    environments = json.loads(_command(run, "cache", "--json"))["environments"]
    size = max(environment["bytes"] for environment in environments)
    return Result(version[1], len(set(re.findall(r"(?m)^[a-z0-9-]+==", lock))), size, *seconds)


def _command(run: Runner, *args: str) -> str:
    environment = machine.installing() | {"HOME": str(run.home), "REDIS_URL": run.env["REDIS_URL"]}
    done = subprocess.run(
        run.command(*args),
        env=environment,
        cwd=run.home,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode() + (done.stderr.decode() if args[0] != "cache" else "")


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
