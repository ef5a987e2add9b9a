"""bind(2) and listen(2), if listening is granted: the supervisor decides, and does it on its duplicate of the socket."""

from __future__ import annotations

import _socket
import errno
import ipaddress
from collections.abc import Callable
from contextlib import closing

from sandboxrun.config.permissions import IPAddress, Kind, endpoint
from sandboxrun.sandbox.compile.policy import SandboxPolicy
from sandboxrun.sandbox.supervisor.dispatch import Answer, Calls
from sandboxrun.sandbox.supervisor.handlers.connect import (
    SOCKADDR_MAX_BYTES,
    InetAddress,
    check_tcp,
    parse_sockaddr,
    socket_of,
)
from sandboxrun.sandbox.supervisor.listener import Notification
from sandboxrun.sandbox.supervisor.target import Target

_BACKLOG_MAX = 4096


class Listening:
    """Answers `bind` and `listen`."""

    def __init__(self, calls: Calls, policy: SandboxPolicy, *, denied: Callable[[Kind, str, bool], None]) -> None:
        self._calls, self._policy, self._denied = calls, policy, denied

    def bind(self, target: Target, notification: Notification) -> Answer:
        fd, pointer, length = notification.args[:3]
        length &= 0xFFFFFFFF
        if length > SOCKADDR_MAX_BYTES:
            raise OSError(errno.EINVAL, "address too long")
        address = parse_sockaddr(target.read(pointer, length))
        if not isinstance(address, InetAddress):
            raise OSError(errno.EACCES, "Unix socket")
        with closing(socket_of(target, fd)) as sock:
            if not self._calls.listener.is_valid(notification.id):
                return None
            check_tcp(sock, address.family)
            self._check(sock, address.address, address.port)
            sock.bind(address.local)
        return 0

    def listen(self, target: Target, notification: Notification) -> Answer:
        fd, backlog = notification.args[:2]
        with closing(socket_of(target, fd)) as sock:
            if not self._calls.listener.is_valid(notification.id):
                return None
            check_tcp(sock, sock.family)
            host, port = sock.getsockname()[:2]
            # A socket that is not bound has port 0 here; the kernel will choose a port, at every address.
            self._check(sock, ipaddress.ip_address(host), port, bound=True)
            sock.listen(min(backlog & 0xFFFFFFFF, _BACKLOG_MAX))
        return 0

    def _check(self, sock: _socket.socket, address: IPAddress, port: int, *, bound: bool = False) -> None:
        """Raise OSError if it is not granted. What `listen` finds counts: a thread may change IPV6_V6ONLY until bind(2) is
        done, and not after it (ipv6(7))."""
        if isinstance(address, ipaddress.IPv6Address):
            address = address.ipv4_mapped or ipaddress.IPv6Address(int(address))  # without a zone
        unbound = bound and port == 0
        both = sock.family == _socket.AF_INET6 and (unbound or not _is_v6_only(sock))
        net = self._policy.net
        if not net.allows_listen(address, port, bound=bound, both=both):
            self._denied(Kind.LISTEN, endpoint(str(address), port), net.denies_listen(address, port, both=both))
            raise OSError(errno.EACCES, "not granted")


def _is_v6_only(sock: _socket.socket) -> bool:
    return bool(sock.getsockopt(_socket.IPPROTO_IPV6, _socket.IPV6_V6ONLY))
