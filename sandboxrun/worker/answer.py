"""The answer to a request: the one place that decides it, for plain, threaded and async handlers.

Whatever a handler returns or raises, and whatever goes wrong while its reply is made or its error is printed, the entry
has the commands of exactly one reply afterwards, and nothing is raised. That includes SystemExit, KeyboardInterrupt and
CancelledError: a handler cannot end its worker by an exception.
"""

from __future__ import annotations

import os
import sys
import time

from sandboxrun.config import keys
from sandboxrun.protocol import BAD_REQUEST, FAILED, OK, RESULT_MAX_BYTES, Expired, code_of
from sandboxrun.protocol.reply import failure, last_resort, message_of
from sandboxrun.protocol.request import now, read, ref_of
from sandboxrun.worker.output import say
from sandboxrun.worker.process import leave_child
from sandboxrun.worker.request import Encoder, Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from sandboxrun.worker.batch import Entry, Renderer
    from sandboxrun.worker.handlers import Handler

NO_REF_SECONDS = 10.0  # between two warnings about requests that cannot be answered
NO_REF = "the request has no ref that can be answered: expected 1 to 256 characters of UTF-8, none of them a control character"
_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_LIBRARY = os.path.dirname(os.__file__) + os.sep


class ResultError(Exception):
    """The handler's result, or what it gave to `request.trace`, cannot be written."""


class Answers:
    """Calls handlers and makes their replies. Methods may be called from several threads, but not for one entry."""

    def __init__(
        self,
        handlers: Mapping[str, Handler],
        type_: str,
        consumer: str,
        render: Renderer,
        encoder: Encoder,
        tell: Callable[[Request, dict[str, Any]], None],
    ) -> None:
        """`tell`: what `request.progress` calls."""
        self._handlers, self._type, self._consumer, self._render = handlers, type_, consumer, render
        self._encoder, self._tell = encoder, tell
        self._dead = keys.dead_stream(type_)
        self.limited: Callable[[Handler, Request], Any] | None = None  # calls a handler with a timeout, where it can be
        self.is_child = False  # this process was forked by a handler: it answers nothing
        self._no_ref, self._no_ref_due = 0, 0.0

    def parse(self, entry: Entry) -> tuple[Handler, Request]:
        """The request and its handler. Raises BadRequest and Expired."""
        raw = entry.raw
        ref, type_, data, deadline = read(raw, self._handlers, self._type)
        entry.ref = ref
        request = Request(
            entry.xid.decode(), ref, type_, data, raw, deadline, entry.deliveries, self._encoder, self._tell
        )
        if deadline is not None:
            check_deadline(request)
        return self._handlers[type_], request

    def serve(self, entry: Entry) -> None:
        """Parse the request, call its handler in this thread, and make the reply."""
        received, request = now(), None
        try:
            handler, request = self.parse(entry)
            entry.begun = True
            if handler.timeout is None or self.limited is None:
                result = handler.call(request)
            else:
                result = self.limited(handler, request)
            self.finish(entry, received, request, result)
        except BaseException as error:
            self.fail(entry, received, request, error)

    def call(self, entry: Entry, received: str, handler: Handler, request: Request) -> Any:
        """As `serve`, for a request that was parsed before. Returns what is to be awaited before there is a reply, or None."""
        try:
            check_deadline(request)
            result = handler.call(request)
            if hasattr(result, "__await__"):  # of a plain function around an async one
                return result
            self.finish(entry, received, request, result)
        except BaseException as error:
            self.fail(entry, received, request, error)
        return None

    def finish(self, entry: Entry, received: str, request: Request, result: Any) -> None:
        """Make the reply of what the handler returned. May raise anything: `fail` takes it."""
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
        try:
            self._render.reply(entry, OK, body, received, done, request._noted)
        except BaseException as error:
            raise ResultError(message_of(error)) from error

    def fail(self, entry: Entry, received: str, request: Request | None, error: BaseException) -> None:
        """Make the reply of an error. Never raises."""
        if self.is_child:
            leave_child(error)
        try:
            self._fail(entry, received, request, error)
        except BaseException:
            self._render.reply(entry, FAILED, last_resort(entry.ref, self._type, received), received, received)

    def _fail(self, entry: Entry, received: str, request: Request | None, error: BaseException) -> None:
        code = code_of(type(error))  # isinstance would ask the error's own __class__
        if request is None:
            entry.ref = ref_of(entry.raw)
        if code == FAILED:
            self._show(entry, error)
        done = now()
        result = failure(error, entry.raw, with_payload=code == FAILED)
        body = self._encoder.reply(entry.ref, self._type, code, result, done)
        if len(body) > RESULT_MAX_BYTES:
            result = failure(error, entry.raw, with_payload=False)
            body = self._encoder.reply(entry.ref, self._type, code, result, done)
        notes = request._noted if request is not None else None
        try:
            self._render.reply(entry, code, body, received, done, notes)
        except BaseException:  # a note that cannot be written
            self._render.reply(entry, code, body, received, done)
        if entry.ref is None and code == BAD_REQUEST:
            self._render.bury(entry, NO_REF, self._consumer, done)
            self._no_ref += 1
            self.say_no_ref()

    def give_up(self, entry: Entry) -> None:
        """Make the reply of a request that was begun too often, and its dead letter."""
        reason = f"given up after {entry.deliveries} deliveries without a reply: its handler ended the worker, or its worker was lost"
        at = now()
        self.fail(entry, at, None, RuntimeError(reason))
        self._render.bury(entry, reason, self._consumer, at)
        say(f"request {entry.xid.decode()} is {reason}; it is in {self._dead}")

    def give_up_reply(self, entry: Entry) -> None:
        """Put a small reply in the place of one over which the connection was lost again and again, and a dead letter."""
        reason = f"its reply cannot be sent: the connection was lost {entry.losses} times over its {len(entry.commands)} bytes"
        at = now()
        entry.ref = ref_of(entry.raw)
        if entry.spent:
            entry.raw = {b"type": entry.raw.get(b"type", b"")}  # nor can its dead letter, as it seems
        entry.spent = True
        body = failure(RuntimeError(reason), entry.raw, with_payload=False)
        self._render.reply(entry, FAILED, self._encoder.reply(entry.ref, self._type, FAILED, body, at), at, at)
        self._render.bury(entry, reason, self._consumer, at)
        say(f"request {entry.xid.decode()}: {reason}; it is in {self._dead}")

    def say_no_ref(self, *, last: bool = False) -> None:
        """Say how many requests could not be answered, at most once in a while. `last`: now, if there are any."""
        at = time.monotonic()
        if self._no_ref and (last or at >= self._no_ref_due):
            count, self._no_ref, self._no_ref_due = self._no_ref, 0, at + NO_REF_SECONDS
            say(f"{count} request{'s' * (count > 1)} without a ref that can be answered: moved to {self._dead}")

    def _show(self, entry: Entry, error: BaseException) -> None:
        """Print an error of the handler's. The hook adds, inside the sandbox, the grant that was missing."""
        try:
            kind, shown = type(error), error
            if issubclass(kind, ResultError):
                cause = error.__cause__
                if cause is None or not _is_of_script(cause):
                    say(f"request {entry.xid.decode()} is answered 500: {message_of(error)}")
                    return
                kind, shown = type(cause), cause
            traceback = _traceback(shown)
            if traceback is not None:
                sys.excepthook(kind, shown, traceback)
        except BaseException as worse:
            say(
                f"request {entry.xid.decode()} is answered 500: {message_of(error)} "
                f"(its traceback cannot be printed: {message_of(worse)})"
            )


def check_deadline(request: Request) -> None:
    """Raise Expired once the deadline has passed."""
    if request.deadline is not None and request.deadline <= time.time():
        raise Expired("the request's deadline had passed before it was begun")


def _traceback(error: BaseException) -> Any:
    """The error's own, whatever its class has under that name."""
    return BaseException.__dict__["__traceback__"].__get__(error)


def _is_of_script(error: BaseException) -> bool:
    """Whether the error passed through code that is neither ours nor Python's: then its traceback is of use."""
    traceback = _traceback(error)
    while traceback is not None:
        if not traceback.tb_frame.f_code.co_filename.startswith((_OURS, _LIBRARY)):
            return True
        traceback = traceback.tb_next
    return False
