"""Requests and replies that are checked by the spec.json beside the script. Imported only if there is one.

A request that breaks its schema is answered 400 and never reaches the handler. A result that breaks its schema is answered
500, and no effect of the handler is written.
"""

from __future__ import annotations

from sandboxrun.errors import SpecError
from sandboxrun.nearnames import expected, listed, no_method, quoted
from sandboxrun.protocol import BadRequest, UnknownMethod
from sandboxrun.protocol.reply import decoded
from sandboxrun.protocol.services import ENVELOPE
from sandboxrun.spec.interface import Interface, Interfaces, load
from sandboxrun.worker.answer import ResultError
from sandboxrun.worker.services import Routes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from sandboxrun.worker.handlers import Handler
    from sandboxrun.worker.request import Request
    from sandboxrun.worker.services import Service


class Checked:
    """What one handler is given and answers."""

    __slots__ = ("_interface",)

    def __init__(self, interface: Interface) -> None:
        self._interface = interface

    def of(self, request: Request) -> Checked:
        """For one request. Raises BadRequest, UnknownMethod."""
        return self

    def take(self, data: Any, text: str | bytes) -> None:
        """Raise BadRequest unless the request's data fits. `text`: its JSON."""
        fault = self._interface.request_fault(data, text)
        if fault:
            raise BadRequest(fault)

    def give(self, body: str) -> None:
        """Raise ResultError unless a reply fits. `body`: its JSON, because results have more types than JSON."""
        if self._interface.reply is None:
            return
        fields: Any = decoded(body)
        for name in ENVELOPE:
            fields.pop(name, None)
        fault = self._interface.reply_fault(fields, body)
        if fault:
            raise ResultError(f"the handler's result is not as its spec.json says: {fault}")


class Undescribed(Checked):
    """A method that the spec does not describe, although it describes others."""

    __slots__ = ("_error",)

    def __init__(self, error: BadRequest) -> None:
        self._error = error

    def take(self, data: Any, text: str | bytes) -> None:
        raise type(self._error)(*self._error.args)

    def give(self, body: str) -> None:
        pass  # it never ran


class ByMethod(Checked):
    """A plain handler that tells methods apart itself."""

    __slots__ = ("_methods", "_plain", "_type")

    def __init__(self, type_: str, interfaces: Interfaces) -> None:
        self._type = type_
        self._plain = _plain(interfaces)
        self._methods = {name: Checked(each) for name, each in interfaces.methods.items()}

    def of(self, request: Request) -> Checked:
        name = request.method
        if name is None:
            return self._plain
        found = self._methods.get(name)
        if found is None:
            raise UnknownMethod(no_method(self._type, name, self._methods))
        return found


def bind(
    path: str, type_: str, handlers: Mapping[str, Handler], served: Mapping[str, Service], every: Mapping[str, Service]
) -> None:
    """Have the handlers of a worker's own type checked by a file. `every`: the script's services. Raises SpecError."""
    interfaces = load(path)
    handler = handlers.get(type_)
    if handler is None:
        return
    if not isinstance(handler, Routes):
        handler.checked = ByMethod(type_, interfaces) if interfaces.methods else _plain(interfaces)
        return
    if handler.plain is not None:
        handler.plain.checked = _plain(interfaces)
    if interfaces.methods:
        _check_names(interfaces, every)
        for service in served.values():
            _bind_service(service, type_, interfaces, is_own=service is handler.own)


def _plain(interfaces: Interfaces) -> Checked:
    if interfaces.plain is not None:
        return Checked(interfaces.plain)
    return Undescribed(BadRequest(f"the request has no method: expected {listed(interfaces.methods)}"))


def _bind_service(service: Service, type_: str, interfaces: Interfaces, *, is_own: bool) -> None:
    for name, method in service.methods.items():
        found = interfaces.methods.get(f"{service.name}.{name}")
        if found is None and is_own:
            found = interfaces.methods.get(name)
        if found is not None:
            method.checked = Checked(found)
        else:
            method.checked = Undescribed(UnknownMethod(no_method(service.name, name, interfaces.methods)))


def _check_names(interfaces: Interfaces, services: Mapping[str, Service]) -> None:
    """Raise SpecError for a method that no service of the script has."""
    known = {name for service in services.values() for name in service.names}
    for name in interfaces.methods:
        if name not in known:
            dotted = [each for each in known if "." in each]
            raise SpecError(
                f"{interfaces.path}: methods has {quoted(name)}, which the script does not have{expected(name, dotted)}"
            )
