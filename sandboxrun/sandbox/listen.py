"""bind(2) and listen(2), where listening was granted: decided and done by us, on our duplicate of the socket."""

from __future__ import annotations

import errno
import ipaddress
from collections.abc import Callable
from contextlib import closing

from sandboxrun.permissions import IPAddress, endpoint
from sandboxrun.sandbox.calls import Answer, Calls
from sandboxrun.sandbox.connect import SOCKADDR_MAX_BYTES, InetAddress, check_tcp, parse_sockaddr, socket_of
from sandboxrun.sandbox.notify import Notification
from sandboxrun.sandbox.policy import SandboxPolicy
from sandboxrun.sandbox.target import Target

_BACKLOG_MAX = 4096


class Listening:
    """Answers `bind` and `listen`."""

    def __init__(self, calls: Calls, policy: SandboxPolicy, *, denied: Callable[[str, str, bool], None]) -> None:
        self._calls, self._policy, self._denied = calls, policy, denied

    def bind(self, target: Target, notification: Notification) -> Answer:
        fd, pointer, length = notification.args[:3]
        length &= 0xFFFFFFFF
        if length > SOCKADDR_MAX_BYTES:
            raise OSError(errno.EINVAL, "address too long")
        address = parse_sockaddr(target.read(pointer, length))
        if not isinstance(address, InetAddress):
            raise OSError(errno.EACCES, "Unix socket")
        self._check(address.address, address.port)
        with closing(socket_of(target, fd)) as sock:
            if not self._calls.listener.is_valid(notification.id):
                return None
            check_tcp(sock, address.family)
            sock.bind(address.sockaddr)
        return 0

    def listen(self, target: Target, notification: Notification) -> Answer:
        fd, backlog = notification.args[:2]
        with closing(socket_of(target, fd)) as sock:
            if not self._calls.listener.is_valid(notification.id):
                return None
            check_tcp(sock, sock.family)
            host, port = sock.getsockname()[:2]
            # One that is not bound yet would get an address and a port of the kernel's choice: it has port 0 here.
            if port == 0:
                self._refuse(host, port)
            self._check(ipaddress.ip_address(host), port, bound=True)
            sock.listen(min(backlog & 0xFFFFFFFF, _BACKLOG_MAX))
        return 0

    def _check(self, address: IPAddress, port: int, *, bound: bool = False) -> None:
        """Raise OSError where it is not granted. 0.0.0.0 is not every address: it must be listed as itself."""
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        if not self._policy.net.allows_listen(address, port, bound=bound):
            self._refuse(str(address), port, by_deny=self._policy.net.denies_listen(address, port))

    def _refuse(self, host: str, port: int, *, by_deny: bool = False) -> None:
        self._denied("listen", endpoint(host, port), by_deny)
        raise OSError(errno.EACCES, "not granted")
