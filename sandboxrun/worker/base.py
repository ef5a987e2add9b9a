"""The request loop: read from the group, handle, reply and acknowledge in one transaction.

The base of the two kinds of worker: one request after another (serial.py), and many at once (tasks.py). app.py starts it.
"""

from __future__ import annotations

import _thread
import os
import time

from sandboxrun.config import keys
from sandboxrun.errors import ConnectionLost, LoginRefused
from sandboxrun.protocol import TRACE_EXPIRE_SECONDS
from sandboxrun.redis.connection import RETRY_MOST_SECONDS
from sandboxrun.worker import process
from sandboxrun.worker.answer import Answers
from sandboxrun.worker.claims import Claims
from sandboxrun.worker.health import Health
from sandboxrun.worker.outage import Backoff, Outages
from sandboxrun.worker.output import say
from sandboxrun.worker.rendering import Entry, Renderer
from sandboxrun.worker.request import noted
from sandboxrun.worker.responses import Responses
from sandboxrun.worker.sweep import look_around, nothing_pending, remove_gone

TYPE_CHECKING = False
if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Mapping
    from typing import Any

    from sandboxrun.config.fields import Loop
    from sandboxrun.redis.replies import ReplyError
    from sandboxrun.worker.context import Context
    from sandboxrun.worker.effects import Emit
    from sandboxrun.worker.handlers import Handler
    from sandboxrun.worker.request import Encoder, Request

BATCH_MOST = 100  # requests a read; with more, the round trip is no longer measurable
LOOK_SECONDS = 1.0  # between looks for stale claims
QUIET_SECONDS = 2.0  # and while nothing happens, under a supervisor
QUIET_AFTER = 3  # looks without a request, after which only pending requests are looked for
GRACE_SECONDS = 3.0  # from SIGTERM until unfinished requests are handed back; sandboxrun kills after 5
CUT_SECONDS = 1.0  # for handing back to a Redis that does not answer
TELL_SECONDS = 0.2  # that `request.progress` waits for the connection
LOGIN_SECONDS = 30.0  # in which sandboxrun makes the worker's user again after a restart or failover of Redis
CONFLICTS_MOST = 100  # how often a handler runs again because others have changed its state
RENEW_PART = 6  # takeoverMillis / 6: how often a claim is renewed


class Worker:
    """Base of Serial and Tasks: sessions with Redis until the end, and the reply to each request."""

    event_loop: AbstractEventLoop | None = None  # of async handlers

    def __init__(self, context: Context, loop: Loop, handlers: Mapping[str, Handler], encoder: Encoder) -> None:
        """`handlers`: by the type of their requests."""
        self._context, self._loop, self._handlers = context, loop, handlers
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
        self._health = Health()
        self._claims.supervised = self._health.shared
        self._answers = Answers(handlers, context.type, loop, self._render, encoder, self._tell, context.caller)
        self._answers.replied = self._health.replied
        context.caller.joining = self
        self.context = context
        self._signals = process.Signals()
        self._signals.forked.append(self._forked)
        self.pid = os.getpid()
        self._claims.unsendable = self._answers.give_up_reply
        self._outages = Outages(self._warn)
        # The longest delay is shorter than the time after which another worker may take our claims.
        self._backoff = Backoff(self._outages, min(RETRY_MOST_SECONDS, loop.takeover_millis / 1000 / RENEW_PART))
        self._claims.back = self._backoff.succeeded
        self._responses = Responses(self._claims)
        self._lock = _thread.allocate_lock()  # held by each user of the claims, and not while a handler runs
        self._until: float | None = None  # once the end has begun: when unfinished requests are handed back
        self._telling = False  # `request.progress` is sending, in the handler's thread
        self._begun = 0  # requests begun, for requestLimit
        self._look = 0.0
        self._unchanged = 0  # looks since the last request
        self._answered_before = 0  # requests answered at the last look
        self._more = False  # there are more stale claims than the last look could take
        self._tidy = time.monotonic() + 60

    def run(self) -> None:
        raise NotImplementedError

    # --- sessions

    def _connect(self) -> None:
        """Open the claims' connection, and retry until Redis is there or the end has begun. Raises GaveUp."""
        while not self._try_to_connect():
            if self._until is not None and time.monotonic() > self._until:
                raise GaveUp
            left = self._backoff.left()
            time.sleep(left if self._until is None else min(left, max(0.0, self._until - time.monotonic())))

    def _try_to_connect(self) -> bool:
        """Try once if the backoff allows it; whether the connection is open."""
        if self._backoff.left():
            return False
        try:
            self._claims.open()
        except (ConnectionLost, LoginRefused) as error:
            self._lost(error)
            return False
        self._render.expire_nx = self._claims.expire_nx
        self._look = 0.0
        return True

    def _lost(self, error: ConnectionLost | LoginRefused) -> None:
        """Close the connection and set the next try. Raises the error if a retry is pointless."""
        self._claims.close()
        self._claims.away = True
        self._backoff.failed(error)
        if isinstance(error, LoginRefused) and not self._may_return(self._backoff.since):
            raise error

    def _may_return(self, since: float) -> bool:
        """Whether to retry a login that has been refused `since` then: sandboxrun may make the worker's user again."""
        return self._claims.opened > 0 and time.monotonic() - since < LOGIN_SECONDS

    def _warn(self, message: str) -> None:
        say(message)

    def _forked(self) -> None:
        self._answers.is_child = True

    def _end(self, *_: object) -> None:
        """Begin the end: read no more, finish the requests in hand, and hand back those that take too long."""
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
        if os.getpid() != self.pid:  # forked by a C library, without Python's fork hooks
            process.leave_child(None)
        if not self._render.expire_nx:
            # Redis before 7 has no EXPIRE … NX, so the expiry is read before the transaction.
            unsent = [entry for entry in entries if entry.ref is not None and not entry.sent]
            if unsent:
                left = self._claims.exchange(*[("TTL", keys.trace_key(entry.ref or "")) for entry in unsent])
                for entry, seconds in zip(unsent, left, strict=True):
                    if isinstance(seconds, int) and seconds < 0:
                        self._render.expire_trace(entry)
        self._claims.write(entries)

    def _look_around(self, at: float) -> None:
        """Once a second: take over stale claims and trim. Once a minute: remove consumers that are gone.

        While nothing happens, one question takes the place of all these, but once a minute.
        """
        if self._claims.broken:
            self._claims.verify()
        if at >= self._look:
            quiet = self._is_quiet()
            if not quiet:
                self._more = look_around(self._claims)
                self._responses.look()
            self._look = at + (QUIET_SECONDS if quiet and self._health.shared else LOOK_SECONDS)
            self._answers.say_dead_letters()
        if at >= self._tidy:
            self._tidy = at + 60
            self._unchanged = min(self._unchanged, QUIET_AFTER - 1)
            remove_gone(self._claims)

    def _is_quiet(self) -> bool:
        """Whether nothing has happened for some looks, and nobody has a request in hand."""
        claims = self._claims
        if claims.hand or claims.suspects or self._more or claims.answered != self._answered_before:
            self._unchanged, self._answered_before = 0, claims.answered
            return False
        self._unchanged += 1
        return self._unchanged > QUIET_AFTER and nothing_pending(claims)

    def _leave(self) -> None:
        self._answers.say_dead_letters(last=True)
        try:
            self._claims.leave()
        except (ConnectionLost, LoginRefused):
            pass  # a left-over fence, or the pid of a dead process, blocks nobody
        self._claims.close()

    # --- effects of handlers: joined.py calls these under the lock, in any thread

    def begin(self) -> None:
        """A reply has effects. Called in the handler's thread, without the lock."""
        if self._claims.joined is None:
            from sandboxrun.worker.joined import Joined

            made = Joined(self._claims, self)
            if self._claims.joined is None:
                self._claims.joined = made

    def changed(self, entry: Entry, again: Entry) -> None:
        if again.conflicts < CONFLICTS_MOST:
            self._handle_again(entry, again)
        else:
            self.committed(entry)
            self._answers.give_up_state(again)
            self._send_soon(again)

    def refused(self, entry: Entry, error: Exception) -> None:
        self.context.callees.clear()  # ask again
        self._answers.refuse_effects(entry, error)
        if not self._render.expire_nx:
            self._render.expire_trace(entry)  # `verify` sends it, and not `_send`
        self.committed(entry)

    def refused_state(self, entry: Entry, error: ReplyError) -> None:
        self._answers.refuse_effects(entry, error)
        self._send_soon(entry)

    def undelivered(self, entry: Entry, emit: Emit, error: ReplyError) -> bytes:
        return self._answers.undelivered(entry, emit, error)

    def committed(self, entry: Entry) -> None:
        pass

    def _handle_again(self, entry: Entry, again: Entry) -> None:
        raise NotImplementedError

    def _send_soon(self, entry: Entry) -> None:
        """Send a reply that was made again."""
        raise NotImplementedError

    # --- one request

    def _tell(self, request: Request, fields: Mapping[str, Any]) -> None:
        """`request.progress`, in the handler's thread: sent at once, and dropped if Redis is away."""
        if self._answers.is_child or not request.ref:
            return  # the connection is its parent's, or there is no trace
        trace = keys.trace_key(request.ref)
        self._telling = True
        try:
            self._tell_now(trace, noted(fields))
        finally:
            self._telling = False

    def _tell_now(self, trace: str, words: list[bytes]) -> None:
        if not self._lock.acquire(timeout=TELL_SECONDS):
            return
        try:
            self._claims.exchange(
                ("HSET", trace, *words),
                *([("EXPIRE", trace, TRACE_EXPIRE_SECONDS, "NX")] if self._render.expire_nx else []),
            )
        except (ConnectionLost, LoginRefused):
            pass  # the reply meets the same error, and is sent again
        finally:
            self._lock.release()


class GaveUp(Exception):
    """Redis stayed away until the time for the end was over."""
