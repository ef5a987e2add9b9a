"""connect(2): decide on our own copy of the address, then connect the worker's socket ourselves.

The address is copied once out of the worker's memory, and the copy is both decided on and connected, so a thread that
rewrites the memory changes nothing. The socket is duplicated once; if its descriptor is swapped meanwhile, another socket
is connected to the allowed address, or refused for its type. A blocking connect delays no other: it starts without
blocking and is finished when its socket becomes writable.
"""

from __future__ import annotations

import _socket
import errno
import fcntl
import ipaddress
import os
import resource
import struct
import time
from collections.abc import Callable

from sandboxrun import timing as trace
from sandboxrun.config.permissions import IPAddress, Kind, canonical_address, embedded_address, endpoint
from sandboxrun.records import record
from sandboxrun.sandbox.compile.landlock import open_real
from sandboxrun.sandbox.compile.policy import SandboxPolicy
from sandboxrun.sandbox.supervisor.dispatch import Answer, Calls
from sandboxrun.sandbox.supervisor.listener import Notification
from sandboxrun.sandbox.supervisor.resolver import Resolver
from sandboxrun.sandbox.supervisor.target import Target

SOCKADDR_MAX_BYTES = 128  # sizeof(struct sockaddr_storage): the kernel refuses more
DECISIONS_MAX = 1024  # remembered
PENDING_MAX = 512  # blocking connects under way at once; one more fails with EAGAIN
DESCRIPTORS_KEPT = 96  # of ours, for all else than such connects: names, Redis, a look into the scratch folder


class InetAddress:
    """An address as connect(2) or bind(2) was given it, and how Python's sockets take it for the one and for the other."""

    __slots__ = ("address", "family", "local", "port", "sockaddr")

    def __init__(self, address: IPAddress, port: int, scope_id: int = 0) -> None:
        self.address, self.port = address, port
        self.local = _for_python(address, port, scope_id)  # for bind(2): the unspecified address is every one
        # The kernel would take the address that the socket is bound to for the unspecified one; the decision is on loopback.
        if address.is_unspecified:
            address = canonical_address(address)
        elif isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped == ipaddress.IPv4Address(0):
            address = ipaddress.IPv6Address("::ffff:127.0.0.1")
        self.family = _socket.AF_INET if address.version == 4 else _socket.AF_INET6
        self.sockaddr = _for_python(address, port, scope_id)

    def __str__(self) -> str:
        return endpoint(str(canonical_address(self.address)), self.port)


def _for_python(address: IPAddress, port: int, scope_id: int) -> tuple[str, int] | tuple[str, int, int, int]:
    return (str(address), port) if address.version == 4 else (str(address), port, 0, scope_id)


def parse_sockaddr(data: bytes) -> InetAddress | str:
    """A struct sockaddr to a destination, or to the path of a Unix socket. Raises OSError with the kernel's errno.

    Lengths as the kernel checks them (ip(7), ipv6(7), unix(7)). AF_UNSPEC, which would disconnect, and every other
    family are refused.
    """
    if len(data) < 2:
        raise OSError(errno.EINVAL, "address too short")
    (family,) = struct.unpack_from("=H", data)
    if family == _socket.AF_INET:
        if len(data) < 16:
            raise OSError(errno.EINVAL, "address too short")
        return InetAddress(ipaddress.IPv4Address(data[4:8]), int.from_bytes(data[2:4], "big"))
    if family == _socket.AF_INET6:
        if len(data) < 24:
            raise OSError(errno.EINVAL, "address too short")
        scope = struct.unpack_from("=I", data, 24)[0] if len(data) >= 28 else 0
        return InetAddress(ipaddress.IPv6Address(data[8:24]), int.from_bytes(data[2:4], "big"), scope)
    if family == _socket.AF_UNIX:
        path = data[2:]
        if path[:1] != b"\0":  # abstract names begin with NUL and are compared whole
            path = path.partition(b"\0")[0]
        return os.fsdecode(path)
    raise OSError(errno.EACCES, f"address family {family}")


@record
class _Pending:
    """A blocking connect under way: answered when the socket becomes writable or its SO_SNDTIMEO is over."""

    id: int
    socket: _socket.socket
    destination: InetAddress
    deadline: float | None  # time.monotonic


class Connector:
    """Answers `connect`."""

    def __init__(
        self,
        calls: Calls,
        policy: SandboxPolicy,
        *,
        resolver: Resolver,
        denied: Callable[[Kind, str, bool], None],
        pending_max: int = PENDING_MAX,
    ) -> None:
        """`pending_max`: blocking connects under way at once; fewer if this process may not have so many descriptors."""
        self._calls, self._policy, self._resolver, self._denied = calls, policy, resolver, denied
        self._pending: dict[int, _Pending] = {}  # by descriptor
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._pending_max = max(1, min(pending_max, files - DESCRIPTORS_KEPT))
        self._allowed: dict[bytes, InetAddress] = {}
        self._decided_with = -1  # the version of the resolver's names

    def connect(self, target: Target, notification: Notification) -> Answer:
        trace.mark("  worker: connects")
        fd, pointer, length = notification.args[:3]
        length &= 0xFFFFFFFF
        if length > SOCKADDR_MAX_BYTES:
            raise OSError(errno.EINVAL, "address too long")
        destination = self._decide(target.read(pointer, length))
        sock = socket_of(target, fd)
        done = True
        try:
            # The target may have died and its pid been taken over while we read: now it cannot any more.
            if not self._calls.listener.is_valid(notification.id):
                return None
            if isinstance(destination, str):
                return _connect_unix(sock, destination)
            check_tcp(sock, destination.family)
            result = self._start(sock, destination, notification.id)
            done = result is not None
            return result
        finally:
            if done:
                sock.close()

    def close(self) -> None:
        """The worker has ended."""
        for pending in list(self._pending.values()):
            self._forget(pending)

    def expire(self) -> float | None:
        """End those whose SO_SNDTIMEO is over, as connect(2) does, and forget those whose caller is gone.

        The time at which the next one is over.
        """
        if not self._pending:
            return None
        now = time.monotonic()
        for pending in list(self._pending.values()):
            if pending.deadline is not None and pending.deadline <= now:
                self._finish(pending, errno.EINPROGRESS)
            elif not self._calls.listener.is_valid(pending.id):
                self._forget(pending)
        return min((p.deadline for p in self._pending.values() if p.deadline is not None), default=None)

    def _decide(self, data: bytes) -> InetAddress | str:
        """The destination that these bytes are, if it is granted; a Unix socket's real path. Raises OSError."""
        if self._decided_with != self._resolver.version:
            self._allowed.clear()
            self._decided_with = self._resolver.version
        known = self._allowed.get(data)
        if known is not None:
            return known
        destination = parse_sockaddr(data)
        if isinstance(destination, str):
            if self._policy.unix_socket is None or destination != self._policy.unix_socket[0]:
                raise OSError(errno.EACCES, "Unix socket")
            return self._policy.unix_socket[1]  # which stays, whatever becomes of the symlinks that led there
        address = canonical_address(destination.address)
        names = self._resolver.names(address)
        private_names = self._resolver.private_names(address, destination.port)
        embedded = embedded_address(address)
        denied_names = self._resolver.names(embedded) if embedded is not None else frozenset()
        if not self._policy.net.allows_net(address, destination.port, names, private_names, denied_names):
            target = endpoint(min(names), destination.port) if names else str(destination)
            self._denied(Kind.NET, target, self._policy.net.denies_net(address, destination.port, names | denied_names))
            raise OSError(errno.EACCES, "not granted")
        if len(self._allowed) < DECISIONS_MAX:
            self._allowed[data] = destination
        return destination

    def _start(self, sock: _socket.socket, destination: InetAddress, id_: int) -> int | None:
        """Connect; None if the answer follows later."""
        flags = fcntl.fcntl(sock.fileno(), fcntl.F_GETFL)
        if flags & os.O_NONBLOCK:
            return self._reported(sock.connect_ex(destination.sockaddr), destination)
        if len(self._pending) >= self._pending_max:
            self.expire()
            if len(self._pending) >= self._pending_max:
                return errno.EAGAIN
        with _NonBlocking(sock, flags):
            result = sock.connect_ex(destination.sockaddr)
            if result == errno.EINPROGRESS:  # on loopback the handshake is over before connect(2) returns
                result = _outcome(sock, destination)
        if result not in (errno.EINPROGRESS, errno.EALREADY):
            return self._reported(result, destination)
        # Now, or later: it may be the same call, restarted after a signal handler ran in the worker.
        timeout = _send_timeout(sock)
        pending = _Pending(id_, sock, destination, time.monotonic() + timeout if timeout else None)
        fd = sock.fileno()
        self._calls.watch(fd, lambda: self._writable(pending))  # first: it may fail, and the socket is closed then
        self._pending[fd] = pending
        return None

    def _writable(self, pending: _Pending) -> None:
        if not self._calls.listener.is_valid(pending.id):
            self._forget(pending)  # the outcome is for the call that took its place
            return
        try:
            with _NonBlocking(pending.socket, fcntl.fcntl(pending.socket.fileno(), fcntl.F_GETFL)):
                answer = _outcome(pending.socket, pending.destination)
        except OSError as error:
            answer = error.errno or errno.EACCES
        self._finish(pending, self._reported(answer, pending.destination))

    def _finish(self, pending: _Pending, answer: int) -> None:
        self._forget(pending)
        self._calls.listener.respond(pending.id, answer)

    def _forget(self, pending: _Pending) -> None:
        fd = pending.socket.fileno()
        if self._pending.pop(fd, None) is not None:
            self._calls.unwatch(fd)
            pending.socket.close()

    def _reported(self, result: int, destination: InetAddress) -> int:
        if result in _NOBODY_THERE:
            self._resolver.unreachable(canonical_address(destination.address))
        return result


# Errors that say that nobody answers at an address any more.
_NOBODY_THERE = frozenset(
    {errno.ECONNREFUSED, errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ECONNRESET}
)


def socket_of(target: Target, fd: int) -> _socket.socket:
    """Our duplicate of a target's socket. Raises OSError as the call would."""
    duplicate = target.duplicate(fd & 0xFFFFFFFF)
    try:
        return _socket.socket(fileno=duplicate)
    except OSError:
        os.close(duplicate)  # not a socket
        raise


def check_tcp(sock: _socket.socket, family: int) -> None:
    """Raise OSError unless it is a TCP socket for addresses of this family."""
    if (
        sock.type != _socket.SOCK_STREAM
        or sock.family not in (_socket.AF_INET, _socket.AF_INET6)
        or sock.proto != _socket.IPPROTO_TCP
    ):
        raise OSError(errno.EACCES, "not a TCP socket")
    if sock.family != family:
        raise OSError(errno.EINVAL if family == _socket.AF_INET6 else errno.EAFNOSUPPORT, "address family")


def _connect_unix(sock: _socket.socket, path: str) -> int:
    if sock.family != _socket.AF_UNIX or sock.type != _socket.SOCK_STREAM:
        raise OSError(errno.EACCES, "not a Unix stream socket")
    fd = open_real(path)  # a symlink put there meanwhile is not followed
    try:
        # Never waits for long: a full backlog gives EAGAIN.
        with _NonBlocking(sock, fcntl.fcntl(sock.fileno(), fcntl.F_GETFL)):
            return sock.connect_ex(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


class _NonBlocking:
    """O_NONBLOCK on a socket for the moment of one call; the flag is shared with the worker's descriptor."""

    __slots__ = ("_fd", "_flags")

    def __init__(self, sock: _socket.socket, flags: int) -> None:
        self._fd, self._flags = sock.fileno(), flags

    def __enter__(self) -> None:
        fcntl.fcntl(self._fd, fcntl.F_SETFL, self._flags | os.O_NONBLOCK)

    def __exit__(self, *_: object) -> None:
        fcntl.fcntl(self._fd, fcntl.F_SETFL, self._flags)


def _outcome(sock: _socket.socket, destination: InetAddress) -> int:
    """The result of a handshake, EALREADY while it is under way: the second connect(2) fetches it, and sets the
    socket's state."""
    result = sock.connect_ex(destination.sockaddr)
    return 0 if result == errno.EISCONN else result


def _send_timeout(sock: _socket.socket) -> float:
    """SO_SNDTIMEO in seconds, 0 if none is set: it bounds a blocking connect(2) (socket(7))."""
    seconds, micros = struct.unpack("@ll", sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_SNDTIMEO, 16))
    return float(seconds + micros / 1e6)
