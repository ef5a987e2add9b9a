"""The calls of one event loop: two connections, and a task for each; a third one, from its first use, for traces."""

from __future__ import annotations

import asyncio
import os
from collections import deque

from sandboxrun.client import forks
from sandboxrun.client.link import Link
from sandboxrun.client.put import LOOK_REQUESTS, batch_of, look, looked, pop_count, pop_key, put, taken
from sandboxrun.client.request import Outgoing, ReplyTooLarge, State
from sandboxrun.config import keys
from sandboxrun.errors import ConnectionLost, LoginRefused, StoreError
from sandboxrun.protocol.call import CallError, CallTimeout, NotSent
from sandboxrun.redis.connection import delays, pack
from sandboxrun.redis.replies import ReplyError, is_wrong_type, refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence
    from typing import Any

    from sandboxrun.client.login import Login
    from sandboxrun.client.request import Outcome

WAIT_SECONDS = 1
LOOK_SECONDS = 1.0  # between two looks for lost replies
WAKE_EXPIRE_SECONDS = 5


class Call:
    """A request, and the future of its reply."""

    __slots__ = ("future", "request")

    def __init__(self, request: Outgoing, future: asyncio.Future[Outcome]) -> None:
        self.request, self.future = request, future

    def end(self, outcome: Outcome) -> None:
        if not self.future.done():
            self.future.set_result(outcome)


class Line:
    """Belongs to the event loop in which it is made. It ends by `close` or `stop`, or if its tasks are cancelled."""

    def __init__(self, login: Login) -> None:
        self._sender, self._waiter = (Link(login.url, f"sandboxrun-client-{name}") for name in ("sends", "waits"))
        self._tracer, self._tracing = Link(login.trace_url, "sandboxrun-client-traces"), asyncio.Lock()
        # A push to this list ends the wait, which then begins again with new keys.
        self._wake = keys.reply_key(f"{login.nonce_of()}wake-{os.urandom(12).hex()}")
        self._calls: dict[bytes, Call] = {}  # by reply key
        self._unsent: deque[Call] = deque()
        self._unsure: list[Call] = []  # calls whose connection was lost while they were sent
        self._watched: frozenset[bytes] = frozenset()  # the reply keys that the waiting connection waits for
        self._to_send, self._to_wait = asyncio.Event(), asyncio.Event()
        self.over = False
        forks.register(self)
        self._tasks = [asyncio.create_task(self._run(work)) for work in (self._send, self._wait)]

    async def call(self, request: Outgoing) -> Outcome:
        call = Call(request, asyncio.get_running_loop().create_future())
        self._calls[request.key] = call
        self._unsent.append(call)
        self._to_send.set()
        self._to_wait.set()
        try:
            async with asyncio.timeout(None if request.timeout is None else max(request.left, 0)):
                return await call.future
        except TimeoutError:
            return request.timed_out()
        finally:
            self._calls.pop(request.key, None)
            call.future.cancel()  # nobody waits for it, so it is not sent

    async def trace(self, ref: str, fields: Mapping[str, Any]) -> None:
        from sandboxrun.client.noting import NOTE_COMMANDS, expire, note, without_nx

        data, link = note(ref, fields), self._tracer
        async with self._tracing:
            await link.ensure_open()
            if ask := without_nx(ref, await link.exchange(data, NOTE_COMMANDS), link.address.shown):
                (ttl,) = await link.exchange(ask, 1)
                if more := expire(ref, ttl):
                    await link.exchange(more, 1)

    async def open(self) -> None:
        """Connect now. Raises StoreError if Redis refuses the login; if Redis cannot be reached, the calls retry."""
        for link in (self._sender, self._waiter):
            try:
                await link.ensure_open()
            except ConnectionLost:
                pass

    async def close(self) -> None:
        self.stop()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def stop(self) -> None:
        """End the calls, and close the connections."""
        self._end_all(lambda call: _closed(call.request))

    def silence(self) -> None:
        """Suppress asyncio's warning about tasks that have not ended, because their event loop is gone."""
        for task in self._tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]  # of asyncio; asyncio.gather sets it, too

    def abandon(self) -> None:
        """In a forked child: keep the objects of the parent's event loop from being finalized here."""
        self.silence()
        forks.keep(self)

    def _end_all(self, outcome: Callable[[Call], Outcome]) -> None:
        self.over = True
        for link in (self._sender, self._waiter, self._tracer):
            link.close()
        for call in list(self._calls.values()):
            call.end(outcome(call))
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()

    async def _run(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """One of the two tasks. If it ends, for any reason, all calls end."""
        try:
            await work()
        except asyncio.CancelledError:  # by `stop`, or with its event loop
            self._end_all(lambda call: _closed(call.request))
            raise
        except Exception as error:  # a defect of sandboxrun
            defect = error
            self._end_all(lambda call: defect)

    # --- sending: a task

    async def _send(self) -> None:
        tries = delays()
        while True:
            await self._to_send.wait()
            self._to_send.clear()
            while self._unsent or self._unsure:
                try:
                    for _ in range(2):  # turns of the loop, in which it notices a closed connection
                        await asyncio.sleep(0)
                    await self._sender.ensure_open()
                    await self._settle()
                    if batch := self._batch():
                        await self._put(batch)
                    tries = delays()
                except ConnectionLost as error:
                    self._sender.close()
                    self._lost(str(error))
                    await asyncio.sleep(next(tries))
                except StoreError as error:  # the login, or the certificate
                    self._sender.close()
                    while self._unsent:
                        self._unsent.popleft().end(error)
                    self._lost(str(error))
                    await asyncio.sleep(next(tries))

    def _lost(self, reason: str) -> None:
        for call in self._calls.values():
            if call.request.state is State.SENT:
                continue  # the waiting connection gets its reply
            ended = call.request.lost(reason)
            if ended is not None:
                call.end(ended)

    def _batch(self) -> list[Call]:
        """The next calls to send, without those that nobody waits for any more."""
        while self._unsent and self._unsent[0].future.done():
            self._unsent.popleft()
        requests = batch_of(call.request for call in self._unsent if not call.future.done())
        batch: list[Call] = []
        while len(batch) < len(requests):
            call = self._unsent.popleft()
            if not call.future.done():
                batch.append(call)
        return batch

    async def _put(self, batch: Sequence[Call]) -> None:
        requests = [call.request for call in batch]
        wake = b""
        if self._watched and not {request.key for request in requests} <= self._watched:
            wake = pack("LPUSH", self._wake, 1) + pack("EXPIRE", self._wake, WAKE_EXPIRE_SECONDS)
        data, count = put(requests, self._sender.fence)
        for request in requests:
            request.sending(self._sender.fence)
        try:
            replies = await self._sender.exchange(data + wake, count + (2 if wake else 0))
        except ConnectionLost:
            self._unsure += batch
            raise
        calls = {call.request.key: call for call in batch}
        trouble: NotSent | None = None
        for request, error in taken(requests, replies[:count], self._sender.address.shown):
            if isinstance(error, NotSent) and request.retry:
                trouble, request.reason = error, str(error).removesuffix("; the request was not sent")
            else:
                calls[request.key].end(error)
        again = [call for call in batch if call.request.state is State.UNSENT and not call.future.done()]
        self._unsent.extendleft(reversed(again))
        if trouble is not None:
            raise ConnectionLost(str(trouble).removesuffix("; the request was not sent"))

    async def _settle(self) -> None:
        """Ask whether the requests whose connection was lost were accepted, and send the others again."""
        calls, self._unsure = [call for call in self._unsure if not call.future.done()], []
        for first in range(0, len(calls), LOOK_REQUESTS):
            part, rest = calls[first : first + LOOK_REQUESTS], calls[first + LOOK_REQUESTS :]
            requests = [call.request for call in part]
            try:
                data, count = look(requests)
                replies = await self._sender.exchange(data, count)
            except ConnectionLost:
                self._unsure = [*part, *rest]
                raise
            looked(requests, replies)
            self._unsent.extendleft([call for call in reversed(part) if call.request.state is State.UNSENT])
            errors = [refused(reply, self._sender.address.shown) for reply in replies if isinstance(reply, ReplyError)]
            passing = next((error for error in errors if isinstance(error, ConnectionLost)), None)
            if passing is not None:
                self._unsure = [call for call in part if call.request.state is State.UNSURE] + rest
                raise passing

    # --- waiting: a task

    async def _wait(self) -> None:
        """Wait for the replies of all calls at once, as long as there are calls."""
        tries = delays()
        next_look = 0.0
        loop = asyncio.get_running_loop()
        while True:
            await self._to_wait.wait()
            self._to_wait.clear()
            while self._calls:
                try:
                    if await self._waiter.ensure_open():
                        next_look = 0.0
                    if loop.time() >= next_look:
                        await self._look()
                        next_look = loop.time() + LOOK_SECONDS
                    await self._collect(list(self._calls))
                    tries = delays()
                except StoreError:  # the reply may still come; otherwise the call times out
                    self._waiter.close()
                    for call in self._calls.values():
                        call.request.look = True
                    await asyncio.sleep(next(tries))
                await asyncio.sleep(0)  # calls with a reply leave `_calls`

    async def _collect(self, names: Sequence[bytes]) -> None:
        """Wait at most WAIT_SECONDS for one reply; then take every other reply that has come."""
        self._watched = frozenset(names)
        try:
            command = pack("BRPOP", *names, self._wake, WAIT_SECONDS)
            (reply,) = await self._waiter.exchange(command, 1, wait=WAIT_SECONDS)
        except ReplyTooLarge as error:
            self._end_too_large(pop_key(error.head))
            raise
        finally:
            self._watched = frozenset()
        if isinstance(reply, ReplyError):
            if not is_wrong_type(reply):
                self._refused(refused(reply, self._waiter.address.shown))
            else:
                await self._find_wrong_types(names)
            return
        if not reply:
            return
        key, value = reply
        if key != self._wake.encode():
            if key not in names:
                raise ConnectionLost(
                    f"Redis at {self._waiter.address.shown} answered with a key that was not asked for"
                )
            self._take(key, value)
        others = [name for name in names if name != key]
        count = pop_count(value)
        for first in range(0, len(others), count):
            await self._pop(others[first : first + count])

    def _refused(self, error: StoreError) -> None:
        """End the calls, because this user may not wait for replies. Raises StoreError if that may pass."""
        if isinstance(error, ConnectionLost | LoginRefused):
            raise error
        for call in self._calls.values():
            if call.request.state is State.UNSENT:
                call.end(error)
            else:
                call.end(CallError(f"{error}; the request was sent, but its reply cannot be read"))

    async def _pop(self, names: Sequence[bytes]) -> None:
        replies: list[Any] = []
        try:
            await self._waiter.exchange(b"".join([pack("RPOP", name) for name in names]), len(names), into=replies)
        except ReplyTooLarge:
            self._end_too_large(names[len(replies)])
            raise
        finally:
            for name, value in zip(names, replies, strict=False):  # also those before a loss
                self._take(name, value)

    def _take(self, key: bytes, value: Any) -> None:
        call = self._calls.get(key)
        if call is None:  # it was cancelled, or has timed out
            return
        if isinstance(value, bytes):
            call.end(call.request.outcome(value))
        elif is_wrong_type(value):
            call.end(call.request.unusable(f"is not in a list: {str(value)[:80]}"))

    def _end_too_large(self, key: bytes) -> None:
        call = self._calls.get(key)
        if call is not None:
            call.end(call.request.too_large())

    async def _find_wrong_types(self, names: Sequence[bytes]) -> None:
        kinds = await self._waiter.exchange(b"".join([pack("TYPE", name) for name in names]), len(names))
        for name, kind in zip(names, kinds, strict=True):
            call = self._calls.get(name)
            if call is not None and kind not in (b"list", b"none"):
                call.end(call.request.unusable(f"is not in a list: {name.decode()} is of another type"))

    async def _look(self) -> None:
        """Fetch replies from the traces, if a lost connection may have popped them."""
        lost = [call for call in self._calls.values() if call.request.look and not call.request.resendable]
        for first in range(0, len(lost), LOOK_REQUESTS):
            part = {call.request.key: call for call in lost[first : first + LOOK_REQUESTS]}
            requests = [call.request for call in part.values()]
            data, count = look(requests)
            answered, too_large = looked(requests, await self._waiter.exchange(data, count))
            for request in too_large:
                part[request.key].end(request.too_large())
            for request in answered:
                command = pack("HGET", request.trace_key, request.trace_field)
                (value,) = await self._waiter.exchange(command, 1)
                outcome = request.traced(value) if isinstance(value, bytes) else None
                if outcome is None:
                    request.look = False  # there is no reply in it: the list may have one
                else:
                    part[request.key].end(outcome)


def _closed(request: Outgoing) -> CallTimeout | NotSent:
    sure = request.state is State.UNSENT and not request.perhaps
    return NotSent("the client was closed") if sure else CallTimeout("the client was closed")
