"""Workers whose handlers have effects, as plain processes without a sandbox, because they start in a tenth of a second."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import redis

PLAIN = """
import asyncio, os, time
from sandboxrun import worker

begun = {}

@worker.handler
def handle(request):
    data = request.data
    begun[data["n"]] = begun.get(data["n"], 0) + 1
    state = worker.state("count:" + data.get("user", "ann") + ":h")
    state["total"] = int(state.get("total", 0)) + 1
    request.emit("log", {"n": data["n"]})
    time.sleep(data.get("sleep", 0))
    if data.get("fail"):
        raise worker.BadRequest("as asked") if data["fail"] == 400 else ValueError("as asked")
    return {"n": data["n"], "begun": begun[data["n"]], "total": int(state["total"])}

worker.run()
"""
KINDS = {
    "plain": PLAIN,
    "threads": PLAIN.replace("worker.run()", "worker.run(concurrency=8)"),
    "async": PLAIN.replace("def handle", "async def handle")
    .replace("time.sleep", "await asyncio.sleep")
    .replace("state = worker.state", "state = await worker.state"),
}


class Plain:
    """One worker. It can be killed and started again, with the same name or another."""

    def __init__(
        self, r: redis.Redis, url: str, folder: Path, code: str, id_: str = "1", *, type_: str = "t", **fields: str
    ) -> None:
        self._r, self._url, self._key = r, url, f"{type_}:{id_}:h"
        self._path = folder / f"{type_}-{id_}.py"
        self._path.write_text(code)
        self.errors = folder / f"errors-{type_}-{id_}.txt"
        self._fields = {"takeoverMillis": "400", "responseStreamLimit": "0", **fields}
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        self._r.hdel(self._key, "pid")
        self._r.hset(self._key, mapping=self._fields)
        with self.errors.open("ab") as errors:
            return subprocess.Popen(
                [sys.executable, str(self._path), self._key], env={**os.environ, "REDIS_URL": self._url}, stderr=errors
            )

    def kill(self) -> None:
        self.process.kill()

    def again(self) -> None:
        """Start it after it was killed."""
        self.process.wait(20)
        self.process = self._start()


@contextlib.contextmanager
def plain(
    r: redis.Redis, url: str, folder: Path, code: str, id_: str = "1", *, type_: str = "t", **fields: str
) -> Iterator[Plain]:
    worker = Plain(r, url, folder, code, id_, type_=type_, **fields)
    try:
        yield worker
        if worker.process.poll() is not None:
            raise AssertionError(f"the worker ended with {worker.process.returncode}: {worker.errors.read_text()}")
    finally:
        worker.process.kill()
        worker.process.wait(20)


def emitted(r: redis.Redis, type_: str = "log") -> list[Any]:
    """The data of the requests that were emitted, in their order."""
    return [json.loads(fields["data"]) for _, fields in r.xrange(f"{type_}:req:x")]
