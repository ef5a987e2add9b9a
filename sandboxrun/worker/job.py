"""A request in a concurrent worker, and the key that orders it."""

from __future__ import annotations

from typing import Any

from sandboxrun.worker.handlers import Handler
from sandboxrun.worker.rendering import Entry
from sandboxrun.worker.request import Request


class Job:
    """A request that a handler has, or that waits behind one with an equal key."""

    __slots__ = ("_free", "entry", "handler", "key", "received", "request")

    def __init__(self, entry: Entry, handler: Handler, request: Request, received: str, key: Any) -> None:
        self.entry, self.handler, self.request, self.received, self.key = entry, handler, request, received, key
        self._free = [None]

    def take(self) -> bool:
        """True for the first caller, from any thread."""
        try:
            self._free.pop()
        except IndexError:
            return False
        return True


class Key:
    """The value that `key` returned. Hashed once, because a later change must not lose the requests that wait for it."""

    __slots__ = ("_hash", "_value")

    def __init__(self, value: Any) -> None:
        self._value, self._hash = value, hash(value)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Key) and bool(self._value == other._value)
