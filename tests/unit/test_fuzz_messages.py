"""The parsers of what the kernel and a worker hand over, of requests and of messages, against input nobody would write."""

# ruff: noqa: PT017 - the other outcome, a value, is checked too

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from collections.abc import Callable
from typing import Any

import pytest
from fuzzing import ADDRESSES, BYTES, FEW, TEXT, fuzz, one_line
from hypothesis import strategies as st
from parsed import parse

from sandboxrun.config import keys, permissions
from sandboxrun.config.permissions import (
    NetTarget,
    Permissions,
    canonical_address,
    canonical_host,
)
from sandboxrun.errors import SandboxrunError
from sandboxrun.log import escape
from sandboxrun.protocol import BadRequest
from sandboxrun.protocol.reply import failure
from sandboxrun.protocol.request import ref_of
from sandboxrun.sandbox.supervisor import listener as notify
from sandboxrun.sandbox.supervisor import resolver as resolver_module
from sandboxrun.sandbox.supervisor.handlers.connect import InetAddress, parse_sockaddr
from sandboxrun.worker.request import Encoder

KEY = "demo-worker:1:h"


@fuzz(ADDRESSES, st.integers(0, 65535), st.integers(0, 2**32 - 1), st.binary(max_size=100))
def test_addresses_survive_the_trip_through_a_sockaddr(address: Any, port: int, scope: int, rest: bytes) -> None:
    if address.version == 4:
        data = struct.pack("=H", socket.AF_INET) + port.to_bytes(2, "big") + address.packed + bytes(8)
    else:
        data = struct.pack("=HHI", socket.AF_INET6, socket.htons(port), 5) + address.packed + struct.pack("=I", scope)
    found = parse_sockaddr(data + rest)
    assert isinstance(found, InetAddress)
    assert (int(found.address), found.address.version, found.port) == (int(address), address.version, port)
    # What is connected is the address itself, but for the unspecified one, which is loopback (and may be IPv4-mapped).
    connected = ipaddress.ip_address(found.sockaddr[0])
    assert canonical_address(connected) == canonical_address(address)
    assert not connected.is_unspecified
    if canonical_address(address) == address or int(address) & 0xFFFFFFFF:
        assert connected == address
    assert found.sockaddr[1:] == ((port,) if address.version == 4 else (port, 0, scope))
    assert found.family == (socket.AF_INET if address.version == 4 else socket.AF_INET6)
    assert str(found).endswith(f":{port}")


@fuzz(
    st.one_of(
        st.binary(max_size=128),
        st.builds(lambda f, b: struct.pack("=H", f) + b, st.integers(0, 50), st.binary(max_size=126)),
    ),
    examples=300,
)
def test_any_sockaddr_is_an_address_a_path_or_an_errno(data: bytes) -> None:
    try:
        found = parse_sockaddr(data)
    except OSError as error:
        assert error.errno in (errno.EINVAL, errno.EACCES)
        assert error.errno == errno.EINVAL or data[:2] not in (b"\x02\0", b"\x0a\0", b"\x01\0")
        return
    family = int.from_bytes(data[:2], "little")
    if isinstance(found, str):
        assert family == socket.AF_UNIX
        assert data[2:].startswith(found.encode("utf-8", "surrogateescape"))
        assert found.startswith("\0") or "\0" not in found
    else:
        assert family == found.family
        assert len(data) >= (16 if family == socket.AF_INET else 24)


@fuzz(
    st.one_of(
        BYTES, st.builds(lambda n, t: b"name %b %b" % (n, t), st.sampled_from([b"1", b"0", b"99", b"x", b"-1"]), BYTES)
    ),
    examples=300,
)
def test_questions_are_answered_within_bounds_and_only_listed_names_are_looked_up(message: bytes) -> None:
    looked_up: list[str] = []
    denied: list[str] = []

    def look_up(name: str) -> list[permissions.IPAddress]:
        looked_up.append(name)
        return [ipaddress.ip_address("192.0.2.1")]

    rights = Permissions.parse([("allow", "net", "example.com,*.test:80", "x"), ("deny", "net", "evil.test", "x")])
    names = resolver_module.Resolver(
        rights, trusted=None, denied=lambda kind, target, by_deny: denied.append(target), wake=lambda: None
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resolver_module, "_look_up", look_up)
        # In this thread, so that every look-up is seen before the end.
        patch.setattr(resolver_module.threading, "Thread", _Now)
        answer = names.question(message)
    assert all(name == "example.com" or (name.endswith(".test") and name != "evil.test") for name in looked_up)
    if answer is not None:
        number, verdict, *_ = answer.decode().split("\n")
        assert message.startswith(f"name {number} ".encode())
        assert verdict in ("denied", str(int(socket.EAI_NONAME)))
        assert len(answer) < 1000
    assert all(canonical_host(target.rpartition(":")[0] or target) for target in denied)
    for target in denied:
        assert str(permissions.Denial(permissions.Kind.NET, target, target, KEY)).isprintable()
        NetTarget.parse(target)


class _Now:
    def __init__(self, *, target: Callable[..., None], args: tuple[Any, ...], daemon: bool) -> None:
        self._work = lambda: target(*args)

    def start(self) -> None:
        self._work()


@fuzz(st.binary(min_size=notify._NOTIF.size, max_size=notify._NOTIF.size), examples=FEW)
def test_notifications_have_six_registers(data: bytes) -> None:
    """struct seccomp_notif as the kernel lays it out; `receive` takes the id and the registers from it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(notify.fcntl, "ioctl", lambda _fd, _request, buffer, *_: buffer.__setitem__(slice(None), data))
        patch.setattr(notify.os, "set_blocking", lambda *_: None)
        listener = notify.Listener.__new__(notify.Listener)
        listener._fd, listener._buffer = -1, bytearray(notify._NOTIF.size)
        found = listener.receive()
    assert found is not None
    assert found.id == int.from_bytes(data[:8], "little")
    assert found.args == tuple(int.from_bytes(data[32 + 8 * i : 40 + 8 * i], "little") for i in range(6))


def test_a_notification_that_is_gone_is_nothing() -> None:
    with open("/dev/null") as file:  # its ioctls fail, as the kernel's do for a target that is gone
        listener = notify.Listener(file.fileno())
        assert listener.receive() is None
        assert not listener.is_valid(1)
        listener.respond(1, 0)


@fuzz(
    st.dictionaries(
        st.one_of(st.sampled_from([b"ref", b"type", b"data", b"time"]), BYTES),
        st.one_of(st.sampled_from([b"r", b"t", b"{}", b"[" * 9999]), BYTES),
        max_size=6,
    )
)
def test_requests_are_parsed_or_bad(raw: dict[bytes, bytes]) -> None:
    ref = ref_of(raw)
    try:
        found = parse("1-1", raw, {"t": 1}, default="t")
    except BadRequest as error:
        one_line(error)
        Encoder().reply(ref, "t:1", 400, failure(error, raw, with_payload=True), "now")
        return
    assert found.ref == ref == raw[b"ref"].decode()
    assert keys.is_ref(found.ref)
    assert found.type == "t"


@fuzz(st.one_of(TEXT, st.text(st.characters(), max_size=40)), examples=250)
def test_nothing_unprintable_comes_out_of_escape(text: str) -> None:
    shown = escape(text)
    assert shown.isprintable()
    assert escape(shown) == shown
    assert text.isprintable() <= (shown == text)
    assert all(c in shown for c in text if c.isprintable())
    one_line(SandboxrunError(text))
