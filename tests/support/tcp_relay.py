"""A relay between a client and a server that delays, drops and cuts."""

from __future__ import annotations

import socket
import struct
import threading


class Relay:
    """A context manager.

    `hold_at`: from the first request with these bytes on, hold what the client sends until `release`, even if the client is
    gone. `drop_at`: from the first request or reply with these bytes on, drop what the server sends.
    Each applies to the first connection with these bytes.
    """

    def __init__(self, target: int) -> None:
        self.target = target  # the port of connections from now on
        self.hold_at = self.drop_at = b""
        self._dropping: socket.socket | None = None
        self.dropped = 0  # bytes
        self._held: list[tuple[socket.socket, bytes]] = []
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        self.port = self._listener.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}"

    def __enter__(self) -> Relay:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        self.cut()
        for _, server in self._pairs:
            server.close()

    @property
    def held(self) -> int:
        """Bytes."""
        return sum(len(data) for _, data in self._held)

    def cut(self) -> None:
        """Reset the connections of clients. Those to the server stay, with the bytes that are held for them."""
        for client, _ in self._pairs:
            try:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.shutdown(socket.SHUT_RD)  # wakes the thread that reads
                client.close()
            except OSError:
                pass

    def release(self) -> None:
        """Send the held bytes to the server, late."""
        held, self._held = self._held, []
        for server, data in held:
            server.sendall(data)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self.target), 5)
                server.settimeout(None)
            except OSError:
                client.close()
                continue
            self._pairs.append((client, server))
            threading.Thread(target=self._requests, args=(client, server), daemon=True).start()
            threading.Thread(target=self._replies, args=(client, server), daemon=True).start()

    def _requests(self, client: socket.socket, server: socket.socket) -> None:
        holding = False
        try:
            while data := client.recv(65536):
                if self.hold_at and self.hold_at in data:
                    holding, self.hold_at = True, b""
                if self.drop_at and self.drop_at in data:
                    self._dropping, self.drop_at = client, b""
                if holding:
                    self._held.append((server, data))
                else:
                    server.sendall(data)
        except OSError:
            pass

    def _replies(self, client: socket.socket, server: socket.socket) -> None:
        try:
            while data := server.recv(65536):
                if self.drop_at and self.drop_at in data:
                    self._dropping, self.drop_at = client, b""
                if self._dropping is client:
                    self.dropped += len(data)
                else:
                    client.sendall(data)
        except OSError:
            pass
        try:
            client.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
