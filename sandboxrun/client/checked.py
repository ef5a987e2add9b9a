"""Calls that are checked by the callee's spec.json before they are sent, and results when they have come."""

from __future__ import annotations

import os

from sandboxrun.errors import SpecError
from sandboxrun.nearnames import no_method
from sandboxrun.plainjson import loads
from sandboxrun.protocol.call import BadRequest, RemoteError, UnknownMethod
from sandboxrun.protocol.request import encode
from sandboxrun.protocol.services import fields_of
from sandboxrun.spec.interface import Interface, load

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class CheckedCalls:
    """The methods of one type, as a file describes them."""

    def __init__(self, type_: str, path: str, beside: str | None) -> None:
        """`beside`: the file that a relative path starts at; None: the current folder. Raises SpecError."""
        path = os.path.normpath(os.path.join(os.path.dirname(beside or ""), path))
        if os.path.isdir(path):
            path = os.path.join(path, "spec.json")
        self._type, self._methods = type_, load(path).methods
        if not self._methods:
            raise SpecError(f"{path} describes no methods, so no call of {type_} can be checked by it")

    def ask(self, method: str, named: dict[str, Any]) -> None:
        """Raise UnknownMethod or BadRequest for what the callee would refuse; TypeError, ValueError for what is not JSON."""
        text = encode(named)
        fault = self._of(method).request_fault(loads(text.encode()), text)
        if fault:
            raise BadRequest(f"{self._type} was not called: {fault}")

    def answer(self, method: str, value: Any) -> None:
        """Raise RemoteError for a result that the callee should not have sent."""
        fields = fields_of(value)
        fault = self._of(method).reply_fault(fields, encode(fields))
        if fault:
            raise RemoteError(f"the result of {self._type}.{method} is not as its spec.json says: {fault}", fields)

    def _of(self, method: str) -> Interface:
        found = self._methods.get(method) or self._methods.get(method.removeprefix(f"{self._type}."))
        if found is None:
            raise UnknownMethod(no_method(self._type, method, self._methods))
        return found
