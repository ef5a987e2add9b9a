"""Requests of a concurrent worker whose replies depend on state: which wait for Redis, and which are handled again."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from sandboxrun.worker.claims import Claims
from sandboxrun.worker.job import Job
from sandboxrun.worker.reader import Room
from sandboxrun.worker.rendering import Entry


class Reruns:
    """Used by the event loop alone. Requests are handled again one after another, so that they do not hinder each other."""

    def __init__(
        self, claims: Claims, space: Room, start: Callable[[Job], object], next_: Callable[[Job], object]
    ) -> None:
        """`start`: handles a request again. `next_`: begins the next request with an equal key."""
        self._claims, self._space, self._start, self._next = claims, space, start, next_
        self._unsure: dict[Entry, Job] = {}  # answered, and not known to be written
        self.line: deque[Job] = deque()
        self._running: Entry | None = None

    def wait(self, job: Job) -> None:
        """The reply depends on state. Requests with an equal key wait until it is written."""
        self._unsure[job.entry] = job

    def finished(self, job: Job) -> None:
        """The reply is written, or depends on no state."""
        self._next(job)
        if self._running is job.entry:
            self._running = None
            self._go_on()

    def committed(self, entry: Entry) -> None:
        job = self._unsure.pop(entry, None)
        if job is not None:
            self.finished(job)

    def changed(self, entry: Entry, again: Entry) -> None:
        """The reply was not written: `again` is to be handled."""
        job = self._unsure.pop(entry, None)
        if job is None:  # another worker's by now
            return
        job.entry = again
        if self._running is entry:
            self._running = None
        self._space.retake()
        self.line.append(job)
        self._go_on()

    def look(self) -> None:
        """Go on without requests that are another worker's by now, or were delivered once more since."""
        for entry in [entry for entry in self._unsure if not self._is_ours(entry)]:
            self.committed(entry)

    def _is_ours(self, entry: Entry) -> bool:
        """Whether this delivery is in hand, perhaps as its `again`, about which `changed` is called soon."""
        found = self._claims.hand.get(entry.xid)
        return found is not None and found.raw is entry.raw

    @property
    def is_busy(self) -> bool:
        """Whether a reply is not known to be written, or a request is to be handled again."""
        return bool(self._unsure or self.line)

    def _go_on(self) -> None:
        while self._running is None and self.line:
            job = self.line.popleft()
            if self._claims.has(job.entry):
                self._running = job.entry
                self._start(job)
            else:
                self._space.give(1)
                self._next(job)
