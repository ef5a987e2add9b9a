"""Many requests at once: coroutines on one asyncio loop, and threads for handlers that are not async.

The reader (reader.py), a thread with a connection of its own, reads as many requests as there is room for. Replies that are
ready in the same turn of the loop leave together. A second thread, the keeper (kept.py), uses the claims' connection for
everything that waits for Redis: it connects, renews, takes over, verifies and hands back. The loop never waits for Redis or
for the lock, so a server that does not answer delays no handler. Imported only if needed, because asyncio takes as long to
import as a simple worker takes to start.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sandboxrun.config.fields import Loop
from sandboxrun.errors import ConfigError, ConnectionLost, LoginRefused, SandboxrunError
from sandboxrun.protocol import HandlerTimeout
from sandboxrun.protocol.calling import current
from sandboxrun.protocol.request import now
from sandboxrun.redis.connection import RETRY_MOST_SECONDS, Connection
from sandboxrun.redis.replies import ReplyError
from sandboxrun.worker import eventloop
from sandboxrun.worker.answer import check_deadline
from sandboxrun.worker.base import CUT_SECONDS, GRACE_SECONDS, LOOK_SECONDS
from sandboxrun.worker.context import Context
from sandboxrun.worker.handlers import Handler, callables
from sandboxrun.worker.health import QUICK_SECONDS
from sandboxrun.worker.job import Job, Key
from sandboxrun.worker.kept import Kept
from sandboxrun.worker.outage import Backoff
from sandboxrun.worker.reader import Reader, Room
from sandboxrun.worker.rendering import Entry
from sandboxrun.worker.request import Encoder, Request
from sandboxrun.worker.reruns import Reruns

CONFIRMED_SECONDS = 0.002  # before a retry of replies that wait for the confirmation of others


class Tasks(Kept):
    """Handles `concurrency` requests at once; with `key`, requests with equal keys one after another, in order."""

    def __init__(
        self,
        context: Context,
        loop: Loop,
        handlers: Mapping[str, Handler],
        encoder: Encoder,
        concurrency: int,
        key: Callable[[Request], Any] | None = None,
    ) -> None:
        super().__init__(context, loop, handlers, encoder)
        every = callables(handlers)
        if any(not h.is_async and h.timeout is not None for h in every):
            raise ConfigError(
                "a handler has a timeout, is not async and would run in a thread, which cannot be interrupted: expected "
                "an async handler, or concurrency=1",
                hint="" if any(h.is_async or h.may_await for h in every) else "worker.run()",
            )
        self._claims.alone = False
        self._key, self._concurrency = key, concurrency
        self._space = Room(concurrency, loop.request_limit)
        self._reader = self._make_reader()
        self._lines: dict[Any, deque[Job]] = {}  # requests that wait behind one with an equal key
        self._reruns = Reruns(self._claims, self._space, self._start_again, self._next)
        self._flushing = False
        self._watched = -1  # a duplicate of the connection's descriptor, watched by the event loop
        self._stopped = False  # the reader has stopped
        self._error: BaseException | None = None
        self._pool = ThreadPoolExecutor(concurrency, "handler")

    def run(self) -> None:
        eventloop.run(self._main, lambda: self._answers.is_child, self._warn)
        if self._error is not None:
            raise self._error

    async def _main(self) -> None:
        self._asyncio = self.event_loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        self._signals.install(self._end)
        keeper = threading.Thread(target=self._keep, daemon=True)
        keeper.start()
        self._tick()
        while not self._over.is_set():
            try:
                await self._over.wait()
            except asyncio.CancelledError:
                pass  # a handler has cancelled all tasks
        self._unwatch()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _call(self, function: Callable[..., object], *arguments: Any) -> None:
        """Call in the event loop, from another thread; does nothing once the loop is over."""
        with contextlib.suppress(RuntimeError):
            self._asyncio.call_soon_threadsafe(function, *arguments)

    def _stop(self, error: BaseException | None) -> None:
        self._error = self._error or error
        self._over.set()

    def _end(self, *_: object) -> None:
        """May be called from any thread."""
        if self._until is None:
            super()._end()
            self._call(self._asyncio.call_later, GRACE_SECONDS + CUT_SECONDS, self._cut)
            self._call(self._check_end)

    def _cut(self) -> None:
        """Give up a Redis that does not answer before sandboxrun kills the worker: nothing can be handed back."""
        self._claims.connection.cancel()
        self._reader.cancel()
        self._over.set()

    # --- reading

    def _make_reader(self) -> Reader:
        return Reader(
            Connection(self._context.redis_url, name=f"worker-reader:{self._context.key}"),
            self._claims,
            self._space,
            Backoff(self._outages, RETRY_MOST_SECONDS),
            ending=lambda: self._ending,
            may_return=self._may_return,
            arrived=self._arrived,
            turned=self._wake.set,
            end=self._end,
            over=lambda error: self._call(self._read_all, error),
            health=self._health,
        )

    def _read_all(self, error: Exception | None) -> None:
        self._stopped = True
        if error is not None:
            self._stop(error)
        self._check_end()

    def _arrived(self, entries: list[Entry], generation: int) -> None:
        """In the reader's thread: take the entries in hand; only those still ours, if claims changed during the read."""
        claims, ours = self._claims, entries
        with self._lock:
            if generation != claims.generation:
                try:
                    ours = claims.still_ours(entries)
                except (ConnectionLost, LoginRefused) as error:
                    ours = []  # still pending, and found by the next look
                    self._lost(error)
                    self._wake.set()
            claims.hand.update({entry.xid: entry for entry in ours})
            for entry in ours:
                claims.suspects.pop(entry.xid, None)
        if len(ours) < len(entries):
            self._space.give(len(entries) - len(ours), begun=False)
        if ours:
            self._call(self._begin_all, ours)

    def _begin_all(self, entries: list[Entry]) -> None:
        if self._key is None:
            at = time.time()
            self._health.waited(entries, at, at)
        for entry in entries:
            if not self._winding:  # else it is handed back
                self._begin(entry)
        self._turned()

    # --- handling

    def _begin(self, entry: Entry) -> None:
        """Start the handler, or queue the request behind one with an equal key."""
        received, request = now(), None
        try:
            handler, request = self._answers.parse(entry)
            key = Key(self._key(request)) if self._key is not None else None
            job = Job(entry, handler, request, received, key)
            if key is not None:
                if key in self._lines:
                    self._lines[key].append(job)
                    return
                self._lines[key] = deque()
        except BaseException as error:
            self._answers.fail(entry, received, request, error)
            self._done(entry)
            return
        self._start(job)

    def _start(self, job: Job) -> None:
        job.entry.begun = True
        job.entry.at = time.monotonic()
        if self._key is not None:  # others begin as they come
            at = time.time()
            self._health.waited([job.entry], at, at)
        if job.handler.is_async:
            self._running[job.entry] = self._asyncio.create_task(self._handle(job))
            return
        self._running[job.entry] = None
        try:
            self._pool.submit(self._work, job)
        except RuntimeError as error:  # no thread can be started, but a running one may have taken the job
            if job.take():
                self._answers.fail(job.entry, job.received, job.request, error)
                self._asyncio.call_soon(self._answered, job)

    def _start_again(self, job: Job) -> None:
        """Start the handler of a request whose reply was not written, because a state had changed."""
        entry, received, request = job.entry, now(), None
        if self._winding:
            return  # it is handed back
        try:
            handler, request = self._answers.parse(entry)
        except BaseException as error:
            self._answers.fail(entry, received, request, error)
            self._done(entry)
            self._asyncio.call_soon(self._reruns.finished, job)
            return
        self._start(Job(entry, handler, request, received, job.key))

    # --- effects: in any thread, under the lock

    def committed(self, entry: Entry) -> None:
        self._call(self._committed, entry)

    def _committed(self, entry: Entry) -> None:
        self._reruns.committed(entry)
        self._check_end()

    def _handle_again(self, entry: Entry, again: Entry) -> None:
        self._call(self._reruns.changed, entry, again)

    def _send_soon(self, entry: Entry) -> None:
        self._call(self._finished, entry)

    def _finished(self, entry: Entry) -> None:
        self._reruns.committed(entry)
        self._space.retake()
        self._done(entry)

    def _work(self, job: Job) -> None:
        """In a thread of the pool."""
        if job.take():
            awaited = self._answers.call(job.entry, job.received, job.handler, job.request)
            if awaited is None:
                self._call(self._answered, job)
            else:
                self._call(self._await, job, awaited)

    def _await(self, job: Job, awaited: Any) -> None:
        """Await the object that a handler has returned in its thread."""
        self._running[job.entry] = self._asyncio.create_task(self._handle(job, awaited))

    async def _handle(self, job: Job, awaited: Any = None) -> None:
        entry, answers = job.entry, self._answers
        try:
            check_deadline(job.request)
            current.set(job.request)
            result = await (self._awaited(job) if awaited is None else awaited)
            answers.finish(entry, job.received, job.handler, job.request, result)
        except BaseException as error:
            if self._over.is_set() or entry not in self._running:  # the time is over: it was cancelled and handed back
                raise
            answers.fail(entry, job.received, job.request, error)
        finally:
            if entry in self._running and not self._over.is_set():
                self._answered(job)

    def _answered(self, job: Job) -> None:
        """Free the place, and send the reply together with others."""
        self._running.pop(job.entry, None)
        seconds = time.monotonic() - job.entry.at
        self._seconds += seconds
        if seconds <= QUICK_SECONDS:
            self._quick += 1
        else:
            self._health.took(seconds)
        self._done(job.entry)
        if job.entry.effects is not None and job.entry.effects.states:
            self._reruns.wait(job)
        else:
            self._reruns.finished(job)

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
        """Start the next request with an equal key."""
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

    def _forked(self) -> None:
        super()._forked()
        eventloop.end_in_child(self._asyncio)

    def _done(self, entry: Entry) -> None:
        self._ready.append(entry)
        self._uncounted += 1
        if not self._flushing:
            self._flushing = True
            self._asyncio.call_soon(self._flush)

    # --- writing: in the event loop, which never waits

    def _later(self, function: Callable[[], object]) -> None:
        self._asyncio.call_later(CONFIRMED_SECONDS, function)

    def _flush(self) -> None:
        """Send what is ready. The replies of Redis are read when they have come."""
        self._flushing = False
        self._turned()
        claims = self._claims
        if not self._ready or self._winding or self._over.is_set():
            return
        if not self._lock.acquire(blocking=False):
            self._flush_later()
            return
        try:
            if not claims.is_open or claims.broken:
                self._wake.set()  # the keeper repairs it
                return
            if claims.busy:  # the last transaction is not confirmed yet
                self._flush_later()
                return
            ready = [*self._ready]
            self._send(ready)
            if claims.answered >= self._responses.due_at:
                self._responses.look()
            claims.flush()
        except (ConnectionLost, LoginRefused) as error:
            self._lost_here(error)
            return
        except (SandboxrunError, ReplyError) as error:
            self._stop(error)
            return
        finally:
            self._lock.release()
        del self._ready[: len(ready)]
        self._space.give(len(ready))
        if claims.suspects:
            self._wake.set()
        self._check_end()

    def _flush_later(self) -> None:
        self._flushing = True
        self._later(self._flush)

    def _lost_here(self, error: ConnectionLost | LoginRefused) -> None:
        """Under the lock. The keeper connects again."""
        try:
            self._lost(error)
        except LoginRefused as lasting:
            self._stop(lasting)
        self._unwatch()
        self._wake.set()

    def _watch(self) -> None:
        """Call `_readable` when Redis has answered.

        A duplicate descriptor is watched, because another thread may close the connection, and its number may be reused.
        """
        self._unwatch()
        if self._over.is_set():
            return
        if not self._lock.acquire(blocking=False):
            self._later(self._watch)
            return
        try:
            if self._claims.is_open:
                self._watched = os.dup(self._claims.connection.fileno())
                self._asyncio.add_reader(self._watched, self._readable)
        finally:
            self._lock.release()
        self._flush()
        self._check_end()

    def _unwatch(self) -> None:
        if self._watched >= 0:
            self._asyncio.remove_reader(self._watched)
            os.close(self._watched)
            self._watched = -1

    def _readable(self) -> None:
        if not self._lock.acquire(blocking=False):  # the keeper reads
            self._unwatch()
            self._later(self._watch)
            return
        try:
            if not self._claims.is_open:  # the keeper has closed it
                self._unwatch()
                self._wake.set()
                return
            self._claims.receive_ready()
            self._claims.flush()
            if self._claims.broken:
                self._wake.set()
        except (ConnectionLost, LoginRefused) as error:
            self._lost_here(error)
        except (SandboxrunError, ReplyError) as error:
            self._stop(error)
        finally:
            self._lock.release()
        if self._ready and not self._flushing:
            self._flush()
        else:
            self._check_end()

    # --- the end

    def _tick(self) -> None:
        if not self._over.is_set():
            self._asyncio.call_later(LOOK_SECONDS, self._tick)
            self._turned()
            self._reruns.look()
            self._check_end()

    def _has_place(self) -> bool:
        """With every place taken by a thread nothing goes on until one of them ends, whatever the event loop does."""
        return len(self._running) < self._concurrency or any(task is not None for task in self._running.values())

    def _check_end(self) -> None:
        """Once the reader has stopped: begin to wind up when nothing runs any more, or the time is over."""
        if not (self._ending and (self._stopped or self._late)) or self._over.is_set():
            return
        if self._late:
            for entry, task in [*self._running.items()]:
                if task is not None and task.cancel():
                    self._running.pop(entry, None)
        if self._late or not (self._running or any(self._lines.values()) or self._reruns.is_busy):
            self._winding = True
            self._wake.set()
        elif self._until is not None:
            self._asyncio.call_later(max(0.01, self._until - time.monotonic() + 0.01), self._check_end)
