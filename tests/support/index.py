"""A package index on loopback (PEP 503) that records each request, and can publish, yank, and serve what it should not."""

from __future__ import annotations

import contextlib
import html
import re
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from wheels import Wheel


class Index:
    """`url` is for pip's --index-url. `requests` are the paths that were asked for, `logins` their headers Authorization."""

    def __init__(self, address: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> None:
        self.requests: list[str] = []
        self.logins: list[str | None] = []
        self._files: dict[str, Wheel] = {}
        self._bodies: dict[str, bytes] = {}
        self._yanked: set[str] = set()
        self._endless: set[str] = set()
        self._redirects: dict[str, str] = {}
        self._with_digests = True
        index = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                index.requests.append(self.path)
                index.logins.append(self.headers["Authorization"])
                index._answer(self)

            do_HEAD = do_GET  # the name is the library's

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer((address, 0), Handler)
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.port = self._server.server_port
        self.origin = f"{'http' if tls is None else 'https'}://{address}:{self.port}"
        self.url = f"{self.origin}/simple/"

    def publish(self, *wheels: Wheel) -> None:
        for wheel in wheels:
            self._files[wheel.filename] = wheel

    def publish_file(self, package: str, filename: str, data: bytes = b"an archive") -> None:
        """A file that is no wheel, such as an sdist."""
        self._files[filename] = Wheel(package, "", filename, data)

    def yank(self, wheel: Wheel) -> None:
        self._yanked.add(wheel.filename)

    def serve_instead(self, wheel: Wheel, data: bytes, *, endless: bool = False) -> None:
        """Other bytes under this name, and no digest that tells. `endless`: over and over."""
        self._bodies[wheel.filename] = data
        self._with_digests = False
        if endless:
            self._endless.add(wheel.filename)

    def redirect(self, path: str, url: str) -> None:
        self._redirects[path] = url

    def url_of(self, wheel: Wheel) -> str:
        return f"{self.origin}/files/{wheel.filename}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        page = re.fullmatch(r"/simple/([^/]+)/", handler.path)
        filename = handler.path.removeprefix("/files/").replace("%2B", "+")
        if handler.path in self._redirects:
            handler.send_response(302)
            handler.send_header("Location", self._redirects[handler.path])
            handler.send_header("Content-Length", "0")
            handler.end_headers()
        elif page:
            self._send(handler, self._page(page[1]).encode(), "text/html")
        elif filename in self._files:
            body = self._bodies.get(filename, self._files[filename].data)
            self._send(handler, body, "application/octet-stream", endless=filename in self._endless)
        else:
            handler.send_error(404)

    def _page(self, package: str) -> str:
        links = []
        for filename, wheel in sorted(self._files.items()):
            if re.sub(r"[-_.]+", "-", wheel.name).lower() == package:
                digest = f"#sha256={wheel.sha256}" if self._with_digests else ""
                yanked = ' data-yanked="it is wrong"' if filename in self._yanked else ""
                links.append(f'<a href="/files/{filename}{digest}"{yanked}>{html.escape(filename)}</a>')
        return f"<!DOCTYPE html><html><body>{''.join(links)}</body></html>"

    def _send(self, handler: BaseHTTPRequestHandler, body: bytes, kind: str, *, endless: bool = False) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", kind)
        if not endless:
            handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        if handler.command == "HEAD":
            return
        with contextlib.suppress(OSError):
            handler.wfile.write(body)
            while endless:
                handler.wfile.write(body)


@contextlib.contextmanager
def serving(*wheels: Wheel, address: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> Iterator[Index]:
    index = Index(address, tls)
    index.publish(*wheels)
    try:
        yield index
    finally:
        index.close()
