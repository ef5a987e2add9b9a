"""A small HTTP/1.1 server for what an agent shows: a few paths, read-only, one request a connection.

Any program of this host, and any web page in a browser of this host, can send a request to loopback. So a request must name
this server (Host), which a page cannot do after DNS rebinding, and must not come from another site (Origin, Sec-Fetch-Site of
the Fetch specification). http.server of the standard library has no time limit for a whole request, and imports more.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
import threading
import time

from sandboxrun.errors import ConfigError, UsageError
from sandboxrun.records import record, replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

HEAD_MAX_BYTES = 16 * 1024  # the request line and all headers
READ_SECONDS = 5.0  # for the whole head, however slowly it comes
WRITE_SECONDS = 10.0  # for the whole reply
CONNECTIONS_MAX = 16
# Burst size, then the sustained rate per second, so a flood takes no CPU from the workers.
BURST, PER_SECOND = 50, 50
PORTS_TRIED = 20  # above one that is taken
PLACE_SECONDS = 0.5  # for a thread to end that was told to
DRAIN_MAX_BYTES = 64 * 1024
DRAIN_SECONDS = 0.5
_REASONS = {
    200: "OK", 400: "Bad Request", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed",
    421: "Misdirected Request", 431: "Request Header Fields Too Large", 500: "Internal Server Error",
    503: "Service Unavailable",
}  # fmt: skip
PLAIN = "text/plain; charset=utf-8"
SAME_SITE = ("none", "same-origin")  # of Sec-Fetch-Site: typed by the user, or from this very server
# On every reply; a route may add to the policy what it needs.
POLICY = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_HEADERS = (
    "X-Content-Type-Options: nosniff",
    "X-Frame-Options: DENY",
    "Referrer-Policy: no-referrer",
    "Cross-Origin-Resource-Policy: same-origin",
    "Cross-Origin-Opener-Policy: same-origin",
    "Cache-Control: no-store",
    "Connection: close",
)


@record
class Reply:
    """What a path shows. `policy`: what its Content-Security-Policy has besides POLICY."""

    body: bytes
    kind: str = PLAIN
    code: int = 200
    policy: str = ""


if TYPE_CHECKING:
    # By path; called with the query and the headers, by name in lower case.
    Routes = Mapping[str, Callable[[str, Mapping[str, str]], "Reply"]]


@record
class Address:
    """Where to listen. `host`: as it was told, without brackets."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        return is_loopback(self.host)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class PortTaken(ConfigError):
    """Another process listens there."""


class _Refused(Exception):
    """The request gets no reply of a path. `code` and text are the answer."""

    def __init__(self, code: int, text: str, *headers: str) -> None:
        super().__init__(text)
        self.code, self.headers = code, headers


def parse_address(text: str, option: str, types: str, *, loopback: bool) -> Address:
    """HOST:PORT, or PORT of 127.0.0.1. `loopback`: it must not be reached from elsewhere. `types`: of the agent, for
    the hint. Raises UsageError."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") if colon else "127.0.0.1"
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) < 65536) or not host:
        raise UsageError(
            f"{option} is {text[:80]!r}: expected HOST:PORT", hint=f"sandboxrun agent {types} {option} 127.0.0.1:9300"
        )
    address = Address(host.lower(), int(port))
    if loopback and not address.is_loopback:
        raise UsageError(
            f"{option} is {text[:80]!r}, and the page listens on loopback only: it has no login; reach it with ssh -L {port}:127.0.0.1:{port}",
            hint=f"sandboxrun agent {types} {option} 127.0.0.1:{port}",
        )
    return address


def is_loopback(host: str) -> bool:
    """Of an address or a name: of names only localhost, which RFC 6761 reserves."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Pace:
    """Lets `burst` events happen at once, and then so many `per_second`. Pure."""

    def __init__(self, burst: int, per_second: float) -> None:
        self._burst, self._per_second = burst, per_second
        self._left, self._at = float(burst), 0.0

    def wait(self, now: float) -> float:
        """How many seconds from now on the next event has to wait. `now`: time.monotonic."""
        self._left = min(self._burst, self._left + max(0.0, now - self._at) * self._per_second) - 1
        self._at = now
        return max(0.0, -self._left / self._per_second)


def free_port(address: Address) -> int | None:
    """The first one above on which nobody listens."""
    for port in range(address.port + 1, min(address.port + PORTS_TRIED, 65536)):
        with contextlib.suppress(ConfigError):
            Server(replace(address, port=port), {}).close()
            return port
    return None


class Server:
    """Threads that answer. A client that sends or reads slowly holds one of CONNECTIONS_MAX, for a few seconds. If there is
    none left, that client has to go which has sent no whole request for the longest time."""

    def __init__(self, address: Address, routes: Routes) -> None:
        """Listens at once. Raises ConfigError."""
        self._address, self._routes = address, routes
        self._places = threading.BoundedSemaphore(CONNECTIONS_MAX)
        self._asking: dict[socket.socket, None] = {}  # who has sent no whole request yet, the first one first
        self._lock = threading.Lock()
        self._closed = False
        try:
            family, kind, protocol, _, name = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
            self._socket = socket.socket(family, kind, protocol)
            try:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                self._socket.bind(name)
                self._socket.listen(CONNECTIONS_MAX)
            except BaseException:
                self._socket.close()
                raise
        except OSError as error:
            error_class = PortTaken if error.errno == errno.EADDRINUSE else ConfigError
            raise error_class(f"the agent cannot listen on {address}: {error.strerror}") from error

    @property
    def port(self) -> int:
        return int(self._socket.getsockname()[1])

    def start(self) -> None:
        threading.Thread(target=self._accept, name="page", daemon=True).start()

    def close(self) -> None:
        self._closed = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # which wakes accept
        self._socket.close()

    def _accept(self) -> None:
        pace = Pace(BURST, PER_SECOND)
        while not self._closed:
            time.sleep(pace.wait(time.monotonic()))
            try:
                client, _ = self._socket.accept()
            except OSError:
                if not self._closed:
                    time.sleep(0.1)  # there is no descriptor left
                continue
            if not self._has_place():
                client.close()
                continue
            try:
                threading.Thread(target=self._serve, args=(client,), name="page client", daemon=True).start()
            except RuntimeError:  # there is no thread left
                self._places.release()
                client.close()

    def _has_place(self) -> bool:
        if self._places.acquire(blocking=False):
            return True
        with self._lock:
            first = next(iter(self._asking), None)
            if first is None:
                return False
            del self._asking[first]
            with contextlib.suppress(OSError):
                first.shutdown(socket.SHUT_RDWR)  # which ends its thread's wait
        return self._places.acquire(timeout=PLACE_SECONDS)

    def _head(self, client: socket.socket) -> bytes:
        with self._lock:
            self._asking[client] = None
        try:
            return _read_head(client)
        finally:
            with self._lock:
                self._asking.pop(client, None)

    def _serve(self, client: socket.socket) -> None:
        try:
            with client, contextlib.suppress(OSError):
                method, head = "GET", b""
                try:
                    head = self._head(client)
                    method, path, headers = parse_head(head)
                    self._check(headers)
                    reply = self._reply(method, path, headers)
                    extra: tuple[str, ...] = ()
                except _Refused as refused:
                    reply, extra = Reply(f"{refused}\n".encode(), code=refused.code), refused.headers
                _send(client, _rendered(reply, extra, with_body=method != "HEAD"))
        finally:
            self._places.release()

    def _check(self, headers: Mapping[str, str]) -> None:
        """Raise _Refused for a request that a page of elsewhere has sent."""
        if not self._is_ours(headers["host"]):
            raise _Refused(421, f"Host is not {self._address}: open http://{self._address}/")
        origin = headers.get("origin")
        if origin is not None and not self._is_ours(origin.removeprefix("http://").removeprefix("https://")):
            raise _Refused(403, "the request comes from another site")
        if headers.get("sec-fetch-site", "none") not in SAME_SITE:
            raise _Refused(403, f"the request comes from another site: type http://{self._address}/ instead")

    def _is_ours(self, authority: str) -> bool:
        """Whether HOST:PORT names this server. The port may be another one, which ssh -L forwards."""
        host, colon, port = authority.lower().rpartition(":")
        if not colon or not port.isascii() or not port.isdigit():
            host = authority.lower()
        host = host.removeprefix("[").removesuffix("]")
        if host == self._address.host:
            return True
        try:
            address, own = ipaddress.ip_address(host), ipaddress.ip_address(self._address.host)
        except ValueError:
            return self._address.is_loopback and is_loopback(host)
        # No name stands in it, so that no DNS answer can lead here.
        return own.is_unspecified or (own.is_loopback and address.is_loopback)

    def _reply(self, method: str, path: str, headers: Mapping[str, str]) -> Reply:
        if method not in ("GET", "HEAD"):
            raise _Refused(405, "only GET and HEAD are answered", "Allow: GET, HEAD")
        name, _, query = path.partition("?")
        route = self._routes.get(name)
        if route is None:
            raise _Refused(404, f"expected {', '.join(sorted(self._routes))}")
        try:
            return route(query, headers)
        except Exception as error:  # the agent goes on, whatever is wrong with its page
            return Reply(f"{type(error).__name__}\n".encode(), code=500)


def _read_head(client: socket.socket) -> bytes:
    """Up to the empty line. Raises _Refused, OSError."""
    until, head = time.monotonic() + READ_SECONDS, b""
    while b"\r\n\r\n" not in head:
        left = until - time.monotonic()
        if left <= 0:
            raise OSError("the head takes too long")
        client.settimeout(left)
        data = client.recv(4096)
        if not data:
            raise OSError("closed before the head was whole")
        head += data
        if len(head) > HEAD_MAX_BYTES:
            raise _Refused(431, f"the head has more than {HEAD_MAX_BYTES} bytes")
    return head.partition(b"\r\n\r\n")[0]


def parse_head(head: bytes) -> tuple[str, str, dict[str, str]]:
    """Method, target, and headers by name in lower case (RFC 9112). Raises _Refused for what is not plain HTTP/1.1."""
    try:
        line, *rest = head.decode("ascii").split("\r\n")
    except UnicodeDecodeError:
        raise _Refused(400, "the head is not ASCII") from None
    words = line.split(" ")
    if len(words) != 3 or words[2] not in ("HTTP/1.1", "HTTP/1.0") or not words[1].startswith("/"):
        raise _Refused(400, "the request line is not METHOD /PATH HTTP/1.1")
    headers: dict[str, str] = {}
    for row in rest:
        name, colon, value = row.partition(":")
        name, value = name.lower(), value.strip(" \t")
        if not colon or not name or not name.replace("-", "").replace("_", "").isalnum() or not value.isprintable():
            raise _Refused(400, "a header is not NAME: VALUE")
        if name in headers and name in ("host", "origin", "sec-fetch-site"):
            raise _Refused(400, f"{name} stands there twice")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    if "host" not in headers:
        raise _Refused(400, "there is no Host")
    return words[0], words[1], headers


def _rendered(reply: Reply, extra: tuple[str, ...], *, with_body: bool) -> bytes:
    policy = f"{POLICY}; {reply.policy}" if reply.policy else POLICY
    lines = [
        f"HTTP/1.1 {reply.code} {_REASONS[reply.code]}",
        f"Content-Type: {reply.kind}",
        f"Content-Length: {len(reply.body)}",
        f"Content-Security-Policy: {policy}",
        *_HEADERS,
        *extra,
    ]
    return "\r\n".join([*lines, "", ""]).encode() + (reply.body if with_body else b"")


def _send(client: socket.socket, data: bytes) -> None:
    """Then read what the client still sends: closing before would make the kernel reset the connection, and the reply be lost."""
    client.settimeout(WRITE_SECONDS)
    client.sendall(data)  # the time-out is for all of it
    client.shutdown(socket.SHUT_WR)
    until, count = time.monotonic() + DRAIN_SECONDS, 0
    while count < DRAIN_MAX_BYTES and (left := until - time.monotonic()) > 0:
        client.settimeout(left)
        part = client.recv(8192)
        if not part:
            return
        count += len(part)
