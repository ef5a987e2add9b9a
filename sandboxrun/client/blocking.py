"""Calls from ordinary code."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence

from sandboxrun import keys
from sandboxrun.client.request import PUT, Request, refusal, seconds
from sandboxrun.connection import Connection, delays, pack
from sandboxrun.errors import CallError, CallTimeout, ConnectionLost, NotSent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

DEFAULT_URL = "redis://127.0.0.1:6379"
WINDOW = 200  # requests of call_many that are on their way at once


def call(
    type_: str, data: Any, *, timeout: float = 10.0, trace: dict[str, Any] | None = None, url: str | None = None
) -> dict[str, Any]:
    """One call on a connection of its own. See Client.call."""
    with Client(url) as client:
        return client.call(type_, data, timeout=timeout, trace=trace)


class Client:
    """May be used by several threads: each call in progress has a connection of its own."""

    def __init__(self, url: str | None = None) -> None:
        self._url = url or os.environ.get("REDIS_URL") or DEFAULT_URL
        self._idle: list[Connection] = []

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()

    def call(
        self, type_: str, data: Any, *, timeout: float = 10.0, trace: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """The reply to `data`, which must be JSON. `timeout`: seconds until CallTimeout; a worker does not begin later.

        `trace`: further fields for the request's hash `req:REF:h`. Raises CallError, StoreError, ConfigError. Where the
        connection is lost after the request was sent, the wait goes on with a new one: it may have been taken.
        """
        keys.check_type(type_)
        request = Request(type_, data, timeout, trace)
        connection = self._take()
        try:
            connection.set_wait(timeout)
            connection.send(request.put() + pack("BRPOP", request.key, seconds(timeout)))
            refused = refusal(connection.read_many(PUT), connection.address.shown)
            if refused is not None:
                connection.close()  # it still waits for a reply that will not come
                raise refused
            found = connection.checked(connection.read())
        except ConnectionLost as error:
            if isinstance(error, NotSent):
                raise
            found = _await_anew(connection, request, error)
        self._idle.append(connection)
        return request.result(found)

    def call_many(
        self, type_: str, items: Iterable[Any], *, timeout: float = 10.0
    ) -> Iterator[tuple[int, dict[str, Any] | CallError, float]]:
        """Many calls at once on one connection, WINDOW on their way; as they come: (index, reply or error, seconds)."""
        keys.check_type(type_)
        connection = self._take()
        connection.set_wait(1)
        waiting: dict[bytes, tuple[int, Request]] = {}
        numbered = enumerate(items)
        more = True
        tries = delays()
        while more or waiting:
            fresh = []
            while more and len(waiting) < WINDOW:
                index, data = next(numbered, (-1, None))
                more = index >= 0
                if more:
                    request = Request(type_, data, timeout, None)
                    waiting[request.key.encode()] = (index, request)
                    fresh.append(request)
            found: list[tuple[bytes, bytes]] = []
            try:
                if not connection.is_open:
                    connection.open()
                    connection.set_wait(1)
                for key, refused in _put_all(connection, fresh):
                    index, request = waiting.pop(key)
                    yield index, refused, time.time() - request.began
                found = _collect(connection, list(waiting))
                tries = delays()
            except ConnectionLost:  # what was sent may have been taken: it is waited for
                connection.close()
                time.sleep(next(tries))
            for key, value in found:
                index, request = waiting.pop(key)
                yield index, request.outcome([key, value]), time.time() - request.began
            now = time.time()
            for key in [key for key, (_, request) in waiting.items() if request.until <= now]:
                index, request = waiting.pop(key)
                yield index, request.outcome(None), now - request.began
        self._idle.append(connection)

    def _take(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            try:
                connection.check()  # before anything is sent: afterwards it is unknown whether it was taken
                return connection
            except ConnectionLost:
                connection.close()
        connection = Connection(self._url, name="sandboxrun-client")
        try:
            connection.open()
        except ConnectionLost as error:
            raise NotSent(f"{error}; the request was not sent") from error
        return connection


def _await_anew(connection: Connection, request: Request, error: ConnectionLost) -> Any:
    """What BRPOP brings on a new connection, and on further ones where that is lost. Raises CallTimeout."""
    tries = delays()
    while True:
        left = request.until - time.time()
        if left <= 0:
            raise CallTimeout(f"{error}; no reply within {request.timeout:g} s, and whether it was taken is unknown")
        try:
            connection.open()
            connection.set_wait(left)
            return connection.call("BRPOP", request.key, seconds(left))
        except ConnectionLost as lost:
            error = lost
            time.sleep(min(next(tries), max(request.until - time.time(), 0)))


def _put_all(connection: Connection, fresh: Sequence[Request]) -> list[tuple[bytes, CallError]]:
    """Send the requests; those that were not taken. Raises StoreError where Redis refuses them for good."""
    connection.send(b"".join([request.put() for request in fresh]))
    found = []
    for request in fresh:
        refused = refusal(connection.read_many(PUT), connection.address.shown)
        if isinstance(refused, CallError):
            found.append((request.key.encode(), refused))
        elif refused is not None:
            raise refused
    return found


def _collect(connection: Connection, names: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
    """Wait, for a second at most, until one of the lists has a reply; the replies that are there."""
    if not names:
        return []
    first = connection.call("BRPOP", *names, 1)
    if not first:
        return []
    others = [name for name in names if name != first[0]]
    rest = connection.pipeline([("RPOP", name) for name in others]) if others else []
    found = [(name, value) for name, value in zip(others, rest, strict=True) if isinstance(value, bytes)]
    return [(first[0], first[1]), *found]
