"""What a call of a worker raises. Each class says by `may_have_run` whether the request may have run."""

from __future__ import annotations

from sandboxrun import protocol
from sandboxrun.errors import ConnectionLost, SandboxrunError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class CallError(SandboxrunError):
    """A call of a worker that brought no result. `may_have_run`: whether the handler may have done something."""

    exit_code = 70
    may_have_run = True
    reply: dict[str, Any] | None  # what the worker answered, if it did

    def __init__(self, message: str, reply: dict[str, Any] | None = None, *, hint: str | tuple[str, ...] = "") -> None:
        super().__init__(message, hint)
        self.reply = reply


class BadRequest(CallError, protocol.BadRequest):
    """Code 400: the worker does not accept the request. Its handler did not run, or refused by itself."""

    exit_code = 65
    may_have_run = False


class Expired(CallError, protocol.Expired):
    """Code 504: the deadline had passed before the handler began, so it never ran."""

    exit_code = 75
    may_have_run = False


class RemoteError(CallError):
    """Code 500: the handler ran and failed, or was given up after it had ended its worker too often."""


class CallTimeout(CallError):
    """No reply came in time. Whether the handler ran, runs or will run is unknown; with a deadline, it will not begin."""

    exit_code = 75


class NotSent(CallError, ConnectionLost):
    """Redis was away, or could take nothing at the moment: the request is not in the stream, and its handler never runs."""

    exit_code = 75
    may_have_run = False


def error_of(code: int) -> type[CallError]:
    """The class of the error that a reply with this code stands for; `code` is not 200."""
    return {protocol.BAD_REQUEST: BadRequest, protocol.EXPIRED: Expired}.get(code, RemoteError)
