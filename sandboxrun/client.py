"""Call a worker over Redis and wait for its reply.

    from sandboxrun import client

    reply = client.call("demo-worker", {"text": "hi"}, timeout=5)      # REDIS_URL, or url=…

    with client.Client(url) as c:
        c.call("demo-worker", {"text": "hi"})
        for reply in c.call_many("demo-worker", [{"n": n} for n in range(1000)]): …

    async with client.AsyncClient(url) as c:
        await asyncio.gather(*(c.call("demo-worker", {"n": n}) for n in range(1000)))

A call that brings no result raises a CallError, which says whether the request may have run: BadRequest and Expired,
it did not; RemoteError, it ran and failed; CallTimeout, unknown. Redis being away is a StoreError.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence

from sandboxrun import keys
from sandboxrun.connection import Connection, ReplyError, delays, pack
from sandboxrun.errors import (
    BadRequest,
    CallError,
    CallTimeout,
    ConnectionLost,
    Expired,
    RemoteError,
    StoreError,
)  # fmt: skip

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from redis import Redis

__all__ = [
    "AsyncClient", "BadRequest", "CallError", "CallTimeout", "Client", "Expired", "RemoteError", "call", "send", "wait",
]  # fmt: skip

DEFAULT_URL = "redis://127.0.0.1:6379"
TRACE_EXPIRE_SECONDS = 120
WINDOW = 200  # requests of call_many that are on their way at once
_PUT = 5  # commands of `put`


def call(
    type_: str, data: Any, *, timeout: float = 10.0, trace: dict[str, Any] | None = None, url: str | None = None
) -> dict[str, Any]:
    """One call on a connection of its own. See Client.call."""
    with Client(url) as client:
        return client.call(type_, data, timeout=timeout, trace=trace)


class Client:
    """Calls from ordinary code. May be used by several threads: each call in progress has a connection of its own."""

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

        `trace`: further fields for the request's hash `req:REF:h`. Raises CallError, StoreError, ConfigError.
        """
        keys.check_type(type_)
        request = Request(type_, data, timeout, trace)
        connection = self._take()
        connection.set_wait(timeout)
        try:
            connection.send(request.put() + pack("BRPOP", request.key, _seconds(timeout)))
            replies = connection.read_many(_PUT)
        except ConnectionLost as error:
            raise CallTimeout(f"{error}; whether the request was taken is unknown") from error
        _check_put(replies, connection)
        found = self._await(connection, request)
        self._idle.append(connection)
        return request.result(found)

    def _await(self, connection: Connection, request: Request) -> Any:
        """What BRPOP brings; where the connection is lost, the wait goes on with a new one."""
        tries = delays()
        while True:
            try:
                return connection.checked(connection.read())
            except ConnectionLost as error:
                while True:
                    left = request.until - time.time()
                    if left <= 0:
                        raise CallTimeout(f"{error}; no reply within {request.timeout} s") from error
                    try:
                        connection.open()
                        connection.set_wait(left)
                        connection.send(pack("BRPOP", request.key, _seconds(left)))
                        break
                    except ConnectionLost:
                        time.sleep(min(next(tries), max(left, 0)))

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
        while more or waiting:
            fresh = []
            while more and len(waiting) < WINDOW:
                index, data = next(numbered, (-1, None))
                more = index >= 0
                if more:
                    request = Request(type_, data, timeout, None)
                    waiting[request.key.encode()] = (index, request)
                    fresh.append(request)
            connection.send(b"".join([request.put() for request in fresh]))
            for _ in fresh:
                _check_put(connection.read_many(_PUT), connection)
            for key, value in _collect(connection, list(waiting)):
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
        connection.open()
        return connection


class Request:
    """One request on its way."""

    def __init__(self, type_: str, data: Any, timeout: float, trace: dict[str, Any] | None) -> None:
        self.ref = os.urandom(12).hex()
        self.key = keys.reply_key(self.ref)
        self.began, self.timeout = time.time(), timeout
        self.until = self.began + timeout
        self._type, self._text, self._trace = type_, json.dumps(data), trace or {}

    def put(self) -> bytes:
        """The trace and the entry, as one transaction; _PUT replies."""
        trace = keys.trace_key(self.ref)
        seconds, millis = divmod(int(self.began * 1000), 1000)
        created = time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(seconds)) + f"{millis:03d}Z"
        fields = {"ref": self.ref, "type": self._type, "requestData": self._text, "created": created}
        for name, value in self._trace.items():
            fields.setdefault(name, value if isinstance(value, str) else json.dumps(value))
        words = [word for pair in fields.items() for word in pair]
        entry = ("ref", self.ref, "type", self._type, "data", self._text, "time", created)
        deadline = ("deadline", int(self.until * 1000))
        return (
            pack("MULTI")
            + pack("HSET", trace, *words)
            + pack("EXPIRE", trace, max(TRACE_EXPIRE_SECONDS, int(self.timeout) + 1))
            + pack("XADD", keys.request_stream(self._type), "*", *entry, *deadline)
            + pack("EXEC")
        )

    def result(self, found: Any) -> dict[str, Any]:
        """Of what BRPOP brought. Raises CallError."""
        outcome = self.outcome(found)
        if isinstance(outcome, CallError):
            raise outcome
        return outcome

    def outcome(self, found: Any) -> dict[str, Any] | CallError:
        if not found:
            return CallTimeout(
                f"no reply of {self._type} to {self.ref} within {self.timeout:g} s: does a worker run? Try sandboxrun info {self._type}"
            )
        try:
            reply = json.loads(found[1])
        except ValueError:
            reply = None
        if not isinstance(reply, dict):
            return RemoteError(f"the reply of {self._type} to {self.ref} is not a JSON object")
        code = reply.get("code")
        if code == 200:
            return reply
        kind = {400: BadRequest, 504: Expired}.get(code if isinstance(code, int) else 0, RemoteError)
        problem = reply.get("err")
        message = problem.get("message") if isinstance(problem, dict) else None
        return kind(f"{self._type} answers {code}: {str(message)[:500]}", reply)


class AsyncClient:
    """Calls from asyncio: any number on their way at once, on one connection that sends and one that waits."""

    def __init__(self, url: str | None = None) -> None:
        self._url = url or os.environ.get("REDIS_URL") or DEFAULT_URL
        self._wake = f"res:wake-{os.urandom(12).hex()}"  # a push to it ends the wait, so that it can begin anew
        self._waiting: dict[bytes, Any] = {}  # reply key: future
        self._fresh: list[bytes] = []
        self._blocked = False
        self._task: Any = None

    async def __aenter__(self) -> AsyncClient:
        import asyncio

        self._sender, self._waiter = (Connection(self._url, name=f"sandboxrun-client-{n}") for n in ("s", "w"))
        self._asyncio = asyncio.get_running_loop()
        for connection in (self._sender, self._waiter):
            await self._asyncio.run_in_executor(None, connection.open)
        self._waiter.set_wait(2)
        self._changed = asyncio.Event()
        self._task = asyncio.create_task(self._wait())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        if self._blocked:
            self._sender.pipeline([("LPUSH", self._wake, 1), ("EXPIRE", self._wake, 5)])
        for connection in (self._sender, self._waiter):
            connection.close()

    async def call(
        self, type_: str, data: Any, *, timeout: float = 10.0, trace: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """As Client.call."""
        import asyncio

        keys.check_type(type_)
        request = Request(type_, data, timeout, trace)
        future: asyncio.Future[Any] = self._asyncio.create_future()
        name = request.key.encode()
        self._waiting[name] = future
        self._fresh.append(request.put())
        if len(self._fresh) == 1:
            self._asyncio.call_soon(self._flush)  # with all that are made in the same turn
        try:
            async with asyncio.timeout(timeout):
                found = await future
        except TimeoutError:
            found = None
        finally:
            self._waiting.pop(name, None)
        return request.result(found)

    def _flush(self) -> None:
        fresh, self._fresh = self._fresh, []
        wake = pack("LPUSH", self._wake, 1) + pack("EXPIRE", self._wake, 5) if self._blocked else b""
        try:
            self._sender.send(b"".join(fresh) + wake)
            for _ in fresh:
                _check_put(self._sender.read_many(_PUT), self._sender)
            if wake:
                self._sender.read_many(2)
        except (StoreError, ReplyError) as error:
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(
                        CallTimeout(f"{error}; whether the request was taken is unknown")
                        if isinstance(error, ConnectionLost)
                        else error
                    )
            try:
                self._sender.open()  # for the next; local or soon refused, so it holds up nobody for long
            except StoreError:
                pass
        self._changed.set()

    async def _wait(self) -> None:
        """Wait for all that are on their way at once, as long as there are any."""
        tries = delays()
        import asyncio

        while True:
            await self._changed.wait()
            self._changed.clear()
            while self._waiting:
                names = list(self._waiting)
                self._blocked = True
                try:
                    found = await self._asyncio.run_in_executor(None, _collect, self._waiter, names, self._wake)
                    tries = delays()
                except ConnectionLost:
                    await asyncio.sleep(next(tries))
                    try:
                        await self._asyncio.run_in_executor(None, self._waiter.open)
                        self._waiter.set_wait(2)
                    except StoreError:
                        pass
                    continue
                finally:
                    self._blocked = False
                for key, value in found:
                    future = self._waiting.get(key)
                    if future is not None and not future.done():
                        future.set_result([key, value])
                await asyncio.sleep(0)  # those that have their reply leave `_waiting`


def _collect(connection: Connection, names: Sequence[bytes], wake: str = "") -> list[tuple[bytes, bytes]]:
    """Wait, for a second at most, until one of the lists has a reply; the replies that are there."""
    if not names:
        return []
    first = connection.call("BRPOP", *names, *([wake] if wake else []), 1)
    if not first:
        return []
    others = [name for name in names if name != first[0]]
    rest = connection.pipeline([("RPOP", name) for name in others]) if others else []
    found = [(name, value) for name, value in zip(others, rest, strict=True) if isinstance(value, bytes)]
    return found if first[0] == wake.encode() else [(first[0], first[1]), *found]


def _check_put(replies: list[Any], connection: Connection) -> None:
    for reply in replies:
        if isinstance(reply, ReplyError):
            try:
                connection.checked(reply)
            except ReplyError as error:
                raise StoreError(f"Redis refuses the request: {str(error)[:200]}") from error
    for result in replies[-1] or ():
        if isinstance(result, ReplyError):
            raise StoreError(f"Redis refuses the request: {str(result)[:200]}")


def _seconds(timeout: float) -> str:
    """As BRPOP takes it, where 0 is for ever."""
    return f"{max(timeout, 0.001):.3f}"


# --- for programs that have a redis-py connection already


def send(redis: Redis, type_: str, data: Any, *, now: str) -> str:
    """Put a request on the worker type's stream and make its trace hash; the `ref` to wait for."""
    ref = os.urandom(12).hex()
    text = json.dumps(data)
    with redis.pipeline(transaction=True) as pipe:
        pipe.hset(keys.trace_key(ref), mapping={"ref": ref, "type": type_, "requestData": text, "created": now})
        pipe.expire(keys.trace_key(ref), TRACE_EXPIRE_SECONDS)
        pipe.xadd(keys.request_stream(type_), {"ref": ref, "type": type_, "data": text, "time": now})
        pipe.execute()
    return ref


def wait(redis: Redis, ref: str, *, timeout_seconds: float) -> dict[str, Any] | None:
    """The reply as parsed JSON, or None if none came in time. `redis` needs a socket time-out above it."""
    found = redis.brpop([keys.reply_key(ref)], timeout=timeout_seconds)
    if found is None:
        return None
    reply = json.loads(found[1])
    return reply if isinstance(reply, dict) else None
