"""The requests in flight on one blocking connection."""

from __future__ import annotations

import time

from sandboxrun.client import forks
from sandboxrun.client.put import LOOK_REQUESTS, batch_of, look, looked, pop_count, pop_key, put, taken
from sandboxrun.client.request import Outgoing, ReplyTooLarge, State
from sandboxrun.errors import ConnectionLost, StoreError
from sandboxrun.protocol.call import CallError, NotSent
from sandboxrun.redis.connection import delays, pack
from sandboxrun.redis.replies import ReplyError, is_wrong_type, refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from sandboxrun.client.request import Outcome
    from sandboxrun.client.wire import Wire

WAIT_SECONDS = 5.0  # of one BRPOP, after which a dead connection is noticed
UNSETTLED_WAIT_SECONDS = 1.0  # of one BRPOP, while another request must be retried


class Exchange:
    """`add` requests, then call `step` until `waiting` is empty."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.waiting: dict[bytes, Outgoing] = {}
        self._done: list[tuple[Outgoing, Outcome]] = []
        self._delays = delays()
        self._trouble: ConnectionLost | None = None  # a refusal of Redis that may pass
        self._process = forks.generation

    def add(self, request: Outgoing) -> None:
        self.waiting[request.key] = request

    def step(self) -> list[tuple[Outgoing, Outcome]]:
        """Send, wait for a bounded time, and return the requests that ended, with their replies or errors.

        A StoreError among them that is no CallError is a lasting refusal of Redis.
        """
        self._check_process()
        try:
            self._advance()
        except ConnectionLost as error:
            self._pause(error)
        except StoreError as error:  # the login, the certificate, or a command that this user may not use
            if not self._end_unsent(error):
                self._pause(error)
        now = time.monotonic()
        for request in [request for request in self.waiting.values() if request.until <= now]:
            self._end(request, request.timed_out())
        done, self._done = self._done, []
        return done

    def _check_process(self) -> None:
        if self._process != forks.generation:
            for request in self.waiting.values():
                request.check_process()

    def _end(self, request: Outgoing, outcome: Outcome) -> None:
        if self.waiting.pop(request.key, None) is not None:
            self._done.append((request, outcome))

    def _end_unsent(self, error: StoreError) -> bool:
        unsent = self._in(State.UNSENT)
        for request in unsent:
            self._end(request, error)
        return bool(unsent)

    def _pause(self, error: StoreError) -> None:
        """Close the connection, and wait before the next try, unless something is done already."""
        self.wire.close()
        self._check_process()
        for request in list(self.waiting.values()):
            ended = request.lost(str(error))
            if ended is not None:
                self._end(request, ended)
        if not self._done and self.waiting:
            time.sleep(max(0.0, min(next(self._delays), self._left())))

    def _left(self) -> float:
        """Seconds until the next call times out."""
        return min([request.until for request in self.waiting.values()]) - time.monotonic()

    def _last(self) -> float:
        """Seconds until the last call times out."""
        return max([request.until for request in self.waiting.values()]) - time.monotonic()

    def _in(self, *states: State) -> list[Outgoing]:
        return [request for request in self.waiting.values() if request.state in states]

    def _advance(self) -> None:
        if not self.wire.is_open:
            self.wire.open_within(self._last())
        self._look()
        self._trouble = None
        asked = False
        while self.wire.is_open and not self._trouble and (batch := batch_of(self._in(State.UNSENT))):
            asked = len(self.waiting) == 1  # the usual call: sent and waited for with one write
            self._put(batch, and_wait=asked)
        if self.wire.is_open and not self._done and self._in(State.SENT, State.UNSURE):
            self._wait(asked=asked)
        if self._trouble is not None:
            raise self._trouble

    def _seconds(self) -> float:
        """How long the next BRPOP asks Redis to wait."""
        retries = self._trouble or any(request.look for request in self.waiting.values())
        return max(0.001, min(UNSETTLED_WAIT_SECONDS if retries else WAIT_SECONDS, self._left()))

    # --- sending

    def _put(self, batch: list[Outgoing], *, and_wait: bool) -> None:
        data, count = put(batch, self.wire.fence)
        seconds = self._seconds()
        if and_wait:
            data += pack("BRPOP", batch[0].key, f"{seconds:.3f}")
        for request in batch:
            request.sending(self.wire.fence)
        self.wire.ask(data, count + and_wait, left=self._last(), wait=seconds if and_wait else 0)
        refusals = taken(batch, self.wire.read_many(count), self.wire.address.shown)
        for request, error in refusals:
            if isinstance(error, NotSent) and request.retry:
                request.reason = str(error).removesuffix("; the request was not sent")
                self._trouble = error
            else:
                self._end(request, error)
        if not refusals:
            self._delays = delays()
        if and_wait and batch[0].state is not State.SENT:
            self.wire.close()  # its BRPOP waits for a reply that will not come

    # --- waiting

    def _wait(self, *, asked: bool) -> None:
        """Wait at most WAIT_SECONDS for one reply; then take every other reply that has come."""
        names = list(self.waiting)
        if not asked:
            seconds = self._seconds()
            self.wire.ask(pack("BRPOP", *names, f"{seconds:.3f}"), 1, left=self._last(), wait=seconds)
        try:
            reply = self.wire.read()
        except ReplyTooLarge as error:
            self._end_too_large(names[0] if len(names) == 1 else pop_key(error.head))
            raise
        if isinstance(reply, ReplyError):
            if not is_wrong_type(reply):
                self._refused(refused(reply, self.wire.address.shown))
            else:
                self._find_wrong_types()
            return
        self._delays = delays()
        if not reply:
            return
        key, value = reply
        if key not in self.waiting:
            self.wire.close()
            raise ConnectionLost(f"Redis at {self.wire.address.shown} answered with a key that was not asked for")
        self._take(key, value)
        others = [name for name in names if name != key]
        count = pop_count(value)
        for first in range(0, len(others), count):
            self._pop(others[first : first + count])

    def _refused(self, error: StoreError) -> None:
        """End the sent requests, because this user may not wait for replies. Raises ConnectionLost if that may pass."""
        if isinstance(error, ConnectionLost):
            raise error
        for request in self._in(State.SENT, State.UNSURE):
            self._end(request, CallError(f"{error}; the request was sent, but its reply cannot be read"))

    def _pop(self, names: list[bytes]) -> None:
        """Take the replies that have come, without waiting."""
        self.wire.ask(b"".join([pack("RPOP", name) for name in names]), len(names), left=self._last())
        for name in names:
            try:
                value = self.wire.read()
            except ReplyTooLarge:
                self._end_too_large(name)
                raise
            if value is not None:
                self._take(name, value)

    def _take(self, key: bytes, value: Any) -> None:
        request = self.waiting[key]
        if isinstance(value, bytes):
            self._end(request, request.outcome(value))
        elif is_wrong_type(value):
            self._end(request, request.unusable(f"is not in a list: {str(value)[:80]}"))

    def _end_too_large(self, key: bytes) -> None:
        request = self.waiting.get(key)
        if request is not None:
            self._end(request, request.too_large())

    def _find_wrong_types(self) -> None:
        names = list(self.waiting)
        self.wire.ask(b"".join([pack("TYPE", name) for name in names]), len(names), left=self._last())
        for name, kind in zip(names, self.wire.read_many(len(names)), strict=True):
            if kind not in (b"list", b"none"):
                request = self.waiting[name]
                self._end(request, request.unusable(f"is not in a list: {name.decode()} is of type {_text(kind)}"))

    # --- after a connection was lost

    def _look(self) -> None:
        """Ask for the fate of requests whose connection was lost, and fetch their replies."""
        lost = [request for request in self._in(State.SENT, State.UNSURE) if request.look]
        for first in range(0, len(lost), LOOK_REQUESTS):
            part = lost[first : first + LOOK_REQUESTS]
            data, count = look(part)
            self.wire.ask(data, count, left=self._last())
            answered, too_large = looked(part, self.wire.read_many(count))
            for request in too_large:
                self._end(request, request.too_large())
            self._fetch(answered)

    def _fetch(self, answered: Iterable[Outgoing]) -> None:
        for request in answered:
            self.wire.ask(pack("HGET", request.trace_key, request.trace_field), 1, left=self._last())
            value = self.wire.read()
            outcome = request.traced(value) if isinstance(value, bytes) else None
            if outcome is None:
                request.look = False  # there is no reply in it: the list may have one
            else:
                self._end(request, outcome)


def _text(kind: object) -> str:
    return kind.decode("utf-8", "replace") if isinstance(kind, bytes) else str(kind)
