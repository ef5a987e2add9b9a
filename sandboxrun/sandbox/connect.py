"""The one trapped system call: decide on our own copy of the address, then connect the worker's socket ourselves.

The address is copied once out of the worker's memory; what is decided on is what is connected, so a thread that
rewrites the memory changes nothing. The socket is duplicated once; a descriptor swapped meanwhile is simply another
socket that is connected to an allowed address, or refused for its type. A blocking connect delays no other: it is
started without blocking and finished when its socket becomes writable.
"""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import os
import select
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from sandboxrun.permissions import IPAddress, canonical_address, endpoint
from sandboxrun.sandbox.notify import Listener, Notification, pidfd_getfd
from sandboxrun.sandbox.policy import SandboxPolicy

_SOCKADDR_MAX_BYTES = 128  # sizeof(struct sockaddr_storage): the kernel refuses more
EXPIRE_SECONDS = 1.0  # between two looks for callers that are gone
PENDING_MAX = 512  # blocking connects under way at once; one more fails with EAGAIN


@dataclass(frozen=True, slots=True)
class InetAddress:
    """A destination as connect(2) was given it."""

    address: IPAddress
    port: int
    scope_id: int = 0

    def sockaddr(self) -> tuple[str, int] | tuple[str, int, int, int]:
        if self.address.version == 4:
            return str(self.address), self.port
        return str(self.address), self.port, 0, self.scope_id

    @property
    def family(self) -> int:
        return socket.AF_INET if self.address.version == 4 else socket.AF_INET6

    def __str__(self) -> str:
        return endpoint(str(canonical_address(self.address)), self.port)


def parse_sockaddr(data: bytes) -> InetAddress | str:
    """A struct sockaddr to a destination, or to the path of a Unix socket. Raises OSError with the kernel's errno.

    Lengths as the kernel checks them (ip(7), ipv6(7), unix(7)). AF_UNSPEC, which would disconnect, and every other
    family are refused.
    """
    if len(data) < 2:
        raise OSError(errno.EINVAL, "address too short")
    (family,) = struct.unpack_from("=H", data)
    if family == socket.AF_INET:
        if len(data) < 16:
            raise OSError(errno.EINVAL, "address too short")
        return InetAddress(ipaddress.IPv4Address(data[4:8]), int.from_bytes(data[2:4], "big"))
    if family == socket.AF_INET6:
        if len(data) < 24:
            raise OSError(errno.EINVAL, "address too short")
        scope = struct.unpack_from("=I", data, 24)[0] if len(data) >= 28 else 0
        return InetAddress(ipaddress.IPv6Address(data[8:24]), int.from_bytes(data[2:4], "big"), scope)
    if family == socket.AF_UNIX:
        path = data[2:]
        if path[:1] != b"\0":  # abstract names begin with NUL and are compared whole
            path = path.partition(b"\0")[0]
        return os.fsdecode(path)
    raise OSError(errno.EACCES, f"address family {family}")


@dataclass(slots=True)
class _Pending:
    """A blocking connect under way: answered when the socket becomes writable or its SO_SNDTIMEO is over."""

    id: int
    socket: socket.socket
    destination: InetAddress
    deadline: float | None  # time.monotonic


class Connector:
    """Answers `connect` notifications, in a thread of its own.

    O_NONBLOCK belongs to the worker as much as to us: a hostile thread that clears it at the right moment makes our
    connect(2) wait. Then only that worker's further connects wait, for nothing else is done in this thread.
    `denied` and `failed` are called from it.
    """

    def __init__(
        self,
        listener: Listener,
        policy: SandboxPolicy,
        *,
        pid: int,
        pidfd: int,
        names: Callable[[IPAddress], frozenset[str]],
        denied: Callable[[str], None],
        failed: Callable[[str], None],
    ) -> None:
        self._listener, self._policy, self._pidfd = listener, policy, pidfd
        self._names, self._denied, self._failed = names, denied, failed
        # The child has confined itself and never executes again, so this stays its memory.
        self._memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
        self._pending: dict[socket.socket, _Pending] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ, self._notified)
        self._stopping = False
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """The child has ended. A thread that is stuck in a call of its making is left to the end of the process."""
        self._stopping = True

    def _serve(self) -> None:
        try:
            look = time.monotonic() + EXPIRE_SECONDS
            while not self._stopping:
                deadline = min((p.deadline for p in self._pending.values() if p.deadline is not None), default=look)
                for key, _ in self._selector.select(max(0.0, min(look, deadline) - time.monotonic())):
                    # A callback before it may have ended this one's business.
                    if self._selector.get_map().get(key.fd) is key:
                        key.data()
                if time.monotonic() >= min(look, deadline):
                    self._expire()
                    look = time.monotonic() + EXPIRE_SECONDS
        except Exception as error:
            self._failed(
                f"connections cannot be supervised any more ({type(error).__name__}: {error}): ending the worker"
            )

    def _notified(self) -> None:
        notification = self._listener.receive()
        if notification is not None:
            self.handle(notification)

    def handle(self, notification: Notification) -> None:
        """Answer one notification, now or later. Whatever goes wrong becomes an errno for the worker."""
        try:
            answer = self._connect(notification)
        except OSError as error:
            answer = error.errno or errno.EACCES
        except (ValueError, OverflowError):
            answer = errno.EINVAL
        if answer is not None:
            self._listener.respond(notification.id, answer)

    def _expire(self) -> None:
        """End those whose SO_SNDTIMEO is over, as connect(2) does, and forget those whose caller is gone."""
        now = time.monotonic()
        for pending in list(self._pending.values()):
            if pending.deadline is not None and pending.deadline <= now:
                self._finish(pending, errno.EINPROGRESS)
            elif not self._listener.is_valid(pending.id):
                self._forget(pending)

    def _connect(self, notification: Notification) -> int | None:
        fd, pointer, length = notification.args[:3]
        destination = parse_sockaddr(self._read(pointer, length & 0xFFFFFFFF))
        self._check(destination)
        sock = self._duplicate(fd & 0xFFFFFFFF)
        done = True
        try:
            # The target may have died and its pid been taken over while we read: now it cannot any more.
            if not self._listener.is_valid(notification.id):
                return None
            if isinstance(destination, str):
                return self._connect_unix(sock, destination)
            if (
                sock.type != socket.SOCK_STREAM
                or sock.family not in (socket.AF_INET, socket.AF_INET6)
                or sock.proto != socket.IPPROTO_TCP
            ):
                raise OSError(errno.EACCES, "not a TCP socket")
            if sock.family != destination.family:
                raise OSError(
                    errno.EINVAL if destination.family == socket.AF_INET6 else errno.EAFNOSUPPORT, "address family"
                )
            result = self._start(sock, destination, notification.id)
            done = result is not None
            return result
        finally:
            if done:
                sock.close()

    def _duplicate(self, target_fd: int) -> socket.socket:
        fd = pidfd_getfd(self._pidfd, target_fd)
        try:
            return socket.socket(fileno=fd)
        except OSError:
            os.close(fd)  # not a socket
            raise

    def _read(self, pointer: int, length: int) -> bytes:
        if length > _SOCKADDR_MAX_BYTES:
            raise OSError(errno.EINVAL, "address too long")
        if length == 0:
            return b""
        try:
            data = os.pread(self._memory, length, pointer)
        except (OSError, OverflowError) as error:
            raise OSError(errno.EFAULT, "address not readable") from error
        if len(data) != length:
            raise OSError(errno.EFAULT, "address not readable")
        return data

    def _check(self, destination: InetAddress | str) -> None:
        if isinstance(destination, str):
            if self._policy.unix_socket is None or destination != self._policy.unix_socket:
                raise OSError(errno.EACCES, "Unix socket")
            return
        address = canonical_address(destination.address)
        names = self._names(address)
        if not self._policy.net.allows_net(address, destination.port, names):
            self._denied(endpoint(min(names), destination.port) if names else str(destination))
            raise OSError(errno.EACCES, "not granted")

    def _connect_unix(self, sock: socket.socket, path: str) -> int:
        if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
            raise OSError(errno.EACCES, "not a Unix stream socket")
        # Never waits for long: a full backlog gives EAGAIN.
        with _NonBlocking(sock):
            return sock.connect_ex(path)

    def _start(self, sock: socket.socket, destination: InetAddress, id_: int) -> int | None:
        """Connect; None where the answer follows later."""
        if fcntl.fcntl(sock, fcntl.F_GETFL) & os.O_NONBLOCK:
            return sock.connect_ex(destination.sockaddr())
        if len(self._pending) >= PENDING_MAX:
            self._expire()
            if len(self._pending) >= PENDING_MAX:
                return errno.EAGAIN
        with _NonBlocking(sock):
            result = sock.connect_ex(destination.sockaddr())
            # EALREADY: the same blocking call, restarted after a signal handler ran in the worker.
            if result not in (errno.EINPROGRESS, errno.EALREADY):
                return result
            if _is_settled(sock):  # loopback: the handshake is over before connect(2) returns
                return _outcome(sock, destination)
        timeout = _send_timeout(sock)
        pending = _Pending(id_, sock, destination, time.monotonic() + timeout if timeout else None)
        # First: it may fail, and the socket is closed then.
        self._selector.register(sock, selectors.EVENT_WRITE, lambda: self._settled(pending))
        self._pending[sock] = pending
        return None

    def _settled(self, pending: _Pending) -> None:
        try:
            with _NonBlocking(pending.socket):
                answer = _outcome(pending.socket, pending.destination)
        except OSError as error:
            answer = error.errno or errno.EACCES
        self._finish(pending, answer)

    def _finish(self, pending: _Pending, answer: int) -> None:
        self._forget(pending)
        self._listener.respond(pending.id, answer)

    def _forget(self, pending: _Pending) -> None:
        if self._pending.pop(pending.socket, None) is not None:
            self._selector.unregister(pending.socket)
            pending.socket.close()


class _NonBlocking:
    """O_NONBLOCK on a blocking socket for the moment of one call; the flag is shared with the worker's descriptor."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def __enter__(self) -> None:
        self._flags = fcntl.fcntl(self._sock, fcntl.F_GETFL)
        fcntl.fcntl(self._sock, fcntl.F_SETFL, self._flags | os.O_NONBLOCK)

    def __exit__(self, *_: object) -> None:
        fcntl.fcntl(self._sock, fcntl.F_SETFL, self._flags)


def _outcome(sock: socket.socket, destination: InetAddress) -> int:
    """The result of a handshake that is over: the second connect(2) fetches it, and sets the socket's state."""
    result = sock.connect_ex(destination.sockaddr())
    return 0 if result == errno.EISCONN else result


def _is_settled(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    return bool(poll.poll(0))


def _send_timeout(sock: socket.socket) -> float:
    """SO_SNDTIMEO in seconds, 0 where none is set: it bounds a blocking connect(2) (socket(7))."""
    seconds, micros = struct.unpack("@ll", sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, 16))
    return float(seconds + micros / 1e6)
