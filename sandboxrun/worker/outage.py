"""An outage of Redis: said once, tried again with growing delays, and over only once something has succeeded.

A connection that opens is no success, because a proxy may close it as soon as it is used. A read is one, and a reply that was
written; what `Claims.open` does is none.
"""

from __future__ import annotations

import time

from sandboxrun.redis.connection import delays

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


QUIET_SECONDS = 10.0  # after an outage was said, in which another is not


class Outages:
    """Tells people about the outage, whichever of the worker's connections it meets."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._away: set[object] = set()
        self._said = False  # of the outage that is
        self._quiet_until = 0.0

    def began(self, of: object, error: object) -> None:
        """At each try that fails, too."""
        self._away.add(of)
        if not self._said and time.monotonic() >= self._quiet_until:
            self._said = True
            self._quiet_until = time.monotonic() + QUIET_SECONDS
            self._warn(f"{error}; connecting again")

    def over(self, of: object) -> None:
        self._away.discard(of)
        if self._said and not self._away:
            self._said = False
            self._warn("Redis is back")


class Backoff:
    """When to try again, for one connection."""

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
