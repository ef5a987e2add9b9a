"""The request loop: read from the group, handle, reply and acknowledge in one transaction.

Replies of one batch and the read of the next but one leave in one write, so that Redis and the handlers work at the same
time. A batch grows with the backlog, as long as it takes no longer than BATCH_SECONDS, and falls to one when idle.
"""

from __future__ import annotations

import _thread
import os
import signal
import sys
import time
from collections import deque

from sandboxrun import keys
from sandboxrun.connection import ReplyError, delays
from sandboxrun.errors import ConfigError, ConnectionLost, SandboxrunError, StoreError
from sandboxrun.worker.batch import Entry, Renderer
from sandboxrun.worker.claims import Claims
from sandboxrun.worker.context import Context, current
from sandboxrun.worker.handlers import Handler, HandlerTimeout, registered
from sandboxrun.worker.request import (
    RESULT_MAX_BYTES,
    BadRequest,
    Expired,
    Request,
    failure,
    now,
    parse,
    ref_of,
    reply,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from sandboxrun.settings import Loop

BATCH_MOST = 100  # more brings nothing: the round trip is a hundredth of it
BATCH_SECONDS = 0.05  # what is in hand must not wait for long, nor be kept from other workers
BATCH_BYTES = 8 * 1024 * 1024
FLUSH_SECONDS = 0.02  # a reply does not wait for the batch's others longer than this
STUCK_SECONDS = 0.2  # a handler that takes longer: what waits behind it is handed back
LOOK_SECONDS = 1.0  # between looks at stale claims
GRACE_SECONDS = 3.0  # from SIGTERM to handing back; sandboxrun kills after 5
RENEW_PART = 6  # takeoverMillis / 6: how often a claim is renewed


def run(*, concurrency: int | None = None, key: Callable[[Request], Any] | None = None) -> None:
    """Handle requests until SIGTERM, a removed or changed `pid`, or `requestLimit`; then return.

    `concurrency`: how many requests are handled at once; by default 1, and 100 where a handler is async. Handlers that
    are not async run in threads then. `key`: a function of the request; those with equal keys are handled in order, one
    after another. An error in the hash or the secrets ends the process with one line and the exit code of the error.
    """
    try:
        try:
            context = current()
            context.secrets()  # now, not at the first request
            make(context, context.loop(), concurrency, key).run()
        except ReplyError as error:
            raise StoreError(f"Redis refuses what the worker asks of it: {error}") from error
    except SandboxrunError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def make(context: Context, loop: Loop, concurrency: int | None, key: Callable[[Request], Any] | None) -> Worker:
    """The worker for the registered handlers: one thread, unless more is asked for."""
    if not registered:
        raise ConfigError("the worker has no handler: put @worker.handler before a function, then call worker.run()")
    if concurrency is not None and not 1 <= concurrency <= 10_000:
        raise ConfigError(f"concurrency is {concurrency}: expected 1 to 10000")
    if not any(handler.is_async for handler in registered.values()) and (concurrency or 1) == 1:
        return Serial(context, loop)
    from sandboxrun.worker.tasks import Tasks

    return Tasks(context, loop, concurrency or 100, key)


class Worker:
    """What both ways of working share: one session after another until the end, and how a request is answered."""

    def __init__(self, context: Context, loop: Loop) -> None:
        self._context, self._loop = context, loop
        self._handlers: dict[str, Handler] = {type_ or context.type: found for type_, found in registered.items()}
        self._render = Renderer(loop, context.type, keys.dead_stream(context.type))
        self._claims = Claims(
            context.connection, loop, context.key, str(os.getpid()), sees_pid=context.hash_url is None
        )
        self._claims.warn = self._warn
        self._lock = _thread.allocate_lock()  # around all that uses the claims; not held while a handler runs
        self._until: float | None = None  # when to hand back what is left, once the end has begun
        self._begun = 0  # requests taken for handling, for requestLimit
        self._look = 0.0
        self._tidy = time.monotonic() + 60

    def run(self) -> None:
        raise NotImplementedError

    # --- sessions

    def _connect(self) -> None:
        """Open the claims' connection, trying again for as long as Redis is away."""
        tries = delays()
        said = False
        while True:
            try:
                self._claims.open()
                self._render.expire_nx = self._claims.expire_nx
                self._look = 0.0
                return
            except ConnectionLost as error:
                if not said:
                    self._warn(f"{error}; trying again")
                    said = True
            if self._until is not None and time.monotonic() > self._until:
                raise GaveUp
            time.sleep(next(tries))

    def _warn(self, message: str) -> None:
        print(f"worker: {message}", file=sys.stderr, flush=True)

    def _end(self, *_: object) -> None:
        """The end has begun: read no more, finish what is in hand, hand back what is not done in time."""
        if self._until is None:
            self._until = time.monotonic() + GRACE_SECONDS

    @property
    def _ending(self) -> bool:
        if self._until is None and self._claims.lost_pid:
            self._end()
        return self._until is not None

    def _room(self, count: int) -> int:
        """How many of `count` requests may still be begun."""
        limit = self._loop.request_limit
        return min(count, limit - self._begun) if limit else count

    def _send(self, entries: list[Entry]) -> None:
        """Queue the replies."""
        if not self._render.expire_nx:
            # An old Redis has no EXPIRE … NX; the question before the transaction does as well.
            found = [entry for entry in entries if entry.ref is not None and not entry.sent]
            if found:
                left = self._claims.exchange(*[("TTL", keys.trace_key(entry.ref or "")) for entry in found])
                for entry, seconds in zip(found, left, strict=True):
                    if isinstance(seconds, int) and seconds < 0:
                        self._render.expire_trace(entry)
        self._claims.write(entries)

    def _look_around(self, at: float) -> None:
        """Once a second: stale claims, and once a minute consumers that are gone."""
        if self._claims.broken:
            self._claims.verify()
        if at >= self._look:
            more = self._claims.look_around()
            self._look = at if more else at + LOOK_SECONDS
        if at >= self._tidy:
            self._tidy = at + 60
            self._claims.remove_gone()

    def _leave(self) -> None:
        try:
            self._claims.leave()
        except ConnectionLost:
            pass  # a left-over pid of a dead process blocks nothing, and a left-over fence neither
        self._claims.connection.close()

    # --- one request

    def _parse(self, entry: Entry) -> tuple[Handler, Request]:
        """Raises BadRequest and Expired."""
        request = parse(entry.xid.decode(), entry.raw, self._handlers, default=self._context.type)
        entry.ref = request.ref
        request.deliveries = entry.deliveries
        request._tell = self._tell
        if request.deadline is not None and request.deadline <= time.time():
            raise Expired("the request's deadline had passed before it was begun")
        return self._handlers[request.type], request

    def _finish(self, entry: Entry, received: str, request: Request | None, result: Any) -> None:
        """Make the reply of what the handler returned."""
        try:
            if result is not None and not isinstance(result, dict):
                result = _as_dict(result)
            done = now()
            body = reply(entry.ref, self._context.type, 200, result or {}, done)
            if len(body) > RESULT_MAX_BYTES:
                raise ValueError(f"the reply has {len(body)} bytes: at most {RESULT_MAX_BYTES} are sent")
        except (TypeError, ValueError, RecursionError) as error:
            shown = (
                error if "handler returned" in str(error) else TypeError(f"the handler's result is not JSON: {error}")
            )
            self._fail(entry, received, request, shown)
            return
        self._render.reply(entry, 200, body, received, done, request._noted if request is not None else None)

    def _fail(self, entry: Entry, received: str, request: Request | None, error: BaseException) -> None:
        """Make the reply of an error."""
        code = 400 if isinstance(error, BadRequest) else 504 if isinstance(error, Expired) else 500
        if request is None and code != 504:
            entry.ref = ref_of(entry.raw)
        if code == 500 and error.__traceback__ is not None:
            # The hook prints the traceback and, inside the sandbox, the grant that was missing.
            sys.excepthook(type(error), error, error.__traceback__)
        done = now()
        body = reply(entry.ref, self._context.type, code, failure(error, entry.raw, with_payload=code == 500), done)
        self._render.reply(entry, code, body, received, done, request._noted if request is not None else None)

    def _bury(self, entry: Entry) -> None:
        """Make the reply of a request that was begun too often, and its dead letter."""
        reason = f"given up after {entry.deliveries} deliveries without a reply: its handler ended the worker, or its worker was lost"
        at = now()
        self._fail(entry, at, None, RuntimeError(reason))
        self._render.bury(entry, reason, self._loop.consumer_id, at)
        self._warn(f"request {entry.xid.decode()} is {reason}; it is in {keys.dead_stream(self._context.type)}")

    def _tell(self, request: Request, fields: Mapping[str, Any]) -> None:
        """`request.progress`, from the handler's thread: at once, and without a promise."""
        from sandboxrun.worker.request import noted

        trace = keys.trace_key(request.ref)
        with self._lock:
            try:
                self._claims.exchange(
                    ("HSET", trace, *noted(fields)), *([("EXPIRE", trace, 120, "NX")] if self._render.expire_nx else [])
                )
            except ConnectionLost:
                pass  # the reply finds out, and tries again


class GaveUp(Exception):
    """Redis stayed away for longer than the end may take."""


class Serial(Worker):
    """One thread: requests one after another. A second thread renews claims while a handler takes long."""

    def __init__(self, context: Context, loop: Loop) -> None:
        super().__init__(context, loop)
        self._todo: deque[Entry] = deque()
        self._ready: list[Entry] = []  # answered, not sent
        self._count = 1
        self._deep = False  # a backlog: a second read is on its way while a batch is handled
        self._cost = 0.0  # seconds that a request takes, on average
        self._busy = 0.0  # since when a handler runs, or 0

    def run(self) -> None:
        signal.signal(signal.SIGTERM, self._end)
        _thread.start_new_thread(self._keep, ())
        with self._lock:
            try:
                self._connect()
                while not self._step_and_mend():
                    pass
            except GaveUp:
                return
            self._leave()

    def _step_and_mend(self) -> bool:
        """One step; True at the end."""
        try:
            return self._step()
        except ConnectionLost as error:
            self._warn(f"{error}; connecting again")
            self._connect()
            return False

    def _step(self) -> bool:
        claims = self._claims
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
        elif self._ending:
            return self._wind_up()
        elif time.monotonic() >= self._look:
            self._look_around(time.monotonic())
        elif claims.suspects:
            self._take_suspect()
        else:
            self._ask(block=True)
            claims.flush()
        return False

    def _wind_up(self) -> bool:
        """Nothing is on its way any more: hand back what was not begun. True when all is confirmed."""
        claims = self._claims
        claims.hand_back([entry for entry in claims.hand.values() if not entry.answered])
        claims.flush()
        return not claims.waiting and not claims.hand

    def _ask(self, *, block: bool) -> None:
        """Queue the next read, unless the end has begun or something else is due."""
        count = self._room(self._count)
        if count <= 0:
            self._end()
        elif not self._ending:
            self._claims.ask(count, block=block)

    def _work(self, entries: list[Entry], asked: int) -> None:
        """Handle what one read brought, send the replies, and the next read with them."""
        claims = self._claims
        due = time.monotonic() >= self._look or bool(claims.suspects)
        full = len(entries) == asked
        self._deep = (
            full and asked == BATCH_MOST and self._cost * asked < BATCH_SECONDS and not self._loop.request_limit
        )
        if self._deep and claims.reads == 0 and not due:
            self._ask(block=False)
            claims.flush()
        if entries:
            self._begun += len(entries)
            self._todo.extend(entries)
            before, received = time.monotonic(), claims.connection.received
            self._handle_all(before)
            self._adapt(len(entries), time.monotonic() - before, received, full=full)
        else:
            self._count = 1
        if self._ready:
            self._send(self._ready)
            self._ready = []
        if not due and (self._deep or (claims.reads == 0 and not claims.suspects)):
            self._ask(block=not self._deep)
        claims.flush()

    def _adapt(self, number: int, seconds: float, received: int, *, full: bool) -> None:
        """How many to read next: twice as many while there is a backlog, within the bounds of time and bytes."""
        self._cost += (seconds / number - self._cost) * 0.3
        if full:
            self._count = min(self._count * 2, BATCH_MOST)
        if self._cost * self._count > BATCH_SECONDS:
            self._count = max(1, int(BATCH_SECONDS / self._cost))
        largest = max(1, (received - self._received) // number)
        self._received = received
        self._count = max(1, min(self._count, BATCH_BYTES // largest))

    _received = 0

    def _handle_all(self, started: float) -> None:
        """Handle what is to do; the keeper may send what is ready and hand back what waits meanwhile."""
        todo, hand = self._todo, self._claims
        while todo:
            if self._until is not None and time.monotonic() > self._until:
                todo.clear()  # still in hand, and so handed back at the end
                return
            entry = todo.popleft()
            if entry.xid not in hand.hand:
                continue  # it was lost with the connection
            self._answer(entry)
            self._ready.append(entry)
            at = time.monotonic()
            if at - started > FLUSH_SECONDS:
                self._send(self._ready)
                self._ready = []
                self._claims.flush()
                started = at

    def _answer(self, entry: Entry) -> None:
        received, request = now(), None
        try:
            handler, request = self._parse(entry)
            self._busy = time.monotonic()
            entry.begun = True
            self._lock.release()
            try:
                result = handler.call(request) if handler.timeout is None else _limited(handler, request)
            finally:
                self._lock.acquire()
                self._busy = 0.0
        except Exception as error:
            self._fail(entry, received, request, error)
            return
        self._finish(entry, received, request, result)

    def _take_suspect(self) -> None:
        """Begin one that may have been begun before, alone: it may be what ended the worker."""
        entry = self._claims.begin(next(iter(self._claims.suspects)))
        if entry is None:
            return
        self._begun += 1
        if entry.spent:
            self._bury(entry)
        else:
            self._answer(entry)
        self._ready.append(entry)

    # --- the keeper

    def _keep(self) -> None:
        """While a handler takes long: send what is ready, hand back what waits behind it, renew its claim."""
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
                    if not self._claims.connection.is_open:
                        self._claims.open()
                    self._relieve()
                    if time.monotonic() - max(renewed, since) >= renew:
                        self._claims.renew()
                        renewed = time.monotonic()
                    self._claims.flush()
                    while self._claims.waiting:
                        self._claims.receive()
                    if self._claims.broken:
                        self._claims.verify()
                except (ConnectionLost, StoreError, ReplyError):
                    self._claims.connection.close()  # and try again; the loop says what is wrong once it is back

    def _relieve(self) -> None:
        """Under the lock, while a handler runs."""
        if self._ready:
            self._send(self._ready)
            self._ready = []
        waiting = [*self._todo, *(entry for entries, _ in self._claims.arrived for entry in entries)]
        if waiting:
            self._begun -= len(self._todo)
            self._todo.clear()
            self._claims.arrived.clear()
            self._claims.hand_back(waiting)


def _limited(handler: Handler, request: Request) -> Any:
    """Call the handler, and interrupt it after its time. setitimer(2); the main thread only."""

    def interrupt(*_: object) -> None:
        raise HandlerTimeout(f"the handler took longer than its timeout of {handler.timeout} s")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, handler.timeout or 0)
    try:
        return handler.call(request)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _as_dict(result: Any) -> dict[str, Any]:
    """Another mapping, or a dataclass or pydantic model; else TypeError."""
    from collections.abc import Mapping

    if isinstance(result, Mapping):
        return dict(result)
    if hasattr(result, "model_dump"):
        return dict(result.model_dump(mode="json"))
    if hasattr(result, "__dataclass_fields__") and not isinstance(result, type):
        import dataclasses

        return dataclasses.asdict(result)
    raise TypeError(f"the handler returned {type(result).__name__}: expected a dict of the reply's fields, or None")
