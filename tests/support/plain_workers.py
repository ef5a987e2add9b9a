"""Workers without the sandbox, each a process of its own: `python worker.py TYPE:1:h`."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from arena import wait_for

MODES = pytest.mark.parametrize("mode", ["serial", "threads", "tasks"])  # of tests/redis/workers/calling.py
_WORKERS = Path(__file__).parents[1] / "redis/workers"


@contextlib.contextmanager
def plain_workers(
    r: redis.Redis, url: str, *types: str, script: str = "calling", id_: str = "1", **env: str
) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """A worker of each type, by type, once all of them are there; they are killed at the end. `env`: more variables."""
    processes: dict[str, subprocess.Popen[bytes]] = {}
    with contextlib.ExitStack() as stack:
        for type_ in types:
            r.hset(f"{type_}:{id_}:h", mapping={"type": type_, "takeoverMillis": "1000"})
            command = [sys.executable, str(_WORKERS / f"{script}.py"), f"{type_}:{id_}:h"]
            process = subprocess.Popen(command, env={"PATH": os.environ["PATH"], "REDIS_URL": url, **env})
            stack.callback(process.wait)
            stack.callback(process.kill)
            processes[type_] = process
        for type_ in types:
            wait_for(lambda t=type_: r.exists(f"{t}:req:x:fence:{id_}:f"), 30, f"{type_} to be there")  # type: ignore[misc]
        yield processes
