"""A proxy between one worker and Redis: it forwards bytes, and cuts, stalls or slows them as a test says.

It accepts TCP, TLS or a Unix socket, and speaks plain TCP to the server. So it can wait for a command and stop at the moment at
which that command passes.

The proxy of tests/support/proxy.py forwards TLS unread and makes each fault on one connection. This one terminates TLS, and its
faults concern a whole worker: all its connections stop, lose their bytes or end at once.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

RECEIVE_BYTES = 64 * 1024
SLOW_BYTES, SLOW_SECONDS = 32, 0.02  # 1,600 bytes a second
HOLD_SECONDS = 10.0
UP, DOWN = "up", "down"  # to the server, from the server


@dataclass(eq=False)
class Trap:
    """Waits for `pattern` in one direction. `after`: the pattern still passes, and nothing behind it."""

    pattern: bytes
    direction: str
    after: bool
    sprung: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)


class Proxy:
    """One listener. Any thread may call any method."""

    def __init__(self, transport: str, server_port: int, folder: Path, tls: ssl.SSLContext | None = None) -> None:
        self.server_port = server_port
        self._tls = tls
        if transport == "unix":
            path = folder / "redis.sock"
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(str(path))
            self.address = f"unix://:{{password}}@{path}"
        else:
            self._listener = socket.create_server(("127.0.0.1", 0))
            self.address = (
                f"redis{'s' * (transport == 'tls')}://:{{password}}@127.0.0.1:{self._listener.getsockname()[1]}"
            )
        self._listener.listen(64)
        self._lock = threading.Lock()
        self._pairs: set[tuple[Socket, Socket]] = set()
        self._trap: Trap | None = None
        self._mode = "pass"
        self.cut_count = self.dropped_bytes = self.slowed_bytes = self.refused_count = 0
        threading.Thread(target=self._accept, daemon=True).start()

    # --- faults

    def set_trap(self, pattern: bytes, direction: str, *, after: bool) -> Trap:
        trap = Trap(pattern, direction, after)
        with self._lock:
            self._trap = trap
        return trap

    def clear_trap(self) -> None:
        with self._lock:
            trap, self._trap = self._trap, None
        if trap is not None:
            trap.released.set()

    def cut(self, *, refuse: bool) -> None:
        """End every connection. `refuse`: also new ones, until `resume`."""
        if refuse:
            self._mode = "refuse"
        self._end_all()

    def drop(self) -> None:
        """Half-open connections: bytes vanish in both directions until `resume` ends the connections."""
        self._mode = "drop"

    def slow(self) -> None:
        self._mode = "slow"

    def resume(self) -> None:
        was, self._mode = self._mode, "pass"
        if was == "drop":  # the bytes sent meanwhile are lost
            self._end_all()

    def close(self) -> None:
        self._mode = "refuse"
        self.clear_trap()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._end_all()

    def _end_all(self) -> None:
        with self._lock:
            pairs = [*self._pairs]
        for pair in pairs:
            self.cut_count += 1
            for sock in pair:
                _end(sock)

    # --- forwarding

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self._mode == "refuse":
                    self.refused_count += 1
                    _end(client)
                    client.close()
                else:
                    threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, accepted: socket.socket) -> None:
        client: Socket = accepted
        try:
            if self._tls is not None:
                client = _Tls(accepted, self._tls)
            server = socket.create_connection(("127.0.0.1", self.server_port), 5)
            server.settimeout(None)
        except OSError:
            _end(client)
            client.close()
            return
        pair = (client, server)
        with self._lock:
            self._pairs.add(pair)
        down = threading.Thread(target=self._pump, args=(server, client, DOWN), daemon=True)
        down.start()
        self._pump(client, server, UP)
        down.join()
        with self._lock:
            self._pairs.discard(pair)
        for sock in pair:
            sock.close()

    def _pump(self, source: Socket, target: Socket, direction: str) -> None:
        try:
            while data := source.recv(RECEIVE_BYTES):
                self._pass_on(data, target, direction)
        except OSError:
            pass
        finally:
            for sock in (source, target):
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def _pass_on(self, data: bytes, target: Socket, direction: str) -> None:
        trap = self._trap
        if trap is not None and (trap.sprung.is_set() or (trap.direction == direction and trap.pattern in data)):
            # All connections of this worker stop until the fault is in effect, so that nothing overtakes it.
            if trap.after and not trap.sprung.is_set():
                target.sendall(data)
                data = b""
            trap.sprung.set()
            trap.released.wait(HOLD_SECONDS)
        if self._mode == "drop":
            self.dropped_bytes += len(data)
            return
        while self._mode == "slow" and data:
            target.sendall(data[:SLOW_BYTES])
            self.slowed_bytes += SLOW_BYTES
            data = data[SLOW_BYTES:]
            time.sleep(SLOW_SECONDS)
        target.sendall(data)


class _Tls:
    """The server side of a TLS connection for a receiving and a sending thread, because OpenSSL allows one at a time."""

    def __init__(self, plain: socket.socket, context: ssl.SSLContext) -> None:
        plain.settimeout(10)
        self._sock = context.wrap_socket(plain, server_side=True)
        self._sock.settimeout(None)
        self._lock = threading.Lock()

    def recv(self, most: int) -> bytes:
        while True:
            if not self._sock.pending():
                select.select([self._sock], [], [])
            with self._lock:
                self._sock.settimeout(0.01)  # part of a record, or a message of TLS itself
                try:
                    return self._sock.recv(most)
                except (TimeoutError, ssl.SSLWantReadError):
                    pass
                finally:
                    self._sock.settimeout(None)

    def sendall(self, data: bytes) -> None:
        with self._lock:
            self._sock.sendall(data)

    def shutdown(self, how: int) -> None:
        socket.socket.shutdown(self._sock, how)  # SSLSocket.shutdown would let `recv` return ciphertext

    def close(self) -> None:
        self._sock.close()


Socket = socket.socket | _Tls


def _end(sock: Socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
