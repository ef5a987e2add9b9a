"""A connection to Redis for asyncio that never blocks the event loop, even if the server accepts or sends nothing."""

from __future__ import annotations

import asyncio
import os

from sandboxrun.client import forks
from sandboxrun.client.put import new_fence
from sandboxrun.client.request import ReplyTooLarge
from sandboxrun.errors import ConnectionLost
from sandboxrun.protocol import REPLY_MAX_BYTES
from sandboxrun.redis.address import parse_url
from sandboxrun.redis.connection import CONNECT_SECONDS, RECEIVE_BYTES, check_greeting, greeting, pack
from sandboxrun.redis.replies import ProtocolError, reader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SILENT_SECONDS = 5.0  # without an answer, on top of a command's own waiting time, until the connection counts as dead
_HEAD_BYTES = 600  # longer than BRPOP's reply before its value


class Link:
    """One connection, for one task at a time. A method that raises ConnectionLost leaves it closed."""

    def __init__(self, url: str, name: str) -> None:
        self.address = parse_url(url)
        self.fence = ""  # watched by this connection; empty if Redis does not allow it
        self._name = name
        self._writer: asyncio.StreamWriter | None = None
        self._reader: asyncio.StreamReader | None = None
        self._replies = reader()
        self._opening = asyncio.Lock()
        forks.register(self)

    @property
    def is_open(self) -> bool:
        """False also if the server has closed it, because a command would be neither accepted nor refused."""
        return self._writer is not None and self._reader is not None and not self._reader.at_eof()

    async def ensure_open(self) -> bool:
        """Open it if it is closed; whether it was opened. Several tasks may call this."""
        async with self._opening:
            if self.is_open:
                return False
            await self.open()
            return True

    async def open(self) -> None:
        """Connect, log in, select the database. Raises StoreError if the login or the certificate is refused."""
        self.close()
        self._replies = reader()
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                self._reader, self._writer = await self._connect()
        except OSError as error:  # TimeoutError is one
            reason = error.strerror or str(error) or "no answer in time"
            raise ConnectionLost(f"Redis at {self.address.shown} cannot be reached ({reason})") from error
        fence = new_fence()
        commands = [*greeting(self.address, self._name), ("WATCH", fence)]
        *replies, watched = await self.exchange(b"".join([pack(*command) for command in commands]), len(commands))
        try:
            check_greeting(self.address, commands[:-1], replies)
        except BaseException:
            self.close()
            raise
        self.fence = fence if watched == b"OK" else ""

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        address = self.address
        if address.path:
            return await asyncio.open_unix_connection(address.path)
        if not address.tls:
            return await asyncio.open_connection(address.host, address.port)
        from ssl import SSLCertVerificationError

        from sandboxrun.redis import tls

        try:
            context = tls.context(address)
            return await asyncio.open_connection(address.host, address.port, ssl=context, server_hostname=address.host)
        except SSLCertVerificationError as error:
            raise tls.untrusted(error, address) from error

    async def exchange(self, data: bytes, count: int, *, wait: float = 0, into: list[Any] | None = None) -> list[Any]:
        """Send, and return the next `count` replies. `wait`: seconds that the commands themselves wait at the server.

        `into`: a list for the replies, which keeps those that came before a loss. Also raises ReplyTooLarge.
        """
        replies: list[Any] = [] if into is None else into
        if self._writer is None or self._reader is None:
            raise ConnectionLost(f"the connection to Redis at {self.address.shown} is closed")
        try:
            async with asyncio.timeout(SILENT_SECONDS + wait) as silence:
                self._writer.write(data)
                await self._writer.drain()
                await self._read(self._reader, count, replies, silence)
        except (OSError, ProtocolError) as error:
            self.close()
            reason = getattr(error, "strerror", None) or str(error) or "no answer in time"
            raise ConnectionLost(f"Redis at {self.address.shown} is away ({reason})") from error
        except BaseException:  # cancelled: its replies would be taken for those of the next command
            self.close()
            raise
        return replies

    async def _read(
        self, stream: asyncio.StreamReader, count: int, replies: list[Any], silence: asyncio.Timeout
    ) -> None:
        partial = 0  # bytes since the last whole reply
        head = b""
        while len(replies) < count:
            reply = self._replies.gets()
            if reply is not False:
                replies.append(reply)
                partial = 0
                continue
            data = await stream.read(RECEIVE_BYTES)
            if not data:
                raise ConnectionLost(f"Redis at {self.address.shown} is away (it closed the connection)")
            silence.reschedule(max(silence.when() or 0, asyncio.get_running_loop().time() + SILENT_SECONDS))
            if not partial:
                head = data[:_HEAD_BYTES]
            partial += len(data)
            if partial > REPLY_MAX_BYTES + RECEIVE_BYTES:  # the first bytes may belong to the reply before
                raise ReplyTooLarge(f"Redis at {self.address.shown} sends too large a reply", head)
            self._replies.feed(data)

    def close(self) -> None:
        if self._writer is not None:
            try:
                self._writer.transport.abort()  # buffered bytes must not be sent later
            except RuntimeError:  # the event loop was closed before
                pass
            self._writer = self._reader = None

    def abandon(self) -> None:
        """In a forked child: give up its copy of the socket, and leave the transport and its event loop alone.

        They share an epoll(7) instance with the parent's, and would remove the socket from it. The descriptor stays
        taken, by /dev/null, because the transport closes it by its number at last.
        """
        writer, stream, self._writer, self._reader = self._writer, self._reader, None, None
        if writer is None:
            return
        forks.keep(writer, stream)
        sock = writer.get_extra_info("socket")
        number = sock.fileno() if sock is not None else -1
        if number >= 0:
            null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            os.dup2(null, number, inheritable=False)
            os.close(null)
