"""Calls from asyncio: any number on their way at once, on one connection that sends and one that waits."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Sequence

from sandboxrun import keys
from sandboxrun.client.blocking import DEFAULT_URL
from sandboxrun.client.link import Link
from sandboxrun.client.request import PUT, Request, refusal
from sandboxrun.connection import ReplyError, delays, pack, refused
from sandboxrun.errors import CallTimeout, ConnectionLost, NotSent, SandboxrunError, StoreError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SEND_BYTES = 256 * 1024  # that are sent before Redis has said what it makes of them
WAIT_SECONDS = 1
WAKE_EXPIRE_SECONDS = 5


class Call:
    """One that has no reply yet."""

    __slots__ = ("future", "request", "sent")

    def __init__(self, request: Request, future: asyncio.Future[Any]) -> None:
        self.request, self.future = request, future
        self.sent = False  # or may have been: what was begun to be written may have been taken


class AsyncClient:
    """A context manager. What is called while Redis takes nothing waits its turn, as long as its timeout is."""

    def __init__(self, url: str | None = None) -> None:
        self._url = url or os.environ.get("REDIS_URL") or DEFAULT_URL
        self._wake = f"res:wake-{os.urandom(12).hex()}"  # a push to it ends the wait, so that it can begin anew
        self._calls: dict[bytes, Call] = {}  # by reply key
        self._unsent: deque[Call] = deque()
        self._watched: frozenset[bytes] = frozenset()  # the reply keys that the other connection waits for now
        self._trouble = ""  # why nothing is sent
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> AsyncClient:
        self._sender, self._waiter = (Link(self._url, f"sandboxrun-client-{name}") for name in ("sends", "waits"))
        self._to_send, self._to_wait = asyncio.Event(), asyncio.Event()
        try:
            for link in (self._sender, self._waiter):
                await link.open()
        except BaseException:
            self._close()
            raise
        self._tasks = [asyncio.create_task(work()) for work in (self._send, self._wait)]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        ends = await asyncio.gather(*self._tasks, return_exceptions=True)
        self._close()
        for call in self._calls.values():
            self._end(call, CallTimeout("the client was closed") if call.sent else NotSent("the client was closed"))
        for end in ends:
            if isinstance(end, Exception):  # a defect of ours
                raise end

    def _close(self) -> None:
        for link in (self._sender, self._waiter):
            link.close()

    async def call(
        self, type_: str, data: Any, *, timeout: float = 10.0, trace: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """As Client.call. One that is cancelled before it was sent is not sent."""
        keys.check_type(type_)
        call = Call(Request(type_, data, timeout, trace), asyncio.get_running_loop().create_future())
        name = call.request.key.encode()
        self._calls[name] = call
        self._unsent.append(call)
        self._to_send.set()
        self._to_wait.set()
        try:
            async with asyncio.timeout(timeout):
                found = await call.future
        except TimeoutError:
            if not call.sent:
                why = self._trouble or "Redis takes no more at the moment"
                raise NotSent(f"{why}; the request was not sent within {timeout:g} s") from None
            found = None
        finally:
            del self._calls[name]
        return call.request.result(found)

    def _end(self, call: Call, error: SandboxrunError) -> None:
        if not call.future.done():
            call.future.set_exception(error)

    # --- sending: a task

    async def _send(self) -> None:
        tries = delays()
        while True:
            await self._to_send.wait()
            self._to_send.clear()
            while batch := self._batch():
                try:
                    for _ in range(2):  # turns of the loop, in which it hears that the connection was closed
                        await asyncio.sleep(0)
                    if not self._sender.is_open:
                        await self._sender.open()
                    self._trouble = ""
                    await self._put(batch)
                    tries = delays()
                except StoreError as error:
                    self._trouble = str(error)
                    self._unsent.extendleft(call for call in reversed(batch) if not call.sent)
                    if not isinstance(error, ConnectionLost):  # a login that is refused
                        self._refuse_all(error)
                    await asyncio.sleep(next(tries))

    def _batch(self) -> list[Call]:
        """The next to send, without those that nobody waits for any more."""
        batch: list[Call] = []
        size = 0
        while self._unsent and size < SEND_BYTES:
            call = self._unsent.popleft()
            if not call.future.done():
                batch.append(call)
                size += call.request.size
        return batch

    async def _put(self, batch: Sequence[Call]) -> None:
        names = {call.request.key.encode() for call in batch}
        wake = b""
        if self._watched and not names <= self._watched:
            wake = pack("LPUSH", self._wake, 1) + pack("EXPIRE", self._wake, WAKE_EXPIRE_SECONDS)
        data = b"".join([call.request.put() for call in batch]) + wake
        for call in batch:
            call.sent = True
        replies = await self._sender.exchange(data, PUT * len(batch) + (2 if wake else 0))
        for number, call in enumerate(batch):
            refused = refusal(replies[PUT * number : PUT * (number + 1)], self._sender.address.shown)
            if refused is not None:
                self._end(call, refused)

    def _refuse_all(self, error: StoreError) -> None:
        while self._unsent:
            self._end(self._unsent.popleft(), error)

    # --- waiting: a task

    async def _wait(self) -> None:
        """Wait for all that are on their way at once, as long as there are any."""
        tries = delays()
        while True:
            await self._to_wait.wait()
            self._to_wait.clear()
            while self._calls:
                try:
                    if not self._waiter.is_open:
                        await self._waiter.open()
                    for key, value in await self._collect(list(self._calls)):
                        call = self._calls.get(key)
                        if call is not None and not call.future.done():
                            call.future.set_result([key, value])
                    tries = delays()
                except StoreError:  # the reply may come yet; a call without one has its timeout
                    await asyncio.sleep(next(tries))
                await asyncio.sleep(0)  # those that have their reply leave `_calls`

    async def _collect(self, names: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
        """Wait, for a second at most, until one of the lists has a reply; the replies that are there."""
        self._watched = frozenset(names)
        try:
            command = pack("BRPOP", *names, self._wake, WAIT_SECONDS)
            (first,) = await self._waiter.exchange(command, 1, wait=WAIT_SECONDS)
        finally:
            self._watched = frozenset()
        if isinstance(first, ReplyError):
            self._waiter.close()
            raise refused(first, self._waiter.address.shown)
        if not first:
            return []
        others = [name for name in names if name != first[0]]
        data = b"".join([pack("RPOP", name) for name in others])
        rest = await self._waiter.exchange(data, len(others)) if others else []
        found = [(name, value) for name, value in zip(others, rest, strict=True) if isinstance(value, bytes)]
        return found if first[0] == self._wake.encode() else [(first[0], first[1]), *found]
