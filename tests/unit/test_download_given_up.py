"""A download that is given up leaves no thread, no socket and no work behind, whatever the server does."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from httpcore._backends.sync import SyncStream

from sandboxrun.fetch import download as module
from sandboxrun.fetch.download import Unreachable, download
from sandboxrun.fetch.resolve import ImportList
from tests.support import certificates

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n"
# What a server says first, what it says for ever then, and the pause between two of these.
SERVERS = {
    "early hints": (b"", b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\n", 0.0),
    "continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100, 0.0),
    "headers, one byte at a time": (b"HTTP/1.1 200 OK\r\nX: ", b"x", 0.05),
    "a status line, one byte at a time": (b"HTTP/1.1 200 ", b"O", 0.05),
    "a chunk's extension": (HEAD + b"1;", b"a", 0.05),
    "chunks of one byte": (HEAD, b"1\r\n#\r\n", 0.02),
    "trailers": (HEAD + b"0\r\n", b"a: b\r\n", 0.05),
    "nothing": (b"", b"", 0.05),
    "a TLS handshake that stalls": (b"", b"", 0.05),
    "a TLS record, one byte at a time": (b"\x16\x03\x03\x40\x00", b"x", 0.05),
}


class Server:
    """Says what it is to say to each client, until one has gone."""

    def __init__(self, first: bytes, then: bytes, pause: float, tls: ssl.SSLContext | None = None) -> None:
        self._first, self._then, self._pause, self._tls = first, then, pause, tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.came, self.gone = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        peer, _ = self._listener.accept()
        self.came.set()
        with contextlib.suppress(OSError):
            if self._tls:
                peer = self._tls.wrap_socket(peer, server_side=True)
            self._speak(peer)
        peer.close()
        self.gone.set()

    def _speak(self, peer: socket.socket) -> None:
        if not peer.recv(65536):
            return
        peer.sendall(self._first)
        while not self._has_gone(peer):
            peer.sendall(self._then)

    def _has_gone(self, peer: socket.socket) -> bool:
        ready = select.select([peer], [], [], self._pause)[0]
        return bool(ready) and peer.recv(65536) == b""

    def close(self) -> None:
        self._listener.close()
        self._thread.join(10)


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> Iterator[tuple[Server, str]]:
    made = Server(*SERVERS[request.param])
    yield made, "https" if "TLS" in request.param else "http"
    made.close()


def sockets() -> list[str]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{name}")
            found += [target] if target.startswith("socket:") else []
    return sorted(found)


def downloads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "download"]


def get(url: str) -> None:
    download(url, allowed=ImportList.default(), etag=None, progress=lambda _: None)


def test_nothing_goes_on_after_a_download_is_given_up(
    server: tuple[Server, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TOTAL_SECONDS", 1)
    found, scheme = server
    before = sockets()  # the server's own, which listens, and whatever other tests of this process have left
    with pytest.raises(Unreachable, match="did not arrive within 1 s"):
        get(f"{scheme}://127.0.0.1:{found.port}/worker.py")
    assert found.came.is_set()
    assert found.gone.wait(10), "the server still has its client"
    found._thread.join(10)
    assert downloads() == []
    assert set(sockets()) <= set(before)
    used = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - used < 0.2


def test_what_the_kernel_has_received_is_not_read_after_a_download_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Server(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n" * 10_000, 0.0)
    read, abort = SyncStream.read, module._Connections.abort
    late: list[int] = []
    aborted = threading.Event()

    def slow_read(self: SyncStream, max_bytes: int, timeout: float | None = None) -> bytes:
        begun_late = aborted.is_set()
        time.sleep(0.05)  # the server is faster, so there is always something left
        received = read(self, max_bytes, timeout)
        if begun_late:
            late.append(len(received))
        return received

    def noted_abort(self: module._Connections) -> None:
        abort(self)
        aborted.set()

    monkeypatch.setattr(SyncStream, "read", slow_read)
    monkeypatch.setattr(module._Connections, "abort", noted_abort)
    monkeypatch.setattr(module, "TOTAL_SECONDS", 1)
    with pytest.raises(Unreachable, match="did not arrive within 1 s"):
        get(f"http://127.0.0.1:{found.port}/worker.py")
    assert found.gone.wait(10), "the server still has its client"
    assert downloads() == []
    assert late == []
    found.close()


def test_an_interrupted_download_is_given_up_too(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Server(*SERVERS["early hints"])

    def interrupt(_: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "PROGRESS_AFTER_SECONDS", 0.2)
    url = f"http://127.0.0.1:{found.port}/worker.py"
    with pytest.raises(KeyboardInterrupt):
        download(url, allowed=ImportList.default(), etag=None, progress=interrupt)
    assert found.gone.wait(10)
    assert downloads() == []
    found.close()


@pytest.mark.parametrize(
    ("step", "scheme"),
    [("connect_tcp.complete", "http"), ("send_request_headers.complete", "http"), ("start_tls.complete", "https")],
)
def test_a_download_given_up_between_two_steps_closes_its_connection(
    step: str, scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time is over just when a step is done, before the download could note what the step made."""
    trace, abort = module._Connections.trace, module._Connections.abort
    reached, aborted = threading.Event(), threading.Event()

    def slow_trace(self: module._Connections, event: str, info: Mapping[str, Any]) -> None:
        if event.endswith(step):
            reached.set()
            assert aborted.wait(10)
        trace(self, event, info)

    def noted_abort(self: module._Connections) -> None:
        abort(self)
        aborted.set()

    monkeypatch.setattr(module._Connections, "trace", slow_trace)
    monkeypatch.setattr(module._Connections, "abort", noted_abort)
    monkeypatch.setattr(module, "TOTAL_SECONDS", 1)
    tls = None
    if scheme == "https":
        made = certificates.make(tmp_path)
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(made.certificate, made.key)
        trusting = ssl.create_default_context(cafile=made.authority)
        monkeypatch.setattr(module.httpx, "Client", partial(httpx.Client, verify=trusting))
    found = Server(b"", b"", 0.05, tls)
    before = sockets()
    with pytest.raises(Unreachable, match="did not arrive within 1 s"):
        get(f"{scheme}://127.0.0.1:{found.port}/worker.py")
    assert reached.is_set()
    assert found.gone.wait(10), "the server still has its client"
    found.close()
    assert downloads() == []
    assert set(sockets()) <= set(before)
