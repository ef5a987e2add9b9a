"""Calls from asyncio: any number in flight, on one connection that sends and one that waits."""

from __future__ import annotations

import asyncio

from sandboxrun.client import forks
from sandboxrun.client.line import Line
from sandboxrun.client.login import Login
from sandboxrun.client.request import Outgoing
from sandboxrun.config import keys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sandboxrun.client.request import Payload, Timeout


class AsyncClient:
    """A client for asyncio. It connects at `async with` or at its first call, and again at a call after `aclose`.

    Several event loops may use it, one after another or in several threads, and so may the child of a fork: each loop has
    connections of its own. `url`: as for Client.
    """

    def __init__(self, url: str | None = None) -> None:
        self._login = Login(url)
        self._lines: dict[asyncio.AbstractEventLoop, Line] = {}
        self._process = forks.generation

    def __reduce__(self) -> tuple[type[AsyncClient], tuple[str]]:
        return AsyncClient, (self._login.url,)  # pickled for a spawned process, without connections

    async def __aenter__(self) -> AsyncClient:
        """Connect. Raises StoreError if the login or the certificate is refused; an outage of Redis is waited for."""
        try:
            await self._line().open()
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections. Calls in flight end as NotSent, or as CallTimeout if they were sent."""
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
        method: str | None = None,
        traceparent: str | None = None,
    ) -> dict[str, Any]:
        """As Client.call. A call that is cancelled before it is sent is never sent."""
        keys.check_type(type_)
        request = Outgoing(
            type_, data, timeout, trace, retry=retry, method=method, traceparent=traceparent, login=self._login
        )
        outcome = await self._line().call(request)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def trace(self, ref: str, /, **fields: Any) -> None:
        """As Client.trace."""
        await self._line().trace(ref, fields)

    def _line(self) -> Line:
        """The connections of the running loop."""
        self._forget_parents()
        loop = asyncio.get_running_loop()
        line = self._lines.get(loop)
        if line is None or line.over:
            for other in list(self._lines):
                if other.is_closed() and (gone := self._lines.pop(other, None)):
                    gone.silence()
            line = self._lines[loop] = Line(self._login)
        return line

    def _forget_parents(self) -> None:
        """In the child of a fork: forget the calls and connections of the parent."""
        if self._process != forks.generation:
            self._lines = {}
            self._process = forks.generation
