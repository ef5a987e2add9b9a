"""A real HTTP server on loopback, such as a host of raw files, that can misbehave as a test needs."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator

Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


class RawHost:
    """`files` maps a path to the text of a script, or to a function that answers; `requests` records (path, headers).

    `context`: it speaks TLS.
    """

    def __init__(self, port: int = 0, context: ssl.SSLContext | None = None) -> None:
        self.files: dict[str, str | Answer] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        host = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                host.requests.append((self.path, {k.lower(): v for k, v in self.headers.items()}))
                found = host.files.get(self.path)
                if callable(found):
                    with contextlib.suppress(OSError):
                        found(self)
                    return
                body = b"404: Not Found" if found is None else found.encode()
                etag = f'"{hashlib.sha256(body).hexdigest()[:16]}"'
                if found is not None and self.headers.get("if-none-match") == etag:
                    self.send_response(304)
                    self.end_headers()
                    return
                self.send_response(404 if found is None else 200)
                self.send_header("Content-Type", "text/plain; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.send_header("ETag", etag)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
        if context is not None:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def redirect(target: str) -> Answer:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(302)
        handler.send_header("Location", target)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def body(
    data: bytes, kind: str = "text/plain", status: int = 200, *, length: bool = True, encoding: str | None = None
) -> Answer:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Type", kind)
        if length:
            handler.send_header("Content-Length", str(len(data)))
        if encoding:
            handler.send_header("Content-Encoding", encoding)
        handler.end_headers()
        handler.wfile.write(data)

    return answer


def drip(handler: http.server.BaseHTTPRequestHandler) -> None:
    """One header byte every 50 ms, for ten seconds."""
    handler.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in b"HTTP/1.1 200 OK\r\nX-Slow: " + b"x" * 180:
        handler.wfile.write(bytes([byte]))
        time.sleep(0.05)


@contextlib.contextmanager
def raw_host() -> Iterator[RawHost]:
    host = RawHost()
    try:
        yield host
    finally:
        host.close()
