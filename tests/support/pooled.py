"""A pool of workers in this process, and what it has said."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from sandboxrun.host.pool import Ended, Pool, PoolEvents, Running
from sandboxrun.host.runplan import RunOptions
from sandboxrun.log import Log
from sandboxrun.sandbox.supervisor.zygote import Zygote

SECONDS = 60
PR_SET_CHILD_SUBREAPER = 36


def wait_for(condition: Callable[[], object], what: str = "") -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"in vain: {what or condition}"
        time.sleep(0.01)


@dataclass
class Heard(PoolEvents):
    """All events of one pool."""

    output: bool = True
    lines: list[tuple[str, str, str, str]] = field(default_factory=list)  # key, level, event, message
    ends: dict[str, Ended] = field(default_factory=dict)
    begun: set[str] = field(default_factory=set)

    def said(self, running: Running, level: str, event: str, message: str, fields: dict[str, object]) -> None:
        self.lines.append((running.key, level, event, message))

    def started(self, running: Running) -> None:
        self.begun.add(running.key)

    def ended(self, running: Running, ended: Ended) -> None:
        self.ends[running.key] = ended

    def of(self, running: Running, event: str = "output") -> list[str]:
        return [message for key, _, name, message in self.lines if (key, name) == (running.key, event)]

    def end(self, running: Running) -> Ended:
        wait_for(lambda: running.key in self.ends, f"the end of {running.key}, which said {self.lines[-20:]}")
        return self.ends[running.key]


class Fixture:
    """A pool, its events, and the messages that concern no worker."""

    def __init__(self, url: str, spares: int = 1, zygote: Zygote | None = None) -> None:
        self.url, self.on, self.messages = url, Heard(), []
        fixture = self

        class Kept(Log):
            def _write(self, level: str, event: str, message: str, fields: object, hint: object = ()) -> None:
                fixture.messages.append(message)

        self.pool = Pool(Kept(), spares=spares, redis_url=url, zygote=zygote)

    def start(self, type_: str, id_: str = "1", **options: object) -> Running:
        key_line = options.pop("key_line", None)
        return self.pool.start(RunOptions(type_, id_, self.url, **options), key_line=key_line, on=self.on)

    def runs(self, *words: str, **options: object) -> Running:
        """Started, and its script has begun."""
        running = self.start(*words, **options)
        wait_for(lambda: running.key in self.on.begun | self.on.ends.keys(), running.key)
        assert running.key in self.on.begun, self.on.ends[running.key]
        return running

    def says(self, running: Running, text: str) -> None:
        wait_for(lambda: text in self.on.of(running), f"{text!r} of {running.key}: {self.on.lines[-20:]}")


@contextlib.contextmanager
def pooled(url: str, home: str, **options: Any) -> Iterator[Fixture]:
    """`home`: where its folders are."""
    before, os.environ["HOME"] = os.environ["HOME"], home
    threads = set(threading.enumerate())
    fixture = Fixture(url, **options)
    try:
        yield fixture
    finally:
        fixture.pool.close(2)
        # A zygote has made this process the parent of orphans, which would reap none of those that later tests leave.
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(0), 0, 0, 0)
        os.environ["HOME"] = before
    left = {thread for thread in threading.enumerate() if thread.is_alive()} - threads
    wait_for(lambda: not any(thread.is_alive() for thread in left), f"the end of {left}")
