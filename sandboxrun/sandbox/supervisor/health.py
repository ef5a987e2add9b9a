"""Runs in the supervisor: reads the page in which a worker says how it is, and decides whether the worker is stuck.

Whatever stands there is hostile: the page is the worker's to write. So it is copied by pread(2), which no truncation can turn
into a SIGBUS, and every value becomes a finite number within bounds.
"""

from __future__ import annotations

import math
import os
import struct
import time

from sandboxrun import healthpage as at
from sandboxrun.health import Health, Histogram
from sandboxrun.healthpage import BOUNDS
from sandboxrun.sandbox.supervisor import spawn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["BOUNDS", "Health", "Histogram", "Page", "stuck"]

COUNT_MOST = 1 << 53  # exact in a double, as JSON and Prometheus have it
SUM_MOST = 1e12
ID_MOST = 1 << 63  # Redis's ids are below
LATE_SECONDS = 3.0  # an event loop that turns says so once a second
_WORDS = at.BYTES // 8


class Page:
    """One worker's page. Whoever has made the descriptor closes it."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @classmethod
    def create(cls) -> Page:
        """A new page. Raises OSError."""
        fd = spawn.health_page()
        spawn.seal(fd)
        return cls(fd)

    def read(self) -> Health:
        """What stands there now."""
        return parse(os.pread(self.fd, at.BYTES, 0), time.monotonic())


def parse(data: bytes, now: float) -> Health:
    """From the bytes of a page, whatever they are. `now`: no time is later."""
    data = data.ljust(at.BYTES, b"\0")[: at.BYTES]
    words: Sequence[int] = struct.unpack(f"={_WORDS}Q", data)
    doubles: Sequence[float] = struct.unpack_from("=8d", data)
    handled = min(words[at.HANDLED], COUNT_MOST)
    return Health(
        ready=words[at.READY] == 1,
        tick=_clamped(doubles[at.TICK], now),
        handling_since=_clamped(doubles[at.HANDLING_SINCE], now),
        handled=handled,
        codes=_codes(words[at.CODES : at.CODES + 2 * at.CODES_MOST], handled),
        handler=_histogram(words, at.HANDLER, doubles[at.HANDLER_SUM]),
        wait=_histogram(words, at.WAIT, doubles[at.WAIT_SUM]),
        client_id=words[at.CLIENT_ID] if words[at.CLIENT_ID] < ID_MOST else 0,
    )


def _clamped(value: float, most: float) -> float:
    return min(max(value, 0.0), most) if math.isfinite(value) else 0.0


def _histogram(words: Sequence[int], begin: int, total: float) -> Histogram:
    counts = tuple(min(word, COUNT_MOST) for word in words[begin : begin + at.BUCKETS])
    return Histogram(counts, _clamped(total, SUM_MOST))


def _codes(words: Sequence[int], handled: int) -> tuple[tuple[int, int], ...]:
    """The worker counts all replies, and those of each code but 200."""
    found: dict[int, int] = {}
    for code, count in zip(words[::2], words[1::2], strict=True):
        if 100 <= code <= 599 and code != 200:
            found[code] = min(found.get(code, 0) + count, COUNT_MOST)
    well = handled - sum(found.values())
    if well > 0:
        found[200] = well
    return tuple(sorted((code, count) for code, count in found.items() if count))


def stuck(health: Health, limit: float, now: float) -> bool:
    """Whether a request has been in hand for longer than `limit` seconds, and the loop has not turned since, or for as long.

    0 means no limit. While the loop turns, a worker is not stuck, however long one of its handlers takes.
    """
    since = health.handling_since
    if not limit or not since or now - since <= limit:
        return False
    return health.tick <= since or now - health.tick > max(limit, LATE_SECONDS)
