"""One connection that several threads use in turn, and the replies that are expected on it.

Commands are collected, sent together by `flush`, and their replies are taken by `receive` in the same order. If any thread
finds the connection lost, no reply is expected any more, and the next user gets ConnectionLost, never the reply to another
command. Callers hold a lock around every method.
"""

from __future__ import annotations

from sandboxrun.errors import ConnectionLost
from sandboxrun.redis.connection import Connection, pack
from sandboxrun.redis.replies import ReplyError, translated

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any

    Take = Callable[[list[Any], Any], None]
else:
    from _collections import deque  # collections is Python, and imports more of it


class Session:
    """Commands and replies in flight. Every method may raise ConnectionLost."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._out: list[bytes] = []
        self.waiting: deque[tuple[Take, int, Any]] = deque()  # the replies that are expected, the oldest first
        self._partial: list[Any] = []  # the replies so far to the oldest commands
        self.away = False  # the connection was lost, and no command has succeeded since
        self.back: Callable[[], None] = lambda: None  # called when one has

    def close(self) -> None:
        """Close the connection, and expect no more replies."""
        self.connection.close()
        self._out.clear()
        self.waiting.clear()
        self._partial = []

    def flush(self) -> None:
        if self._out:
            data = b"".join(self._out)
            self._out.clear()
            self.connection.send(data)

    def receive(self) -> None:
        """Wait for the replies to the oldest commands, and pass them on."""
        if self._out:
            self.flush()
        if not self.waiting:
            raise self._lost_meanwhile()
        take, count, detail = self.waiting[0]
        try:
            replies = self.connection.read_many(count - len(self._partial))
        except BaseException:
            self.close()  # later replies would be taken for those of other commands
            raise
        if self._partial:
            replies, self._partial = self._partial + replies, []
        self.waiting.popleft()
        take(replies, detail)

    def receive_ready(self) -> None:
        """Pass on the replies that have come, and notice a closed connection. Does not wait."""
        while self.waiting:
            take, count, detail = self.waiting[0]
            try:
                if not self.connection.read_ready(self._partial, count):
                    return
            except BaseException:
                self.close()
                raise
            replies, self._partial = self._partial, []
            self.waiting.popleft()
            take(replies, detail)

        before = self.connection.received
        if self.connection.read_ready([], 1) or self.connection.received > before:
            self.close()
            raise ConnectionLost(f"Redis at {self.connection.address.shown} sent a reply that was not asked for")

    def _lost_meanwhile(self) -> ConnectionLost:
        self.close()
        return ConnectionLost(f"the connection to Redis at {self.connection.address.shown} was lost meanwhile")

    def expect(self, parts: Iterable[bytes], count: int, take: Take, detail: Any = None) -> None:
        """Queue packed commands, in parts that `flush` joins. `take` is called with their `count` replies and `detail`."""
        self._out += parts
        self.waiting.append((take, count, detail))

    def exchange(self, *commands: Sequence[str | bytes | int]) -> list[Any]:
        """Send these commands and return their replies, after those to earlier commands. Redis's errors are returned."""
        box: list[Any] = []
        data = b"".join([pack(*command) for command in commands])
        self.expect((data,), len(commands), lambda replies, _: box.extend(replies))
        self.flush()
        while not box:
            self.receive()
        for reply in box:
            if isinstance(reply, ReplyError):
                self._raise_passing(reply)
        return box

    def _raise_passing(self, error: ReplyError) -> None:
        found = translated(error, self.connection.address.shown)
        if found is not error:
            raise found

    def _succeeded(self) -> None:
        self.away = False
        self.back()
