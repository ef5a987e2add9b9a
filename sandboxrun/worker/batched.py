"""Many requests in one call: the loop of `@worker.batch`.

A batch is full, or as old as the handler's `seconds`, when it is handled. The read after it is on its way meanwhile, so
that at most two batches are in hand, and all of them are renewed. While something outside is unavailable, the batch is
kept and tried again.
"""

from __future__ import annotations

import _thread
import gc
import time

from sandboxrun.errors import ConnectionLost, StoreError
from sandboxrun.healthpage import HANDLING_SINCE, READY, TICK
from sandboxrun.redis.replies import ReplyError
from sandboxrun.worker.base import BATCH_MOST
from sandboxrun.worker.health import QUICK_SECONDS
from sandboxrun.worker.output import say
from sandboxrun.worker.serial import BATCH_BYTES, Serial
from sandboxrun.worker.together import Together

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from sandboxrun.config.fields import Loop
    from sandboxrun.protocol import Unavailable
    from sandboxrun.worker.context import Context
    from sandboxrun.worker.handlers import Handler
    from sandboxrun.worker.rendering import Entry
    from sandboxrun.worker.request import Encoder
    from sandboxrun.worker.together import BatchHandler

RETRY_FIRST_SECONDS, RETRY_MOST_SECONDS = 0.1, 5.0  # pauses before a batch is tried again
PAUSE_SECONDS = 0.05  # in which the end is noticed
SAY_SECONDS = 60.0  # between two warnings about the same outage
GARBAGE_EACH = 50_000  # objects that are made between two looks for garbage
SHRINK = 8  # by how much smaller a batch is for each time that its worker was lost


class Batched(Serial):
    """Handles requests in batches, in one thread. The keeper renews claims meanwhile."""

    def __init__(
        self, context: Context, loop: Loop, handlers: Mapping[str, Handler], encoder: Encoder, handler: BatchHandler
    ) -> None:
        super().__init__(context, loop, handlers, encoder)
        self._together = Together(self._answers, handler, self._wait)
        self._size, self._seconds_most = handler.size, handler.seconds
        self._count = min(BATCH_MOST, self._size)
        self._since = 0.0  # when the oldest request in `_todo` arrived
        self._bytes = 0  # of the requests in `_todo`
        self._wanted = _thread.allocate_lock()  # released if the reader has replies to take
        self._wanted.acquire()
        self._current: list[Entry] = []  # the batch that the handler has
        self._away_since = self._away_said = self._pause = 0.0

    def run(self) -> None:
        # The many objects of a batch are in no cycles, and looking for some took a twentieth of the time.
        gc.set_threshold(GARBAGE_EACH, *gc.get_threshold()[1:])
        _thread.start_new_thread(self._read_ahead, ())
        super().run()

    # --- collecting

    def _work(self, entries: list[Entry], asked: int) -> None:
        """Collect the entries of one read, and handle the batch once it is full or old enough."""
        self._health.words[READY] = 1
        received = self._claims.connection.received
        if entries:
            at = time.monotonic()
            if not self._todo:
                self._since, self._bytes = at, 0
            self._begun += len(entries)
            self._todo.extend(entries)
            self._bytes += received - self._received
            self._resize((received - self._received) // len(entries), full=len(entries) == asked)
        self._received = received
        if self._todo:
            self._fill_or_handle(time.monotonic())

    def _resize(self, average: int, *, full: bool) -> None:
        """The size of the next read: all of a batch at once while there is a backlog, bounded in bytes."""
        if full:
            self._count = min(self._count * 4, self._size)
        self._count = max(1, min(self._count, BATCH_BYTES // max(1, average)))

    def _fill_or_handle(self, at: float) -> None:
        claims, left = self._claims, self._seconds_most - (at - self._since)
        room = self._room(self._size - len(self._todo))
        more = room > 0 and self._bytes < BATCH_BYTES and not self._ending and not claims.suspects
        if more and left > 0.001 and claims.reads == 0:
            claims.ask_within(min(room, self._count), int(left * 1000))
            claims.flush()
        elif not more or left <= 0.001:
            self._handle_all(at)
            self._send(self._ready)
            self._ready = []
            if claims.answered >= self._responses.due_at:
                self._responses.look()

    def _ask(self, *, block: bool) -> None:
        """Queue the next read, unless the end has begun."""
        count = self._room(self._count)
        if count <= 0:
            self._end()
        elif not self._ending:
            self._claims.ask(count, block=block)

    # --- handling

    def _handle_all(self, at: float) -> float:
        """Handle a batch of `_todo`, from the time `at` on; the time at the end."""
        claims, todo = self._claims, self._todo
        batch: list[Entry] = []
        while todo and len(batch) < self._size:
            entry = todo.popleft()
            if claims.has(entry):  # else it was lost with the connection
                batch.append(entry)
        self._since = at
        if len(batch) >= self._size and not todo and claims.reads == 0 and at < self._look:
            self._ask(block=False)
        claims.flush()
        if not batch or (self._until is not None and at > self._until):
            return at
        return self._handle(batch, at)

    def _handle(self, batch: list[Entry], at: float) -> float:
        self._current = batch
        self._times[HANDLING_SINCE] = self._busy = at
        if self._claims.waiting and self._wanted.locked():
            self._wanted.release()
        self._lock.release()
        try:
            self._together.serve(batch)
        finally:
            self._lock.acquire()
            self._times[HANDLING_SINCE] = self._busy = 0.0
        ended = time.monotonic()
        answered = [entry for entry in batch if entry.answered]
        if len(answered) == len(batch):
            self._is_back()
        self._ready += answered
        self._count_handled(answered, at, ended)
        return ended

    def _read_ahead(self) -> None:
        """In a thread of its own: take the next batch from Redis while the handler waits for something else."""
        while True:
            self._wanted.acquire()
            with self._lock:
                try:
                    while self._busy and self._claims.waiting:
                        self._claims.receive()
                except (ConnectionLost, StoreError, ReplyError) as error:
                    self._keep_trying(error)

    def _count_handled(self, answered: list[Entry], at: float, ended: float) -> None:
        """A request's time is the batch's, because that is how long its sender waits for it."""
        if not answered:
            return
        self._handled += len(answered)
        self._seconds += (ended - at) * len(answered)
        if ended - at <= QUICK_SECONDS:
            self._quick += len(answered)
        else:
            self._health.took(ended - at, len(answered))
        self._batch = answered, at, at

    def _take_suspect(self) -> None:
        """Begin requests that were begun before, in smaller batches each time, because one of them may end the worker."""
        claims = self._claims
        count = next(iter(claims.suspects.values()))
        alone = count >= self._loop.max_deliveries - 1
        most = 1 if alone else max(1, self._size // SHRINK**count)
        entries = claims.begin_many([xid for xid, number in claims.suspects.items() if number == count][:most])
        at = time.monotonic()
        for entry in entries:
            if entry.spent:
                self._answers.give_up(entry)
                self._ready.append(entry)
        batch = [entry for entry in entries if not entry.spent]
        self._begun += len(entries)
        if batch:
            self._handle(batch, at)

    # --- what is unavailable

    def _wait(self, error: Unavailable) -> bool:
        """Pause before the batch is tried again; False if the end has begun. Called without the lock."""
        self._send_answered()
        at = time.monotonic()
        if not self._away_since:
            self._away_since, self._pause = at, RETRY_FIRST_SECONDS
        if not self._away_said or at - self._away_said > SAY_SECONDS:
            self._away_said = at
            say(f"the batch waits, because this is unavailable: {error}")
        self._times[HANDLING_SINCE] = 0.0  # it waits, and is not stuck
        until = at + self._pause
        self._pause = min(self._pause * 2, RETRY_MOST_SECONDS)
        while (at := time.monotonic()) < until:
            if self._ending:
                return False
            self._times[TICK] = at
            time.sleep(min(PAUSE_SECONDS, until - at))
        self._times[HANDLING_SINCE] = at
        return True

    def _send_answered(self) -> None:
        """Send what is answered of the batch: what was refused, or is too late now, waits for nothing."""
        with self._lock:
            try:
                if self._claims.is_open:
                    self._send([entry for entry in self._current if entry.answered])
                    self._claims.flush()
            except (ConnectionLost, StoreError, ReplyError) as error:
                self._keep_trying(error)

    def _is_back(self) -> None:
        """A batch was handled."""
        if self._away_since:
            say(f"available again after {time.monotonic() - self._away_since:.1f} s")
            self._away_since = self._away_said = 0.0

    def _relieve(self) -> None:
        """Send what is ready. What waits is not handed back: it would wait for the same in another worker."""
        if self._ready:
            self._send(self._ready)
            self._ready = []
