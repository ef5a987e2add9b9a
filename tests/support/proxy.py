"""A proxy between the processes under test and a server, with the faults of a network: it cuts, stalls, slows, refuses.

It forwards bytes and searches them only for what a test names, so it works with TLS too. It counts each fault in `faults`, so
that a test can show its effect.
"""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

Address = tuple[str, int] | Path
CHUNK = 64 * 1024
UP, DOWN = "up", "down"  # to the server, and back
_NAME = re.compile(rb"SETNAME\r\n\$\d+\r\n([^\r]+)\r\n")


def word(text: str | bytes) -> bytes:
    """As an argument of a command on the wire (RESP)."""
    raw = text.encode() if isinstance(text, str) else text
    return b"$%d\r\n%b\r\n" % (len(raw), raw)


@dataclass
class Link:
    """One connection, and the state of its rules. `name`: as CLIENT SETNAME set it, unless the connection is encrypted."""

    client: socket.socket
    server: socket.socket
    name: str = ""
    passed: dict[str, int] = field(default_factory=lambda: {UP: 0, DOWN: 0})
    deaf: bool = False  # replies of the server no longer arrive

    def cut(self) -> None:
        """Reset it, as a firewall or a killed process does."""
        for sock in (self.client, self.server):
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


@dataclass
class Rule:
    """Do `then` if `when` matches, at most `times` times."""

    when: Callable[
        [Link, str, bytes], int | None
    ]  # how many of these bytes still pass; None: all, and the rule does not match
    then: Callable[[Link], None]
    times: int


class Proxy:
    """Listens on loopback and forwards to `target`. A context manager."""

    def __init__(self, target: Address, *, path: Path | None = None) -> None:
        """`path`: listen on this Unix socket instead of a loopback port."""
        self._target, self._path = target, path
        self._port = 0
        self._links: list[Link] = []
        self._rules: list[Rule] = []
        self._lock = threading.Lock()
        self._flow = threading.Event()
        self._flow.set()
        self._held: Callable[[Link], bool] = lambda link: True
        self._rate = 0.0
        self._listener: socket.socket | None = None
        self.accepted = 0  # connections
        self.faults = 0

    def __enter__(self) -> Proxy:
        self._listen()
        return self

    def __exit__(self, *_: object) -> None:
        self.refuse()
        self.cut()
        self._flow.set()

    @property
    def port(self) -> int:
        return self._port

    # --- faults

    def cut(self, prefix: str = "") -> int:
        """Cut the connections whose name begins with `prefix`, now; returns how many."""
        with self._lock:
            links = [link for link in self._links if link.name.startswith(prefix)]
        for link in links:
            self._fault(link.cut)
        return len(links)

    def cut_before(self, text: bytes, *, times: int = 1, prefix: str = "") -> None:
        """Cut when a client sends these bytes; what precedes them in the same write still arrives."""
        self.before(text, Link.cut, times=times, prefix=prefix)

    def before(self, text: bytes, then: Callable[[Link], None], *, times: int = 1, prefix: str = "") -> None:
        """Do it when a client sends these bytes. What precedes them in the same write still arrives, and nothing else does."""

        def when(link: Link, direction: str, data: bytes) -> int | None:
            at = data.find(text) if direction == UP and link.name.startswith(prefix) else -1
            return at if at >= 0 else None

        self._add(Rule(when, then, times))

    def lose_answer(self, text: bytes, *, times: int = 1, prefix: str = "") -> None:
        """Let the write with these bytes arrive, and cut as soon as the server answers."""

        def when(link: Link, direction: str, data: bytes) -> int | None:
            if direction == DOWN:
                return 0 if link.deaf else None
            if text in data and link.name.startswith(prefix):
                link.deaf = True
            return None

        self._add(Rule(when, Link.cut, times))

    def cut_after(self, count: int, direction: str, *, times: int = 1, prefix: str = "") -> None:
        """Cut each connection after so many more bytes in this direction."""
        before: dict[int, int] = {}

        def when(link: Link, way: str, data: bytes) -> int | None:
            if way != direction or not link.name.startswith(prefix):
                return None
            start = before.setdefault(id(link), link.passed[way])
            left = count - (link.passed[way] - start)
            return left if len(data) >= left else None

        self._add(Rule(when, Link.cut, times))

    def stall(self, prefix: str = "") -> None:
        """Half-open: nothing passes, and neither side notices. New connections are accepted and never answered."""
        self._held = lambda link: link.name.startswith(prefix)
        self._flow.clear()
        self.faults += 1

    def slow(self, bytes_per_second: float) -> None:
        """Limit both directions of each connection; 0: no limit."""
        self._rate = bytes_per_second
        self.faults += 1

    def refuse(self) -> None:
        """Refuse new connections; open ones go on."""
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
            self.faults += 1

    def resume(self, *, keep: bool = False) -> None:
        """End all faults. Stalled connections are cut, or with `keep` go on with the bytes that were held."""
        with self._lock:
            self._rules.clear()
        self._rate = 0.0
        if not self._flow.is_set():
            if not keep:
                self.cut()
            self._flow.set()
        if self._listener is None:
            self._listen()

    # --- forwarding

    def _fault(self, then: Callable[[], None]) -> None:
        self.faults += 1
        then()

    def _add(self, rule: Rule) -> None:
        with self._lock:
            self._rules.append(rule)

    def _listen(self) -> None:
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(str(self._path))
            listener.listen(128)
        else:
            listener = socket.create_server(("127.0.0.1", self._port), backlog=128)
            self._port = listener.getsockname()[1]
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            self.accepted += 1
            try:
                server = self._connect()
            except OSError:
                client.close()
                continue
            link = Link(client, server)
            with self._lock:
                self._links.append(link)
            for direction in (UP, DOWN):
                threading.Thread(target=self._pump, args=(link, direction), daemon=True).start()

    def _connect(self) -> socket.socket:
        if isinstance(self._target, Path):
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(str(self._target))
            return sock
        return socket.create_connection(self._target, 10)

    def _pump(self, link: Link, direction: str) -> None:
        source, sink = (link.client, link.server) if direction == UP else (link.server, link.client)
        with contextlib.suppress(OSError):
            source.settimeout(None)
            while data := source.recv(CHUNK):
                if direction == UP and not link.name and (found := _NAME.search(data)):
                    link.name = found[1].decode()
                while not self._flow.is_set() and self._held(link):
                    self._flow.wait()
                if not self._pass(link, direction, data, sink):
                    break
        self._end(link)

    def _pass(self, link: Link, direction: str, data: bytes, sink: socket.socket) -> bool:
        """Forward what the rules let through; False if the connection was cut."""
        rule, count = self._ruled(link, direction, data)
        for part in self._paced(data if count is None else data[:count]):
            sink.sendall(part)
        link.passed[direction] += len(data)
        if rule is not None:
            self._fault(lambda: rule.then(link))
        return rule is None

    def _ruled(self, link: Link, direction: str, data: bytes) -> tuple[Rule | None, int | None]:
        with self._lock:
            for rule in self._rules:
                count = rule.when(link, direction, data)
                if count is not None and rule.times > 0:
                    rule.times -= 1
                    return rule, count
        return None, None

    def _paced(self, data: bytes) -> Iterator[bytes]:
        size = max(1, int(self._rate / 20)) if self._rate else CHUNK
        for at in range(0, len(data), size):
            part = data[at : at + size]
            if self._rate:
                time.sleep(len(part) / self._rate)
            yield part

    def _end(self, link: Link) -> None:
        with self._lock:
            if link in self._links:
                self._links.remove(link)
        for sock in (link.client, link.server):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
