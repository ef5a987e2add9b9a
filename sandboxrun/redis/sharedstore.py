"""What many runs of one process have in common at Redis: a few connections, and one watch."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from sandboxrun.errors import ConnectionLost
from sandboxrun.redis.connection import Connection
from sandboxrun.redis.lease import Run
from sandboxrun.redis.sharedwatch import SharedWatch
from sandboxrun.redis.store import PROBE, TIMEOUT_SECONDS, Store
from sandboxrun.redis.watch import Loss

LENT_MAX = 8  # at once
IDLE_SECONDS = 5.0  # until a connection is closed that nobody has needed


class Connections:
    """Connections that are lent, each to one run at a time."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._idle: list[tuple[float, Connection]] = []  # since when (time.monotonic), the longest first
        self._free = threading.BoundedSemaphore(LENT_MAX)
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def lend(self) -> Iterator[Connection]:
        """An open connection. After an error in the block it is closed. Raises ConnectionLost, StoreError."""
        with self._free:
            connection = self._taken()
            try:
                if not connection.is_open:
                    connection.open()
                yield connection
            except BaseException:
                connection.close()
                raise
            with self._lock:
                self._idle.append((time.monotonic(), connection))

    def close_idle(self, seconds: float = IDLE_SECONDS) -> None:
        """Close those that nobody has needed for so long."""
        with self._lock:
            before = time.monotonic() - seconds
            old = [connection for since, connection in self._idle if since <= before]
            self._idle = [(since, connection) for since, connection in self._idle if since > before]
        for connection in old:
            connection.close()

    def _taken(self) -> Connection:
        with self._lock:
            found = self._idle.pop()[1] if self._idle else None
        if found is None:
            found = Connection(self.url, seconds=TIMEOUT_SECONDS)
            found.ask_first = PROBE
            return found
        with contextlib.suppress(ConnectionLost):  # the server was restarted meanwhile: it is opened again
            found.check()
        return found


class SharedStore(Store):
    """The Store of one run among many."""

    def __init__(self, connections: Connections, watch: SharedWatch) -> None:
        super().__init__(connections.url)
        self._connections, self._shared_watch = connections, watch
        self._run: Run | None = None

    def watch(self, run: Run, *, lost: Callable[[Loss], None], warn: Callable[[str], None]) -> None:
        """As Store does, by the watch of all: an outage is said by that, and not by `warn`."""
        self._run = run
        self._shared_watch.add(run, self._users, lost)

    @property
    def lease_age(self) -> float | None:
        """Seconds since the run's lease was renewed; None if it is not watched. From any thread."""
        return self._shared_watch.lease_age(self._run.token) if self._run is not None else None

    def close(self) -> None:
        self._close()

    def _close(self) -> None:
        super()._close()
        if self._run is not None:
            self._shared_watch.remove(self._run)

    @contextlib.contextmanager
    def _lent(self) -> Iterator[Connection]:
        with self._connections.lend() as connection:
            self._connection = connection  # which is asked for the server's address, and for what it replied first
            yield connection
