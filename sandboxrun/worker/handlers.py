"""The functions that a worker script registers, and how each is called."""

from __future__ import annotations

from sandboxrun.errors import ConfigError
from sandboxrun.worker.request import BadRequest, Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

registered: dict[str | None, Handler] = {}
_COROUTINE = (
    0x80 | 0x200
)  # CO_COROUTINE, CO_ASYNC_GENERATOR: inspect(3) in the standard library, which is slow to import


class HandlerTimeout(Exception):
    """The handler took longer than its `timeout`: answered with code 500."""


class Handler:
    """One registered function."""

    def __init__(self, function: Callable[..., Any], payload: Any, timeout: float | None) -> None:
        self.function, self.timeout = function, timeout
        call = type(function).__call__ if callable(function) else None  # an object that can be called
        code = getattr(function, "__code__", None) or getattr(call, "__code__", None)
        self.is_async = bool(code is not None and code.co_flags & _COROUTINE)
        self._position, self._convert = _payload(function, payload)

    def call(self, request: Request) -> Any:
        """What the function returns: the result, or a coroutine. Raises BadRequest for a payload of the wrong shape."""
        if self._convert is None:
            return self.function(request)
        from sandboxrun.worker.payload import Mismatch

        try:
            value = self._convert(request.data)
        except Mismatch as error:
            raise BadRequest(f"the request's data is not as expected: {error}") from None
        if self._position == 0:
            return self.function(value)
        if self._position == 1:
            return self.function(request, value)
        request.data = value
        return self.function(request)


def handler(function_or_type: Any = None, *, payload: Any = None, timeout: float | None = None) -> Any:
    """Decorator: `@worker.handler` for requests of the worker's own type, `@worker.handler("type")` for another.

    `payload`: a dataclass, TypedDict, pydantic model or other type that `request.data` is made into; a parameter's
    annotation says the same. `timeout`: seconds after which the handler is given up, with code 500.
    """
    if timeout is not None and timeout <= 0:
        raise ConfigError(f"the handler's timeout is {timeout}: expected seconds above 0")

    def decorate(function: Any) -> Any:
        registered[type_] = Handler(function, payload, timeout)
        return function

    if callable(function_or_type):
        type_: str | None = None
        return decorate(function_or_type)
    type_ = function_or_type
    return decorate


def _payload(function: Any, payload: Any) -> tuple[int, Callable[[Any], Any] | None]:
    """Which of the function's parameters is the payload (-1: it stays in the request), and what makes it."""
    position, wanted = -1, payload
    code, notes = getattr(function, "__code__", None), getattr(function, "__annotations__", None)
    if payload is None and code is not None:
        names = code.co_varnames[: code.co_argcount]
        annotated = [index for index, name in enumerate(names[:2]) if notes and name in notes]
        if annotated:
            position, wanted = _annotated(function, names, annotated[-1])
        if position == -1 and len(names) - len(function.__defaults__ or ()) > 1:
            raise ConfigError(
                f"the handler {function.__name__} has a second parameter without a type: annotate it with the payload's"
            )
    if wanted is None:
        return -1, None
    from sandboxrun.worker.payload import converter

    return position, converter(wanted)


def _annotated(function: Any, names: tuple[str, ...], index: int) -> tuple[int, Any]:
    import typing

    try:
        wanted = typing.get_type_hints(function, {**function.__globals__, "Request": Request}).get(names[index])
    except (NameError, TypeError) as error:
        raise ConfigError(
            f"the handler {function.__name__} has an annotation that cannot be resolved: {error}"
        ) from None
    return (-1, None) if wanted in (Request, typing.Any, None) else (index, wanted)
