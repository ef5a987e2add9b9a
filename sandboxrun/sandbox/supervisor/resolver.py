"""Names for the worker, resolved in the supervisor: listed names only, so DNS is no way out.

What a name resolved to is remembered: a connection to one of these addresses counts as one to the name. The answer is
pinned for a minute, or until one of its addresses stops answering; then the next question is a new look-up. If a name
resolves to a loopback, private, link-local or metadata address, this answer is refused (DNS rebinding), unless the
address itself is listed; then the address and its port are granted, and not the name.
"""

from __future__ import annotations

import _socket as socket  # without the enums that socket makes of every constant
import ipaddress
import select
import threading
import time
from _queue import SimpleQueue  # queue brings heapq along
from collections.abc import Callable

from sandboxrun.config.permissions import (
    IPAddress,
    Kind,
    Permissions,
    canonical_address,
    canonical_host,
    endpoint,
    is_public,
    requirement,
)

PIN_SECONDS = 60.0
PINS_MAX = 1024
IN_FLIGHT_MAX = 16  # look-ups under way at once; one more is told to try again
NAMES_MAX = 256  # of one address
ADDRESSES_MAX = 4096  # remembered; a worker with a wildcard grant could otherwise make us grow without end


class Resolver:
    """Answers the child's questions. Look-ups run in threads of their own; answers come back through `take_answers`."""

    def __init__(
        self,
        net: Permissions,
        *,
        trusted: tuple[str, int] | None,
        denied: Callable[[Kind, str, bool], None],
        wake: Callable[[], None],
    ) -> None:
        """`trusted`: name and port the operator chose (Redis's): its answers may be private. `wake`: called from a thread."""
        self._net, self._trusted, self._denied, self._wake = net, trusted, denied, wake
        self._names: dict[IPAddress, set[str]] = {}
        self._pins: dict[str, tuple[float, list[IPAddress]]] = {}  # by name: until when (time.monotonic), and what
        self.version = 0  # of `names`
        self._answers: SimpleQueue[tuple[str, str, list[IPAddress] | OSError]] = SimpleQueue()
        self._in_flight = 0
        self._lock = threading.Lock()  # `names` is asked by the thread that connects

    def names(self, address: IPAddress) -> frozenset[str]:
        """The names that were resolved to this (canonical) address."""
        with self._lock:
            return frozenset(self._names.get(address, ()))

    def private_names(self, address: IPAddress, port: int) -> frozenset[str]:
        """Those of `names` that may stand for an address that is not public, on this port."""
        return frozenset(
            name for name in self.names(address) if (name, port) == self._trusted or _is_localhost(name, address)
        )

    def unreachable(self, address: IPAddress) -> None:
        """Nobody answers at this (canonical) address: its names are looked up again when they are asked for next."""
        with self._lock:
            for name in self._names.get(address, ()):
                self._pins.pop(name, None)

    def pin_denied(self) -> None:
        """Resolve the names that are denied, so that their addresses are too. Blocks; called before the worker runs."""
        for target in self._net.deny.get(Kind.NET, ()):
            if target.host is not None:
                try:
                    addresses = _look_up(target.host)
                except OSError:
                    continue
                self._remember(target.host, addresses)

    def question(self, message: bytes) -> bytes | None:
        """The answer to one message of the child, or None if it follows later. Never raises: the child is hostile."""
        parts = message.split(b" ", 2)
        if len(parts) != 3 or parts[0] != b"name" or not parts[1].isdigit() or len(parts[1]) > 20:
            return None
        number = parts[1].decode("ascii")
        try:
            name = canonical_host(parts[2].decode("utf-8"))
        except (ValueError, UnicodeError):
            return _answer(number, str(int(socket.EAI_NONAME)), ["not a valid host name"])
        if not self._net.allows_name(name):
            return self._refuse(number, name)
        with self._lock:
            until, pinned = self._pins.get(name, (0.0, []))
        if time.monotonic() < until:
            return _answer(number, "ok", [str(address) for address in pinned])
        if self._in_flight >= IN_FLIGHT_MAX:
            return _answer(number, str(int(socket.EAI_AGAIN)), ["too many names are being resolved"])
        try:
            threading.Thread(target=self._work, args=(number, name), daemon=True).start()
        except RuntimeError:  # the user's or the system's threads are used up, perhaps by the worker
            return _answer(number, str(int(socket.EAI_AGAIN)), ["no thread can be started"])
        self._in_flight += 1
        return None

    def take_answers(self) -> list[bytes]:
        """What the threads have found since; remembers the addresses."""
        done = []
        while not self._answers.empty():
            number, name, found = self._answers.get()
            self._in_flight -= 1
            if isinstance(found, OSError):
                done.append(
                    _answer(number, str(int(found.errno or socket.EAI_FAIL)), [found.strerror or "look-up failed"])
                )
                continue
            usable = [address for address in found if self._may_be(name, address)]
            if not usable:
                done.append(
                    self._refuse(number, name, f" (it resolves to {found[0]}, which is not public)" if found else "")
                )
                continue
            self._remember(name, usable)
            with self._lock:
                if len(self._pins) >= PINS_MAX:
                    self._pins.clear()
                self._pins[name] = (time.monotonic() + PIN_SECONDS, usable)
            done.append(_answer(number, "ok", [str(address) for address in usable]))
        return done

    def _work(self, number: str, name: str) -> None:
        try:
            self._answers.put((number, name, _look_up(name)))
        except OSError as error:
            self._answers.put((number, name, error))
        self._wake()

    def _may_be(self, name: str, address: IPAddress) -> bool:
        if is_public(address) or self._net.lists_answer(name, address) or _is_localhost(name, address):
            return True
        return self._trusted is not None and name == self._trusted[0]

    def _remember(self, name: str, addresses: list[IPAddress]) -> None:
        with self._lock:
            for address in map(canonical_address, addresses):
                if address in self._names or len(self._names) < ADDRESSES_MAX:
                    names = self._names.setdefault(address, set())
                    if len(names) < NAMES_MAX:
                        names.add(name)
            self.version += 1

    def _refuse(self, number: str, name: str, why: str = "") -> bytes:
        port = next((t.port for t in self._net.allow.get(Kind.NET, ()) if t.host == name), None)
        target = endpoint(name, port) if port else name
        self._denied(Kind.NET, target, self._net.denies_name(name))
        return _answer(number, "denied", [requirement(Kind.NET, target) + why])


def _is_localhost(name: str, address: IPAddress) -> bool:
    """RFC 6761 6.3: localhost is loopback, and only that."""
    return (name == "localhost" or name.endswith(".localhost")) and canonical_address(address).is_loopback


def _look_up(name: str) -> list[IPAddress]:
    """Addresses of a name, in the system's order (RFC 6724). Raises OSError (gaierror)."""
    found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(ipaddress.ip_address(entry[4][0]) for entry in found))


def _answer(number: str, status: str, lines: list[str]) -> bytes:
    """At most PIPE_BUF bytes, which are written whole or not at all (pipe(7)): addresses that do not fit are left out."""
    answer = f"{number}\n{status}".encode()
    for line in lines:
        longer = answer + b"\n" + line.encode()
        if len(longer) >= select.PIPE_BUF:
            break
        answer = longer
    return answer + b"\0"
