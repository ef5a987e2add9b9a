"""The request that a handler is called with, and the encoding of its reply and trace as JSON."""

from __future__ import annotations

import time

from sandboxrun.plainjson import encoder
from sandboxrun.protocol import HandlerTimeout
from sandboxrun.protocol.calling import Caller, Calling, current
from sandboxrun.protocol.reply import enveloped
from sandboxrun.protocol.request import method_of, path_of, traceparent_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, Generic, Literal

    from typing_extensions import TypeVar  # the checker brings it; typing's has no `default` before Python 3.13

    from sandboxrun.worker.effects import Effects
    from sandboxrun.worker.results import Forms

    T = TypeVar("T", default=Any)
    Tell = Callable[["Request", dict[str, Any]], None]  # writes trace fields at once

    class _OfPayload(Generic[T]):
        __slots__ = ()
else:
    T = object  # a placeholder, because at run time all of them share one class

    class _OfPayload:
        """`Request[Order]`, without the import of typing."""

        __slots__ = ()
        __class_getitem__ = classmethod(type(list[int]))


class Request(_OfPayload[T]):
    """A request, as a handler is called with it.

    `data`: the JSON of the entry's field `data`, parsed; without that field, the entry's other fields as text. A handler
    with the parameter `request: Request[Order]` gets an Order there. `ref`, `type`, `xid` (the entry's ID) and `fields`
    are text, `deadline` is in seconds since the epoch or None, and `deliveries` counts how often the request was begun,
    this time included. Calls in the handler inherit `deadline`, `path` and `traceparent`.
    """

    __slots__ = (
        "_caller", "_calling", "_effects", "_encoder", "_noted", "_raw", "_tell", "data", "deadline", "deliveries", "ref", "type", "xid",
    )  # fmt: skip

    data: T

    def __init__(
        self,
        xid: str,
        ref: str,
        type: str,
        data: Any,
        raw: Mapping[bytes, bytes],
        deadline: float | None = None,
        deliveries: int = 1,
        encoder: Encoder | None = None,
        tell: Tell | None = None,
        caller: Caller | None = None,
    ) -> None:
        self.xid = xid
        self.ref = ref
        self.type = type
        self.data = data
        self.deadline = deadline
        self.deliveries = deliveries
        self._raw = raw
        self._noted: dict[str, Any] | None = None
        self._encoder, self._tell = encoder, tell
        self._caller = caller
        self._calling: Calling | None = None
        self._effects: Effects | Literal[False] | None = None  # False: the reply is made

    @property
    def method(self) -> str | None:
        """The method that is called, such as `quote` or `price.quote`, or None."""
        return method_of(self._raw)

    @property
    def path(self) -> tuple[str, ...]:
        """The types through which the request has come, the first caller first; empty if no worker has called."""
        return path_of(self._raw)

    @property
    def traceparent(self) -> str:
        """The W3C traceparent of this request's own span, for whatever the handler calls; "" if it is not traced."""
        return self._as_calling().traceparent if b"traceparent" in self._raw else ""

    def _as_calling(self) -> Calling:
        """What the handler's calls inherit; always the same object."""
        calling = self._calling
        if calling is None:
            caller = self._caller or Caller("", self.type, "")
            calling = self._calling = Calling(
                caller.type,
                self.deadline,
                (*self.path, caller.type),
                traceparent_of(self._raw),
                self.ref,
                caller.nonce,
                caller,
                self,
            )
        return calling

    @property
    def fields(self) -> dict[str, str]:
        """All fields of the entry, as text."""
        return {k.decode("utf-8", "replace"): v.decode("utf-8", "replace") for k, v in self._raw.items()}

    @property
    def raw(self) -> Mapping[bytes, bytes]:
        """All fields of the entry, as bytes."""
        return self._raw

    def _notes(self) -> dict[str, Any] | None:
        """The fields of the trace that the reply brings."""
        calling = self._calling
        if calling is None or not calling.later:
            return self._noted
        return {**(self._noted or {}), **calling.later}

    def trace(self, **fields: Any) -> None:
        """Add fields to `req:REF:h`, written together with the reply. Text stays as it is, other values become JSON.

        Raises TypeError or ValueError for a value without a form in JSON, with its path.
        """
        encoder = self._encoder or Encoder()
        noted = {_unicode(name): encoder.text(value, name) for name, value in fields.items()}
        self._noted = {**(self._noted or {}), **noted}

    def progress(self, value: Any) -> None:
        """Write the field `progress` of `req:REF:h` at once, or drop it if Redis is away. Raises as `trace` does."""
        text = (self._encoder or Encoder()).text(value, "progress")
        if self._tell is not None:
            self._tell(self, {"progress": text})

    def emit(self, type: str, data: Any = None, *, method: str | None = None, timeout: float | None = None) -> str:
        """Send a request to workers of another type together with the reply, and return its ref. Nobody waits for its reply.

        It is written in the reply's transaction, and not if the handler raises. Exception: if Redis refuses its XADD in
        EXEC, it becomes a dead letter of this worker's type. `data`: what a result may contain. `timeout`: seconds from now,
        after which its handler does not begin. Without the grant allowCall, raises CallDenied; in an event loop, which must
        not wait for Redis, the request is answered 500 instead. Raises TypeError or ValueError for data that is not JSON or
        too much, RuntimeError once the handler has returned.
        """
        return self._joining().emit(type, data, method, timeout)

    def _joining(self) -> Effects:
        """The effects that will join the reply. Raises RuntimeError once the handler has returned."""
        effects = self._effects
        if effects is None and self._caller is not None and self._caller.joining is not None:
            from sandboxrun.worker.effects import Effects

            made = Effects(self, self._caller.joining, self._encoder or Encoder())
            # There is no call in between, so no other thread runs, and none loses what another one adds.
            if self._effects is None:
                self._effects = made
            effects = self._effects
        if not effects:
            raise RuntimeError("the request has no handler any more, so nothing can join its reply")
        return effects

    def remaining(self) -> float | None:
        """Seconds until the deadline, negative once it has passed; None without a deadline."""
        return None if self.deadline is None else self.deadline - time.time()


def joining() -> Effects:
    """The effects that will join the reply of the request that the running code handles. Raises RuntimeError without one."""
    calling = current.get()
    if calling is None or calling.request is None:
        raise RuntimeError(
            "there is no request: worker.state is for a handler, and for what it calls in its thread or task"
        )
    found: Effects = calling.request._joining()
    return found


class Encoder:
    """Encodes values as JSON. results.py, imported at first use, has the forms of objects that JSON does not have."""

    def __init__(self, custom: Callable[[Any], Any] | None = None) -> None:
        """`custom`: the function of `@worker.encoder`."""
        self.custom = custom
        self._known: Forms | None = None
        self._chunks = encoder(self._unusual)

    @property
    def forms(self) -> Forms:
        if self._known is None or self._known.custom is not self.custom:
            from sandboxrun.worker.results import Forms

            self._known = Forms(self.custom)
        return self._known

    def _unusual(self, value: Any) -> Any:
        """Called by json's encoder for an object that JSON does not have."""
        return self.forms.simple(value)

    def reply(self, ref: str | None, source: str, code: int, result: Mapping[str, Any], time: str) -> str:
        """The reply's JSON. The envelope wins over result fields of the same name.

        Raises TypeError or ValueError with the path: `result.items[3].price: nan is not JSON`.
        """
        try:
            return "".join(self._chunks(enveloped(result, ref, source, code, time), 0))
        except HandlerTimeout:  # of a handler that has called a service of this process
            raise
        except Exception:  # slowly now: converts keys that are not text, and finds the path of an error
            made = self.forms.plain(result, "result")
        return "".join(self._chunks(enveloped(made, ref, source, code, time), 0))

    def text(self, value: Any, path: str) -> str:
        """Text as it is, other values as JSON. Raises TypeError or ValueError with the path, which begins with `path`."""
        return _unicode(value) if isinstance(value, str) else self.json(value, path)

    def json(self, value: Any, path: str) -> str:
        """As JSON. Raises TypeError or ValueError with the path."""
        try:
            return "".join(self._chunks(value, 0))
        except HandlerTimeout:  # the signal arrived meanwhile
            raise
        except Exception:
            made = self.forms.plain(value, path)
        return "".join(self._chunks(made, 0))


def _unicode(text: str) -> str:
    """`text` with lone UTF-16 surrogates, which JSON has and UTF-8 does not, written as `\\ud800`."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def noted(fields: Mapping[str, str]) -> list[bytes]:
    """Trace fields as words: field, value, field, value …"""
    return [word.encode() for pair in fields.items() for word in pair]
