"""Which request the running code handles: whatever it calls gets its deadline, its path and its trace from here. Pure.

A worker sets `current` to the request itself, because most handlers call nobody: the Calling is made when somebody asks for
it.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import ContextVar, Token
    from typing import Any, Protocol, TypeAlias

    class Handled(Protocol):
        """A worker's Request."""

        def _as_calling(self) -> Calling: ...

        def _joining(self) -> Any: ...

    class Joining(Protocol):
        """What effects of the requests of a worker need."""

        context: Any
        pid: int

        def begin(self) -> None:
            """Called when a reply has effects."""

    Held: TypeAlias = "Handled | Calling | None"
else:
    from _contextvars import ContextVar  # contextvars is Python, and has nothing else

PATH_MAX = 16  # types in a path
NOTE = "call:"  # begins the field of a trace that names an inner call; its ref follows
NOTED_MAX = 100  # calls of one request that its trace names


class Caller:
    """The worker that handles requests.

    `key`: its hash. `nonce`: "" if it may call nobody. `allowed`: the field `allowCall`, for a hint.
    """

    __slots__ = ("allowed", "joining", "key", "nonce", "type")

    def __init__(self, key: str, type: str, nonce: str) -> None:
        self.key, self.type, self.nonce, self.allowed = key, type, nonce, ""
        self.joining: Joining | None = None  # once its request loop is made


class Calling:
    """What a call inherits from the current request.

    `type`: of the worker that calls. `deadline`: of the request, in seconds since the epoch. `path`: the types from the
    first caller on, ending with `type`. `traceparent`: of the handler's span, "" if the request is not traced. `ref`: of
    the request. `nonce`: what the refs of calls begin with, "" if the worker may call nobody. `caller`: the worker.
    `request`: the request itself, whose reply effects join.
    """

    __slots__ = ("caller", "deadline", "later", "nonce", "noted", "path", "ref", "request", "traceparent", "type")

    def __init__(
        self,
        type: str,
        deadline: float | None,
        path: tuple[str, ...],
        traceparent: str = "",
        ref: str = "",
        nonce: str = "",
        caller: Caller | None = None,
        request: Handled | None = None,
    ) -> None:
        self.type, self.deadline, self.path, self.traceparent = type, deadline, path, traceparent
        self.ref, self.nonce = ref, nonce
        self.caller = caller or Caller("", type, nonce)
        self.request = request
        self.noted: set[str] = set()  # the refs of its calls that the request's trace names
        self.later: dict[str, str] = {}  # fields of the trace that the reply brings

    def enter(self, service: str) -> None:
        """Stand for a service of the worker instead of the worker itself. Raises BadRequest for a call cycle."""
        self.path = self.path[:-1]
        self.type, self.path = service, (*check_path(self, service), service)

    def inner(self, service: str) -> Calling:
        """The Calling of a service that this one calls in process. Raises BadRequest for a call cycle."""
        path = (*check_path(self, service), service)
        inner = Calling(service, self.deadline, path, self.traceparent, self.ref, self.nonce, self.caller, self.request)
        inner.noted, inner.later = self.noted, self.later
        return inner

    def note(self, ref: str, callee: str) -> tuple[str, str] | None:
        """The field of the request's trace, and its value, for a call of `callee`; None after NOTED_MAX calls.

        `sandboxrun trace` finds the inner calls by it.
        """
        if len(self.noted) >= NOTED_MAX:
            return None
        self.noted.add(ref)
        return NOTE + ref, callee


class Current:
    """The Calling of the running code, or None outside of a handler. As a ContextVar, it is per thread and per task."""

    __slots__ = ("held", "reset", "set")

    held: Callable[[], Held]  # as `get`, but makes nothing
    set: Callable[[Held], Token[Held]]
    reset: Callable[[Token[Held]], None]

    def __init__(self) -> None:
        held: ContextVar[Held] = ContextVar("sandboxrun_handled", default=None)
        self.held, self.set, self.reset = held.get, held.set, held.reset  # without a call in between, for each request

    def get(self) -> Calling | None:
        held = self.held()
        return held if held is None or isinstance(held, Calling) else held._as_calling()


current = Current()


def check_path(calling: Calling, callee: str) -> tuple[str, ...]:
    """The path of a call of `callee`. Raises BadRequest if it would close a call cycle, or is too long."""
    path = calling.path
    if callee not in path and len(path) <= PATH_MAX:
        return path
    from sandboxrun.protocol.call import BadRequest

    shown = " → ".join((*path, callee))
    if callee in path:
        raise BadRequest(f"{callee} calls itself: {shown}; it would wait for its own reply")
    raise BadRequest(f"the call to {callee} would make a path of {len(path)} types; the limit is {PATH_MAX}: {shown}")
