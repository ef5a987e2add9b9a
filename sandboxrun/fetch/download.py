"""One bounded HTTP GET, of a script or of a file. The only importer of httpx."""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO
from urllib.parse import urljoin, urlsplit

import httpx

from sandboxrun import __version__
from sandboxrun.errors import FetchError
from sandboxrun.fetch.resolve import SCRIPT_MAX_BYTES, ImportList, is_loopback

TOTAL_SECONDS = 30  # the whole download, every redirect, every header: a slow drip ends here
FILE_SECONDS = 300  # the same of a file, which may be larger than a script
SILENCE_SECONDS = 10  # without a byte
REDIRECTS_MAX = 5
ETAG_MAX_CHARS = 256  # and printable ASCII, or it is not sent back
PROGRESS_AFTER_SECONDS = 1
ABORT_SECONDS = 2  # for its thread to end once its sockets are closed
_NOT_SCRIPTS = ("text/html", "application/xhtml+xml", "application/json", "text/xml", "application/xml")


class Unreachable(FetchError):
    """The origin does not answer, or reports a fault of its own. A cached copy may serve instead."""


@dataclass(frozen=True, slots=True)
class Fetched:
    body: bytes
    etag: str | None


@dataclass(frozen=True, slots=True)
class _Wish:
    """What a response may be. `file`: where its body goes; None: into memory."""

    what: str
    accept: str
    refused: tuple[str, ...]  # media types
    max_bytes: int
    etag: str | None = None
    file: BinaryIO | None = None
    login: Callable[[str], httpx.Auth | None] = lambda url: _netrc_auth(url)  # for the first origin

    @property
    def limit(self) -> str:
        return f"{self.max_bytes >> 20} MiB" if self.max_bytes >= 1 << 20 else f"{self.max_bytes} bytes"


def download(url: str, *, allowed: ImportList, etag: str | None, progress: Callable[[str], None]) -> Fetched | None:
    """GET a script; None for 304. Raises FetchError, and of those Unreachable if the origin is at fault."""
    wish = _Wish("a script", "text/x-python, text/plain, */*;q=0.1", _NOT_SCRIPTS, SCRIPT_MAX_BYTES, etag)
    return _download(url, wish, allowed, TOTAL_SECONDS, progress)


def download_beside(url: str, *, allowed: ImportList, progress: Callable[[str], None]) -> bytes:
    """GET a file beside a script, of the same size at most. Its content is not looked at: the caller knows its digest."""
    wish = _Wish("a file of a script", "*/*", (), SCRIPT_MAX_BYTES)
    fetched = _download(url, wish, allowed, TOTAL_SECONDS, progress)
    assert fetched is not None  # without an etag there is no 304
    return fetched.body


def download_file(
    url: str,
    path: str,
    *,
    allowed: ImportList,
    max_bytes: int,
    seconds: float,
    login: bool,
    progress: Callable[[str], None],
) -> None:
    """GET a file of at most `max_bytes` and write it to the new file `path`. Raises FetchError, OSError.

    `seconds`: at most FILE_SECONDS are taken.
    `login`: send the netrc file's entry for the host, if there is one. The entry `default` is never sent. Its content is not looked at: the caller knows its digest.
    """
    with open(path, "xb") as file:
        wish = _Wish("the file", "*/*", (), max_bytes, None, file, _named_auth if login else _no_auth)
        _download(url, wish, allowed, min(seconds, FILE_SECONDS), progress)


def _download(
    url: str, wish: _Wish, allowed: ImportList, seconds: float, progress: Callable[[str], None]
) -> Fetched | None:
    """It runs in a thread of its own, because the time-outs of httpx hold for each read: a server that sends a header byte now and
    then would outlast them all.
    """
    outcome: queue.SimpleQueue[Fetched | FetchError | None] = queue.SimpleQueue()
    received, connections = _Received(), _Connections(allowed)

    def work() -> None:
        try:
            outcome.put(_get(url, allowed, wish, received, connections))
        except FetchError as error:
            outcome.put(error)
        except Exception as error:  # of any kind: without an outcome, the caller would wait
            outcome.put(FetchError(f"{url} cannot be fetched: {type(error).__name__}: {error}"))
        finally:
            connections.close()

    thread = threading.Thread(target=work, name="download", daemon=True)
    thread.start()
    try:
        result = _wait(url, outcome, received, seconds, progress)
    finally:
        connections.abort()  # no download goes on beside the worker
        thread.join(ABORT_SECONDS)
    if isinstance(result, FetchError):
        raise result
    return result


def _wait(
    url: str,
    outcome: queue.SimpleQueue[Fetched | FetchError | None],
    received: _Received,
    seconds: float,
    progress: Callable[[str], None],
) -> Fetched | FetchError | None:
    """The outcome of the downloading thread. Raises Unreachable after so many `seconds`."""
    deadline = time.monotonic() + seconds
    wait = PROGRESS_AFTER_SECONDS
    while True:
        try:
            return outcome.get(timeout=min(wait, max(0.0, deadline - time.monotonic())))
        except queue.Empty:
            if time.monotonic() >= deadline:
                raise Unreachable(
                    f"{url} did not arrive within {round(seconds, 1):g} s ({received.count} bytes came)"
                ) from None
            progress(f"fetching {url} … {received.count / 1024:.0f} KiB")


class _Received:
    """The progress of the downloading thread, for the waiting one."""

    def __init__(self) -> None:
        self.count = 0  # bytes


class _Aborted(Exception):
    """The download was given up."""


class _Connections:
    """The sockets of a download, by which another thread can end it at any point. httpx itself cannot be interrupted between
    two events of the protocol, nor in a TLS handshake."""

    def __init__(self, allowed: ImportList) -> None:
        self._allowed = allowed
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._streams: list[Any] = []  # of httpcore, which leaves them open if `trace` raises
        self._aborted = False
        self._origin_host = self._connecting_to = ""

    def expect(self, url: str) -> None:
        """The URL that is fetched next. A connection to another host leads to a proxy."""
        self._origin_host = httpx.URL(url).raw_host.decode("ascii")

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """The extension `trace` of httpcore, which calls it at each step of a request. Raises _Aborted."""
        with self._lock:
            if event.endswith("connect_tcp.started"):
                self._connecting_to = info["host"]
            if event.endswith(("connect_tcp.complete", "start_tls.complete")):
                self._streams.append(info["return_value"])
                self._guard(info["return_value"])
            if self._aborted:
                raise _Aborted
            if event.endswith("connect_tcp.complete"):
                # A duplicate: TLS takes the first one's descriptor away from it.
                self._sockets.append(info["return_value"].get_extra_info("socket").dup())
                if self._connecting_to == self._origin_host:  # a proxy looks the name up itself
                    self._allowed.check_peer(info["return_value"].get_extra_info("server_addr")[0])

    def _guard(self, stream: Any) -> None:
        """Let `stream` read nothing after `abort`: the kernel still hands out what it had received before the shutdown, megabytes
        from a server that floods."""
        read = stream.read

        def guarded_read(max_bytes: int, timeout: float | None = None) -> bytes:
            if self._aborted:
                raise _Aborted
            received: bytes = read(max_bytes, timeout)
            return received

        stream.read = guarded_read

    def abort(self) -> None:
        """Close the sockets, and let no further step begin. A look-up or a connect under way ends by its own time-out."""
        with self._lock:
            self._aborted = True
            for sock in self._sockets:
                with contextlib.suppress(OSError):  # it is closed already
                    sock.shutdown(socket.SHUT_RDWR)
                sock.close()
            self._sockets.clear()

    def close(self) -> None:
        """Close every stream. The downloading thread calls it at its end."""
        for stream in self._streams:
            stream.close()


def _get(url: str, allowed: ImportList, wish: _Wish, received: _Received, connections: _Connections) -> Fetched | None:
    headers = {
        "User-Agent": f"sandboxrun/{__version__}",
        "Accept": wish.accept,
        "Accept-Encoding": "identity",
    }
    if wish.etag:
        headers["If-None-Match"] = wish.etag
    auth = wish.login(url)
    origin = _origin(url)
    # The operator's environment may name a proxy; it is never used for loopback.
    with httpx.Client(timeout=SILENCE_SECONDS, trust_env=not is_loopback(url), follow_redirects=False) as client:
        for _ in range(REDIRECTS_MAX + 1):
            try:
                connections.expect(url)
                # Redirects are followed here, because each hop is checked, and credentials go to the first origin alone.
                with client.stream(
                    "GET",
                    url,
                    headers=headers,
                    auth=auth if _origin(url) == origin else None,
                    extensions={"trace": connections.trace},
                ) as response:
                    if not response.has_redirect_location:
                        return _read(url, response, wish, received)
                    target = urljoin(url, response.headers["location"])
            except httpx.TimeoutException as error:
                raise Unreachable(f"{url} did not answer within {SILENCE_SECONDS} s") from error
            except (httpx.TransportError, OSError) as error:
                raise Unreachable(f"{url} cannot be reached: {error}") from error
            except (httpx.InvalidURL, httpx.HTTPError, ValueError, KeyError) as error:
                raise FetchError(f"{url} cannot be fetched: {error}") from error
            allowed.check(target, came_from=url)
            url = target
    raise FetchError(f"{url} redirects more than {REDIRECTS_MAX} times")


def _read(url: str, response: httpx.Response, wish: _Wish, received: _Received) -> Fetched | None:
    if response.status_code == 304 and "If-None-Match" in response.request.headers:
        return None
    if response.status_code != 200:
        error = Unreachable if response.status_code >= 500 or response.status_code == 429 else FetchError
        raise error(
            f"{url} answers {response.status_code} {response.reason_phrase}",
            hint="sandboxrun set TYPE ID version=VERSION" if response.status_code == 404 and wish.refused else "",
        )
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in wish.refused:
        raise FetchError(f"{url} is {kind}, not a Python script", hint="sandboxrun set TYPE ID url=RAW_URL")
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        raise FetchError(
            f"{url} comes compressed ({response.headers['content-encoding'][:80]}), which was not asked for"
        )
    length = response.headers.get("content-length", "")
    if length.isdigit() and int(length) > wish.max_bytes:
        raise FetchError(f"{url} has {length} bytes: {wish.what} may have {wish.limit}")
    body = bytearray()
    for chunk in response.iter_raw():
        received.count += len(chunk)
        if received.count > wish.max_bytes:
            raise FetchError(f"{url} has more than {wish.limit}: {wish.what} may not have more")
        if wish.file is None:
            body += chunk
        else:
            _write(wish.file, chunk, url)
    etag = response.headers.get("etag", "")
    return Fetched(
        bytes(body), etag if 0 < len(etag) <= ETAG_MAX_CHARS and etag.isascii() and etag.isprintable() else None
    )


def _write(file: BinaryIO, chunk: bytes, url: str) -> None:
    try:
        file.write(chunk)
        file.flush()
    except OSError as error:  # which must not look like one of the network
        raise FetchError(f"{url} cannot be written to {str(file.name)[:200]}: {error.strerror}") from error


def _no_auth(url: str) -> None:
    """No credentials."""


def _named_auth(url: str) -> httpx.Auth | None:
    """As _netrc_auth, without the entry `default`."""
    return _netrc_auth(url, default=False)


def _netrc_auth(url: str, *, default: bool = True) -> httpx.Auth | None:
    """Credentials for the first origin, from NETRC or ~/.netrc; None for plain http to another machine."""
    if not (url.startswith("https://") or is_loopback(url)):
        return None
    path = os.environ.get("NETRC") or os.path.expanduser("~/.netrc")
    if not os.path.isfile(path):
        return None
    import netrc

    try:
        logins = netrc.netrc(path)
    except (OSError, netrc.NetrcParseError) as error:
        raise FetchError(f"the netrc file {path} cannot be read: {error}") from error
    host = httpx.URL(url).host
    entry = logins.authenticators(host) if default else logins.hosts.get(host)
    return httpx.BasicAuth(entry[0], entry[2]) if entry is not None and entry[2] else None


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or "").lower(), parts.port
