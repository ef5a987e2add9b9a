"""An outage of Redis: one warning, retries with growing delays, and an end once a command has succeeded.

A connection that opens does not end an outage, because a proxy may close it on first use. A read or a written reply does.
"""

from __future__ import annotations

import time

from sandboxrun.redis.connection import delays

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


QUIET_SECONDS = 10.0  # without a second warning after the first


class Outages:
    """Warns about an outage once, whichever of the worker's connections meets it."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._away: set[object] = set()
        self._said = False  # the present outage was reported
        self._quiet_until = 0.0

    def began(self, connection: object, error: object) -> None:
        """Called for each failed try."""
        self._away.add(connection)
        if not self._said and time.monotonic() >= self._quiet_until:
            self._said = True
            self._quiet_until = time.monotonic() + QUIET_SECONDS
            self._warn(f"{error}; connecting again")

    def over(self, connection: object) -> None:
        self._away.discard(connection)
        if self._said and not self._away:
            self._said = False
            self._warn("Redis is back")


class Backoff:
    """The delay before the next try of one connection."""

    def __init__(self, outages: Outages, most: float) -> None:
        """`most`: seconds between two tries."""
        self._outages, self._most = outages, most
        self.since = 0.0  # when the outage began, or 0
        self.at = 0.0  # when the next try is due
        self.succeeded()

    def failed(self, error: object) -> None:
        now = time.monotonic()
        self.since = self.since or now
        self.at = now + next(self._delays)
        self._outages.began(self, error)

    def succeeded(self) -> None:
        self._delays = delays(self._most)
        self.since = self.at = 0.0
        self._outages.over(self)

    def left(self) -> float:
        """Seconds until the next try."""
        return max(0.0, self.at - time.monotonic())
