"""Runs in the worker's process: calls that the supervisor carries out are repeated if a signal cuts them off.

A signal that arrives before the supervisor has taken such a call ends it with EINTR, which the kernel alone would not do
(seccomp_unotify(2)). So Python does not expect it and does not try again by itself.
"""

from __future__ import annotations

import _socket
import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from sandboxrun.sandbox.child.names import Names

_EINTR, _EINVAL, _EISCONN = 4, 22, 106
_FAMILIES = (_socket.AF_INET, _socket.AF_INET6)
_BLOCKING_TRIES = 100  # a millisecond each


class NamedSocket(_socket.socket):
    """`_socket.socket`, with names resolved by the supervisor and interrupted calls repeated."""

    __slots__ = ()
    _names: Names  # of patch_sockets

    def bind(self, address: Any) -> None:
        if self.family in _FAMILIES and isinstance(address, tuple) and address[:1] in (("localhost",), (b"localhost",)):
            address = ("::1" if self.family == _socket.AF_INET6 else "127.0.0.1", *address[1:])
        again = False
        while True:
            try:
                return super().bind(address)
            except InterruptedError:
                again = True
            except OSError as error:
                if again and error.errno == _EINVAL and not self._never_began():
                    return None  # the call that a signal cut off was carried out after all
                raise

    def listen(self, *backlog: Any) -> None:
        while True:
            try:
                return super().listen(*backlog)
            except InterruptedError:
                pass

    def connect(self, address: Any) -> None:
        address, again = self._names.numeric(self.family, address), False
        while True:
            try:
                super().connect(address)
            except InterruptedError:
                if not self._never_began():
                    raise
            except OSError as error:
                if not (again and error.errno == _EISCONN):
                    raise
            if not self._never_began():
                self._wait_until_blocking()
                return
            again = True

    def connect_ex(self, address: Any) -> int:
        address, again = self._names.numeric(self.family, address), False
        while True:
            result = super().connect_ex(address)
            if again and result == _EISCONN:  # the call that a signal cut off was carried out after all
                result = 0
            if result not in (0, _EINTR) or not self._never_began():
                self._wait_until_blocking()
                return result
            again = True

    def _never_began(self) -> bool:
        """Whether the supervisor never took the call: a socket that was connected or bound has a port.

        After EINTR Python takes a connect for one under way, waits, and finds no error on the socket.
        """
        return self.family in _FAMILIES and self.getsockname()[1] == 0

    def _wait_until_blocking(self) -> None:
        """The supervisor makes the socket non-blocking while it connects it. If a signal ends the call before that is
        undone, the script would see it: its next recv(2) would fail with EAGAIN."""
        tries = _BLOCKING_TRIES if self.gettimeout() is None else 0
        while tries and self.fileno() >= 0 and not os.get_blocking(self.fileno()):
            tries -= 1
            time.sleep(0.001)


NamedSocket.__name__ = NamedSocket.__qualname__ = "socket"
NamedSocket.__module__ = "_socket"


def patch_sockets(names: Names) -> None:
    """Replace the class below the `socket` module, which the script has not imported yet."""
    NamedSocket._names = names
    module: Any = _socket
    module.socket = module.SocketType = NamedSocket


def patch_metadata() -> None:
    """Repeat what changes a file's mode or times (supervisor/handlers/metadata.py)."""
    for name in ("chmod", "fchmod", "utime"):
        call = getattr(os, name)
        repeated = _repeated(call)
        setattr(os, name, repeated)
        for able in (os.supports_dir_fd, os.supports_fd, os.supports_follow_symlinks):
            if call in able:
                able.add(repeated)


def patch_system(told: Callable[[Any, int], None]) -> None:
    """Let os.system tell its command and its status: it raises nothing if it cannot run one."""
    system = os.system

    def told_system(command: Any) -> int:
        status = system(command)
        told(command, status)
        return status

    os.system = _named(told_system, system)


def _repeated(call: Callable[..., Any]) -> Callable[..., Any]:
    def again(*args: Any, **options: Any) -> Any:
        while True:
            try:
                return call(*args, **options)
            except InterruptedError:
                pass

    return _named(again, call)


def _named(wrapper: Any, call: Any) -> Callable[..., Any]:
    wrapper.__name__ = wrapper.__qualname__ = call.__name__
    wrapper.__module__, wrapper.__doc__, wrapper.__wrapped__ = call.__module__, call.__doc__, call
    named: Callable[..., Any] = wrapper
    return named
