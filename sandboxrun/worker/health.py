"""What the worker says of itself, in the page that it shares with sandboxrun: no call to Redis, and no system call.

A worker that was started without sandboxrun, or in a test, writes to memory of its own, which nobody reads.
"""

from __future__ import annotations

import _thread
import sys
import time
from _bisect import bisect_left

from sandboxrun import healthpage as at
from sandboxrun.protocol import OK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from sandboxrun.worker.rendering import Entry

QUICK_SECONDS = at.BOUNDS[0]  # requests that take no longer are counted together


class Health:
    """Written by one thread at a time, but for `replied`."""

    def __init__(self) -> None:
        page = getattr(sys, "_sandboxrun_health", None)
        self.shared = page is not None  # sandboxrun reads the page
        if page is None:
            page = memoryview(bytearray(at.BYTES))
        self.words: memoryview[int] = page.cast("Q")
        self.times: memoryview[float] = page.cast("d")  # the same memory, as doubles
        self._lock = _thread.allocate_lock()

    def ready(self) -> None:
        self.words[at.READY] = 1

    def tick(self) -> None:
        """The loop has turned."""
        self.times[at.TICK] = time.monotonic()

    def reads_as(self, client: object) -> None:
        """`client`: Redis's number of the connection that waits for requests, or an error."""
        if isinstance(client, int) and client > 0:
            self.words[at.CLIENT_ID] = client

    def handled(self, count: int, quick: int, seconds: float) -> None:
        """`count` more requests have been answered, and took `seconds` together. Of them `quick` ones took up to QUICK_SECONDS;
        `took` has counted the others."""
        self.words[at.HANDLED] += count
        self.words[at.HANDLER] += quick
        self.times[at.HANDLER_SUM] += seconds

    def took(self, seconds: float, count: int = 1) -> None:
        """So many requests took so long. `handled` counts them and their time."""
        self.words[at.HANDLER + bisect_left(at.BOUNDS, seconds)] += count

    def waited(self, entries: Sequence[Entry], first: float, last: float) -> None:
        """These have begun, the first of them at the Unix time `first`, the last at `last`.

        Redis's clock has made their IDs: if it is ahead of ours, they have waited for no time.
        """
        sums, counts = self.times, self.words
        begun = [_millis(entry.xid) / 1000 for entry in entries[:: max(1, len(entries) - 1)]]
        longest, shortest = last - begun[0], first - begun[-1]
        if bisect_left(at.BOUNDS, longest) == bisect_left(at.BOUNDS, shortest):  # as in most batches
            counts[at.WAIT + bisect_left(at.BOUNDS, longest)] += len(entries)
            sums[at.WAIT_SUM] += max(0.0, (first + last - begun[0] - begun[-1]) / 2 * len(entries))
            return
        step = (last - first) / max(1, len(entries) - 1)
        for number, entry in enumerate(entries):
            seconds = max(0.0, first + number * step - _millis(entry.xid) / 1000)
            counts[at.WAIT + bisect_left(at.BOUNDS, seconds)] += 1
            sums[at.WAIT_SUM] += seconds

    def replied(self, code: int) -> None:
        """Of this code is one more reply. From any thread; not for OK, which is what remains of `handled`."""
        if code == OK:
            return
        words = self.words
        with self._lock:
            for place in range(at.CODES, at.CODES + 2 * at.CODES_MOST, 2):
                if words[place] in (0, code):
                    words[place] = code
                    words[place + 1] += 1
                    return


def _millis(xid: bytes) -> int:
    return int(xid.partition(b"-")[0])
