"""A connection to Redis in some fifty lines: commands as arrays of bulk strings, replies by their first byte (RESP2)."""

from __future__ import annotations

import socket
from typing import Any
from urllib.parse import unquote, urlsplit


class ReplyError(Exception):
    """What Redis refuses. Inside a transaction and in `ask` it is a value; nothing raises it but `one`."""


class Redis:
    """`redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE]`. A lost connection raises OSError."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme != "redis" or parts.hostname is None:
            raise SystemExit(f"{parts.scheme}:// is not spoken here: expected redis://HOST")
        self._socket = socket.create_connection((parts.hostname, parts.port or 6379), timeout=15)
        self._file = self._socket.makefile("rb")
        if parts.password is not None:
            self.one("AUTH", unquote(parts.username or "") or "default", unquote(parts.password))
        if parts.path.strip("/"):
            self.one("SELECT", parts.path.strip("/"))

    def ask(self, *commands: tuple[Any, ...]) -> list[Any]:
        """Send the commands as one write, and return their replies. Redis's errors are among them."""
        self._socket.sendall(b"".join(_packed(command) for command in commands))
        return [self._reply() for _ in commands]

    def one(self, *command: Any) -> Any:
        """The reply to one command. Raises ReplyError."""
        (reply,) = self.ask(command)
        if isinstance(reply, ReplyError):
            raise reply
        return reply

    def close(self) -> None:
        self._file.close()
        self._socket.close()

    def _reply(self) -> Any:
        line = self._file.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionError("Redis closed the connection")
        kind, rest = line[:1], line[1:-2]
        if kind == b"+":
            return rest.decode()
        if kind == b"-":
            return ReplyError(rest.decode("utf-8", "replace"))
        if kind == b":":
            return int(rest)
        if rest == b"-1":
            return None
        if kind == b"$":
            return self._file.read(int(rest) + 2)[:-2]
        return [self._reply() for _ in range(int(rest))]


def _packed(command: tuple[Any, ...]) -> bytes:
    words = [word if isinstance(word, bytes) else str(word).encode() for word in command]
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)
