"""The functions that a worker script registers, and the arguments that each is called with."""

from __future__ import annotations

from sandboxrun.errors import ConfigError
from sandboxrun.protocol import BadRequest
from sandboxrun.worker.request import Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from sandboxrun.worker.checked import Checked
    from sandboxrun.worker.request import Encoder

# Flags of a code object: inspect(3) in the standard library, which is slow to import
_VARARGS, _GENERATOR, _COROUTINE, _MARKED_COROUTINE, _ASYNC_GENERATOR = 0x4, 0x20, 0x80, 0x100, 0x200


class Shape:
    """A callable's parameters, and whether a call returns a result, a coroutine or a generator."""

    __slots__ = ("is_async", "is_generator", "keywords", "more", "name", "notes", "positional", "required", "source")

    name: str
    source: Any  # the function whose globals and closure resolve the annotations
    notes: Mapping[str, Any]  # annotations by parameter
    positional: tuple[str, ...]
    required: int  # of the positional ones: without a default
    keywords: tuple[str, ...]  # keyword-only ones without a default
    more: bool  # it takes any number of positional arguments
    is_async: bool | None  # None: a plain function that wraps an async one
    is_generator: bool


class Handler:
    """One registered callable. `may_await`: it is not async itself, but may return an awaitable."""

    parts: tuple[Handler, ...] = ()  # of which `route` chooses one for each request; none: it is called itself
    checked: Checked | None = None  # by the script's spec.json

    def __init__(
        self, function: Callable[..., Any], payload: Any, timeout: float | None, encoder: Encoder | None = None
    ) -> None:
        """`encoder`: converts the values of enums in the payload's type. Raises ConfigError."""
        self.function, self.timeout = function, timeout
        shape = shape_of(function)
        if shape.is_generator:
            raise ConfigError(
                f"the handler {shape.name} is a generator, because it has yield: expected a function that returns its result"
            )
        self.is_async, self.may_await = bool(shape.is_async), shape.is_async is None
        self._target, self._convert = _payload(shape, payload, encoder)

    def call(self, request: Request) -> Any:
        """What the function returns: the result, or a coroutine. Raises BadRequest for a payload that does not fit."""
        if self._convert is None:
            return self.function(request)
        from sandboxrun.worker.payload import Mismatch

        try:
            value = self._convert(request.data)
        except Mismatch as error:
            raise BadRequest(f"the request's data is not as expected: {error}") from None
        target = self._target
        if target == 0:
            return self.function(value)
        if target == 1:
            return self.function(request, value)
        if isinstance(target, str):
            return self.function(request, **{target: value})
        request.data = value
        return self.function(request)

    def route(self, request: Request) -> Handler:
        """The part for this request. Raises BadRequest."""
        raise NotImplementedError


def callables(handlers: Mapping[str, Handler]) -> list[Handler]:
    """All that requests may be given to."""
    return [each for handler in handlers.values() for each in handler.parts or (handler,)]


def before_each(handlers: Mapping[str, Handler], function: Callable[[], object]) -> None:
    """Have this function called before each call of a handler."""

    def preceded(call: Callable[[Request], Any]) -> Callable[[Request], Any]:
        def both(request: Request) -> Any:
            function()
            return call(request)

        return both

    for handler in callables(handlers):
        setattr(handler, "call", preceded(handler.call))  # noqa: B010


# --- parameters


def shape_of(function: Any) -> Shape:
    """The shape of any callable."""
    shape = Shape()
    shape.name = name_of(function)
    if type(function) is not type(shape_of) or function.__dict__:  # functools.wraps leaves a mark there
        from sandboxrun.worker.unusual import look_into

        look_into(function, shape)
        return shape
    code = function.__code__
    count, only = code.co_argcount, code.co_kwonlyargcount
    shape.name, shape.source, shape.notes = function.__name__, function, _annotations(function)
    shape.positional = code.co_varnames[:count]
    shape.required = count - len(function.__defaults__ or ())
    defaults = function.__kwdefaults__ or {}
    shape.keywords = tuple(name for name in code.co_varnames[count : count + only] if name not in defaults)
    shape.more = bool(code.co_flags & _VARARGS)
    shape.is_async = bool(code.co_flags & (_COROUTINE | _MARKED_COROUTINE))
    shape.is_generator = bool(code.co_flags & (_GENERATOR | _ASYNC_GENERATOR)) and not shape.is_async
    return shape


def _annotations(function: Any) -> Mapping[str, Any]:
    try:
        notes: Mapping[str, Any] = function.__annotations__
    except NameError:
        from sandboxrun.worker.hints import annotations_of

        notes = annotations_of(function)
    return notes


def name_of(function: Any) -> str:
    """The callable's name in messages."""
    inner = getattr(function, "func", None)
    if callable(inner):
        return f"{name_of(inner)} (partial)"
    name = getattr(function, "__qualname__", None) or getattr(function, "__name__", None)
    return name.rpartition("<locals>.")[2] if isinstance(name, str) else f"an object of {type(function).__qualname__}"


def _payload(shape: Shape, payload: Any, encoder: Encoder | None) -> tuple[int | str, Callable[[Any], Any] | None]:
    """The parameter that gets the payload, by position or name (-1: `request.data` does), and the payload's converter."""
    target, note = (-1, None) if payload is not None else _annotated(shape)
    wanted = None
    if payload is not None or target != -1:
        from sandboxrun.worker.hints import is_request, of_function, payload_of

        wanted = of_function(note if payload is None else payload, shape.source, f"the handler {shape.name}")
        if is_request(wanted):
            target, wanted = -1, payload_of(wanted)
    _check_call(shape, target)
    if wanted is None:
        return -1, None
    from sandboxrun.worker.hints import local_names
    from sandboxrun.worker.payload import converter

    return target, converter(wanted, local_names(shape.source), None if encoder is None else encoder.forms)


def _annotated(shape: Shape) -> tuple[int | str, Any]:
    """The parameter with the payload's annotation: the second, else the first, else a keyword-only one. -1 if none."""
    notes = shape.notes
    for index in (1, 0):
        if index < len(shape.positional) and shape.positional[index] in notes:
            note = notes[shape.positional[index]]
            if _is_request(note):
                break
            return index, note
    if len(shape.keywords) == 1 and shape.keywords[0] in notes and shape.required <= 1:
        return shape.keywords[0], notes[shape.keywords[0]]
    return -1, None


def _is_request(note: Any) -> bool:
    return note is Request or note in ("Request", "worker.Request")


def _check_call(shape: Shape, target: int | str) -> None:
    """Raise ConfigError if a call with a request, or a request and its payload, would raise TypeError each time."""
    given = 2 if target == 1 else 1
    if shape.required > given:
        raise _too_many(shape, given)
    if len(shape.positional) < given and not shape.more:
        raise ConfigError(
            f"the handler {shape.name} takes no argument: expected a parameter for the request",
            hint="" if shape.keywords else _def_hint(shape, "request"),
        )
    annotated = [name for name in shape.keywords if name in shape.notes]
    payload = annotated[0] if target == -1 and len(annotated) == 1 else target
    missing = [name for name in shape.keywords if name not in (target, payload)]
    if missing:
        keywords = [_parameter(shape, name) + " = None" * (name in missing) for name in shape.keywords]
        plain = shape.required == len(shape.positional) and not shape.more
        raise ConfigError(
            f"the handler {shape.name} needs {missing[0]} by keyword, which nobody gives it: expected a default",
            hint=_def_hint(shape, *_parameters(shape), "*", *keywords) if plain else "",
        )


def _too_many(shape: Shape, given: int) -> ConfigError:
    """The error of a handler that needs more positional arguments than there are."""
    name = shape.positional[given]
    two = shape.required == len(shape.positional) == 2 and not shape.keywords
    if name not in shape.notes:
        return ConfigError(
            f"the handler {shape.name} has a second parameter without a type: {name}",
            hint=_def_hint(shape, _parameter(shape, shape.positional[0]), f"{name}: dict") if two else "",
        )
    swapped = two and _is_request(shape.notes[name])
    return ConfigError(
        f"the handler {shape.name} is not given its parameter {name}: expected the request first, then the payload",
        hint=_def_hint(shape, *reversed(_parameters(shape))) if swapped else "",
    )


def _parameters(shape: Shape) -> list[str]:
    return [_parameter(shape, name) for name in shape.positional]


def _parameter(shape: Shape, name: str) -> str:
    """The parameter as it was written. The request's type is left out: it may be there by another name."""
    note = shape.notes.get(name)
    if note is None or _is_request(note):
        return name
    return f"{name}: {note.__qualname__ if isinstance(note, type) else note}"


def _def_hint(shape: Shape, *parameters: str) -> str:
    """The first line of the handler's function, with other parameters; nothing for a method, a partial or an object."""
    if not shape.name.isidentifier():
        return ""
    return f"{'async ' if shape.is_async else ''}def {shape.name}({', '.join(parameters)}):"
