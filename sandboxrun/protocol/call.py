"""Errors of a call. `may_have_run` of each class says whether the handler may have run."""

from __future__ import annotations

from sandboxrun import protocol
from sandboxrun.config import keys
from sandboxrun.errors import ConnectionLost, SandboxrunError, StoreError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class CallError(SandboxrunError):
    """A call without a result. `may_have_run`: whether the handler may have run, so that its effects may exist."""

    exit_code = 70
    may_have_run = True
    reply: dict[str, Any] | None  # the worker's reply, if there was one

    def __init__(self, message: str, reply: dict[str, Any] | None = None, *, hint: str | tuple[str, ...] = "") -> None:
        super().__init__(message, hint)
        self.reply = reply


class BadRequest(CallError, protocol.BadRequest):
    """Code 400: the worker refused the request. Its handler did not run, or refused it."""

    exit_code = 65
    may_have_run = False


class UnknownMethod(BadRequest, protocol.UnknownMethod):
    """Code 404: the service has no such method, or the worker does not serve the service. Nothing ran."""


class Expired(CallError, protocol.Expired):
    """Code 504: the deadline had passed before the handler began, so it never ran."""

    exit_code = 75
    may_have_run = False


class CallDenied(CallError, StoreError):
    """The worker may not call this type, because its `allowCall` did not list it at start. Nothing was sent."""

    exit_code = 77
    may_have_run = False

    def __init__(self, key: str, callee: str, allowed: str = "") -> None:
        """`key`: the worker's hash. `allowed`: its `allowCall`."""
        from shlex import quote

        entries, words = (
            quote(f"allowCall={allowed},{callee}" if allowed else f"allowCall={callee}"),
            keys.in_words(key),
        )
        super().__init__(
            f"worker {keys.in_words(key)} is not allowed to call {callee}: allowCall did not list it at start",
            hint=f"sandboxrun set {words} {entries} && sandboxrun approve {words}",
        )
        self.callee = callee


class RemoteError(CallError):
    """Code 500: the handler failed, or the request was given up after `maxDeliveries`. Or the reply is unusable."""


class CallTimeout(CallError):
    """No reply in time. Whether the handler ran or still runs is unknown; it does not begin after the time-out."""

    exit_code = 75


class NotSent(CallError, ConnectionLost):
    """Redis was away, or could accept nothing: the request is not in the stream, and its handler never runs."""

    exit_code = 75
    may_have_run = False


def error_of(code: int) -> type[CallError]:
    """The error's class for a reply with this code, which is not 200."""
    return _CLASSES.get(code, RemoteError)


_CLASSES: dict[int, type[CallError]] = {
    protocol.BAD_REQUEST: BadRequest,
    protocol.UNKNOWN_METHOD: UnknownMethod,
    protocol.EXPIRED: Expired,
}
