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
    from typing import Any

    from sandboxrun.worker.context import Context

TRY_SECONDS = 10.0  # for which a lost connection is opened again


class Aside:
    """Any thread may use it; one at a time does."""

    def __init__(self, context: Context) -> None:
        self._connection = Connection(context.redis_url, name=f"worker-aside:{context.key}")
        self._lock = _thread.allocate_lock()
        self._pid = os.getpid()

    @classmethod
    def of(cls, context: Context) -> Aside:
        if context.aside is None:
            made = cls(context)
            if context.aside is None:  # still: another thread may have been first
                context.aside = made
        return context.aside

    def exchange(self, commands: Sequence[Sequence[str | bytes | int]], max_bytes: int = 1024 * 1024) -> list[Any]:
        """The replies, of at most `max_bytes`. Repeats the commands if the connection is lost.

        Errors of Redis are returned. Raises ConnectionLost, or TooManyBytes.
        """
        if os.getpid() != self._pid:
            raise RuntimeError("the connection to Redis is that of the process by which this one was forked")
        with self._lock:
            until = time.monotonic() + TRY_SECONDS
            for delay in delays():
                try:
                    return self._try(commands, max_bytes)
                except ConnectionLost:
                    if time.monotonic() + delay > until:
                        raise
                    time.sleep(delay)
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
