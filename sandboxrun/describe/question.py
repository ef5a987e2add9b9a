"""Questions about a worker's permissions, parsed. Pure."""

from __future__ import annotations

import ipaddress

from sandboxrun.config.permissions import Kind, NetTarget, RedisTarget
from sandboxrun.errors import UsageError
from sandboxrun.records import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FLAGS = {kind: "--redis-keys" if kind is Kind.REDIS else f"--{kind}" for kind in Kind}  # --redis says where Redis is
ALWAYS_ENV = ("PATH", "LANG", "HOME", "TMPDIR", "REDIS_URL")


@record
class Question:
    """`target` is an entry of the kind that grants exactly what is asked."""

    kind: Kind
    target: Any

    def __str__(self) -> str:
        return f"{self.kind} {self.target}"


def parse(kind: Kind, text: str) -> Question:
    """Raises UsageError."""
    flag = FLAGS[kind]
    if kind is Kind.ENV and text in ALWAYS_ENV:  # no hash can list them
        return Question(kind, text)
    try:
        target = kind.parse(text)
    except ValueError as error:
        raise UsageError(f"{flag} is {text[:80]!r}: {error}; expected {kind.metavar}") from error
    if isinstance(target, NetTarget) and not _is_one(target):
        raise UsageError(f"{flag} is {text[:80]!r}: expected one host or address and its port, as in example.com:443")
    if isinstance(target, str) and "," in target:
        raise UsageError(f"{flag} is {text[:80]!r}: no entry has a comma; give {flag} once for each entry")
    return Question(kind, target)


def _is_one(target: NetTarget) -> bool:
    single = target.network is not None and target.network.num_addresses == 1
    return target.port is not None and (target.host is not None or single)


def address_of(target: NetTarget) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address in question; loopback for localhost (RFC 6761 6.3), None for other names."""
    if target.network is not None:
        return target.network.network_address
    if is_localhost(target.host or ""):
        return ipaddress.ip_address("127.0.0.1")
    return None


def is_localhost(name: str) -> bool:
    return name == "localhost" or name.endswith(".localhost")


def parts_of(target: RedisTarget) -> list[RedisTarget]:
    """Reading and writing apart, because different entries may grant them."""
    return [RedisTarget(access, target.pattern) for access in "rw"] if target.access == "rw" else [target]
