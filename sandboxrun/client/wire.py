"""A client's blocking connection: bounded in time and in what it receives, and not shared with a forked child."""

from __future__ import annotations

import math
import time
from _socket import MSG_DONTWAIT, MSG_PEEK
from itertools import islice

from sandboxrun.client import forks
from sandboxrun.client.put import new_fence
from sandboxrun.client.request import ReplyTooLarge
from sandboxrun.errors import ConnectionLost
from sandboxrun.protocol import REPLY_MAX_BYTES
from sandboxrun.redis.connection import INCOMPLETE, RECEIVE_BYTES, Connection, check_greeting, greeting
from sandboxrun.redis.replies import ProtocolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

SILENT_SECONDS = 5.0  # without an answer, on top of a command's own waiting time, until the connection counts as dead
GRACE_SECONDS = 0.5  # for an answer after the last call has timed out
LEAST_SECONDS = 0.05  # a time-out of 0 would be none, socket(7)
_HEAD_BYTES = 600  # longer than BRPOP's reply before its value


class Wire(Connection):
    """One connection. A method that raises ConnectionLost leaves it closed."""

    def __init__(self, url: str) -> None:
        super().__init__(url, name="sandboxrun-client", seconds=SILENT_SECONDS)
        self.fence = ""  # watched by this connection; empty if Redis does not allow it
        self.owed = 0  # replies that are not read yet
        self._partial = 0  # bytes received since the last whole reply
        self._head = b""  # the first of them
        self._end = math.inf
        forks.register(self)

    def open_within(self, seconds: float) -> None:
        """As `open`, within `seconds`."""
        self.owed = self._partial = 0
        self._be_patient(0, seconds)
        self.open()

    def _greet(self) -> None:
        fence = new_fence()
        commands = greeting(self.address, self._name, self._protocol)
        try:
            *replies, watched = self.pipeline([*commands, ("WATCH", fence)])
            check_greeting(self.address, commands, replies)
        except BaseException:
            self.close()
            raise
        self.fence = fence if watched == b"OK" else ""

    def ask(self, data: bytes, count: int, *, left: float, wait: float = 0.0) -> None:
        """Send commands that have `count` replies. `wait`: seconds that the commands themselves wait at the server.

        `left`: seconds until the last call times out, which bounds the wait for the answer.
        """
        self.owed += count  # before the send, so that an interrupted call leaves the connection marked as in use
        self._be_patient(wait, left)
        if self._socket is not None:
            self.set_wait(0)
        self.send(data)

    def _be_patient(self, wait: float, left: float) -> None:
        left = max(left, LEAST_SECONDS)
        self._seconds = min(wait + SILENT_SECONDS, left + GRACE_SECONDS)
        self._end = time.monotonic() + left + GRACE_SECONDS

    def pipeline(self, commands: Sequence[Sequence[str | bytes | int | float]]) -> list[Any]:
        self.owed += len(commands)
        return super().pipeline(commands)

    def read(self) -> Any:
        """The next reply; an error of Redis is returned. Also raises ReplyTooLarge."""
        try:
            reply = self._reader.gets()
            while reply is INCOMPLETE:
                self._receive()
                reply = self._reader.gets()
        except ProtocolError as error:
            raise self._lost(error) from error
        self._partial = 0
        self.owed -= 1
        return reply

    def read_many(self, count: int) -> list[Any]:
        gets = self._reader.gets
        replies: list[Any] = []
        try:
            while True:
                whole = list(islice(iter(gets, INCOMPLETE), count - len(replies)))
                if whole:
                    self._partial = 0
                    self.owed -= len(whole)
                    replies += whole
                if len(replies) == count:
                    return replies
                self._receive()
        except ProtocolError as error:
            raise self._lost(error) from error

    def _receive(self) -> None:
        if self._socket is None:
            raise ConnectionLost(f"the connection to Redis at {self.address.shown} is closed")
        try:
            data = self._socket.recv(RECEIVE_BYTES)
        except OSError as error:
            raise self._lost(error) from error
        if not data:
            raise self._lost(None)
        if time.monotonic() > self._end:
            raise self._lost(TimeoutError())
        if not self._partial:
            self._head = data[:_HEAD_BYTES]
        self._partial += len(data)
        if self._partial > REPLY_MAX_BYTES + RECEIVE_BYTES:  # the first bytes may belong to the reply before
            self.close()
            raise ReplyTooLarge(f"Redis at {self.address.shown} sends too large a reply", self._head)
        self._reader.feed(data)

    @property
    def usable(self) -> bool:
        """Whether another call may use it: no reply is owed, none came unasked, and the server has not closed it."""
        if self._socket is None or self.owed:
            return False
        try:
            if self.address.tls:
                self._take_now()
            else:
                self._socket.recv(1, MSG_PEEK | MSG_DONTWAIT)
        except BlockingIOError:  # nothing is there, as it should be
            return not self._reader.has_data()
        except OSError:
            pass
        return False

    def abandon(self) -> None:
        """In a forked child: close its copy of the socket. The parent's stays open, and nothing is sent, by TLS neither."""
        self.discard()
        self.owed = 0
