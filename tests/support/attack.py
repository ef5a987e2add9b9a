"""Parts of attacks: raw system calls by name, and receivers that show what arrived."""

from __future__ import annotations

import os
import socket
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager

from arena import Listener

X86_64 = os.uname().machine == "x86_64"

# asm/unistd_64.h and asm-generic/unistd.h (aarch64)
NR: dict[str, int] = {
    name: numbers[0 if X86_64 else 1]
    for name, numbers in {
        "accept": (43, 202), "accept4": (288, 242), "bind": (49, 200), "close_range": (436, 436),
        "connect": (42, 203), "exit": (60, 93), "getpid": (39, 172), "io_setup": (206, 0),
        "io_uring_setup": (425, 425), "ioctl": (16, 29), "listen": (50, 201), "memfd_create": (319, 279),
        "mknodat": (259, 33), "mq_open": (240, 180), "mq_unlink": (241, 181), "msgctl": (71, 187),
        "msgget": (68, 186), "pidfd_getfd": (438, 438), "pidfd_open": (434, 434), "semctl": (66, 191),
        "semget": (64, 190), "sendmmsg": (307, 269), "sendmsg": (46, 211), "sendto": (44, 206),
        "setsockopt": (54, 208), "shmctl": (31, 195), "shmget": (29, 194), "socket": (41, 198),
        "socketpair": (53, 199), "splice": (275, 76), "tee": (276, 77), "vmsplice": (278, 75),
    }.items()
}  # fmt: skip

# Stands before an attempt. `call` raises OSError; an integer fills a whole register. `inet` and `inet6` are struct sockaddr.
RAW = f"""
import ctypes, fcntl, mmap, select, signal, struct, threading, time
NR = {NR!r}
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = libc.mmap.restype = ctypes.c_long
libc.syscall.argtypes = None
HIGH = 1 << 32
def call(number, *args):
    number = NR[number] if isinstance(number, str) else number
    result = libc.syscall(ctypes.c_long(number), *(ctypes.c_long(a) if isinstance(a, int) else a for a in args))
    if result < 0:
        raise OSError(ctypes.get_errno(), "system call")
    return result
def inet(port, host="127.0.0.1"):
    return struct.pack("=H", socket.AF_INET) + struct.pack("!H", port) + socket.inet_aton(host) + bytes(8)
def inet6(port, host="::1", flow=0, scope=0):
    return struct.pack("=H", socket.AF_INET6) + struct.pack("!HI", port, flow) + socket.inet_pton(socket.AF_INET6, host) + struct.pack("=I", scope)
def msghdr(data, name=None):
    # struct msghdr with one iovec, inside a struct mmsghdr; keeps what it points to alive
    text, peer = ctypes.create_string_buffer(data, len(data)), ctypes.create_string_buffer(name or b"", len(name or b"") or 1)
    iov = ctypes.create_string_buffer(struct.pack("@PN", ctypes.addressof(text), len(data)))
    header = struct.pack("@PI4xPNPNi4xi4x", ctypes.addressof(peer) if name else 0, len(name or b""), ctypes.addressof(iov), 1, 0, 0, 0, 0)
    found = ctypes.create_string_buffer(header, len(header))
    found.keep = text, peer, iov
    return found
def hello(fd):
    with socket.socket(fileno=fd) as s:
        s.settimeout(5)
        return s.recv(5).decode()
def opened(s, address=None):
    # By the system call, without the checks and look-ups of Python
    address = address or inet(V["port"])
    call("connect", s.fileno(), address, len(address))
    return hello(s.detach())
"""


def attempt(body: str) -> str:
    """The code of an attempt with this body, after RAW."""
    return RAW + "def attempt():\n" + textwrap.indent(textwrap.dedent(body).strip("\n"), "    ") + "\n"


class Receiver:
    """A datagram socket that shows what arrived."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self.address = sock.getsockname()

    @property
    def port(self) -> int:
        return int(self.address[1])

    def arrived(self) -> bytes:
        """All datagrams since the last call. On loopback and Unix sockets they are there when send returns."""
        found = b""
        while True:
            try:
                found += self._socket.recv(4096)
            except BlockingIOError:
                return found


@contextmanager
def receiving(
    family: int = socket.AF_INET, address: object = ("127.0.0.1", 0), protocol: int = 0
) -> Iterator[Receiver]:
    with socket.socket(family, socket.SOCK_DGRAM, protocol) as sock:
        sock.bind(address)  # type: ignore[arg-type]
        sock.setblocking(False)
        yield Receiver(sock)


class Counter:
    """A TCP listener that counts every connection, however many come at once: it accepts when a test asks."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self.port = sock.getsockname()[1]

    def arrived(self) -> int:
        """How many connections came since the last call. On loopback they are queued before connect(2) returns."""
        found = 0
        while True:
            try:
                self._socket.accept()[0].close()
            except BlockingIOError:
                return found
            found += 1


@contextmanager
def counting(address: tuple[str, int] = ("127.0.0.1", 0)) -> Iterator[Counter]:
    with socket.socket() as sock:
        sock.bind(address)
        sock.listen(4096)
        sock.setblocking(False)
        yield Counter(sock)


def arrived(listener: Listener) -> int:
    """How many connections a listener has had. A connection of our own, queued behind all others, makes the count exact."""
    with socket.socket(listener._socket.family) as sock:
        sock.connect(listener.address)
        assert sock.recv(5) == b"hello"
    listener.connections -= 1
    return listener.connections
