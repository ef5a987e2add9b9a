"""How a worker says it is, as records: sandbox/supervisor/health.py reads them from its page, fleet/ and describe/ show them."""

from __future__ import annotations

from sandboxrun import healthpage as at
from sandboxrun.healthpage import BOUNDS
from sandboxrun.records import record


@record
class Histogram:
    """Seconds: `counts` of the values up to each of BOUNDS and above the one before, and last of those above all."""

    counts: tuple[int, ...] = (0,) * at.BUCKETS
    sum: float = 0.0

    @property
    def count(self) -> int:
        return sum(self.counts)

    def quantile(self, q: float) -> float | None:
        """About the value that the share `q` of all values does not exceed; None without values.

        It is interpolated within its bucket, and is the last bound if it lies above all bounds.
        """
        rank = q * self.count
        below, low = 0, 0.0
        for count, high in zip(self.counts, BOUNDS, strict=False):
            if count and below + count >= rank:
                return low + (high - low) * max(0.0, rank - below) / count
            below, low = below + count, high
        return BOUNDS[-1] if self.counts[-1] else None


@record
class Health:
    """How a worker says it is. Times are seconds of time.monotonic()."""

    ready: bool = False  # its first read is done
    tick: float = 0.0  # when its loop turned last; 0: never
    handling_since: float = 0.0  # when the oldest request in hand was begun; 0: none is
    handled: int = 0
    codes: tuple[tuple[int, int], ...] = ()  # a reply's code and the count of such replies, by code
    handler: Histogram = Histogram()
    wait: Histogram = Histogram()
    client_id: int = 0  # Redis's number of the connection on which it waits for requests
