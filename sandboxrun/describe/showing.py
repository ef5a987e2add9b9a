"""All ways in which an agent is seen: its socket for `sandboxrun health`, its page, its metrics, a file for node_exporter, and
what systemd is told. One thread renews what Redis has to say, on a connection of its own, while somebody looks.
"""

from __future__ import annotations

import contextlib
import threading
import time

from sandboxrun.describe import metrics
from sandboxrun.describe.page import Page
from sandboxrun.errors import SandboxrunError
from sandboxrun.fleet.problems import healthy
from sandboxrun.fleet.status import AgentStatus, as_json
from sandboxrun.fleet.streams import Figures, figures
from sandboxrun.host.notify import Notifier
from sandboxrun.host.page import Server, parse_address
from sandboxrun.host.statuses import StatusSocket
from sandboxrun.records import replace
from sandboxrun.redis.connection import Connection
from sandboxrun.redis.replies import ReplyError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

BEAT_SECONDS = 5.0
LOOKED_SECONDS = 60.0  # for so long after somebody has looked, Redis is asked


class Showing:
    """From entering on. `status`: called from several threads. `warn`: for a fault, said once."""

    def __init__(
        self, status: Callable[[], AgentStatus], folder: str, redis_url: str, warn: Callable[[str], None],
        *, page: str = "", metrics: str = "", metrics_file: str = "",
    ) -> None:  # fmt: skip
        """`folder`: of the sockets (Folders.agents). `page`, `metrics`: HOST:PORT, or "". Raises UsageError."""
        self._bare, self._folder, self._redis_url, self._warn = status, folder, redis_url, warn
        self._file = metrics_file
        self._page = Page(self.status)
        self._addresses = [
            (parse_address(text, option, loopback=option == "--page"), option == "--page")
            for text, option in ((page, "--page"), (metrics, "--metrics"))
            if text
        ]
        self._figures: dict[str, Figures] = {}
        self._looked_at, self._warned = 0.0, set[str]()
        self._ended = threading.Event()
        self._notifier = Notifier()
        self._open: list[Server | StatusSocket] = []

    def __enter__(self) -> Self:
        """Listens. Raises ConfigError."""
        try:
            for address, text in self._addresses:
                server = Server(address, self._page.routes(text=text))
                server.start()
                self._open.append(server)
        except BaseException:
            self._close()
            raise
        try:
            self._open.append(StatusSocket(self._folder, lambda: as_json(self.status(looked=False))))
        except OSError as error:
            self._say(f"sandboxrun health cannot ask this agent: {self._folder}: {error.strerror}")
        self._notifier.ready(self._line(self._bare()))
        self._notifier.start_watchdog(self._answers)
        threading.Thread(target=self._go_on, name="showing", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._notifier.stopping()
        self._close()

    def _close(self) -> None:
        for each in self._open:
            each.close()
        self._open.clear()

    def status(self, *, looked: bool = True) -> AgentStatus:
        """With what Redis says of the streams, as of a few seconds ago."""
        if looked:
            self._looked_at = time.monotonic()
        status, clock = self._bare(), time.monotonic()
        types = []
        for each in status.types:
            found = self._figures.get(each.type, Figures())
            since = (w.health.handling_since for w in each.workers if w.health is not None and w.health.handling_since)
            handling = max((clock - at for at in since), default=None)
            types.append(
                replace(
                    each, lag=found.lag, pending=found.pending, oldest_waiting=found.oldest_waiting, dead=found.dead,
                    oldest_handling=handling,
                )
            )  # fmt: skip
        return replace(status, types=tuple(types))

    def _answers(self) -> bool:
        """Whether systemd's watchdog is fed: the agent's own locks do not hang, and some worker works or none has to."""
        return healthy(self._bare())

    def _go_on(self) -> None:
        connection: Connection | None = None
        while not self._ended.wait(BEAT_SECONDS if self._figures else BEAT_SECONDS / 10):
            status = self._bare()
            self._notifier.status(self._line(status))
            wanted = self._file or time.monotonic() - self._looked_at < LOOKED_SECONDS
            if wanted and status.redis_up:
                connection = self._ask(connection, status)
            elif connection is not None:
                connection.close()
                connection, self._figures = None, {}
            if self._file:
                try:
                    metrics.write_textfile(self._file, self.status(looked=False), clock=time.monotonic())
                except OSError as error:
                    self._say(f"the metrics cannot be written to {self._file}: {error.strerror}")
        if connection is not None:
            connection.close()

    def _ask(self, connection: Connection | None, status: AgentStatus) -> Connection | None:
        try:
            if connection is None:
                connection = Connection(self._redis_url, name="sandboxrun-page", protocol=2)
                connection.open()
            self._figures = figures(connection, [each.type for each in status.types])
        except (SandboxrunError, ReplyError) as error:
            if isinstance(error, ReplyError):
                self._say(f"Redis refuses what the page and the metrics ask: {str(error)[:200]}")
            self._figures = {}
            if connection is not None:
                with contextlib.suppress(OSError):
                    connection.close()
            return None
        return connection

    def _line(self, status: AgentStatus) -> str:
        workers = status.workers
        running = sum(worker.state == "running" for worker in workers)
        wrong = [
            f"{count} {state}"
            for state in ("stuck", "failing", "waiting")
            if (count := sum(w.state == state for w in workers))
        ]
        words = [f"{running} of {len(workers)} workers run", *wrong]
        return ", ".join([*words, *["Redis is away"] * (not status.redis_up), *["draining"] * status.draining])

    def _say(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            self._warn(text)
