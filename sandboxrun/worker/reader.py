"""The reader of a concurrent worker, a thread with a connection of its own, and the room that it reads for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from sandboxrun.errors import ConnectionLost, LoginRefused, SandboxrunError
from sandboxrun.protocol import HANDED_BACK_MILLIS
from sandboxrun.redis.connection import Connection
from sandboxrun.redis.replies import ReplyError
from sandboxrun.worker.base import BATCH_MOST, LOOK_SECONDS
from sandboxrun.worker.claims import Claims
from sandboxrun.worker.health import Health
from sandboxrun.worker.outage import Backoff
from sandboxrun.worker.rendering import Entry
from sandboxrun.worker.streams import read_command, read_entries

PAUSE_SECONDS = 0.1
SHORT_BLOCK_MILLIS = 10


class Room:
    """Counts the free places for requests, and the requests that may still be begun. Used by several threads."""

    def __init__(self, free: int, limit: int) -> None:
        """`free`: places. `limit`: requests that may be begun at all; 0 is no limit."""
        self._changed = threading.Condition()
        self._free = free
        self._left = limit if limit else None
        self._places = free
        self._waiting = False  # the reader waits for a place
        self._old_last = False  # the last place went to an old claim
        self.hold = False  # the reader pauses, because a suspect is begun alone

    def wait(self) -> int | None:
        """How many may be read: 0 after LOOK_SECONDS without room, None if no more may be begun at all."""
        with self._changed:
            if self._free <= 0 or self.hold:
                self._waiting = not self.hold
                self._changed.wait(LOOK_SECONDS)
                return 0
            self._waiting = self._old_last = False
            count = min(self._free, BATCH_MOST)
            if self._left is not None:
                count = min(count, self._left)
            return count if count > 0 else None

    def take(self, count: int) -> None:
        with self._changed:
            self._free -= count
            if self._left is not None:
                self._left -= count

    def retake(self) -> None:
        """Take the place of a request again that is handled once more. It does not count for the limit."""
        with self._changed:
            self._free -= 1

    def take_old(self) -> bool:
        """Take a place for an old claim, unless there is none or it is the reader's turn."""
        with self._changed:
            if self._free <= 0 or (self._waiting and self._old_last) or (self._left is not None and self._left <= 0):
                return False
            self._old_last = True
            self._free -= 1
            if self._left is not None:
                self._left -= 1
            return True

    @property
    def empty(self) -> bool:
        """Whether nothing is in hand."""
        return self._free >= self._places

    def release(self) -> None:
        """Read again."""
        with self._changed:
            self.hold = False
            self._changed.notify()

    def give(self, count: int, *, begun: bool = True) -> None:
        """Free places. `begun`: the requests count for the limit; False for entries that turned out to be another's."""
        with self._changed:
            self._free += count
            if not begun and self._left is not None:
                self._left += count
            self._changed.notify()


class Reader:
    """Reads until `ending`, and then calls `over`, with the error if there was one. `turns` counts its reads.

    All callbacks run in its thread. `arrived`: gets entries, and the claims' generation before the read. `turned`: a read
    is done, and old claims wait. `end`: no more may be begun. `may_return`: whether to retry a login that was refused since
    then.
    """

    def __init__(
        self,
        connection: Connection,
        claims: Claims,
        room: Room,
        backoff: Backoff,
        *,
        ending: Callable[[], bool],
        may_return: Callable[[float], bool],
        arrived: Callable[[list[Entry], int], object],
        turned: Callable[[], object],
        end: Callable[[], None],
        over: Callable[[Exception | None], object],
        health: Health,
    ) -> None:
        self._connection, self._claims, self._room, self._backoff = connection, claims, room, backoff
        self.turns = 0
        self._ending, self._may_return = ending, may_return
        self._turned, self._health = turned, health
        self._arrived, self._end, self._over = arrived, end, over

    def start(self) -> None:
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        error: Exception | None = None
        try:
            self._read_on()
        except (SandboxrunError, ReplyError) as found:
            error = found
        finally:
            self._connection.close()
            self._over(error)

    def cancel(self) -> None:
        """Stop waiting for Redis."""
        self._connection.cancel()

    def _read_on(self) -> None:
        connection, backoff = self._connection, self._backoff
        while not self._ending():
            try:
                if not connection.is_open:
                    connection.open()
                    connection.set_wait(self._claims.block_millis / 1000)
                    if self._health.shared:
                        self._health.reads_as(connection.pipeline([("CLIENT", "ID")])[0])
                count = self._room.wait()
                if count is None:
                    self._end()
                elif count:
                    self._read(count)
                    self.turns += 1
                    if self.turns == 1:
                        self._health.ready()
                    if self._claims.suspects:
                        self._turned()
                    if backoff.since:
                        backoff.succeeded()
            except (ConnectionLost, LoginRefused) as error:
                connection.close()
                backoff.failed(error)
                if isinstance(error, LoginRefused) and not self._may_return(backoff.since):
                    raise
                self._pause(backoff.left())

    def _pause(self, seconds: float) -> None:
        """Sleep in small parts, so that the end is noticed."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not self._ending():
            time.sleep(min(left, PAUSE_SECONDS))

    def _read(self, count: int) -> None:
        connection, claims, loop = self._connection, self._claims, self._claims.loop
        stream, group = loop.request_stream, loop.consumer_group
        generation = claims.generation
        block = SHORT_BLOCK_MILLIS if claims.suspects else claims.block_millis  # short: old claims have their turn
        if not self.turns:
            block = 0  # the first read does not wait, so that the worker is known to be ready
        connection.send(read_command(claims.look_at_pid, loop, count, block))
        pid, found = connection.read_many(2)
        for reply in (pid, found):
            if isinstance(reply, ReplyError) and str(reply).startswith("NOPERM"):  # sandboxrun makes the user again
                raise LoginRefused(f"Redis refuses what it allowed before ({str(reply)[:160]})")
        claims.looked(connection.checked(pid))  # LOADING is no lost pid
        if isinstance(found, ReplyError) and str(found).startswith("NOGROUP"):
            connection.pipeline([("XGROUP", "CREATE", stream, group, "0", "MKSTREAM")])
            return
        entries = read_entries(connection.checked(found))
        if entries and claims.lost_pid:  # nothing more is begun
            xids = [entry.xid for entry in entries]
            free = ("IDLE", HANDED_BACK_MILLIS, "RETRYCOUNT", 0, "JUSTID")
            connection.pipeline([("XCLAIM", stream, group, loop.consumer_id, 0, *xids, *free)])
        elif entries:
            self._room.take(len(entries))
            self._arrived(entries, generation)
