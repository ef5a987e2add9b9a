"""An agent's status with what Redis says of the streams of its types, which the agent itself does not ask.

One thread asks, on a connection of its own, and only while somebody looks: an agent that nobody looks at has no more
connections and sends no more commands.
"""

from __future__ import annotations

import contextlib
import threading
import time

from sandboxrun.errors import SandboxrunError
from sandboxrun.fleet.status import AgentStatus
from sandboxrun.fleet.streams import Figures, figures
from sandboxrun.records import replace
from sandboxrun.redis.connection import Connection
from sandboxrun.redis.replies import ReplyError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

ASK_SECONDS = 5.0
LOOKED_SECONDS = 60.0  # for so long after the last look Redis is asked
NONE = Figures()


class StreamFigures:
    """Called, it is the status, with the figures of a few seconds ago; from any thread. The first look has none yet."""

    def __init__(self, status: Callable[[], AgentStatus], redis_url: str, warn: Callable[[str], None]) -> None:
        """`warn`: of what Redis refuses, once."""
        self._status, self._redis_url, self._warn = status, redis_url, warn
        self._figures: dict[str, Figures] = {}
        self._connection: Connection | None = None
        self._looked_at, self._refused = 0.0, ""
        self._looked, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._go_on, name="streams", daemon=True)
        self._thread.start()

    def __call__(self) -> AgentStatus:
        self._looked_at = time.monotonic()
        self._looked.set()
        status, clock = self._status(), time.monotonic()
        types = []
        for each in status.types:
            found = self._figures.get(each.type, NONE)
            since = (w.health.handling_since for w in each.workers if w.health is not None and w.health.handling_since)
            types.append(
                replace(
                    each, lag=found.lag, pending=found.pending, oldest_waiting=found.oldest_waiting, dead=found.dead,
                    oldest_handling=max((clock - at for at in since), default=None),
                )
            )  # fmt: skip
        return replace(status, types=tuple(types))

    def close(self) -> None:
        self._ended.set()
        self._looked.set()
        self._thread.join(ASK_SECONDS)

    def _go_on(self) -> None:
        while self._looked.wait() and not self._ended.is_set():
            if time.monotonic() - self._looked_at < LOOKED_SECONDS:
                self._ask(self._status())
                self._ended.wait(ASK_SECONDS)
            else:
                self._looked.clear()
                self._forget()
        self._forget()

    def _ask(self, status: AgentStatus) -> None:
        if not status.redis_up:
            self._forget()
            return
        try:
            if self._connection is None:
                self._connection = Connection(self._redis_url, name="sandboxrun-page", protocol=2)
                self._connection.open()
            self._figures = figures(self._connection, [each.type for each in status.types])
        except ReplyError as error:
            self._forget()
            if str(error) != self._refused:
                self._refused = str(error)
                self._warn(f"Redis refuses what the page and the metrics ask: {self._refused[:200]}")
        except SandboxrunError:
            self._forget()

    def _forget(self) -> None:
        connection, self._connection, self._figures = self._connection, None, {}
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.close()
