"""The request loop: read from the group, handle, reply and acknowledge in one transaction.

What both ways of working share: one request after another (serial.py), and many at once (tasks.py).
"""

from __future__ import annotations

import _thread
import os
import sys
import time

from sandboxrun import keys
from sandboxrun.connection import RETRY_MOST_SECONDS, ReplyError, delays
from sandboxrun.errors import ConfigError, ConnectionLost, LoginRefused, SandboxrunError, StoreError
from sandboxrun.worker.batch import Entry, Renderer
from sandboxrun.worker.claims import Claims
from sandboxrun.worker.context import Context, current
from sandboxrun.worker.handlers import Handler, registered
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
from sandboxrun.worker.sweep import look_around, remove_gone

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from sandboxrun.settings import Loop

BATCH_MOST = 100  # more brings nothing: the round trip is a hundredth of it
LOOK_SECONDS = 1.0  # between looks at stale claims
GRACE_SECONDS = 3.0  # from SIGTERM to handing back; sandboxrun kills after 5
LOGIN_SECONDS = 30.0  # in which a server that was started anew, or took over, is told the worker's user
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
        from sandboxrun.worker.serial import Serial

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
            context.connection,
            loop,
            context.key,
            str(os.getpid()),
            sees_pid=context.hash_url is None,
            token=context.token,
        )
        self._claims.warn = self._warn
        self._lock = _thread.allocate_lock()  # around all that uses the claims; not held while a handler runs
        self._until: float | None = None  # when to hand back what is left, once the end has begun
        self._telling = False  # `request.progress` is at work in the handler's thread
        self._begun = 0  # requests taken for handling, for requestLimit
        self._look = 0.0
        self._more = False  # others' claims to take, beyond those that were
        self._tidy = time.monotonic() + 60

    def run(self) -> None:
        raise NotImplementedError

    # --- sessions

    def _connect(self) -> None:
        """Open the claims' connection, trying again for as long as Redis is away."""
        # Sooner than others, who were kept away as we were, may take what we hold.
        tries = delays(min(RETRY_MOST_SECONDS, self._loop.takeover_millis / 1000 / RENEW_PART))
        said = False
        began = time.monotonic()
        while True:
            try:
                self._claims.open()
                self._render.expire_nx = self._claims.expire_nx
                self._look = 0.0
                return
            except (ConnectionLost, LoginRefused) as error:
                if isinstance(error, LoginRefused) and not self._may_return(began):
                    raise
                if not said:
                    self._warn(f"{error}; trying again")
                    said = True
            if self._until is not None and time.monotonic() > self._until:
                raise GaveUp
            time.sleep(next(tries))

    def _may_return(self, since: float) -> bool:
        """Whether a login that is refused `since` then is worth another try. sandboxrun makes the worker's user again."""
        return self._claims.opened > 0 and time.monotonic() - since < LOGIN_SECONDS

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
            self._more = look_around(self._claims)
            self._look = at + LOOK_SECONDS
        if at >= self._tidy:
            self._tidy = at + 60
            remove_gone(self._claims)

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
        self._telling = True
        try:
            self._tell_now(trace, noted(fields))
        finally:
            self._telling = False

    def _tell_now(self, trace: str, words: list[str]) -> None:
        with self._lock:
            try:
                self._claims.exchange(
                    ("HSET", trace, *words), *([("EXPIRE", trace, 120, "NX")] if self._render.expire_nx else [])
                )
            except ConnectionLost:
                pass  # the reply finds out, and tries again


class GaveUp(Exception):
    """Redis stayed away for longer than the end may take."""


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
