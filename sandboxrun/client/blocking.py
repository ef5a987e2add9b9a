"""Blocking calls."""

from __future__ import annotations

import time
from collections.abc import Iterator

from sandboxrun.client.exchange import Exchange
from sandboxrun.client.login import Login
from sandboxrun.client.request import Outgoing, seconds_of
from sandboxrun.client.wire import SILENT_SECONDS, Wire
from sandboxrun.config import keys
from sandboxrun.errors import StoreError
from sandboxrun.protocol.call import BadRequest, CallError
from sandboxrun.protocol.request import check_method

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from sandboxrun.client.request import Payload, Timeout

WINDOW = 200  # requests of call_many in flight at once


def call(
    type_: str,
    data: Payload,
    *,
    timeout: Timeout = 10.0,
    trace: dict[str, Any] | None = None,
    retry: bool = True,
    method: str | None = None,
    traceparent: str | None = None,
    url: str | None = None,
) -> dict[str, Any]:
    """One call on a connection of its own. See Client.call."""
    with Client(url) as client:
        return client.call(
            type_, data, timeout=timeout, trace=trace, retry=retry, method=method, traceparent=traceparent
        )


class Client:
    """A client that keeps its connections.

    Several threads may use it, before and after a fork, and again after `close`. Each call in progress has a connection
    of its own, and a connection belongs to one process. `url`: by default REDIS_URL, else redis://127.0.0.1:6379; it is
    parsed at once, and the first call connects. Raises ConfigError for a URL that is not valid.
    """

    def __init__(self, url: str | None = None) -> None:
        self._login = Login(url)
        self._idle: list[Wire] = []  # append and pop are atomic, so there is no lock that a fork could leave locked

    def __reduce__(self) -> tuple[type[Client], tuple[str]]:
        return Client, (self._login.url,)  # pickled for a spawned process, without connections

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. The next call opens one."""
        idle, self._idle = self._idle, []
        for wire in idle:
            wire.close()

    def call(
        self,
        type_: str,
        data: Payload,
        *,
        timeout: Timeout = 10.0,
        trace: dict[str, Any] | None = None,
        retry: bool = True,
        method: str | None = None,
        traceparent: str | None = None,
    ) -> dict[str, Any]:
        """Send `data` to a worker of the type, and return the fields of its reply.

        `data`: what json.dumps accepts, without NaN. `timeout`: seconds until CallTimeout, after which no worker begins
        the request; None or inf waits without limit. `trace`: more fields for the request's hash `req:REF:h`. `retry`:
        while Redis is away, or can accept nothing, retry until the time-out; if False, raise NotSent at once. A request
        that Redis may have accepted is never sent again. `method`: of the service that is called, such as `quote` or `price.quote`.
        `traceparent`: of the span that calls, as W3C has it; a malformed one is ignored.

        In a worker's handler, a call never times out later than the request that is being handled, and belongs to its
        trace. The worker needs the grant `allowCall`: CallDenied is raised without it.

        Raises CallError; StoreError if Redis refuses the login or the request; ConfigError for a type that is not valid;
        TypeError or ValueError for `data` that is not JSON, or a method that is no name.
        """
        keys.check_type(type_)
        request = Outgoing(
            type_, data, timeout, trace, retry=retry, method=method, traceparent=traceparent, login=self._login
        )
        idle = self._idle
        exchange = Exchange(self._take())
        exchange.add(request)
        try:
            while not (done := exchange.step()):
                pass
        finally:
            _give_back(exchange.wire, idle if idle is self._idle else None)
        outcome = done[0][1]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def trace(self, ref: str, /, **fields: Any) -> None:
        """Add fields to the trace of a request, `req:REF:h`. Text stays as it is, other values become JSON.

        Raises StoreError; TypeError or ValueError for a value that is not JSON, or more than 1 MiB of them.
        """
        from sandboxrun.client.noting import NOTE_COMMANDS, expire, note, without_nx

        data, idle = note(ref, fields), self._idle
        wire = Wire(self._login.trace_url) if self._login.separate else self._take()
        try:
            if not wire.is_open:
                wire.open_within(SILENT_SECONDS)
            wire.ask(data, NOTE_COMMANDS, left=SILENT_SECONDS)
            if ask := without_nx(ref, wire.read_many(NOTE_COMMANDS), wire.address.shown):
                wire.ask(ask, 1, left=SILENT_SECONDS)
                if more := expire(ref, wire.read()):
                    wire.ask(more, 1, left=SILENT_SECONDS)
                    wire.read()
        finally:
            _give_back(wire, None if self._login.separate or idle is not self._idle else idle)

    def call_many(
        self,
        type_: str,
        items: Iterable[Payload],
        *,
        timeout: Timeout = 10.0,
        retry: bool = True,
        method: str | None = None,
    ) -> Iterator[tuple[int, dict[str, Any] | CallError, float]]:
        """Call with each item, WINDOW at once on one connection; yield (index, reply or CallError, seconds) as they end.

        An item that is not JSON is a BadRequest. An error of `items`, or a StoreError of Redis, is raised after the calls
        in flight have ended.
        """
        keys.check_type(type_)
        seconds = seconds_of(timeout)  # raises for a mistake now, not at the first reply
        if method is not None:
            check_method(method)
        return self._many(type_, enumerate(items), seconds, retry, method)

    def _many(
        self, type_: str, numbered: Iterator[tuple[int, Any]], timeout: Timeout, retry: bool, method: str | None
    ) -> Iterator[tuple[int, dict[str, Any] | CallError, float]]:
        idle = self._idle
        exchange = Exchange(self._take())
        indices: dict[bytes, int] = {}
        failure: Exception | None = None
        more = True
        try:
            while more or exchange.waiting:
                while more and len(exchange.waiting) < WINDOW:
                    try:
                        index, data = next(numbered, (-1, None))
                    except Exception as error:
                        index, failure = -1, error
                    more = index >= 0
                    if not more:
                        break
                    try:
                        request = Outgoing(type_, data, timeout, None, retry=retry, method=method, login=self._login)
                    except (TypeError, ValueError, RecursionError) as error:
                        yield index, BadRequest(f"item {index} is not JSON: {error}"), 0.0
                        continue
                    except CallError as error:  # of the handler that calls
                        yield index, error, 0.0
                        continue
                    indices[request.key] = index
                    exchange.add(request)
                for request, outcome in exchange.step() if exchange.waiting else ():
                    if isinstance(outcome, dict | CallError):
                        yield indices.pop(request.key), outcome, time.time() - request.began
                    elif isinstance(outcome, StoreError):
                        failure, more = outcome, False
        finally:
            _give_back(exchange.wire, idle if idle is self._idle else None)
        if failure is not None:
            raise failure

    def _take(self) -> Wire:
        while self._idle:
            try:
                wire = self._idle.pop()
            except IndexError:  # another thread has taken it
                break
            if wire.usable:
                return wire
            wire.close()
        return Wire(self._login.url)


def _give_back(wire: Wire, idle: list[Wire] | None) -> None:
    """Keep the connection if it owes no reply, so that the next call cannot get the reply of an interrupted one."""
    if idle is None or wire.owed or not wire.is_open:
        wire.close()
    else:
        idle.append(wire)
