"""One request on its way, whoever waits for it: what is sent, and what its reply means. Pure."""

from __future__ import annotations

import json
import os
import time

from sandboxrun import keys
from sandboxrun.connection import ReplyError, pack, refused
from sandboxrun.errors import (
    BadRequest,
    CallError,
    CallTimeout,
    ConnectionLost,
    Expired,
    NotSent,
    RemoteError,
    SandboxrunError,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

TRACE_EXPIRE_SECONDS = 120
PUT = 5  # commands of `put`


class Request:
    """One request on its way."""

    def __init__(self, type_: str, data: Any, timeout: float, trace: dict[str, Any] | None) -> None:
        self.ref = os.urandom(12).hex()
        self.key = keys.reply_key(self.ref)
        self.began, self.timeout = time.time(), timeout
        self.until = self.began + timeout
        self._type, self._text, self._trace = type_, json.dumps(data), trace or {}

    @property
    def size(self) -> int:
        """About how many bytes `put` has."""
        return 2 * len(self._text) + 500

    def put(self) -> bytes:
        """The trace and the entry, as one transaction; PUT replies."""
        trace = keys.trace_key(self.ref)
        seconds, millis = divmod(int(self.began * 1000), 1000)
        created = time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(seconds)) + f"{millis:03d}Z"
        fields = {"ref": self.ref, "type": self._type, "requestData": self._text, "created": created}
        for name, value in self._trace.items():
            fields.setdefault(name, value if isinstance(value, str) else json.dumps(value))
        words = [word for pair in fields.items() for word in pair]
        entry = ("ref", self.ref, "type", self._type, "data", self._text, "time", created)
        deadline = ("deadline", int(self.until * 1000))
        return (
            pack("MULTI")
            + pack("HSET", trace, *words)
            + pack("EXPIRE", trace, max(TRACE_EXPIRE_SECONDS, int(self.timeout) + 1))
            + pack("XADD", keys.request_stream(self._type), "*", *entry, *deadline)
            + pack("EXEC")
        )

    def result(self, found: Any) -> dict[str, Any]:
        """Of what BRPOP brought. Raises CallError."""
        outcome = self.outcome(found)
        if isinstance(outcome, CallError):
            raise outcome
        return outcome

    def outcome(self, found: Any) -> dict[str, Any] | CallError:
        if not found:
            return CallTimeout(
                f"no reply of {self._type} to {self.ref} within {self.timeout:g} s: does a worker run? Try sandboxrun info {self._type}"
            )
        try:
            reply = json.loads(found[1])
        except ValueError:
            reply = None
        if not isinstance(reply, dict):
            return RemoteError(f"the reply of {self._type} to {self.ref} is not a JSON object")
        code = reply.get("code")
        if code == 200:
            return reply
        kind = {400: BadRequest, 504: Expired}.get(code if isinstance(code, int) else 0, RemoteError)
        problem = reply.get("err")
        message = problem.get("message") if isinstance(problem, dict) else None
        return kind(f"{self._type} answers {code}: {str(message)[:500]}", reply)


def refusal(replies: list[Any], shown: str) -> SandboxrunError | None:
    """Of what Redis said to a `put`: None where it took the request, else why not. `shown`: Redis's address."""
    for reply in [*replies, *(replies[-1] if isinstance(replies[-1], list) else ())]:
        if isinstance(reply, ReplyError):
            error = refused(reply, shown)
            return NotSent(f"{error}; the request was not sent") if isinstance(error, ConnectionLost) else error
    return None


def seconds(timeout: float) -> str:
    """As BRPOP takes it, where 0 is for ever."""
    return f"{max(timeout, 0.001):.3f}"
