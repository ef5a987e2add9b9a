"""Client-side caching: Redis says which keys have changed that a connection has read, so that nobody has to ask again and again.

In the form of RESP2, with a second connection that is told (REDIRECT). A key must be read again after it was announced, and
after it was written over the same connection (NOLOOP), because Redis forgets then that it was read.

Source: redis.io/docs/latest/develop/reference/client-side-caching.
"""

from __future__ import annotations

from sandboxrun.errors import ConnectionLost
from sandboxrun.redis.connection import Connection, pack
from sandboxrun.redis.replies import ReplyError, Within

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

CHANNEL = "__redis__:invalidate"
# Of what is told at once: whoever may publish must not fill our memory.
_MESSAGES_MAX, _MESSAGES_MAX_BYTES = 4096, 1024 * 1024


class Tracking:
    """Two connections. Every method raises ConnectionLost, and then both have to be opened again."""

    def __init__(self, url: str, *, name: str, seconds: float) -> None:
        self.reading = Connection(url, name=name, seconds=seconds, protocol=2)
        """Read the keys over this one. Nobody else may open it."""
        self._told = Connection(url, name=name, seconds=seconds, protocol=2)
        self._asked = False  # whether a pong is due

    def open(self) -> bool:
        """Connect. False if this server does not do it, or not for this login; `reading` is open all the same."""
        self.close()
        self.reading.open()
        try:
            self._told.open()
            number = self._told.call("CLIENT", "ID")
            self._told.call("SUBSCRIBE", CHANNEL)
            self.reading.call("CLIENT", "TRACKING", "ON", "REDIRECT", number, "NOLOOP")
        except ReplyError:
            self._told.close()
            return False
        self._asked = False
        return True

    def fileno(self) -> int:
        """Readable when something has changed. Only after `open` was True."""
        return self._told.fileno()

    def changed(self) -> list[bytes] | None:
        """The keys that have changed since; None if all may have. Does not wait."""
        messages: list[Any] = []
        with Within(self._told, _MESSAGES_MAX_BYTES):
            self._told.read_ready(messages, _MESSAGES_MAX)
        keys: list[bytes] = []
        for message in messages:
            if isinstance(message, list) and message[:1] == [b"pong"]:
                self._asked = False
            elif isinstance(message, list) and len(message) == 3 and isinstance(message[2], list):
                keys += message[2]
            else:  # FLUSHALL, or what somebody else has published
                return None
        return keys

    def check(self) -> None:
        """Raise ConnectionLost if the last question was not answered, and ask again: call it now and then."""
        if self._asked:
            raise ConnectionLost(f"Redis at {self._told.address.shown} is away (no answer in time)")
        self._told.send(pack("PING"))
        self._asked = True

    def close(self) -> None:
        self.reading.close()
        self._told.close()
