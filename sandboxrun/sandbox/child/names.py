"""Runs in the worker's process: the supervisor resolves names, because no DNS leaves the sandbox.

A convenience: the supervisor decides by address when a socket connects, so a script that avoids this gains nothing.
"""

from __future__ import annotations

import _socket
import _thread
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_EBADF, _EACCES, _EPIPE = 9, 13, 32
_HOST_MAX_BYTES = 1024  # a question fits into one packet (PIPE_BUF)
_FAMILIES = (_socket.AF_INET, _socket.AF_INET6)


class Names:
    """Asks the supervisor for addresses, one question at a time, and offers the look-ups of the `_socket` module."""

    def __init__(self, questions: int, answers: int) -> None:
        """Both are descriptors of pipes; bootstrap.py has the format of their messages."""
        self._pipes = [(fd, self._identity(fd)) for fd in (questions, answers)]
        self._lock, self._number = _thread.allocate_lock(), 0
        self._system = _socket.getaddrinfo

    def patch(self) -> None:
        """Replace the look-ups below the `socket` module, which the script has not imported yet."""
        module: Any = _socket
        module.getaddrinfo = self.getaddrinfo
        module.gethostbyname = self.gethostbyname
        module.gethostbyname_ex = self.gethostbyname_ex

    def getaddrinfo(
        self, host: Any, port: Any, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
    ) -> list[Any]:
        """As getaddrinfo(3). Raises PermissionError if the name may not be resolved."""
        try:
            # For text, even for an address, Python would import the codec for international names.
            literal = host.encode() if isinstance(host, str) and host.isascii() else host
            return self._system(literal, port, family, type, proto, flags | _socket.AI_NUMERICHOST)
        except _socket.gaierror as error:
            if error.errno != _socket.EAI_NONAME or flags & _socket.AI_NUMERICHOST:
                raise
        found: list[Any] = []
        for address in self.ask(host):
            if family in (0, _socket.AF_INET6 if ":" in address else _socket.AF_INET):
                found += self._system(address, port, family, type, proto, flags | _socket.AI_NUMERICHOST)
        if not found:
            raise _socket.gaierror(_socket.EAI_NONAME, "Name or service not known")
        return found

    def gethostbyname_ex(self, host: Any) -> tuple[Any, list[str], list[str]]:
        entries = self.getaddrinfo(host, None, _socket.AF_INET, _socket.SOCK_STREAM)
        return host, [], [entry[4][0] for entry in entries]

    def gethostbyname(self, host: Any) -> str:
        return self.gethostbyname_ex(host)[2][0]

    def numeric(self, family: int, address: Any) -> Any:
        """The (host, port) address with its name resolved, because libc's own look-up cannot leave the sandbox."""
        if family in _FAMILIES and isinstance(address, tuple) and len(address) >= 2:
            host = address[0]
            if isinstance(host, (str, bytes)) and host not in ("", b""):
                entries = self.getaddrinfo(host, None, family, _socket.SOCK_STREAM)
                return (entries[0][4][0], *address[1:])
        return address

    def ask(self, host: Any) -> list[str]:
        """Addresses as text. Raises PermissionError, or gaierror as getaddrinfo(3) would."""
        if isinstance(host, bytes):
            host = host.decode("ascii")
        with self._lock:
            self._number += 1
            # Processes that the script may start share the pipes, so the number has the pid.
            number = b"%d%010d" % (os.getpid(), self._number)
            verdict, *rest = self._answer(number, host.encode("utf-8", "surrogatepass")[:_HOST_MAX_BYTES])
        if verdict == "denied":
            raise PermissionError(_EACCES, rest[0])
        if verdict != "ok":
            raise _socket.gaierror(int(verdict), rest[0])
        return rest

    @staticmethod
    def _identity(fd: int) -> tuple[int, int]:
        status = os.fstat(fd)
        return status.st_dev, status.st_ino

    def _answer(self, number: bytes, host: bytes) -> list[str]:
        (questions, _), (answers, _) = self._pipes
        try:
            # A script may have closed them, as daemons close unknown descriptors, and other files may have their numbers.
            if all(self._identity(fd) == identity for fd, identity in self._pipes):
                os.lockf(questions, os.F_LOCK, 0)  # between processes: each would read the other's answers
                try:
                    os.write(questions, b"name %b %b" % (number, host))
                    while data := os.read(answers, 65536):
                        for answer in data.split(b"\0"):
                            got, _, answer = answer.partition(b"\n")
                            if got == number:  # not the late answer to a question whose asker was interrupted
                                return answer.decode("utf-8").split("\n")
                finally:
                    os.lockf(questions, os.F_ULOCK, 0)
        except OSError as error:
            if error.errno not in (_EBADF, _EPIPE):  # a signal handler's own, TimeoutError for instance
                raise
        raise _socket.gaierror(_socket.EAI_SYSTEM, "the way to the supervisor is closed")
