"""Services: classes whose methods other workers call by name, and the services of the same script directly.

What can be called is decided once, from the body of the class: its functions without a leading underscore, and those of its
bases in the same module. Nothing is looked up on the object for a request, so neither inherited attributes, nor properties,
nor what is assigned later can be reached by any name.
"""

from __future__ import annotations

from sandboxrun.config import keys
from sandboxrun.errors import ConfigError
from sandboxrun.nearnames import SHOWN_MAX_CHARS, expected, listed, no_method, quoted
from sandboxrun.protocol import BadRequest, UnknownMethod
from sandboxrun.protocol.call import CallError
from sandboxrun.protocol.services import WHOLE
from sandboxrun.worker.handlers import Handler, name_of, shape_of
from sandboxrun.worker.request import Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Any

    from sandboxrun.worker.request import Encoder

_FUNCTION = type(shape_of)


class Method(Handler):
    """One method of a service, called with what the request's data has by name."""

    def __init__(self, type_: str, service: str, function: Any, instance: Any, encoder: Encoder) -> None:
        """`type_`: the worker's. Raises ConfigError for parameters that a request cannot have."""
        shape = shape_of(function)
        self._service = "" if service == type_ else service  # the step of a path that stands for the worker's type
        self.timeout = None
        self.function: Callable[..., Any] = function.__get__(instance)
        subject = f"the method {shape.name}"
        if shape.is_generator:
            raise ConfigError(f"{subject} is a generator, because it has yield: expected one that returns its result")
        self.is_async, self.may_await = bool(shape.is_async), shape.is_async is None
        self._request = ""  # the parameter that is given the request
        self._arguments = self._compile(subject, function, shape.source, encoder)

    def _compile(self, subject: str, function: Any, source: Any, encoder: Encoder) -> Callable[[Any], dict[str, Any]]:
        import typing

        from sandboxrun.worker.hints import local_names, of_function
        from sandboxrun.worker.payload import Mismatch, arguments
        from sandboxrun.worker.unusual import parameters_of

        self._mismatch = Mismatch
        parameters = parameters_of(function)
        if not parameters or parameters[0].kind not in (
            parameters[0].POSITIONAL_ONLY,
            parameters[0].POSITIONAL_OR_KEYWORD,
        ):
            raise ConfigError(f"{subject} has no parameter for the object itself: expected self, first")
        hints: dict[str, Any] = {}
        required = set()
        for parameter in parameters[1:]:
            if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                raise ConfigError(
                    f"{subject} has the parameter {parameter}, which has no name in a request: expected each by its name"
                )
            wanted = (
                typing.Any
                if parameter.annotation is parameter.empty
                else of_function(parameter.annotation, source, subject)
            )
            if wanted is Request or typing.get_origin(wanted) is Request:
                self._request = parameter.name
                continue
            hints[parameter.name] = wanted
            if parameter.default is parameter.empty:
                required.add(parameter.name)
        return arguments(subject, hints, frozenset(required), local_names(source), encoder.forms)

    @property
    def wants_request(self) -> bool:
        """Whether a parameter is given the request itself."""
        return bool(self._request)

    def call(self, request: Request) -> Any:
        """As for Handler."""
        if self._service:
            try:
                request._as_calling().enter(self._service)
            except CallError as cycle:
                raise BadRequest(str(cycle)) from None
        return self.run(request.data, request)

    def run(self, data: Any, request: Request | None) -> Any:
        """Call the method with what `data` has. Returns what the reply is made of, or a coroutine. Raises BadRequest."""
        try:
            named = self._arguments(data)
        except self._mismatch as error:
            raise BadRequest(f"the request's data is not as expected: {error}") from None
        if self._request:
            named[self._request] = request
        result = self.function(**named)
        if self.is_async or (self.may_await and hasattr(result, "__await__")):
            return _awaited(result)
        return returned(result)


def returned(result: Any) -> Any:
    """A method's result, for the reply."""
    if type(result) is dict and WHOLE.isdisjoint(result):
        return result
    from sandboxrun.worker.results import Returned

    return Returned(result)


async def _awaited(work: Any) -> Any:
    return returned(await work)


class Service:
    """A registered class. Its object and its methods are made by `start`."""

    def __init__(self, name: str, kind: type) -> None:
        """Raises ConfigError for a name or a class that cannot be a service."""
        if not isinstance(name, str) or not keys.is_type(name):
            raise ConfigError(
                f"@worker.service is given {ascii(name)[:SHOWN_MAX_CHARS]}: expected a name like that of a worker type, such as price"
            )
        if not isinstance(kind, type):
            raise ConfigError(f"the service {name} is {name_of(kind)}: expected a class")
        self.name, self.kind = name, kind
        self._functions = _functions(kind)
        self.methods: dict[str, Method] = {}
        if not self._functions:
            raise ConfigError(f"the service {name} has no method: expected a function in the class {kind.__qualname__}")

    def start(self, type_: str, encoder: Encoder) -> None:
        """Make the object and its methods, in a worker of this type. Raises ConfigError."""
        shape = shape_of(self.kind)
        if shape.required or shape.keywords:
            missing = (*shape.positional[: shape.required], *shape.keywords)[0]
            raise ConfigError(
                f"class {self.kind.__qualname__} (service {self.name}) requires the argument {missing}, but worker.run() passes none: "
                "give it a default"
            )
        instance = self.kind()
        self.methods = {
            name: Method(type_, self.name, function, instance, encoder) for name, function in self._functions.items()
        }

    @property
    def by_name(self) -> dict[str, Method]:
        """By each name that a request may have: `quote` and `price.quote`."""
        return {**{f"{self.name}.{name}": method for name, method in self.methods.items()}, **self.methods}

    @property
    def names(self) -> Iterator[str]:
        """As in `by_name`, before the service has started too."""
        for name in self._functions:
            yield from (name, f"{self.name}.{name}")

    def unknown(self, name: str) -> UnknownMethod:
        return unknown(self.name, {self.name: self}, name, self)


def _functions(kind: type) -> dict[str, Any]:
    """The functions that can be called, by name: of the class, and of its bases in the same module."""
    found: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        if base is not object and base.__module__ == kind.__module__:
            # A base's function is no method any more, if the name means something else in a class below it.
            found.update(vars(base))
    return {name: value for name, value in found.items() if type(value) is _FUNCTION and can_be_called(name)}


def can_be_called(name: str) -> bool:
    """Whether a method may have this name: an identifier of ASCII that begins with a letter."""
    return name.isascii() and name.isidentifier() and not name.startswith("_")


class Routes(Handler):
    """What requests to a worker with services are given to: a method, or without one the type's plain handler."""

    def __init__(self, type_: str, services: Mapping[str, Service], plain: Handler | None) -> None:
        """`services`: those that it serves."""
        self._type, self._services, self.plain = type_, services, plain
        only = next(iter(services.values())) if len(services) == 1 else None
        self.own = services.get(type_, only)  # whose methods are called without its name
        self.parts = (
            *(each for service in services.values() for each in service.methods.values()),
            *([plain] if plain else []),
        )
        self.methods = {
            f"{service.name}.{name}": each for service in services.values() for name, each in service.methods.items()
        }
        if self.own is not None:
            self.methods.update(self.own.methods)

    def route(self, request: Request) -> Handler:
        name = request.method
        if name is None:
            return self._without()
        found = self.methods.get(name)
        if found is None:
            raise self.unknown(name)
        return found

    def unknown(self, name: str) -> UnknownMethod:
        return unknown(self._type, self._services, name, self.own)

    def _without(self) -> Handler:
        if self.plain is None:
            raise BadRequest(f"the request has no method: expected {listed(self.methods)}")
        return self.plain


def unknown(type_: str, services: Mapping[str, Service], method: str, own: Service | None) -> UnknownMethod:
    """The error for a method that is not there, with what there is."""
    service, dot, name = method.partition(".")
    if not dot:
        service, name = own.name if own is not None else "", method
    if not service:
        every = [f"{each.name}.{found}" for each in services.values() for found in each.methods]
        if named := [each for each in every if each.endswith(f".{method}")]:
            return UnknownMethod(f"{type_} has no method {quoted(method)}, did you mean {named[0]}?")
        return UnknownMethod(no_method(type_, method, every))
    if service not in services:
        return UnknownMethod(f"{type_} does not serve {quoted(service)}{expected(service, services)}")
    return UnknownMethod(no_method(service, name, services[service].methods))


def chosen(services: Mapping[str, Service], wanted: Sequence[str], key: str) -> dict[str, Service]:
    """Those that this worker serves: `wanted` of the hash `key`, or all if it names none. Raises ConfigError."""
    wrong = next((name for name in wanted if name not in services), None)
    if wrong is not None:
        raise _not_there(services, wanted, wrong, key)
    return {name: services[name] for name in wanted} if wanted else dict(services)


def _not_there(services: Mapping[str, Service], wanted: Sequence[str], wrong: str, key: str) -> ConfigError:
    from difflib import get_close_matches

    every = sorted(services)
    meant = {name: get_close_matches(name, every, 1) for name in wanted}
    near = f", did you mean {meant[wrong][0]}?" if meant[wrong] else ""
    right = [name for found in meant.values() for name in found] if all(meant.values()) else every
    return ConfigError(
        f"field services of {key} has {wrong}, which the script does not have{near} "
        f"(it has: {', '.join(every) or 'no service'})",
        hint=keys.set_hint(key, f"services={','.join(dict.fromkeys(right))}"),
    )
