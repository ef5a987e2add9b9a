"""Many requests at once: coroutines on one asyncio loop, and threads for handlers that are not async.

A thread of its own reads (reader.py), on a connection of its own, as many requests as there is room for; replies leave together, with
whatever else is ready in the same turn of the loop. Imported only where it is asked for: asyncio takes as long to import
as all of a simple worker's start.
"""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sandboxrun.connection import Connection, ReplyError
from sandboxrun.errors import ConfigError, ConnectionLost, SandboxrunError, StoreError
from sandboxrun.settings import Loop
from sandboxrun.worker.batch import Entry
from sandboxrun.worker.context import Context
from sandboxrun.worker.handlers import Handler, HandlerTimeout
from sandboxrun.worker.loop import LOOK_SECONDS, RENEW_PART, GaveUp, Worker
from sandboxrun.worker.reader import Reader, Room
from sandboxrun.worker.request import Expired, Request, now

CONFIRMED_SECONDS = 0.002  # until replies are tried again that wait for the confirmation of others
ALONE_FROM = 2  # begun so often without a reply: begun alone from now on


class Job:
    """A request on its way through a handler."""

    __slots__ = ("entry", "handler", "key", "received", "request")

    def __init__(self, entry: Entry, handler: Handler, request: Request, received: str, key: Any) -> None:
        self.entry, self.handler, self.request, self.received, self.key = entry, handler, request, received, key


class Tasks(Worker):
    """`concurrency` requests at once; with `key`, those with equal keys one after another, in order."""

    def __init__(
        self, context: Context, loop: Loop, concurrency: int, key: Callable[[Request], Any] | None = None
    ) -> None:
        super().__init__(context, loop)
        if any(not h.is_async and h.timeout is not None for h in self._handlers.values()):
            raise ConfigError(
                "a handler has a timeout, is not async and would run in a thread, which cannot be interrupted: "
                "make it async, or set concurrency=1"
            )
        self._claims.alone = False
        self._key, self._concurrency = key, concurrency
        self._space = Room(concurrency, loop.request_limit)
        self._lines: dict[Any, deque[Job]] = {}  # what waits behind a request with an equal key
        self._running: dict[Entry, asyncio.Task[None]] = {}
        self._threads: set[Entry] = set()  # what runs in one: it cannot be cancelled
        self._ready: list[Entry] = []
        self._flushing = False
        self._mending: asyncio.Task[None] | None = None
        self._stopped = False  # the reader
        self._error: BaseException | None = None
        self._pool = ThreadPoolExecutor(concurrency, "handler")

    def run(self) -> None:
        asyncio.run(self._main())
        if self._error is not None:
            raise self._error

    async def _main(self) -> None:
        loop = self._asyncio = asyncio.get_running_loop()
        self._over = asyncio.Event()
        loop.add_signal_handler(signal.SIGTERM, self._end)
        try:
            await self._mend()
        except GaveUp:
            return
        self._reader().start()
        threading.Thread(target=self._keep, daemon=True).start()
        self._tick()
        await self._over.wait()
        if self._mending is not None:
            await self._mending
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self._error is None and self._claims.connection.is_open:
            with self._lock:
                loop.remove_reader(self._fd)
                self._leave()

    def _stop(self, error: BaseException | None) -> None:
        self._error = self._error or error
        self._over.set()

    # --- reading

    def _reader(self) -> Reader:
        call = self._asyncio.call_soon_threadsafe
        return Reader(
            Connection(self._context.redis_url, name=f"worker-reader:{self._context.key}"),
            self._claims,
            self._space,
            ending=lambda: self._ending,
            may_return=self._may_return,
            arrived=lambda entries, generation: call(self._arrived, entries, generation),
            end=self._end,
            over=lambda error: call(self._read_all, error),
        )

    def _read_all(self, error: Exception | None) -> None:
        self._stopped = True
        if error is not None:
            self._stop(error)
        self._check_end()

    def _arrived(self, entries: list[Entry], generation: int) -> None:
        """Take in hand what was read; where it was long on its way, only what is still ours."""
        claims, ours = self._claims, entries
        with self._lock:
            if generation != claims.generation:
                try:
                    ours = claims.still_ours(entries)
                except ConnectionLost as error:
                    ours = []  # still pending, and found when we look around
                    self._lost(error, [])
            claims.hand.update({entry.xid: entry for entry in ours})
            for entry in ours:
                claims.suspects.pop(entry.xid, None)
        self._space.give(len(entries) - len(ours), begun=False)
        for entry in ours:
            self._begin(entry)

    # --- handling

    def _begin(self, entry: Entry) -> None:
        """Start the handler, or let the request wait behind one with an equal key."""
        received, request = now(), None
        try:
            handler, request = self._parse(entry)
            key = self._key(request) if self._key is not None else None
            job = Job(entry, handler, request, received, key)
            if self._key is not None:
                if key in self._lines:
                    self._lines[key].append(job)
                    return
                self._lines[key] = deque()
        except Exception as error:
            self._fail(entry, received, request, error)
            self._done(entry)
            return
        self._start(job)

    def _start(self, job: Job) -> None:
        job.entry.begun = True
        if not job.handler.is_async:
            self._threads.add(job.entry)
        self._running[job.entry] = self._asyncio.create_task(self._handle(job))

    async def _handle(self, job: Job) -> None:
        entry, request = job.entry, job.request
        try:
            left = request.remaining()
            if left is not None and left <= 0:
                raise Expired("the request's deadline had passed before it was begun")
            if job.handler.is_async:
                result = await self._awaited(job)
            else:
                result = await self._asyncio.run_in_executor(self._pool, job.handler.call, request)
        except Exception as error:
            self._fail(entry, job.received, request, error)
        else:
            self._finish(entry, job.received, request, result)
        finally:
            self._running.pop(entry, None)
            self._threads.discard(entry)
            self._next(job)
        self._done(entry)

    async def _awaited(self, job: Job) -> Any:
        timeout = job.handler.timeout
        work = job.handler.call(job.request)
        if timeout is None:
            return await work
        try:
            async with asyncio.timeout(timeout) as limit:
                return await work
        except TimeoutError:
            if limit.expired():
                raise HandlerTimeout(f"the handler took longer than its timeout of {timeout} s") from None
            raise

    def _next(self, job: Job) -> None:
        """Start what waited behind this one."""
        if self._key is None:
            return
        line = self._lines[job.key]
        while line and not self._claims.has(line[0].entry):  # taken by another meanwhile
            line.popleft()
            self._space.give(1)
        if line and not self._late:
            self._start(line.popleft())
        elif not line:
            del self._lines[job.key]

    @property
    def _late(self) -> bool:
        return self._until is not None and time.monotonic() > self._until

    def _done(self, entry: Entry) -> None:
        self._ready.append(entry)
        if not self._flushing:
            self._flushing = True
            self._asyncio.call_soon(self._flush)

    # --- writing

    def _flush(self) -> None:
        """Send what is ready; what Redis says to it is read when it has come."""
        self._flushing = False
        if self._mending is not None:
            return
        if self._claims.busy and self._ready:  # the last one's confirmation brings us back; or whoever else took it
            self._flushing = True
            self._asyncio.call_later(CONFIRMED_SECONDS, self._flush)
            return
        ready, self._ready = self._ready, []
        with self._lock:
            try:
                self._send(ready)
                self._claims.flush()
            except ConnectionLost as error:
                self._lost(error, [entry for entry in ready if not entry.sent])
            except (SandboxrunError, ReplyError) as error:
                self._stop(error)
        self._space.give(len(ready))
        if self._space.hold or self._claims.suspects:
            self._begin_suspects()
        self._check_end()

    def _readable(self) -> None:
        with self._lock:
            try:
                self._claims.connection.check()
                while self._claims.waiting:
                    self._claims.receive()
                self._mend_fence()
            except ConnectionLost as error:
                self._lost(error, [])
            except (SandboxrunError, ReplyError) as error:
                self._stop(error)
        if self._ready:
            self._flush()
        else:
            self._check_end()

    def _mend_fence(self) -> None:
        if self._claims.broken:
            self._claims.verify()
            self._claims.flush()

    def _lost(self, error: ConnectionLost, unsent: list[Entry]) -> None:
        self._ready = unsent + self._ready
        if self._mending is None:
            self._warn(f"{error}; connecting again")
            self._asyncio.remove_reader(self._fd)
            self._mending = self._asyncio.create_task(self._mend())

    async def _mend(self) -> None:
        """Connect in a thread: handlers go on meanwhile."""

        def connect() -> None:
            with self._lock:
                self._connect()
                self._claims.flush()

        try:
            await self._asyncio.run_in_executor(None, connect)
            self._fd = self._claims.connection.fileno()
            self._asyncio.add_reader(self._fd, self._readable)
        except ConnectionLost as error:  # once more
            self._warn(str(error))
            self._claims.connection.close()
            await asyncio.sleep(0.1)
            await self._mend()
        except (GaveUp, SandboxrunError, ReplyError) as error:
            self._stop(None if isinstance(error, GaveUp) else error)
        finally:
            self._mending = None
        if self._ready and not self._over.is_set():
            self._flush()

    # --- once a second

    def _tick(self) -> None:
        if self._over.is_set():
            return
        self._asyncio.call_later(LOOK_SECONDS, self._tick)
        if self._mending is None and not self._ending:
            with self._lock:
                try:
                    self._look_around(time.monotonic())
                    self._mend_fence()
                    self._claims.flush()
                except ConnectionLost as error:
                    self._lost(error, [])
                except (SandboxrunError, ReplyError) as error:
                    self._stop(error)
            self._begin_suspects()
        self._check_end()

    def _begin_suspects(self) -> None:
        """Begin what may have been begun before; from the second time on alone: it may be what ends the worker."""
        claims = self._claims
        while claims.suspects and not self._ending and self._mending is None and not claims.broken:
            xid, count = next(iter(claims.suspects.items()))
            self._space.hold = count >= ALONE_FROM
            if (self._space.hold and self._running) or len(self._running) >= self._concurrency:
                return
            with self._lock:
                try:
                    entry = claims.begin(xid)
                except ConnectionLost as error:
                    self._lost(error, [])
                    return
            if entry is None:
                continue
            self._space.take(1)
            if entry.spent:
                self._bury(entry)
                self._done(entry)
            else:
                self._begin(entry)
                if self._space.hold:
                    return
        if not self._running:
            self._space.hold = False

    def _check_end(self) -> None:
        """Once the reader has stopped: over when all is confirmed, or what is left is handed back."""
        if not (self._ending and self._stopped) or self._mending is not None or self._over.is_set():
            return
        if self._late:
            for entry, task in [*self._running.items()]:
                if entry not in self._threads and task.cancel():
                    self._running.pop(entry, None)
        waiting = [job.entry for line in self._lines.values() for job in line]
        if self._late or not (self._running or waiting):
            self._wind_up()
        elif not self._late and self._until is not None:
            self._asyncio.call_later(max(0.01, self._until - time.monotonic() + 0.01), self._check_end)

    def _wind_up(self) -> None:
        with self._lock:
            try:
                self._send(self._ready)
                self._ready = []
                self._claims.hand_back(
                    [e for e in self._claims.hand.values() if not e.answered and e not in self._running]
                )
                self._claims.flush()
                while self._claims.waiting:
                    self._claims.receive()
                self._mend_fence()
            except ConnectionLost as error:
                self._lost(error, [])
                return
            except (SandboxrunError, ReplyError) as error:
                self._stop(error)
                return
        if not any(entry.sent for entry in self._claims.hand.values()):
            self._over.set()
        else:
            self._asyncio.call_soon(self._check_end)

    # --- the keeper: a thread, for the case that a handler keeps the loop

    def _keep(self) -> None:
        renew = self._loop.takeover_millis / 1000 / RENEW_PART
        while not self._over.is_set():
            time.sleep(renew)
            with self._lock:
                try:
                    if self._claims.connection.is_open and self._claims.hand:
                        self._claims.renew()
                        self._claims.flush()
                        while self._claims.waiting:
                            self._claims.receive()
                        self._mend_fence()
                except (StoreError, ReplyError):
                    self._claims.connection.close()  # the loop finds out with its next reply
