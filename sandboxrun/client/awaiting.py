"""Calls from asyncio: any number on their way at once, on one connection that sends and one that waits."""

from __future__ import annotations

import asyncio
import os

from sandboxrun.client import forks
from sandboxrun.client.blocking import DEFAULT_URL
from sandboxrun.client.line import Line
from sandboxrun.client.request import Outgoing
from sandboxrun.config import keys
from sandboxrun.redis.address import parse_url

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sandboxrun.client.request import Payload, Timeout


class AsyncClient:
    """Connects at `async with`, or at its first call. `aclose` closes the connections; a later call opens them again.

    It may be used from several event loops, one after another or in several threads, and in the child of a fork: each
    loop has connections of its own.
    """

    def __init__(self, url: str | None = None) -> None:
        self._url = url or os.environ.get("REDIS_URL") or DEFAULT_URL
        parse_url(self._url)  # a mistake in it is said here
        self._lines: dict[asyncio.AbstractEventLoop, Line] = {}
        self._process = forks.generation

    def __reduce__(self) -> tuple[type[AsyncClient], tuple[str]]:
        return AsyncClient, (self._url,)  # for a process that is spawned: connections cannot be passed on

    async def __aenter__(self) -> AsyncClient:
        """Raises StoreError for a login or a certificate that is refused."""
        try:
            await self._line().open()
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections. Calls that are on their way end: NotSent, or CallTimeout if they were sent."""
        self._forget_parents()
        lines, self._lines = self._lines, {}
        own = lines.pop(asyncio.get_running_loop(), None)
        for loop, line in lines.items():
            try:
                loop.call_soon_threadsafe(line.stop)
            except RuntimeError:  # the loop is closed
                pass
        if own is not None:
            await own.close()

    async def call(
        self,
        type_: str,
        data: Payload,
        *,
        timeout: Timeout = 10.0,
        trace: dict[str, Any] | None = None,
        retry: bool = True,
    ) -> dict[str, Any]:
        """As Client.call. A call that is cancelled before it was sent is not sent."""
        keys.check_type(type_)
        request = Outgoing(type_, data, timeout, trace, retry=retry)
        outcome = await self._line().call(request)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _line(self) -> Line:
        """The connections of the running loop."""
        self._forget_parents()
        loop = asyncio.get_running_loop()
        line = self._lines.get(loop)
        if line is None or line.over:
            for other in list(self._lines):
                if other.is_closed() and (gone := self._lines.pop(other, None)):
                    gone.silence()
            line = self._lines[loop] = Line(self._url)
        return line

    def _forget_parents(self) -> None:
        """In the child of a fork: the parent's calls are not this process's."""
        if self._process != forks.generation:
            self._lines = {}
            self._process = forks.generation
