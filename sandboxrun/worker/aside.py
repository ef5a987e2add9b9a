"""A worker's second connection, on which handlers read their state while the request loop uses the first one."""

from __future__ import annotations

import _thread
import os
import time

from sandboxrun.errors import ConnectionLost
from sandboxrun.redis.connection import Connection, delays
from sandboxrun.redis.replies import ReplyError, Within, translated

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import ThreadPoolExecutor
    from typing import Any

    from sandboxrun.worker.context import Context

TRY_SECONDS = 10.0  # for which a lost connection is opened again


class Aside:
    """Any thread may use it; one at a time does."""

    def __init__(self, context: Context) -> None:
        self._connection = Connection(context.redis_url, name=f"worker-aside:{context.key}")
        self._lock = _thread.allocate_lock()
        self._pid = os.getpid()
        self._error: ConnectionLost | None = None  # of the last try
        self._executor: ThreadPoolExecutor | None = None

    @classmethod
    def of(cls, context: Context) -> Aside:
        if context.aside is None:
            made = cls(context)
            if context.aside is None:  # still: another thread may have been first
                context.aside = made
        return context.aside

    @property
    def executor(self) -> ThreadPoolExecutor:
        """For async handlers: one thread, because the others would only wait for it. Used in the event loop."""
        if self._executor is None:
            from concurrent.futures import ThreadPoolExecutor

            self._executor = ThreadPoolExecutor(1, "state")
        return self._executor

    @staticmethod
    def deadline() -> float:
        """When an exchange that is asked for now gives up a lost connection."""
        return time.monotonic() + TRY_SECONDS

    def exchange(
        self, commands: Sequence[Sequence[str | bytes | int]], max_bytes: int = 1024 * 1024, until: float | None = None
    ) -> list[Any]:
        """The replies, of at most `max_bytes`. Repeats the commands if the connection is lost, until the `deadline`.

        Time spent waiting for others counts. Errors of Redis are returned. Raises ConnectionLost, or TooManyBytes.
        """
        if os.getpid() != self._pid:
            raise RuntimeError("the connection to Redis is that of the process by which this one was forked")
        if until is None:
            until = self.deadline()
        with self._lock:
            if self._error is not None and time.monotonic() > until:
                raise ConnectionLost(str(self._error), hint=self._error.hint)
            for delay in delays():
                try:
                    replies = self._try(commands, max_bytes)
                except ConnectionLost as error:
                    self._error = error
                    if time.monotonic() + delay > until:
                        raise
                    time.sleep(delay)
                else:
                    self._error = None
                    return replies
        raise AssertionError  # delays() never ends

    def _try(self, commands: Sequence[Sequence[str | bytes | int]], max_bytes: int) -> list[Any]:
        connection = self._connection
        if not connection.is_open:
            connection.open()
        try:
            with Within(connection, max_bytes):
                replies = connection.pipeline(commands)
        except BaseException:  # a handler's time was up, for instance
            connection.close()  # the reply would be taken for that to the next command
            raise
        for reply in replies:
            if isinstance(reply, ReplyError):
                passing = translated(reply, connection.address.shown)
                if passing is not reply:
                    raise passing
        return replies
