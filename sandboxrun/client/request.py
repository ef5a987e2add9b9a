"""One request in flight: its commands, its state, and the meaning of its reply. Pure."""

from __future__ import annotations

import enum
import json
import math
import os
import time
from itertools import chain

from sandboxrun.client import forks
from sandboxrun.client.login import Login
from sandboxrun.config import keys
from sandboxrun.errors import ConnectionLost
from sandboxrun.protocol import OK, REPLY_MAX_BYTES, TRACE_EXPIRE_SECONDS
from sandboxrun.protocol.call import CallDenied, CallError, CallTimeout, Expired, NotSent, RemoteError, error_of
from sandboxrun.protocol.calling import check_path, current
from sandboxrun.protocol.reply import Unusable, checked, decoded, error_text, reply_in
from sandboxrun.protocol.request import UNLIMITED_SECONDS, check_method, encode, entry, iso, trace_fields
from sandboxrun.protocol.tracing import accepted
from sandboxrun.redis.connection import pack
from sandboxrun.redis.replies import refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import timedelta
    from decimal import Decimal
    from typing import Any

    from sandboxrun.errors import SandboxrunError
    from sandboxrun.protocol.calling import Calling
    from sandboxrun.redis.replies import ReplyError

    Payload = Mapping[str, Any] | list[Any] | tuple[Any, ...] | str | float | None  # what JSON has
    Timeout = float | Decimal | timedelta | None  # seconds
    Outcome = dict[str, Any] | Exception

UNLIMITED_EXPIRE_SECONDS = 24 * 3600  # expiry of the trace of a request without a time-out
PUT_COMMANDS = 3  # for one request
REF_CHARS = 24  # of a ref, after the NONCE


def _expire_seconds(timeout: float | None) -> int:
    """Of the trace of a request with this time-out."""
    return UNLIMITED_EXPIRE_SECONDS if timeout is None else max(TRACE_EXPIRE_SECONDS, int(timeout) + 1)


class State(enum.Enum):
    """Whether a request is in the stream."""

    UNSENT = "not in the stream"
    UNSURE = "sent, but the connection was lost before the answer came"
    SENT = "in the stream"


class ReplyTooLarge(ConnectionLost):
    """A reply has more than REPLY_MAX_BYTES, and the connection was closed. `head`: the first bytes of the reply."""

    def __init__(self, message: str, head: bytes) -> None:
        super().__init__(message)
        self.head = head


def seconds_of(timeout: Timeout) -> float | None:
    """A time-out in seconds, or None for no limit. Raises TypeError, ValueError."""
    if timeout is None or (type(timeout) is float and 0 < timeout < UNLIMITED_SECONDS):
        return timeout
    if hasattr(timeout, "total_seconds"):
        timeout = timeout.total_seconds()
    if isinstance(timeout, bool | str | bytes) or not (hasattr(timeout, "__float__") or hasattr(timeout, "__index__")):
        raise TypeError(f"timeout is {timeout!r:.80}: expected seconds as a number, a timedelta, or None for no limit")
    try:
        seconds = float(timeout)
    except OverflowError:  # an int that no float can hold
        seconds = math.inf if timeout > 0 else -math.inf
    if not seconds > 0:  # NaN, too
        raise ValueError(f"timeout is {seconds:g} s: expected more than 0, or None for no limit")
    return None if seconds >= UNLIMITED_SECONDS else seconds


class Extras:
    """What few requests have: a method, a trace, and what a handler's request inherits from the one that is handled."""

    __slots__ = ("calling", "granted", "later", "method", "note", "path", "traceparent")

    def __init__(self, method: str | None, traceparent: str | None, calling: Calling | None) -> None:
        """Raises ValueError for a malformed `method`."""
        if method is not None:
            check_method(method)
        self.method, self.traceparent, self.calling = method, accepted(traceparent) if traceparent else "", calling
        self.path: tuple[str, ...] = ()
        self.granted = False  # it is sent under the worker's own grant, allowCall
        self.note = b""  # the commands that name the request in the trace of the one that is handled
        self.later: tuple[str, str] | None = None  # or the field that does so, and its value, for the reply to bring


class Outgoing:
    """One request in flight."""

    __slots__ = (
        "_extras", "_text", "_trace", "_type", "began", "count", "deadline", "fence", "key", "look", "perhaps", "process",
        "reason", "ref", "retry", "state", "timeout", "trace_key", "until",
    )  # fmt: skip

    def __init__(
        self,
        type_: str,
        data: Payload,
        timeout: Timeout,
        trace: dict[str, Any] | None,
        *,
        retry: bool = True,
        method: str | None = None,
        traceparent: str | None = None,
        login: Login | None = None,
    ) -> None:
        """In a handler, it inherits from the current request.

        Raises TypeError or ValueError for `data` or `trace` that is not JSON, and for a malformed `method`; in a handler,
        CallDenied, BadRequest for a call cycle, and Expired if no time is left.
        """
        self.timeout = seconds_of(timeout)
        self.began = time.time()
        self.deadline = None if self.timeout is None else self.began + self.timeout
        self._type, self._text = type_, encode(data)
        login = login or Login()
        self.ref = login.nonce + os.urandom(12).hex()
        self.count, self._extras = PUT_COMMANDS, None
        if method is not None or traceparent or current.held() is not None:
            self._extend(Extras(method, traceparent, current.get()), login)
        self.key = keys.reply_key(self.ref).encode()
        self.trace_key = keys.trace_key(self.ref)
        self.until = math.inf if self.timeout is None else time.monotonic() + self.timeout
        self.retry = retry
        self.state = State.UNSENT
        self.perhaps = False  # Redis may have accepted it, and lost it since
        self.fence = ""  # of the connection that sent it
        self.look = False  # the reply may have been lost with a connection, so the trace is read
        self.reason = ""  # why it is not sent or not answered yet
        self.process = forks.generation
        self._trace = {
            name: value if isinstance(value, str) else json.dumps(value) for name, value in (trace or {}).items()
        }

    _extras: Extras | None

    def _extend(self, extras: Extras, login: Login) -> None:
        self._extras = extras
        calling = extras.calling
        if calling is None:
            return
        extras.path = check_path(calling, self._type)
        extras.traceparent = extras.traceparent or calling.traceparent
        deadline = calling.deadline
        if deadline is not None and (self.deadline is None or deadline < self.deadline):
            self.deadline, self.timeout = deadline, deadline - self.began
            if self.timeout <= 0:
                raise Expired(f"{self._type} was not called: the deadline of the current request has passed")
        if login.own:
            self._belong(extras, calling, login)

    def _belong(self, extras: Extras, calling: Calling, login: Login) -> None:
        """At the worker's own Redis: take a ref that the worker may read, and a place in the trace of what it handles."""
        if not calling.nonce:
            raise self._denied(calling)
        extras.granted = True
        self.ref = calling.nonce + self.ref[-REF_CHARS:]
        if not calling.ref:  # a thread of the script's, which handles no request
            return
        note = calling.note(self.ref, self._type if extras.method is None else f"{self._type} {extras.method}")
        if login.separate:
            extras.later = note
        elif note is not None:
            key = keys.trace_key(calling.ref)
            extras.note = pack("HSET", key, *note)
            self.count += 1
            if calling.deadline is not None:  # else it has the expiry of its client, or gets one with its reply
                extras.note += pack("EXPIRE", key, _expire_seconds(calling.deadline - self.began + 1))
                self.count += 1

    def _denied(self, calling: Calling) -> CallDenied:
        return CallDenied(calling.caller.key, self._type, calling.caller.allowed)

    @property
    def size(self) -> int:
        """Approximate size of its commands in bytes."""
        return 2 * len(self._text) + 500

    @property
    def trace_field(self) -> str:
        """The field of the trace with the reply."""
        return keys.trace_field(self._type)

    @property
    def left(self) -> float:
        """Seconds until it times out."""
        return self.until - time.monotonic()

    @property
    def resendable(self) -> bool:
        """Whether it may be sent again once Redis says that it was not accepted."""
        return self.state is State.UNSENT or (self.state is State.UNSURE and self.retry and bool(self.fence))

    def check_process(self) -> None:
        """Raise CallError if the process was forked during the call, because the reply is the parent's."""
        if self.process != forks.generation:
            raise CallError(f"the process was forked during the call of {self._type}: the reply goes to the parent")

    def commands(self) -> bytes:
        """The packed commands for the traces and the entry, which comes last; they have `count` replies."""
        created, extras = iso(int(self.began * 1000)), self._extras
        ref, type_, text = self.ref, self._type, self._text
        if extras is None:
            note, about = b"", trace_fields(ref, type_, text, created)
            added = entry(ref, type_, text, created, self.deadline)
        else:
            note, method, parent = extras.note, extras.method, extras.traceparent
            about = trace_fields(ref, type_, text, created, method=method, traceparent=parent, caller=extras.calling)
            added = entry(ref, type_, text, created, self.deadline, method=method, traceparent=parent, path=extras.path)
        return (
            note
            + pack("HSET", self.trace_key, *chain.from_iterable({**self._trace, **about}.items()))
            + pack("EXPIRE", self.trace_key, _expire_seconds(self.timeout))
            + pack("XADD", keys.request_stream(type_), "*", *added)
        )

    def sending(self, fence: str) -> None:
        """Note that its commands are about to be sent on the connection with this fence."""
        self.state, self.fence = State.UNSURE, fence

    def taken(self) -> None:
        """Note that it is in the stream."""
        self.state, self.reason = State.SENT, ""
        extras = self._extras
        if extras is not None and extras.calling is not None and extras.later is not None:
            extras.calling.later[extras.later[0]] = extras.later[1]

    def not_taken(self) -> None:
        """Note that Redis has refused it."""
        self.state = State.UNSENT

    def refusal(self, error: ReplyError, shown: str, *, added: bool) -> SandboxrunError:
        """The error for an answer of Redis. `added`: whether it answers XADD. `shown`: the address of Redis."""
        extras = self._extras
        if added and extras is not None and extras.granted and extras.calling and str(error).startswith("NOPERM"):
            return self._denied(extras.calling)
        found = refused(error, shown)
        return NotSent(f"{found}; the request was not sent") if isinstance(found, ConnectionLost) else found

    def lost(self, reason: str) -> CallError | None:
        """Note that a connection was lost. Returns the error that ends the request, unless it is retried."""
        self.reason = reason
        self.look = True  # Redis may give the reply to the BRPOP of the lost connection, even if it is sent later
        if self.state is State.UNSURE:
            self.perhaps = True
        elif self.state is State.UNSENT and not self.retry:
            return NotSent(f"{reason}; the request was not sent")
        return None

    def timed_out(self) -> CallError:
        within = "" if self.timeout is None else f" within {self.timeout:g} s"
        if self.state is State.UNSENT and not self.perhaps:
            return NotSent(f"{self.reason or 'Redis takes no more at the moment'}; the request was not sent{within}")
        if self.state is not State.SENT:
            reason = self.reason or "Redis did not answer in time"
            return CallTimeout(f"{reason}; no reply{within}, and whether the request was accepted is unknown")
        reason = f": {self.reason}" if self.reason else ""
        return CallTimeout(
            f"no reply of {self._type} to {self.ref}{within}{reason}", hint=f"sandboxrun info {self._type}"
        )

    def unusable(self, problem: str) -> RemoteError:
        """The error for an unusable reply."""
        return RemoteError(f"the reply of {self._type} to {self.ref} {problem}")

    def too_large(self) -> RemoteError:
        return self.unusable(f"has more than {REPLY_MAX_BYTES} bytes: a worker may send 8 MiB")

    def outcome(self, value: bytes) -> dict[str, Any] | CallError:
        """The outcome, from the element of the reply's list."""
        if len(value) > REPLY_MAX_BYTES:
            return self.too_large()
        try:
            return self._judged(decoded(value))
        except ValueError as error:
            return self.unusable(f"is not JSON: {error}")

    def traced(self, value: bytes) -> dict[str, Any] | CallError | None:
        """The outcome, from the worker's field of the trace; None if that has no reply."""
        try:
            reply = reply_in(decoded(value))
        except ValueError as error:
            return self.unusable(f"is not JSON: {error}")
        return None if reply is None else self._judged(reply)

    def _judged(self, reply: object) -> dict[str, Any] | CallError:
        try:
            code, fields = checked(reply, self.ref)
        except Unusable as error:
            return self.unusable(str(error))
        if code == OK:
            return fields
        return error_of(code)(f"{self._type} replied {code}: {error_text(fields)}", fields)
