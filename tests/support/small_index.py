"""A package index on loopback, of wheels made here, that records what is asked of it."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import ssl
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from certificates import Certificates


def wheel(name: str, version: str, *requires: str, tag: str = "py3-none-any") -> tuple[str, bytes]:
    """The name and the bytes of a wheel with one module."""
    folder = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": f"VERSION = {version!r}\n",
        f"{folder}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        + "".join(f"Requires-Dist: {each}\n" for each in requires),
        f"{folder}/WHEEL": f"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: {tag}\n",
        f"{folder}/RECORD": "",
    }
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for path, text in files.items():
            archive.writestr(zipfile.ZipInfo(path), text)
    return f"{name}-{version}-{tag}.whl", made.getvalue()


@dataclass
class Index:
    url: str
    files: dict[str, tuple[bytes, str]] = field(default_factory=dict)  # by name: bytes, and when it was uploaded
    asked: list[str] = field(default_factory=list)

    def add(
        self, name: str, version: str, *requires: str, tag: str = "py3-none-any", uploaded: str = "2026-01-01"
    ) -> str:
        """Add a wheel; its SHA-256."""
        file, data = wheel(name, version, *requires, tag=tag)
        self.files[file] = (data, f"{uploaded}T00:00:00Z")
        return hashlib.sha256(data).hexdigest()

    def page(self, project: str) -> bytes | None:
        found = [
            {
                "filename": file,
                "url": f"/files/{file}",
                "hashes": {"sha256": hashlib.sha256(data).hexdigest()},
                "upload-time": uploaded,
            }
            for file, (data, uploaded) in self.files.items()
            if file.split("-")[0].replace("_", "-") == project
        ]
        return json.dumps({"meta": {"api-version": "1.1"}, "name": project, "files": found}).encode() if found else None


@contextlib.contextmanager
def serving(certificates: Certificates | None = None) -> Iterator[Index]:
    """Over https if there are certificates."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            index.asked.append(self.path)
            parts = self.path.strip("/").split("/")
            kind, body = "application/octet-stream", None
            if parts[0] == "simple" and len(parts) == 2:
                kind, body = "application/vnd.pypi.simple.v1+json", index.page(parts[1])
            elif parts[0] == "files" and parts[-1] in index.files:
                body = index.files[parts[-1]][0]
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body or b"")

        do_HEAD = do_GET  # the name is the library's

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if certificates is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificates.certificate, certificates.key)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    index = Index(f"http{'s' if certificates is not None else ''}://127.0.0.1:{server.server_port}/simple")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield index
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
