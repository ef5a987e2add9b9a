"""An HTTP server on loopback that answers a test's requests as its `http` says, and remembers what else was asked."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Sequence
from typing import Any

from sandboxrun.spec import match
from sandboxrun.spec.match import shown
from sandboxrun.spec.model import HttpExchange

PLACEHOLDER = "{http}"
BODY_MAX_BYTES = 8 << 20
UNKNOWN = 501


class Server:
    """Answers each exchange once, whatever their order. `origin`: what PLACEHOLDER stands for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._left: list[tuple[int, HttpExchange]] = []
        self._faults: list[str] = []
        self._server = _Listener(("127.0.0.1", 0), self)
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        self.origin = f"http://{self.address}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def expect(self, exchanges: Sequence[HttpExchange]) -> None:
        """Answer these from now on, and forget all others."""
        with self._lock:
            self._left, self._faults = list(enumerate(exchanges)), []

    def take_faults(self) -> list[str]:
        """What was asked and not expected, and the other way round."""
        with self._lock:
            missing = [
                f"http[{number}]: {exchange.method} {exchange.path} was not requested"
                for number, exchange in self._left
            ]
            found, self._left, self._faults = [*self._faults, *missing], [], []
            return found

    def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> HttpExchange | str:
        """The exchange to answer with, or a fault."""
        with self._lock:
            nearest: list[str] = []
            for at, (number, exchange) in enumerate(self._left):
                if (exchange.method, exchange.path) != (method, path):
                    continue
                faults = list(_faults(exchange, headers, body, f"http[{number}].request"))
                if not faults:
                    del self._left[at]
                    return exchange
                nearest = nearest or faults
            fault = "; ".join(nearest) or f"{method} {shown(path)} was requested, and is not in http"
            self._faults.append(fault)
            return fault


def _faults(exchange: HttpExchange, headers: dict[str, str], body: bytes, place: str) -> Any:
    for name, value in exchange.headers.items():
        got = headers.get(name.lower())
        if got is None:
            yield f"{place}.headers.{name}: expected {match.described(value)}, got nothing"
        else:
            yield from match.differences(value, got, f"{place}.headers.{name}", is_open=False)
    if exchange.has_body:
        text = body.decode("utf-8", "replace")
        actual: Any = text
        if not isinstance(exchange.body, str):
            try:
                actual = json.loads(text)
            except ValueError:
                actual = text
        yield from match.differences(exchange.body, actual, f"{place}.body", is_open=False)


class _Listener(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], owner: Server) -> None:
        self.owner = owner
        super().__init__(address, _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A worker that goes away is no news."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Listener

    def handle_one_request(self) -> None:
        """As the base class, for every method."""
        self.raw_requestline = self.rfile.readline(65537)
        if not self.raw_requestline or not self.parse_request():
            self.close_connection = True
            return
        length = self.headers.get("content-length", "0")
        body = self.rfile.read(min(int(length), BODY_MAX_BYTES)) if length.isdigit() else b""
        headers = {name.lower(): value for name, value in self.headers.items()}
        found = self.server.owner.answer(self.command, self.path, headers, body)
        if isinstance(found, str):
            self._send(UNKNOWN, {"content-type": "text/plain"}, found.encode())
        elif found.reply is None:
            self.close_connection = True
        else:
            self._send(*found.reply)

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in {**headers, "content-length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()
