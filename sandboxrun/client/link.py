"""A connection to Redis for asyncio: nothing that it does keeps the event loop, whatever the server takes or does not."""

from __future__ import annotations

import asyncio

from sandboxrun.connection import (
    CONNECT_SECONDS,
    RECEIVE_BYTES,
    ProtocolError,
    check_greeting,
    greeting,
    pack,
    parse_url,
    reader,
)
from sandboxrun.errors import ConnectionLost

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SILENT_SECONDS = 5.0  # without an answer, on top of what a command asks to wait: the connection is dead


class Link:
    """Opened by `open`. Every method raises ConnectionLost, and then it is closed. One task at a time uses it."""

    def __init__(self, url: str, name: str) -> None:
        self.address = parse_url(url)
        self._name = name
        self._writer: asyncio.StreamWriter | None = None
        self._reader: asyncio.StreamReader | None = None
        self._replies = reader()

    @property
    def is_open(self) -> bool:
        """Not where the other side has closed it, either: what is sent then would be neither taken nor refused."""
        return self._writer is not None and self._reader is not None and not self._reader.at_eof()

    async def open(self) -> None:
        """Connect, log in, choose the database. Raises StoreError for a login or a certificate that is refused."""
        self.close()
        self._replies = reader()
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                self._reader, self._writer = await self._connect()
        except OSError as error:  # TimeoutError is one
            reason = error.strerror or str(error) or "no answer in time"
            raise ConnectionLost(f"Redis at {self.address.shown} cannot be reached ({reason})") from error
        commands = greeting(self.address, self._name)
        replies = await self.exchange(b"".join([pack(*command) for command in commands]), len(commands))
        try:
            check_greeting(self.address, commands, replies)
        except BaseException:
            self.close()
            raise

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        address = self.address
        if address.path:
            return await asyncio.open_unix_connection(address.path)
        if not address.tls:
            return await asyncio.open_connection(address.host, address.port)
        from ssl import SSLCertVerificationError

        from sandboxrun import tls

        try:
            context = tls.context(address)
            return await asyncio.open_connection(address.host, address.port, ssl=context, server_hostname=address.host)
        except SSLCertVerificationError as error:
            raise tls.untrusted(error, address) from error

    async def exchange(self, data: bytes, count: int, *, wait: float = 0) -> list[Any]:
        """Send, and the next `count` replies. `wait`: seconds that the commands ask Redis to wait for something."""
        if self._writer is None or self._reader is None:
            raise ConnectionLost(f"the connection to Redis at {self.address.shown} is closed")
        try:
            async with asyncio.timeout(SILENT_SECONDS + wait):
                self._writer.write(data)
                await self._writer.drain()
                return await self._read(self._reader, count)
        except (OSError, ProtocolError) as error:
            self.close()
            reason = getattr(error, "strerror", None) or str(error) or "no answer in time"
            raise ConnectionLost(f"Redis at {self.address.shown} is away ({reason})") from error
        except BaseException:  # cancelled: what comes now would be taken for the reply to something else
            self.close()
            raise

    async def _read(self, stream: asyncio.StreamReader, count: int) -> list[Any]:
        replies: list[Any] = []
        while len(replies) < count:
            reply = self._replies.gets()
            if reply is not False:
                replies.append(reply)
                continue
            data = await stream.read(RECEIVE_BYTES)
            if not data:
                raise ConnectionLost(f"Redis at {self.address.shown} is away (it closed the connection)")
            self._replies.feed(data)
        return replies

    def close(self) -> None:
        if self._writer is not None:
            self._writer.transport.abort()  # what is not sent yet must not be sent later
            self._writer = self._reader = None
