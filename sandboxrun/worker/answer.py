"""The answer to a request: one place decides it for plain, threaded and async handlers.

Whatever a handler returns or raises, and whatever fails while its reply is encoded or its error is printed, the entry has
the commands of exactly one reply afterwards, and nothing is raised. SystemExit, KeyboardInterrupt and CancelledError are
included: a handler cannot end its worker by an exception.
"""

from __future__ import annotations

import os
import sys
import time

from sandboxrun.config import keys
from sandboxrun.protocol import BAD_REQUEST, EXPIRED, FAILED, OK, RESULT_MAX_BYTES, Expired, code_of
from sandboxrun.protocol.calling import current
from sandboxrun.protocol.reply import failure, last_resort, message_of
from sandboxrun.protocol.request import now, read, ref_of
from sandboxrun.worker.output import say
from sandboxrun.worker.process import leave_child
from sandboxrun.worker.request import Encoder, Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from sandboxrun.config.fields import Loop
    from sandboxrun.protocol.calling import Caller
    from sandboxrun.worker.effects import Emit
    from sandboxrun.worker.handlers import Handler
    from sandboxrun.worker.rendering import Entry, Renderer
    from sandboxrun.worker.tracing import Span

SAY_SECONDS = 10.0  # between two warnings about dead letters
NO_REF = "the request has no ref that can be answered: expected 1 to 256 characters of UTF-8, none of them a control character"
_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_LIBRARY = os.path.dirname(os.__file__) + os.sep


class ResultError(Exception):
    """The handler's result, or a value that it passed to `request.trace`, cannot be encoded."""


class Answers:
    """Calls handlers and encodes their replies. Several threads may call the methods, each for another entry."""

    def __init__(
        self,
        handlers: Mapping[str, Handler],
        type_: str,
        loop: Loop,
        render: Renderer,
        encoder: Encoder,
        tell: Callable[[Request, dict[str, Any]], None],
        caller: Caller | None = None,
    ) -> None:
        """`tell`: called by `request.progress`. `caller`: this worker, for the calls of handlers."""
        self._handlers, self._type, self._loop, self._render = handlers, type_, loop, render
        self._own_type = type_.encode()
        self._encoder, self._tell, self._caller = encoder, tell, caller
        self._dead = keys.dead_stream(type_)
        self.limited: Callable[[Handler, Request], Any] | None = (
            None  # calls a handler with a timeout; None: unsupported
        )
        self.replied: Callable[[int], None] = lambda code: None  # called with the code of each reply that is not OK
        self.is_child = False  # a handler has forked this process, which answers nothing
        self._no_ref, self._say_due = 0, 0.0
        self._buried, self._last_buried = 0, ""  # since the last warning

    def parse(self, entry: Entry) -> tuple[Handler, Request]:
        """The request and its handler. Raises BadRequest and Expired."""
        raw = entry.raw
        entry.silent = self._loop.is_shared and not self._is_answered(raw)
        ref, type_, data, deadline = read(raw, self._handlers, self._type, silent=entry.silent)
        entry.ref = ref or None
        xid, encoder, tell = entry.xid.decode(), self._encoder, self._tell
        request = Request(xid, ref, type_, data, raw, deadline, entry.deliveries, encoder, tell, self._caller)
        if deadline is not None:
            check_deadline(request)
        handler = self._handlers[type_]
        if handler.parts:
            handler = handler.route(request)
        if handler.checked is not None:
            handler.checked.of(request).take(data, raw.get(b"data", b""))
        return handler, request

    def is_item(self, entry: Entry) -> bool:
        """Whether nobody waits for a reply to this entry of a batch: it has no ref, or is answered by another group."""
        return not self._is_answered(entry.raw) if self._loop.is_shared else b"ref" not in entry.raw

    def _is_answered(self, raw: Mapping[bytes, bytes]) -> bool:
        """Whether an entry in a group of its own is a request to this type: any other is answered by another group."""
        return raw.get(b"type") == self._own_type and ref_of(raw) is not None

    def serve(self, entry: Entry) -> None:
        """Parse the request, call its handler in this thread, and encode the reply. The caller resets `current`."""
        received, request = now(), None
        try:
            handler, request = self.parse(entry)
            entry.begun = True
            current.set(request)
            if handler.timeout is None or self.limited is None:
                result = handler.call(request)
            else:
                result = self.limited(handler, request)
            self.finish(entry, received, handler, request, result)
        except BaseException as error:
            self.fail(entry, received, request, error)

    def call(self, entry: Entry, received: str, handler: Handler, request: Request) -> Any:
        """As `serve`, for a parsed request. Returns an awaitable that the reply depends on, or None if it is done."""
        try:
            check_deadline(request)
            current.set(request)
            result = handler.call(request)
            if hasattr(result, "__await__"):  # a plain function that wraps an async one
                return result
            self.finish(entry, received, handler, request, result)
        except BaseException as error:
            self.fail(entry, received, request, error)
        finally:
            current.set(None)
        return None

    def finish(self, entry: Entry, received: str, handler: Handler, request: Request, result: Any) -> None:
        """Encode the handler's result as the reply. May raise anything, which the caller passes to `fail`."""
        if self.is_child:
            leave_child(None)
        try:
            if result is not None and not isinstance(result, dict):
                result = self._encoder.forms.fields(result)
            done = now()
            body = self._encoder.reply(entry.ref, self._type, OK, result or {}, done)
        except BaseException as error:
            raise ResultError(f"the handler's result is not JSON: {message_of(error)}") from error
        if len(body) > RESULT_MAX_BYTES:
            raise ResultError(f"the reply has {len(body)} bytes: at most {RESULT_MAX_BYTES} are sent")
        if handler.checked is not None:
            handler.checked.of(request).give(body)
        try:
            span = span_of(entry, request) if b"traceparent" in entry.raw else None
            notes = request._noted if request._calling is None else request._notes()
            effects = request._effects
            request._effects = False
            if effects:
                effects.close()
            self._render.reply(entry, OK, body, received, done, notes, span)
            if effects:
                effects.join(entry)
        except BaseException as error:
            raise ResultError(message_of(error)) from error

    def fail(self, entry: Entry, received: str, request: Request | None, error: BaseException) -> None:
        """Encode an error as the reply. Never raises."""
        if self.is_child:
            leave_child(error)
        try:
            self._fail(entry, received, request, error)
        except BaseException:
            self.replied(FAILED)
            self._render.reply(entry, FAILED, last_resort(entry.ref, self._type, received), received, received)
            if entry.silent:
                self.bury(entry, message_of(error))

    def _fail(self, entry: Entry, received: str, request: Request | None, error: BaseException) -> None:
        if request is not None:
            if request._effects:
                request._effects.close()
            request._effects = False
        code = code_of(type(error))  # isinstance would evaluate the error's own __class__
        if code == EXPIRED and entry.conflicts:  # it has run before, and may have done more than it has written
            code, error = FAILED, RuntimeError(f"{conflicted(entry)}, until its deadline had passed")
        if request is None and not entry.silent:
            entry.ref = ref_of(entry.raw)
        if code == FAILED:
            show(error, f"request {entry.xid.decode()}")
        done = now()
        result = failure(error, entry.raw, with_payload=code == FAILED)
        body = self._encoder.reply(entry.ref, self._type, code, result, done)
        if len(body) > RESULT_MAX_BYTES:
            result = failure(error, entry.raw, with_payload=False)
            body = self._encoder.reply(entry.ref, self._type, code, result, done)
        notes = request._notes() if request is not None else None
        span = span_of(entry, request) if b"traceparent" in entry.raw else None
        try:
            self._render.reply(entry, code, body, received, done, notes, span)
        except BaseException:  # a trace field that cannot be encoded
            self._render.reply(entry, code, body, received, done, span=span)
        self.replied(code)
        if entry.silent:
            self.bury(entry, message_of(error))
        elif entry.ref is None and code == BAD_REQUEST:
            self._render.add_dead_letter(entry, NO_REF, self._loop.consumer_id, done)
            self._no_ref += 1
            self.say_dead_letters()

    def bury(self, entry: Entry, reason: str) -> None:
        """Add the dead letter of an entry that has failed, and that nobody is told of otherwise."""
        self._render.add_dead_letter(entry, reason, self._loop.consumer_id, now())
        self._buried, self._last_buried = self._buried + 1, f"{entry.xid.decode()}: {reason[:200]}"
        self.say_dead_letters()

    def give_up(self, entry: Entry) -> None:
        """Encode the 500 and the dead letter of a request that was begun too often."""
        reason = f"given up after {entry.deliveries} deliveries without a reply: its handler ended the worker, or its worker was lost"
        at = now()
        entry.silent = self._loop.is_shared and not self._is_answered(entry.raw)
        self.fail(entry, at, None, RuntimeError(reason))
        if entry.silent:
            return
        self._render.add_dead_letter(entry, reason, self._loop.consumer_id, at)
        self._say_dead(f"request {entry.xid.decode()} is {reason}; it is in {self._dead}")

    def give_up_reply(self, entry: Entry) -> None:
        """Replace a reply over which the connection was lost repeatedly by a small 500 and a dead letter."""
        reason = f"its reply cannot be sent: the connection was lost {entry.losses} times over its {len(entry.commands)} bytes"
        at = now()
        entry.ref, entry.effects = ref_of(entry.raw), None
        if entry.spent:
            entry.raw = {b"type": entry.raw.get(b"type", b"")}  # the dead letter with all fields failed as well
        entry.spent = True
        body = failure(RuntimeError(reason), entry.raw, with_payload=False)
        self._render.reply(entry, FAILED, self._encoder.reply(entry.ref, self._type, FAILED, body, at), at, at)
        self._render.add_dead_letter(entry, reason, self._loop.consumer_id, at)
        self._say_dead(f"request {entry.xid.decode()}: {reason}; it is in {self._dead}")

    def refuse_effects(self, entry: Entry, error: Exception) -> None:
        """Replace the reply by a 500 without effects, because Redis refuses to write them."""
        reason = f"Redis refused an effect of the handler, so no effect was written: {str(error)[:200]}"
        entry.effects = None
        self.fail(entry, now(), None, RuntimeError(reason))
        say(f"request {entry.xid.decode()} is answered 500: {reason}")

    def give_up_state(self, entry: Entry) -> None:
        """Encode the 500 of a request whose state was changed by others too often."""
        reason = f"{conflicted(entry)}, so nothing was written"
        self.fail(entry, now(), None, RuntimeError(reason))
        say(f"request {entry.xid.decode()} is answered 500: {reason}")

    def undelivered(self, entry: Entry, emit: Emit, error: Exception) -> bytes:
        """The commands of the dead letter of an emit that Redis has refused after the reply was written."""
        reason = f"the reply was written, and this request to {emit.type} was refused by Redis: {str(error)[:200]}"
        letter = self._render.undelivered(entry, emit, reason, self._loop.consumer_id, now())
        self._say_dead(f"request {entry.xid.decode()}: {reason}; it is in {self._dead}")
        return letter

    def say_dead_letters(self, *, last: bool = False) -> None:
        """Warn how many requests were moved to the dead letters, at most every SAY_SECONDS. `last`: warn now if there are any."""
        at = time.monotonic()
        if not (self._no_ref or self._buried) or (at < self._say_due and not last):
            return
        self._say_due = at + SAY_SECONDS
        no_ref, buried, self._no_ref, self._buried = self._no_ref, self._buried, 0, 0
        if no_ref:
            self._say_dead(
                f"{no_ref} request{'s' * (no_ref > 1)} without a ref that can be answered: moved to {self._dead}"
            )
        if buried:
            self._say_dead(
                f"{buried} request{'s' * (buried > 1)} failed: moved to {self._dead}, the last {self._last_buried}"
            )

    def _say_dead(self, message: str) -> None:
        say(message, hint=(f"sandboxrun dead {self._type}",))


def conflicted(entry: Entry) -> str:
    return f"the state that the handler had read was changed by others {entry.conflicts} times"


def span_of(entry: Entry, request: Request | None) -> Span | None:
    """For an entry with a traceparent: what the record of its reply says about it; None if it is malformed."""
    from sandboxrun.worker import tracing

    return tracing.span_of(entry.raw, request)


def check_deadline(request: Request) -> None:
    """Raise Expired once the deadline has passed."""
    if request.deadline is not None and request.deadline <= time.time():
        raise Expired("the request's deadline had passed before it was begun")


def show(error: BaseException, subject: str) -> None:
    """Print the error of what failed. Inside the sandbox the exception hook adds the missing grant. Never raises."""
    try:
        kind, shown = type(error), error
        if issubclass(kind, ResultError):
            cause = error.__cause__
            if cause is None or not _is_of_script(cause):
                say(f"{subject} is answered 500: {message_of(error)}")
                return
            kind, shown = type(cause), cause
        traceback = _traceback(shown)
        if traceback is not None:
            sys.excepthook(kind, shown, traceback)
    except BaseException as worse:
        say(f"{subject} is answered 500: {message_of(error)} (its traceback cannot be printed: {message_of(worse)})")


def _traceback(error: BaseException) -> Any:
    """The error's traceback, even if its class overrides the attribute."""
    return BaseException.__dict__["__traceback__"].__get__(error)


def _is_of_script(error: BaseException) -> bool:
    """Whether the traceback has a frame of the script: the others do not help its author."""
    traceback = _traceback(error)
    while traceback is not None:
        if not traceback.tb_frame.f_code.co_filename.startswith((_OURS, _LIBRARY)):
            return True
        traceback = traceback.tb_next
    return False
