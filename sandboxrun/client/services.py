"""Services by name: an attribute is a method, and a call of it is a request, or a direct call in the service's own process."""

from __future__ import annotations

import os
import sys

from sandboxrun.client.blocking import Client
from sandboxrun.client.request import seconds_of
from sandboxrun.config import keys
from sandboxrun.protocol.calling import current
from sandboxrun.protocol.services import here, value_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any, TypeAlias, TypeVar, overload

    from sandboxrun.client.awaiting import AsyncClient
    from sandboxrun.client.checked import CheckedCalls
    from sandboxrun.client.request import Timeout

    StrPath: TypeAlias = str | os.PathLike[str]

    S = TypeVar("S")

if TYPE_CHECKING:

    @overload
    def connect(
        type_: str, /, *, timeout: Timeout = 10.0, url: str | None = None, spec: StrPath | None = None
    ) -> Any: ...
    @overload
    def connect(
        type_: str,
        kind: Callable[..., S],
        /,
        *,
        timeout: Timeout = 10.0,
        url: str | None = None,
        spec: StrPath | None = None,
    ) -> S: ...


def connect(
    type_: str, kind: Any = None, /, *, timeout: Timeout = 10.0, url: str | None = None, spec: StrPath | None = None
) -> Any:
    """The service that workers of a type offer: `connect("price").quote(item="tea")` calls its method `quote`.

    A call returns what the method returns, as JSON has it. In a worker that serves the service itself, it is a direct call
    with the same values and errors. `kind`: the service's class, or a Protocol. With it, arguments may be given by position,
    `async def` methods are awaited, and type checkers know both. `timeout`: seconds for each call; None waits without limit.
    In a handler, no call times out later than the current request. `url`: by default REDIS_URL; with a URL, no call is
    direct. If a worker serves several services: `connect("shop").price.quote(item="tea")`.

    `spec`: the path of the service's spec.json, from the folder of the calling file on. With it, arguments that do not fit
    raise BadRequest, and another method UnknownMethod, before anything is sent. A result that does not fit raises RemoteError.

    A call raises what Client.call raises, UnknownMethod too. Raises ConfigError for a type that is not valid, SpecError for
    a `spec` that cannot be used.
    """
    return Proxy(Target(type_, kind, timeout, url, _checks(type_, spec)), "", is_async=False)


def aconnect(type_: str, /, *, timeout: Timeout = 10.0, url: str | None = None, spec: StrPath | None = None) -> Any:
    """As `connect`, and each call is awaited: `await aconnect("price").quote(item="tea")`."""
    return Proxy(Target(type_, None, timeout, url, _checks(type_, spec)), "", is_async=True)


def _checks(type_: str, spec: StrPath | None) -> CheckedCalls | None:
    """Called by what the script calls: its file is two frames up."""
    if spec is None:
        return None
    from sandboxrun.client.checked import CheckedCalls

    return CheckedCalls(keys.check_type(type_), os.fspath(spec), sys._getframe(2).f_globals.get("__file__"))


class Target:
    """What is called, and how."""

    __slots__ = ("checks", "kind", "timeout", "type", "url")

    def __init__(
        self, type_: str, kind: type | None, timeout: Timeout, url: str | None, checks: CheckedCalls | None = None
    ) -> None:
        self.type, self.kind, self.url, self.checks = keys.check_type(type_), kind, url, checks
        self.timeout = seconds_of(timeout)

    def call(self, method: str, named: dict[str, Any]) -> Any:
        asyncio = sys.modules.get("asyncio")
        if asyncio is not None and asyncio._get_running_loop() is not None and current.get() is not None:
            raise RuntimeError(
                f"{self.type}.{method} blocks the event loop if called in a coroutine: use `await aconnect({self.type!r}).{method}(…)`"
            )
        if self.checks is not None:
            self.checks.ask(method, named)
        local = here.get(self.type) if self.url is None else None
        if local is not None:
            value = local.call(method, named, self.timeout)
        else:
            value = value_of(_client(self.url).call(self.type, named, timeout=self.timeout, method=method))
        if self.checks is not None:
            self.checks.answer(method, value)
        return value

    async def call_async(self, method: str, named: dict[str, Any]) -> Any:
        if self.checks is not None:
            self.checks.ask(method, named)
        local = here.get(self.type) if self.url is None else None
        if local is not None:
            value = await local.call_async(method, named, self.timeout)
        else:
            value = value_of(await _async_client(self.url).call(self.type, named, timeout=self.timeout, method=method))
        if self.checks is not None:
            self.checks.answer(method, value)
        return value


class Proxy:
    """A service, or one of its methods."""

    __slots__ = ("_is_async", "_method", "_target")

    def __init__(self, target: Target, method: str, *, is_async: bool) -> None:
        self._target, self._method, self._is_async = target, method, is_async

    def __getattr__(self, name: str) -> Proxy:
        if name.startswith("_"):  # of Python's own protocols, or private: never a method
            raise AttributeError(f"{self!r} has no {name[:80]}")
        kind, is_async = self._target.kind, self._is_async
        if kind is not None and not self._method:
            is_async = _is_async(getattr(kind, name, None))
        return Proxy(self._target, f"{self._method}.{name}" if self._method else name, is_async=is_async)

    def __call__(self, /, *given: Any, **named: Any) -> Any:
        target, method = self._target, self._method
        if not method:
            raise TypeError(f"{self!r} is a service: expected a method of it, such as {self!r}.METHOD()")
        if given:
            named = _by_name(target, method, given, named)
        return self._later(named) if self._is_async else target.call(method, named)

    def _later(self, named: dict[str, Any]) -> Coroutine[Any, Any, Any]:
        return self._target.call_async(self._method, named)

    def __repr__(self) -> str:
        return ".".join(filter(None, (self._target.type, self._method)))


def _is_async(function: Any) -> bool:
    code = getattr(function, "__code__", None)
    return code is not None and bool(code.co_flags & 0x80)  # CO_COROUTINE: inspect is slow to import


def _by_name(target: Target, method: str, given: tuple[Any, ...], named: dict[str, Any]) -> dict[str, Any]:
    """The arguments with those that were given by position. Raises TypeError."""
    code = getattr(getattr(target.kind, method, None), "__code__", None)
    if code is None:
        raise TypeError(f"{target.type}.{method} is given an argument without its name: expected each as NAME=VALUE")
    names = code.co_varnames[1 : code.co_argcount]
    if len(given) > len(names):
        raise TypeError(f"{target.type}.{method} takes {len(names)} arguments by position, not {len(given)}")
    twice = next((name for name in names[: len(given)] if name in named), None)
    if twice is not None:
        raise TypeError(f"{target.type}.{method} is given {twice} twice")
    return {**dict(zip(names, given, strict=False)), **named}


# One client for each URL, made at the first call; clients may be shared by threads, event loops and forks.
_clients: dict[str | None, Client] = {}
_async_clients: dict[str | None, AsyncClient] = {}


def _client(url: str | None) -> Client:
    found = _clients.get(url)
    return _clients.setdefault(url, Client(url)) if found is None else found


def _async_client(url: str | None) -> AsyncClient:
    found = _async_clients.get(url)
    if found is None:
        from sandboxrun.client.awaiting import AsyncClient

        found = _async_clients.setdefault(url, AsyncClient(url))
    return found
