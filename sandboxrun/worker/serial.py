"""One request after another in one thread: the default, and the fastest for handlers that do not wait.

The replies of a batch and the next read but one leave in one write, so that Redis and the handlers work at the same time. A
batch grows with the backlog, as long as it takes no longer than BATCH_SECONDS, and shrinks to one request when idle.
"""

from __future__ import annotations

import _thread
import time

from sandboxrun.errors import ConnectionLost, LoginRefused, SandboxrunError, StoreError
from sandboxrun.healthpage import HANDLING_SINCE, READY, TICK
from sandboxrun.protocol import HandlerTimeout
from sandboxrun.protocol.calling import current
from sandboxrun.protocol.reply import message_of
from sandboxrun.redis.replies import ReplyError
from sandboxrun.worker.base import BATCH_MOST, CUT_SECONDS, GRACE_SECONDS, RENEW_PART, GaveUp, Worker
from sandboxrun.worker.health import QUICK_SECONDS
from sandboxrun.worker.rendering import Entry

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections import deque
    from collections.abc import Callable, Mapping
    from typing import Any

    from sandboxrun.config.fields import Loop
    from sandboxrun.worker.context import Context
    from sandboxrun.worker.handlers import Handler
    from sandboxrun.worker.request import Encoder, Request
else:
    import _signal as signal  # signal makes enums of its numbers, and importing enum takes a millisecond
    from _collections import deque  # collections is Python, and imports more of it

BATCH_SECONDS = 0.05  # requests in hand must not wait for long, nor be kept from other workers
BATCH_BYTES = 8 * 1024 * 1024
FAIR_SECONDS = 0.005  # of new requests between two requests that were taken over
FLUSH_SECONDS = 0.02  # the longest time that a reply waits for others of its batch
TELLING_SECONDS = 0.001  # delay of a time-out that arrives while `request.progress` sends
RECOVERIES_MOST = 10  # within a minute
STUCK_SECONDS = 0.2  # if a handler takes longer, the requests behind it are handed back


class Serial(Worker):
    """Handles requests in one thread. A second thread, the keeper, renews claims during a long handler."""

    def __init__(self, context: Context, loop: Loop, handlers: Mapping[str, Handler], encoder: Encoder) -> None:
        super().__init__(context, loop, handlers, encoder)
        self._todo: deque[Entry] = deque()
        self._ready: list[Entry] = []  # answered and not sent
        self._count = 1  # requests of the next read
        self._deep = False  # there is a backlog, so a second read is in flight while a batch is handled
        self._cost = 0.0  # average seconds of a request
        self._busy = 0.0  # when the running handler began, or 0
        # Of the requests since the last turn: their number, how many took up to QUICK_SECONDS, the time of all together,
        # and the entries of a read with the time of their begin and end.
        self._handled = self._quick = 0
        self._seconds = 0.0
        self._batch: tuple[list[Entry], float, float] | None = None
        self._times = self._health.times
        if self._health.shared:
            self._claims.identified = self._health.reads_as
        self._recoveries: deque[float] = deque(maxlen=RECOVERIES_MOST)
        self._left = False
        self._new_first = False  # an old claim was begun last, so new requests have their turn

    def run(self) -> None:
        self._signals.install(self._end)
        self._answers.limited = lambda handler, request: _limited(handler, request, lambda: self._telling)
        _thread.start_new_thread(self._keep, ())
        with self._lock:
            try:
                self._connect()
                while not self._steps_and_recover():
                    pass
                self._leave()
            except GaveUp:
                pass
            finally:
                self._left = True

    def _end(self, *_: object) -> None:
        if self._until is None:
            super()._end()
            _thread.start_new_thread(self._cut, ())

    def _cut(self) -> None:
        """Give up a Redis that does not answer before sandboxrun kills the worker: nothing can be handed back."""
        time.sleep(GRACE_SECONDS + CUT_SECONDS)
        if not self._left:
            self._claims.connection.cancel()

    def _steps_and_recover(self) -> bool:
        """Steps until a fault; True at the end. A signal handler of the script may raise between any two lines of it."""
        try:
            return self._steps_and_mend()
        except (GaveUp, SandboxrunError, ReplyError):
            raise
        except Exception as error:
            self._recoveries.append(time.monotonic())
            if len(self._recoveries) == RECOVERIES_MOST and self._recoveries[-1] - self._recoveries[0] < 60:
                raise
            self._warn(f"interrupted by {type(error).__name__}: {message_of(error)}; connecting again")
            self._recover()
            return False

    def _recover(self) -> None:
        """Start again with the entries in hand, as after a lost connection."""
        claims = self._claims
        claims.close()
        claims.arrived.clear()
        self._todo = deque(entry for entry in claims.hand.values() if not entry.answered)
        self._ready = [entry for entry in claims.hand.values() if entry.answered and not entry.sent]
        self._connect()

    def _steps_and_mend(self) -> bool:
        """Steps until the connection is lost, and the next connection; True at the end."""
        try:
            while not self._step():
                pass
            return True
        except (ConnectionLost, LoginRefused) as error:
            self._lost(error)
            self._connect()
            return False

    def _step(self) -> bool:
        claims = self._claims
        self._times[TICK] = time.monotonic()
        if self._handled:
            self._note()
        if claims.arrived:
            entries, asked = claims.arrived.popleft()
            self._work(entries, asked)
        elif claims.broken and not claims.waiting:
            claims.verify()
        elif claims.waiting:
            claims.receive()
        elif self._todo:
            self._handle_all(time.monotonic())  # the connection was lost meanwhile
        elif self._ready:
            self._send(self._ready)
            self._ready = []
            claims.flush()
        elif claims.write_alone(time.monotonic()):
            claims.flush()
        elif self._ending:
            return self._wind_up()
        elif time.monotonic() >= self._look or (self._more and not claims.suspects):
            self._look = 0.0
            self._look_around(time.monotonic())
        elif claims.suspects and not self._new_first:
            self._new_first = True
            self._take_suspect()
        else:
            self._new_first = False
            # The first read does not wait, so that the worker is known to be ready.
            self._ask(block=not claims.suspects and bool(self._health.words[READY]))
            claims.flush()
        return False

    def _note(self) -> None:
        """Note what was handled. Here, because Redis is at work on the replies meanwhile."""
        self._health.handled(self._handled, self._quick, self._seconds)
        self._handled = self._quick = 0
        self._seconds = 0.0
        batch, self._batch = self._batch, None
        if batch is not None:
            entries, began, ended = batch
            offset = time.time() - time.monotonic()
            last = ended - (ended - began) / len(entries)
            self._health.waited(entries, began + offset, last + offset)

    def _wind_up(self) -> bool:
        """Hand back the requests that were not begun, once no reply is awaited. True when everything is confirmed."""
        claims = self._claims
        late = self._until is not None and time.monotonic() > self._until
        claims.hand_back([entry for entry in claims.hand.values() if late or not entry.answered])
        claims.write_alone(time.monotonic(), now=True)
        claims.flush()
        return not claims.waiting and not claims.hand and not claims.suspects

    def _ask(self, *, block: bool) -> None:
        """Queue the next read, unless the end has begun."""
        count = self._count
        if self._claims.suspects:
            count = min(count, max(1, int(FAIR_SECONDS / self._cost)) if self._cost else 1)
        if self._loop.request_limit:
            count = self._room(count)
        if count <= 0:
            self._end()
        elif not self._ending:
            self._claims.ask(count, block=block)

    def _work(self, entries: list[Entry], asked: int) -> None:
        """Handle the entries of one read, and send the replies together with the next read."""
        claims, began = self._claims, time.monotonic()
        self._health.words[READY] = 1
        due = began >= self._look or bool(claims.suspects)
        full = len(entries) == asked
        self._deep = (
            full and asked == BATCH_MOST and self._cost * asked < BATCH_SECONDS and not self._loop.request_limit
        )
        if self._deep and claims.reads == 0 and not due:
            self._ask(block=False)
            claims.flush()
            began = time.monotonic()
        if entries:
            self._begun += len(entries)
            self._todo.extend(entries)
            received = claims.connection.received
            ended = self._handle_all(began)
            self._adapt(len(entries), ended - began, received, full=full)
            self._batch = entries, began, ended
        else:
            self._count = 1
        if self._ready:
            self._send(self._ready)
            self._ready = []
        if not due and (self._deep or (claims.reads == 0 and not claims.suspects)):
            self._ask(block=not self._deep)
        if claims.answered >= self._responses.due_at:
            self._responses.look()
        claims.flush()

    def _adapt(self, number: int, seconds: float, received: int, *, full: bool) -> None:
        """Set the size of the next read: doubled while there is a backlog, bounded in time and bytes."""
        self._cost += (seconds / number - self._cost) * 0.3
        if full:
            self._count = min(self._count * 2, BATCH_MOST)
        if self._cost * self._count > BATCH_SECONDS:
            self._count = max(1, int(BATCH_SECONDS / self._cost))
        largest = max(1, (received - self._received) // number)
        self._received = received
        self._count = max(1, min(self._count, BATCH_BYTES // largest))

    _received = 0

    def _handle_all(self, at: float) -> float:
        """Handle `_todo`, from the time `at` on; the time at the end.

        Meanwhile the keeper may send what is ready and hand back what waits.
        """
        todo, claims, times, started = self._todo, self._claims, self._times, at
        number = slow = 0
        until = at + QUICK_SECONDS
        times[HANDLING_SINCE] = at  # and not for each request: they take less than FLUSH_SECONDS together
        try:
            while todo:
                if self._until is not None and at > self._until:
                    todo.clear()  # still in hand, so they are handed back at the end
                    break
                entry = todo.popleft()
                if claims.hand.get(entry.xid) is not entry:
                    continue  # it was lost with the connection
                self._answer(entry, at)
                self._ready.append(entry)
                if entry.effects is not None and entry.effects.states:
                    self._commit()
                number += 1
                at = time.monotonic()
                if at > until:
                    slow += 1
                    self._health.took(at - until + QUICK_SECONDS)
                    if at - started > FLUSH_SECONDS:
                        self._seconds += at - started
                        times[HANDLING_SINCE] = 0.0  # Redis may let us wait
                        self._send(self._ready)
                        self._ready = []
                        claims.flush()
                        times[HANDLING_SINCE] = at = started = time.monotonic()
                until = at + QUICK_SECONDS
        finally:
            current.set(None)
            times[HANDLING_SINCE] = 0.0
            self._handled += number
            self._quick += number - slow
            self._seconds += at - started
        return at

    def _commit(self) -> None:
        """Write a reply that depends on state, and wait for Redis: the next handler may read the same state."""
        self._times[HANDLING_SINCE] = 0.0  # Redis may let us wait
        claims = self._claims
        self._send(self._ready)
        self._ready = []
        claims.flush()
        while claims.waiting or claims.broken:
            if claims.waiting:
                claims.receive()
            else:  # a key was changed between the second reading and EXEC; a read that waits must not come before
                claims.verify()
                claims.flush()
        self._times[HANDLING_SINCE] = time.monotonic()

    def _handle_again(self, entry: Entry, again: Entry) -> None:
        self._todo.appendleft(again)

    def _send_soon(self, entry: Entry) -> None:
        self._ready.append(entry)

    def _answer(self, entry: Entry, at: float) -> None:
        """Handle one request without the lock, because `request.progress` takes it, also from a result's own code."""
        self._busy = at
        self._lock.release()
        try:
            self._answers.serve(entry)
        finally:
            self._lock.acquire()
            self._busy = 0.0

    def _take_suspect(self) -> None:
        """Begin one request that may have been begun before. It is begun alone, because it may end the worker."""
        entry = self._claims.begin(next(iter(self._claims.suspects)))
        if entry is None:
            return
        self._begun += 1
        self._handled += 1
        began = self._times[HANDLING_SINCE] = time.monotonic()
        try:
            if entry.spent:
                self._answers.give_up(entry)
            else:
                self._answer(entry, began)
        finally:
            current.set(None)
            self._times[HANDLING_SINCE] = 0.0
        ended = time.monotonic()
        self._health.took(ended - began)
        self._seconds += ended - began
        self._batch = [entry], began, ended
        self._ready.append(entry)

    # --- the keeper

    def _keep(self) -> None:
        """During a long handler: send what is ready, hand back the requests behind it, and renew its claim."""
        renew = self._loop.takeover_millis / 1000 / RENEW_PART
        pause = min(STUCK_SECONDS, renew)
        renewed = 0.0
        while True:
            time.sleep(pause)
            since = self._busy
            if not since or time.monotonic() - since < pause:
                continue
            with self._lock:
                if self._busy != since:
                    continue
                try:
                    if not self._claims.is_open and not self._try_to_connect():
                        continue
                    self._relieve()
                    if time.monotonic() - max(renewed, since) >= renew:
                        self._claims.renew()
                        renewed = time.monotonic()
                    self._claims.flush()
                    while self._claims.waiting:
                        self._claims.receive()
                    if self._claims.broken:
                        self._claims.verify()
                        self._claims.flush()
                except (ConnectionLost, StoreError, ReplyError) as error:
                    self._keep_trying(error)

    def _keep_trying(self, error: Exception) -> None:
        """The loop reports the error, if it persists when the handler has ended."""
        if isinstance(error, ConnectionLost):
            self._lost(error)
        else:
            self._claims.close()

    def _relieve(self) -> None:
        """Send what is ready and hand back what waits. Called under the lock, while a handler runs."""
        if self._ready:
            self._send(self._ready)
            self._ready = []
        waiting = [*self._todo, *(entry for entries, _ in self._claims.arrived for entry in entries)]
        if waiting:
            self._begun -= len(self._todo)
            self._todo.clear()
            self._claims.arrived.clear()
            self._claims.hand_back(waiting)


def _limited(handler: Handler, request: Request, telling: Callable[[], bool]) -> Any:
    """Call the handler and interrupt it after its timeout, by setitimer(2). In the main thread only."""

    def interrupt(*_: object) -> None:
        if telling():  # a command is in flight, and its reply must be read first
            signal.setitimer(signal.ITIMER_REAL, TELLING_SECONDS)
            return
        raise HandlerTimeout(f"the handler took longer than its timeout of {handler.timeout} s")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, handler.timeout or 0)
    try:
        return handler.call(request)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before or signal.SIG_DFL)
