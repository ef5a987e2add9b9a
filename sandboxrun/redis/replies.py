"""Replies of Redis: the parser, the exception for a reply that is an error, and the bound for their size."""

from __future__ import annotations

import hiredis

from sandboxrun.errors import ConnectionLost, LoginRefused, StoreError
from sandboxrun.redis.address import login_hint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sandboxrun.redis.connection import Connection

ReplyError = hiredis.ReplyError
ProtocolError = hiredis.ProtocolError
reader = hiredis.Reader  # fed with bytes, it returns one reply after another, and False if none is complete

# Errors that pass: the same command will work later, perhaps on another server, after a failover or once Redis has
# loaded its data or can write. https://redis.io/docs/latest/develop/reference/protocol-spec/#simple-errors
_LATER = frozenset("LOADING READONLY MASTERDOWN CLUSTERDOWN TRYAGAIN NOREPLICAS MISCONF OOM BUSY UNBLOCKED".split())
_FULL = "ERR max number of clients"
_LOGIN = ("NOAUTH", "WRONGPASS", "ERR invalid password", "ERR AUTH", "ERR Client sent AUTH")


def translated(error: ReplyError, shown: str) -> Exception:
    """A reply that is an error, as the exception for it: the one place that tells passing errors from lasting ones."""
    text = str(error)
    if text.partition(" ")[0] in _LATER or text.startswith(_FULL):
        return ConnectionLost(f"Redis at {shown} cannot serve at the moment: {text[:200]}")
    if text.startswith(_LOGIN):
        return login_refused(error, shown)
    return error


def refused(error: ReplyError, shown: str) -> StoreError:
    """As `translated`, for a caller that handles StoreError only: ConnectionLost for a passing one, else the reply."""
    found = translated(error, shown)
    return found if isinstance(found, StoreError) else StoreError(f"Redis at {shown} refuses: {str(error)[:200]}")


def login_refused(error: ReplyError, shown: str) -> LoginRefused:
    return LoginRefused(f"Redis at {shown} refuses the login ({str(error)[:200]})", hint=login_hint(shown))


def is_wrong_type(reply: object) -> bool:
    """Whether it says that the key holds another type than the command is for."""
    return isinstance(reply, ReplyError) and str(reply).startswith("WRONGTYPE")


def raise_errors(replies: list[Any]) -> list[Any]:
    """The replies, if none is an error. Raises the first ReplyError among them as it is."""
    for reply in replies:
        if isinstance(reply, ReplyError):
            raise reply
    return replies


class TooManyBytes(StoreError):
    """Redis replied with more than is read: whoever can write to it must not fill our memory."""


class Within:
    """While the block lasts, `connection` receives at most `max_bytes`. Raises TooManyBytes for more, and then the connection
    is closed. Of nested blocks, the one whose bound was passed raises."""

    __slots__ = ("_connection", "_limit", "_max_bytes", "_outer")

    def __init__(self, connection: Connection, max_bytes: int) -> None:
        self._connection, self._max_bytes = connection, max_bytes
        self._limit = self._outer = 0

    def __enter__(self) -> None:
        connection = self._connection
        self._outer, self._limit = connection.receive_most, connection.received + self._max_bytes
        connection.receive_most = min(self._limit, self._outer) if self._outer else self._limit

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        connection, outer = self._connection, self._outer
        connection.receive_most = outer
        passed = connection.received > self._limit and not (outer and connection.received > outer)
        if isinstance(error, ConnectionLost) and passed:
            raise TooManyBytes(
                f"Redis at {connection.address.shown} replied with more than {self._max_bytes >> 10} KiB"
            ) from error
