"""Wakes an agent: when something happens in its own process, and when Redis says that a key has changed.

A server or login that does not say so has to be asked again and again: `are_told` is False then.
"""

from __future__ import annotations

import os
import queue
import select
import time

from sandboxrun.errors import StoreError
from sandboxrun.redis.replies import ReplyError
from sandboxrun.redis.tracking import Tracking

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import Any

TIMEOUT_SECONDS = 5.0
RETRY_SECONDS = 1.0  # until the connections are opened again
CHECK_SECONDS = 5.0


class Changes:
    """`put` may be called from any thread and any signal handler; all else from the agent's thread."""

    def __init__(self, url: str) -> None:
        self._tracking = Tracking(url, name="sandboxrun-agent", seconds=TIMEOUT_SECONDS)
        self._events: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._followed: set[str] = set()
        self.are_told = False
        self._retry_at = self._check_at = 0.0

    def put(self, event: tuple[Any, ...]) -> None:
        self._events.put(event)
        os.eventfd_write(self._wake, 1)

    def events(self, most: int) -> list[tuple[Any, ...]]:
        found: list[tuple[Any, ...]] = []
        while len(found) < most:
            try:
                found.append(self._events.get_nowait())
            except queue.Empty:
                return found
        os.eventfd_write(self._wake, 1)  # there may be more
        return found

    def follow(self, names: Collection[str]) -> None:
        """These keys, and no others. What changes from now on is told."""
        new = [name for name in names if name not in self._followed]
        self._followed = set(names)
        if self.are_told and new:
            self._guarded(lambda: self._read(new))

    def wait(self, seconds: float) -> bool:
        """Until something happens; whether a followed key may have changed."""
        if not self.are_told and time.monotonic() >= self._retry_at:
            self._retry_at = time.monotonic() + RETRY_SECONDS
            if self._guarded(self._open):
                return True
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        told = self._tracking.fileno() if self.are_told else -1
        if told >= 0:
            poll.register(told, select.POLLIN)
        ready = {fd for fd, _ in poll.poll(seconds * 1000)}
        if self._wake in ready:
            os.eventfd_read(self._wake)
        if told in ready:
            return self._guarded(self._heard)
        if self.are_told and time.monotonic() >= self._check_at:
            self._check_at = time.monotonic() + CHECK_SECONDS
            self._guarded(self._tracking.check)
        return False

    def close(self) -> None:
        self.are_told = False
        self._tracking.close()

    def _open(self) -> bool:
        self.are_told = self._tracking.open()
        if not self.are_told:
            self._tracking.close()
            self._retry_at = time.monotonic() + 60 * RETRY_SECONDS
            return False
        self._read(list(self._followed))
        return True

    def _heard(self) -> bool:
        names = self._tracking.changed()
        changed = (
            list(self._followed)
            if names is None
            else [name for name in {each.decode("utf-8", "replace") for each in names} if name in self._followed]
        )
        self._read(changed)
        return bool(changed)

    def _read(self, names: list[str]) -> None:
        """So that Redis tells when they change: TYPE reads a key of any kind."""
        if names:
            self._tracking.reading.pipeline([("TYPE", name) for name in names])

    def _guarded(self, act: Any) -> bool:
        """Whether something may have changed."""
        try:
            return act() is True
        except (StoreError, ReplyError):
            self.close()
            return True
