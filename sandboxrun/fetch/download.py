"""One bounded HTTP GET. The only importer of httpx."""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx

from sandboxrun import __version__
from sandboxrun.errors import FetchError
from sandboxrun.fetch.resolve import SCRIPT_MAX_BYTES, ImportList, is_loopback

TOTAL_SECONDS = 30  # the whole download, every redirect, every header: a slow drip ends here
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


def download(
    url: str, *, allowed: ImportList, etag: str | None, progress: Callable[[str], None], any_type: bool = False
) -> Fetched | None:
    """GET `url`; None for 304. Raises FetchError, and of those Unreachable if the origin is at fault.

    `any_type`: it may be a page or data too, because the caller knows its digest.

    It runs in a thread of its own, because the time-outs of httpx hold for each read: a server that sends a header byte now and
    then would outlast them all.
    """
    outcome: queue.SimpleQueue[Fetched | FetchError | None] = queue.SimpleQueue()
    received, connections = _Received(), _Connections()

    def work() -> None:
        try:
            outcome.put(_get(url, allowed, etag, received, connections, any_type))
        except FetchError as error:
            outcome.put(error)
        except Exception as error:  # of any kind: without an outcome, the caller would wait
            outcome.put(FetchError(f"{url} cannot be fetched: {type(error).__name__}: {error}"))
        finally:
            connections.close()

    thread = threading.Thread(target=work, name="download", daemon=True)
    thread.start()
    try:
        result = _wait(url, outcome, received, progress)
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
    progress: Callable[[str], None],
) -> Fetched | FetchError | None:
    """The outcome of the downloading thread. Raises Unreachable after TOTAL_SECONDS."""
    deadline = time.monotonic() + TOTAL_SECONDS
    wait = PROGRESS_AFTER_SECONDS
    while True:
        try:
            return outcome.get(timeout=min(wait, max(0.0, deadline - time.monotonic())))
        except queue.Empty:
            if time.monotonic() >= deadline:
                raise Unreachable(
                    f"{url} did not arrive within {TOTAL_SECONDS} s ({received.count} bytes came)"
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

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._streams: list[Any] = []  # of httpcore, which leaves them open if `trace` raises
        self._aborted = False

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """The extension `trace` of httpcore, which calls it at each step of a request. Raises _Aborted."""
        with self._lock:
            if event.endswith(("connect_tcp.complete", "start_tls.complete")):
                self._streams.append(info["return_value"])
            if self._aborted:
                raise _Aborted
            if event.endswith("connect_tcp.complete"):
                # A duplicate: TLS takes the first one's descriptor away from it.
                self._sockets.append(info["return_value"].get_extra_info("socket").dup())

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


def _get(
    url: str, allowed: ImportList, etag: str | None, received: _Received, connections: _Connections, any_type: bool
) -> Fetched | None:
    headers = {
        "User-Agent": f"sandboxrun/{__version__}",
        "Accept": "*/*" if any_type else "text/x-python, text/plain, */*;q=0.1",
        "Accept-Encoding": "identity",
    }
    if etag:
        headers["If-None-Match"] = etag
    auth = _netrc_auth(url)
    origin = _origin(url)
    # The operator's environment may name a proxy; it is never used for loopback.
    with httpx.Client(timeout=SILENCE_SECONDS, trust_env=not is_loopback(url), follow_redirects=False) as client:
        for _ in range(REDIRECTS_MAX + 1):
            try:
                # Redirects are followed here, because each hop is checked, and credentials go to the first origin alone.
                with client.stream(
                    "GET",
                    url,
                    headers=headers,
                    auth=auth if _origin(url) == origin else None,
                    extensions={"trace": connections.trace},
                ) as response:
                    if not response.has_redirect_location:
                        return _read(url, response, received, any_type)
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


def _read(url: str, response: httpx.Response, received: _Received, any_type: bool) -> Fetched | None:
    if response.status_code == 304 and "If-None-Match" in response.request.headers:
        return None
    if response.status_code != 200:
        error = Unreachable if response.status_code >= 500 or response.status_code == 429 else FetchError
        raise error(
            f"{url} answers {response.status_code} {response.reason_phrase}",
            hint="sandboxrun set TYPE ID version=VERSION" if response.status_code == 404 else "",
        )
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in _NOT_SCRIPTS and not any_type:
        raise FetchError(f"{url} is {kind}, not a Python script", hint="sandboxrun set TYPE ID url=RAW_URL")
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        raise FetchError(
            f"{url} comes compressed ({response.headers['content-encoding'][:80]}), which was not asked for"
        )
    length = response.headers.get("content-length", "")
    if length.isdigit() and int(length) > SCRIPT_MAX_BYTES:
        raise FetchError(f"{url} has {length} bytes: a script may have {SCRIPT_MAX_BYTES >> 20} MiB")
    body = bytearray()
    for chunk in response.iter_raw():
        body += chunk
        received.count = len(body)
        if len(body) > SCRIPT_MAX_BYTES:
            raise FetchError(f"{url} has more than {SCRIPT_MAX_BYTES >> 20} MiB: a script may not have more")
    etag = response.headers.get("etag", "")
    return Fetched(
        bytes(body), etag if 0 < len(etag) <= ETAG_MAX_CHARS and etag.isascii() and etag.isprintable() else None
    )


def _netrc_auth(url: str) -> httpx.Auth | None:
    """Credentials for the first origin, from NETRC or ~/.netrc; None for plain http to another machine."""
    if not (url.startswith("https://") or is_loopback(url)):
        return None
    path = os.environ.get("NETRC") or os.path.expanduser("~/.netrc")
    if not os.path.isfile(path):
        return None
    import netrc

    try:
        return httpx.NetRCAuth(path)
    except (OSError, netrc.NetrcParseError) as error:
        raise FetchError(f"the netrc file {path} cannot be read: {error}") from error


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or "").lower(), parts.port
