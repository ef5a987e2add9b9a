"""The keeper of a concurrent worker: a thread for everything that waits for Redis.

It connects, renews, takes over, verifies and hands back, so that the event loop (tasks.py) never waits. Both use the claims
under the lock.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from sandboxrun.config.fields import Loop
from sandboxrun.errors import ConnectionLost, LoginRefused
from sandboxrun.healthpage import HANDLING_SINCE
from sandboxrun.worker.base import LOOK_SECONDS, RENEW_PART, GaveUp, Worker
from sandboxrun.worker.context import Context
from sandboxrun.worker.handlers import Handler
from sandboxrun.worker.reader import Reader, Room
from sandboxrun.worker.rendering import Entry
from sandboxrun.worker.request import Encoder

ALONE_FROM = 2  # deliveries without a reply, from which a request is begun alone


class Kept(Worker):
    """Base of Tasks: the keeper, and the state that it shares with the event loop."""

    _space: Room
    _reader: Reader
    _over: asyncio.Event

    def __init__(self, context: Context, loop: Loop, handlers: Mapping[str, Handler], encoder: Encoder) -> None:
        super().__init__(context, loop, handlers, encoder)
        self._running: dict[Entry, asyncio.Task[None] | None] = {}  # None: in a thread
        self._ready: list[Entry] = []
        # Requests answered since the last turn, how many of them took up to QUICK_SECONDS, and the time of all together.
        self._uncounted, self._quick, self._seconds = 0, 0, 0.0
        self._winding = False  # nothing runs any more, or the time is over: the rest is handed back
        self._wake = threading.Event()
        self._turn = -1  # the reader's turn when an old claim was last begun alone

    # --- in the event loop

    def _call(self, function: Callable[..., object], *arguments: Any) -> None:
        """Call in the event loop, from another thread; does nothing once the loop is over."""
        raise NotImplementedError

    def _stop(self, error: BaseException | None) -> None:
        raise NotImplementedError

    def _watch(self) -> None:
        raise NotImplementedError

    def _flush(self) -> None:
        raise NotImplementedError

    def _check_end(self) -> None:
        raise NotImplementedError

    def _begin_all(self, entries: list[Entry]) -> None:
        raise NotImplementedError

    def _done(self, entry: Entry) -> None:
        raise NotImplementedError

    def _has_place(self) -> bool:
        raise NotImplementedError

    def _turned(self) -> None:
        """Say that the event loop turns, and what is in hand."""
        oldest = next(iter(self._running), None)
        self._health.times[HANDLING_SINCE] = oldest.at if oldest is not None else 0.0
        if self._has_place():
            self._health.tick()
        if self._uncounted:
            self._health.handled(self._uncounted, self._quick, self._seconds)
            self._uncounted, self._quick, self._seconds = 0, 0, 0.0

    # --- in the keeper's thread

    @property
    def _late(self) -> bool:
        return self._until is not None and time.monotonic() > self._until

    def _keep(self) -> None:
        error: BaseException | None = None
        renew = self._loop.takeover_millis / 1000 / RENEW_PART
        started, renewed = False, time.monotonic()
        try:
            while not self._over.is_set():
                with self._lock:
                    if self._mend():
                        if not started:
                            self._reader.start()
                            started = True
                        if time.monotonic() - renewed >= renew:
                            renewed = time.monotonic()
                            self._try(self._claims.renew)
                        if self._try(self._wind_up if self._winding else self._keep_up) and self._winding:
                            return
                left = self._backoff.left() or min(LOOK_SECONDS, renew)
                self._wake.wait(left)
                self._wake.clear()
        except GaveUp:
            pass
        except BaseException as found:
            error = found
        finally:
            self._call(self._stop, error)

    def _try(self, function: Callable[[], object]) -> bool:
        """Call it, send the commands it queued, and take their replies; False if the connection was lost meanwhile."""
        try:
            result = function()
            self._settle()
            if self._claims.broken:
                self._claims.verify()
                self._settle()
        except (ConnectionLost, LoginRefused) as error:
            self._lost(error)
            return False
        return result is not False

    def _settle(self) -> None:
        self._claims.flush()
        while self._claims.waiting:
            self._claims.receive()

    def _mend(self) -> bool:
        """Connect, if a try is due, and make the fence intact; whether both succeeded."""
        claims = self._claims
        if not claims.is_open:
            if self._late:
                raise GaveUp
            if not self._try_to_connect():
                return False
            if not self._try(claims.flush):
                return False
            self._call(self._watch)
        elif claims.broken:
            if not self._try(claims.verify):
                return False
            self._call(self._flush)
        return True

    def _keep_up(self) -> None:
        claims, at = self._claims, time.monotonic()
        if self._ending:
            self._call(self._check_end)
            return
        if at >= self._look or (self._more and not claims.suspects):
            self._look_around(at)
        claims.write_alone(at)
        self._begin_old()

    def _begin_old(self) -> None:
        """Begin requests that may have been begun before, in turn with new ones, as long as there is room.

        From its second delivery on a request is begun alone, because it may end the worker. The reader has a turn before
        the next such request.
        """
        claims, space = self._claims, self._space
        while claims.suspects and not self._ending and not claims.broken:
            if space.hold and not space.empty:
                return
            xid, count = next(iter(claims.suspects.items()))
            alone = count >= ALONE_FROM
            if alone and (self._turn == self._reader.turns or not space.empty):
                space.hold = self._turn != self._reader.turns
                if not space.hold:
                    space.release()
                return
            if not space.take_old():
                return
            entry = claims.begin(xid)
            if entry is None:
                space.give(1, begun=False)
                continue
            if alone:
                self._turn = self._reader.turns
            self._call(self._begin_one, entry)
            if alone:
                return
        if space.hold and space.empty:
            space.release()

    def _begin_one(self, entry: Entry) -> None:
        if self._winding:
            return
        if entry.spent:
            self._answers.give_up(entry)
            self._done(entry)
        else:
            self._begin_all([entry])

    def _wind_up(self) -> bool:
        """Send what is ready, and hand back what is not answered; whether everything is confirmed."""
        claims = self._claims
        ready = [*self._ready]
        self._send(ready)
        left = [
            entry for entry in claims.hand.values() if (self._late or not entry.answered) and entry not in self._running
        ]
        claims.hand_back([entry for entry in left if not entry.sent])
        claims.write_alone(time.monotonic(), now=True)
        self._settle()
        del self._ready[: len(ready)]
        # Not answered and not running: it is to be handled again, because a state had changed, and is handed back next.
        if (
            claims.broken
            or claims.suspects
            or self._ready
            or any(entry.answered or entry not in self._running for entry in claims.hand.values())
        ):
            self._wake.set()
            return False
        self._leave()
        return True
