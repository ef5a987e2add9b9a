"""Waiting for a socket that does not block. Imported only after an EAGAIN, because hardly any connection needs it.

A socket that blocks says EAGAIN once the kernel's time-out is over (SO_RCVTIMEO in socket(7)). But an event loop that watches
the descriptor may have made it non-blocking: libuv does, and O_NONBLOCK belongs to all duplicates of a descriptor.
"""

from __future__ import annotations

import os
import select

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def wait(sock: Any, seconds: float, *, readable: bool) -> None:
    """After EAGAIN: return once the socket is ready. Raises TimeoutError, at once if the socket does block."""
    if os.get_blocking(sock.fileno()):
        raise TimeoutError
    ready = select.poll()
    ready.register(sock.fileno(), select.POLLIN if readable else select.POLLOUT)
    if not ready.poll(seconds * 1000):
        raise TimeoutError


def send_all(sock: Any, data: memoryview, seconds: float) -> None:
    """`seconds`: how long the other side may take nothing. Raises OSError, TimeoutError."""
    while data:
        try:
            data = data[sock.send(data) :]
        except BlockingIOError:
            wait(sock, seconds, readable=False)
