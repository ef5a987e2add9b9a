"""A connection to Redis: bytes out, replies through hiredis. For the request loop and for all that starts often.

A hundredth of redis-py's import. It knows nothing of what the commands mean: a command is a tuple, a reply is what
hiredis makes of it (bytes, int, None, list, dict; an error that Redis answers is a ReplyError within a batch).
"""

from __future__ import annotations

import _socket
import os
import struct
from itertools import islice

import hiredis

from sandboxrun.errors import ConnectionLost, StoreError
from sandboxrun.redis.address import Address, parse_url, url_hint
from sandboxrun.redis.replies import ProtocolError, ReplyError, TooManyBytes, Within, login_refused, reader, translated

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

CONNECT_SECONDS = 5.0
RECEIVE_BYTES = 64 * 1024  # of a size that malloc(3) keeps, where larger ones are mapped and unmapped each time
INCOMPLETE = object()  # what the parser returns if no reply is complete; its default, False, equals the reply 0
RETRY_FIRST_SECONDS, RETRY_MOST_SECONDS = 0.05, 2.0


def delays(most: float = RETRY_MOST_SECONDS) -> Iterator[float]:
    """Seconds to wait before each further try: twice as long each time, bounded, with jitter against herds."""
    delay = min(RETRY_FIRST_SECONDS, most)
    while True:
        yield delay * (0.5 + os.urandom(1)[0] / 510)
        delay = min(delay * 2, most)


_pack: Any = hiredis.pack_command  # its stub means a tuple of any length, and says nothing of what it returns


def pack(*words: str | bytes | int | float) -> bytes:
    """One command as Redis reads it."""
    packed: bytes = _pack(words)
    return packed


class Connection:
    """One connection, opened by `open`. Every method raises ConnectionLost, and then nothing more can be sent.

    `seconds`: how long Redis may take to answer, in addition to what a command asks it to wait.
    """

    def __init__(self, url: str, *, name: str = "sandboxrun", seconds: float = 5.0, protocol: int = 0) -> None:
        self.address = parse_url(url)
        self.ask_first: Sequence[str] | None = None  # a command to begin with, before the login
        self.first: Any = None  # and its reply
        self._name, self._seconds = name, seconds
        self._protocol = protocol or self.address.protocol
        self._socket: Any = None
        self._limit = 0.0  # seconds of silence after which the connection counts as dead
        self._cancelled = False
        self._reader = reader(notEnoughData=INCOMPLETE)
        self.received = 0  # bytes
        self.receive_most = 0  # bytes in all, past which the connection is given up; 0 is any number

    def open(self) -> None:
        """Connect, log in, choose the database. Raises ConnectionLost, or StoreError for a login that is refused."""
        self.close()
        address = self.address
        try:
            limit = min(CONNECT_SECONDS, self._seconds)
            if address.path:
                _connect_unix(address, self._attach)
            else:
                _connect_tcp(address, self._attach, limit)
            if address.tls:
                from sandboxrun.redis import tls

                self._socket = tls.wrap(self._socket, address, seconds=limit)
        except OSError as error:
            self.close()
            why = error.strerror or error
            raise ConnectionLost(f"Redis at {address.shown} cannot be reached ({why})", hint=url_hint()) from error
        self.set_wait(0)
        self._greet()

    def _attach(self, sock: Any) -> None:
        """Take over a socket that is about to be connected: `cancel` reaches it from now on."""
        self._socket = sock
        if self._cancelled:
            raise OSError("cancelled")

    def cancel(self) -> None:
        """From another thread or a signal handler: every wait on this connection ends at once, now and from now on."""
        self._cancelled = True
        sock = self._socket
        if sock is not None:
            try:
                sock.shutdown(_socket.SHUT_RDWR)  # which wakes whoever waits, where close(2) does not
            except OSError:
                pass

    def _greet(self) -> None:
        commands = greeting(self.address, self._name, self._protocol)
        first = [self.ask_first] if self.ask_first else []
        try:
            replies = self.pipeline([*first, *commands])
            self.first = replies[0] if first else None
            check_greeting(self.address, commands, replies[len(first) :])
        except StoreError:
            self.close()
            raise

    def set_wait(self, seconds: float) -> None:
        """How long the next commands ask Redis to wait for something: silence beyond it means a dead connection."""
        self._limit = limit = self._seconds + seconds
        if self.address.tls:
            self._socket.settimeout(limit)
            return
        # The kernel's own time-outs: one system call for each read, where Python's would take two. socket(7)
        value = struct.pack("ll", int(limit), int(limit % 1 * 1e6))
        self._socket.setsockopt(_socket.SOL_SOCKET, _socket.SO_RCVTIMEO, value)
        self._socket.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDTIMEO, value)

    def fileno(self) -> int:
        return int(self._socket.fileno())

    @property
    def is_open(self) -> bool:
        return self._socket is not None

    def send(self, data: bytes) -> None:
        if self._socket is None:
            raise self._closed()
        try:
            try:
                done = self._socket.send(data)
            except BlockingIOError:
                from sandboxrun.redis import nonblocking

                nonblocking.wait(self._socket, self._limit, readable=False)
                done = 0
            if done < len(data):  # the socket does not block, or a signal came
                from sandboxrun.redis import nonblocking

                nonblocking.send_all(self._socket, memoryview(data)[done:], self._limit)
        except OSError as error:
            raise self._lost(error) from error

    def read(self) -> Any:
        """The next reply; an error of Redis is returned, as a ReplyError."""
        gets = self._reader.gets
        reply = gets()
        while reply is INCOMPLETE:
            self._receive()
            reply = gets()
        return reply

    def read_many(self, count: int) -> list[Any]:
        """The next `count` replies."""
        gets = self._reader.gets
        replies = list(islice(iter(gets, INCOMPLETE), count))
        while len(replies) < count:
            self._receive()
            replies += islice(iter(gets, INCOMPLETE), count - len(replies))
        return replies

    def check(self) -> None:
        """Raise ConnectionLost if the other side has closed the connection. Does not wait, and loses no reply."""
        if self._socket is None:
            return  # a later read finds out
        try:
            if self.address.tls:
                self._feed(self._take_now())  # it has no peeking: what is there is kept for the next reply
            elif not self._socket.recv(1, _socket.MSG_PEEK | _socket.MSG_DONTWAIT):
                raise self._lost(None)
        except BlockingIOError:
            pass
        except OSError as error:
            raise self._lost(error) from error

    def read_ready(self, replies: list[Any], count: int) -> bool:
        """Add to `replies` those that have come, until it has `count`; True if it has. Does not wait."""
        while True:
            while len(replies) < count and (reply := self._reader.gets()) is not INCOMPLETE:
                replies.append(reply)
            if len(replies) == count:
                return True
            if self._socket is None:
                raise self._closed()
            try:
                data = self._take_now()
            except BlockingIOError:
                return False
            except OSError as error:
                raise self._lost(error) from error
            self._feed(data)

    def _take_now(self) -> bytes:
        """What has come. Raises BlockingIOError for nothing."""
        if self.address.tls:
            from sandboxrun.redis import tls

            return tls.take_now(self._socket, RECEIVE_BYTES)
        data: bytes = self._socket.recv(RECEIVE_BYTES, _socket.MSG_DONTWAIT)
        return data

    def _closed(self) -> ConnectionLost:
        return ConnectionLost(f"the connection to Redis at {self.address.shown} is closed")

    def _receive(self) -> None:
        if self._socket is None:
            raise self._closed()
        try:
            data = self._socket.recv(RECEIVE_BYTES)
        except BlockingIOError:
            from sandboxrun.redis import nonblocking

            try:
                nonblocking.wait(self._socket, self._limit, readable=True)
            except OSError as error:
                raise self._lost(error) from error
            return  # the caller tries again
        except OSError as error:
            raise self._lost(error) from error
        self._feed(data)

    def _feed(self, data: bytes) -> None:
        if not data:
            raise self._lost(None)
        self.received += len(data)
        if self.receive_most and self.received > self.receive_most:
            raise self._lost(None)
        try:
            self._reader.feed(data)
        except ProtocolError as error:
            raise self._lost(error) from error

    def first_bytes(self, count: int) -> bytes:
        """The next `count` bytes, of a reply that is too large to be read; then the connection is closed."""
        data = b""
        try:
            while self._socket is not None and len(data) < count and (part := self._socket.recv(count - len(data))):
                data += part
        except OSError as error:
            raise self._lost(error) from error
        self.close()
        return data

    def pipeline(self, commands: Sequence[Sequence[str | bytes | int | float]]) -> list[Any]:
        """The replies to several commands that are sent as one; errors of Redis among them are ReplyErrors."""
        self.send(b"".join([pack(*command) for command in commands]))
        return self.read_many(len(commands))

    def pipeline_within(
        self, commands: Sequence[Sequence[str | bytes | int | float]], max_bytes: int, *, reopen: bool = False
    ) -> list[Any] | None:
        """As `pipeline`; None if the replies have more than `max_bytes` together, and then the connection is closed, or with
        `reopen` a new one."""
        try:
            with Within(self, max_bytes):
                return self.pipeline(commands)
        except TooManyBytes:
            if reopen:
                self.open()
            return None

    def call(self, *words: str | bytes | int | float) -> Any:
        """The reply to one command. An error of Redis is raised: ConnectionLost for a passing one, else ReplyError."""
        self.send(pack(*words))
        return self.checked(self.read())

    def checked(self, reply: Any) -> Any:
        if isinstance(reply, ReplyError):
            raise translated(reply, self.address.shown)
        return reply

    def close(self) -> None:
        """Close the connection, also for duplicates of its descriptor: an event loop that watches one is told."""
        if self._socket is not None:
            try:
                self._socket.shutdown(_socket.SHUT_RDWR)
            except OSError:
                pass
            self.discard()

    def discard(self) -> None:
        """Close this process's descriptor alone. The connection of a parent that was forked stays as it is."""
        sock, self._socket = self._socket, None
        if sock is None:
            return
        self._reader = reader(notEnoughData=INCOMPLETE)  # its bytes are replies to commands of the old connection
        try:
            sock.close()
        except OSError:
            pass

    def _lost(self, error: Exception | None) -> ConnectionLost:
        self.close()
        if error is None:
            reason = "it closed the connection"
        elif isinstance(error, BlockingIOError | TimeoutError):  # EAGAIN: the kernel's time-out, socket(7)
            reason = "no answer in time"
        else:
            reason = getattr(error, "strerror", None) or str(error)
        return ConnectionLost(f"Redis at {self.address.shown} is away ({reason[:200]})")


Commands = list[tuple[str, ...]]


def greeting(address: Address, name: str, protocol: int = 0) -> Commands:
    """What a connection begins with: log in, choose the protocol and the database, say who it is."""
    commands: Commands = []
    if (protocol or address.protocol) == 3:
        login = ("AUTH", address.user or "default", address.password) if address.password else ()
        commands.append(("HELLO", "3", *login))
    elif address.password:
        commands.append(("AUTH", *([address.user] if address.user else []), address.password))
    if address.db:
        commands.append(("SELECT", str(address.db)))
    return [*commands, ("CLIENT", "SETNAME", name)]


def check_greeting(address: Address, commands: Commands, replies: list[Any]) -> None:
    """Raise StoreError, or ConnectionLost if it may pass, for what Redis refuses of a `greeting`."""
    for command, reply in zip(commands, replies, strict=True):
        if not isinstance(reply, ReplyError):
            continue
        if command[0] == "CLIENT" and not str(reply).startswith("NOAUTH"):  # a name is a convenience
            continue
        error = translated(reply, address.shown)
        if isinstance(error, StoreError):
            raise error
        if command[0] == "SELECT":
            raise StoreError(f"Redis at {address.shown} refuses database {address.db}: {str(reply)[:200]}")
        raise login_refused(reply, address.shown)


def _connect_unix(address: Address, attach: Callable[[Any], None]) -> None:
    sock = _off_standard(_socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM))
    attach(sock)
    sock.connect(address.path)


def _off_standard(sock: Any) -> Any:
    """The socket under a number above 2: a script may have closed its standard streams, and what is printed goes there."""
    if sock.fileno() > 2:
        return sock
    import fcntl

    try:
        number = fcntl.fcntl(sock, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        sock.close()
    return type(sock)(fileno=number)


def _connect_tcp(address: Address, attach: Callable[[Any], None], seconds: float) -> None:
    """To the first of the host's addresses that answers within so many seconds."""
    last: OSError | None = None
    # As bytes if possible: for text, Python imports the codec for international names.
    host = address.host.encode() if address.host.isascii() else address.host
    for family, kind, protocol, _, where in _socket.getaddrinfo(host, address.port, 0, _socket.SOCK_STREAM):
        sock = _off_standard(_socket.socket(family, kind, protocol))
        try:
            attach(sock)
            sock.settimeout(seconds)
            sock.connect(where)
            sock.settimeout(None)
            sock.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
            sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_KEEPALIVE, 1)
            return
        except OSError as error:
            sock.close()
            last = error
    raise last or OSError("the name has no address")
