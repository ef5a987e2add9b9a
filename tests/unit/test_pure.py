"""The smaller pure parts: messages, addresses as the kernel gives them, Redis URLs, requests."""

from __future__ import annotations

import errno
import io
import json
import socket
import struct

import pytest
from parsed import parse

from sandboxrun.config import keys
from sandboxrun.config.fields import parse_loop
from sandboxrun.config.permissions import Denial, Kind, Permissions
from sandboxrun.errors import UsageError
from sandboxrun.log import Log, escape
from sandboxrun.protocol import BadRequest
from sandboxrun.protocol.request import ref_of
from sandboxrun.redis.address import parse_url
from sandboxrun.redis.lease import is_alive, this_host
from sandboxrun.sandbox.compile.filters import for_pid
from sandboxrun.sandbox.supervisor.handlers.connect import InetAddress, parse_sockaddr
from sandboxrun.sandbox.supervisor.resolver import Resolver


def test_nothing_printed_can_drive_a_terminal() -> None:
    hostile = "a\x1b[2Jb\r\n\x9bc\u202ed\u2066e\ud800f\x07\u00a0g"
    assert escape(hostile).isprintable()
    assert escape(hostile).isascii()
    assert escape("grüße → ok") == "grüße → ok"
    for as_json in (False, True):
        stream = io.StringIO()
        Log(stream=stream, json=as_json).warning("event", hostile)
        text = stream.getvalue()
        assert text.endswith("\n")
        assert text[:-1].isprintable()


def test_quiet_keeps_warnings_and_denials() -> None:
    stream = io.StringIO()
    log = Log(stream=stream, quiet=True)
    log.info("a", "info")
    log.debug("a", "debug")
    log.warning("a", "warning")
    log.denied(Denial(Kind.NET, "a:1", None, "t:1:h"))
    log.denied(Denial(Kind.NET, "a:1", "a:1", "t:1:h"), message="denied")
    log.error("a", "error")
    assert stream.getvalue() == (
        'warning: warning\nRequires net access to "a:1", which denyNet of t:1:h refuses\ndenied\nerror: error\n'
    )


def test_log_lines_are_bounded() -> None:
    stream = io.StringIO()
    Log(stream=stream).error("a", "x" * 10_000)
    assert len(stream.getvalue()) < 2100


def test_addresses_are_read_as_the_kernel_reads_them() -> None:
    four = struct.pack("=H", socket.AF_INET) + b"\x00\x50\x01\x02\x03\x04" + bytes(8)
    assert str(parse_sockaddr(four)) == "1.2.3.4:80"
    assert str(parse_sockaddr(four + b"trailing")) == "1.2.3.4:80"
    six = struct.pack("=H", socket.AF_INET6) + b"\x00\x50" + bytes(4) + bytes(15) + b"\x01"
    assert str(parse_sockaddr(six)) == "[::1]:80"
    scoped = parse_sockaddr(six + struct.pack("=I", 7))
    assert isinstance(scoped, InetAddress)
    assert scoped.sockaddr == ("::1", 80, 0, 7)
    assert parse_sockaddr(struct.pack("=H", socket.AF_UNIX) + b"/a/b\0junk") == "/a/b"
    assert parse_sockaddr(struct.pack("=H", socket.AF_UNIX) + b"\0abstract\0") == "\0abstract\0"


@pytest.mark.parametrize(
    ("data", "code"),
    [(b"", errno.EINVAL), (b"\x02", errno.EINVAL), (struct.pack("=H", 2) + bytes(13), errno.EINVAL), (struct.pack("=H", 10) + bytes(21), errno.EINVAL),
     (bytes(16), errno.EACCES), (struct.pack("=H", 16) + bytes(14), errno.EACCES), (struct.pack("=H", 40) + bytes(14), errno.EACCES)],
)  # fmt: skip
def test_other_addresses_get_the_kernels_errno_or_are_refused(data: bytes, code: int) -> None:
    with pytest.raises(OSError) as error:
        parse_sockaddr(data)
    assert error.value.errno == code


def test_the_pid_goes_into_the_program_and_nothing_else_changes() -> None:
    instructions = [(0x20, 0, 0, 0), (0x15, 1, 2, 0x7BADC0DE), (0x06, 0, 0, 0x7FFF0000)]
    program = b"".join(struct.pack("=HBBI", *i) for i in instructions)
    assert list(struct.iter_unpack("=HBBI", for_pid(program, 42))) == [
        (0x20, 0, 0, 0),
        (0x15, 1, 2, 42),
        (0x06, 0, 0, 0x7FFF0000),
    ]


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://user:pw@h:1234/0", "redis://h:1234"),
        ("rediss://h", "rediss://h:6379"),
        ("redis://[::1]:5", "redis://::1:5"),
        ("unix://:pw@/run/redis.sock", "unix:///run/redis.sock"),
    ],
)
def test_redis_urls_are_shown_without_their_password(url: str, shown: str) -> None:
    assert parse_url(url).shown == shown


@pytest.mark.parametrize("url", ["", "http://h", "h:6379", "redis://h:x", "unix://relative"])
def test_odd_redis_urls_are_usage_errors(url: str) -> None:
    with pytest.raises(UsageError, match="Redis URL"):
        parse_url(url)


def test_pids_without_our_fields_are_alive_only_with_the_key_in_argv() -> None:
    import os

    def holder(pid: object) -> dict[str, str | None]:
        return {"pid": None if pid is None else str(pid), "pidHost": None, "pidStarted": None, "pidSeen": None}

    assert not is_alive(holder(None), "t:1:h", 0)
    assert not is_alive(holder(os.getpid()), "t:1:h", 0)
    with open("/proc/self/cmdline", "rb") as file:
        word = file.read().split(b"\0")[0].decode()
    assert is_alive(holder(os.getpid()), word, 0)
    ours = {"pid": str(os.getpid()), "pidHost": this_host(), "pidStarted": "1", "pidSeen": "0"}
    assert not is_alive(ours, "t:1:h", 0)  # the same number, but started at another time


def test_requests() -> None:
    request = parse("1-1", {b"ref": b"r", b"type": b"t", b"a": b"b", b"time": b"x"}, {"t": 1}, default="t")
    assert (request.data, request.ref, request.xid) == ({"a": "b"}, "r", "1-1")
    assert parse("1-1", {b"ref": b"r", b"data": b"[1]"}, {"t": 1}, default="t").data == [1]
    for raw in ({}, {b"ref": b""}, {b"ref": b"a\x7f"}, {b"ref": b"x" * 257}, {b"ref": b"a\n"}):
        assert ref_of(raw) is None
        with pytest.raises(BadRequest, match="ref"):
            parse("1-1", raw, {"t": 1}, default="t")
    with pytest.raises(BadRequest, match="bytes"):
        parse("1-1", {b"ref": b"r", b"data": b" " * 2_000_000}, {"t": 1}, default="t")
    assert keys.trace_field("demo-worker") == "demoWorkerTrace"
    assert keys.trace_field("t") == "tTrace"


def resolver(allow: str, answers: list[str]) -> Resolver:
    return Resolver(
        Permissions.parse([("allow", "net", allow, "x")]),
        trusted=("redis.internal", 6379),
        denied=lambda kind, target, by_deny: answers.append(target),
        wake=lambda: None,
    )


def test_an_answer_is_never_longer_than_what_a_pipe_takes_at_once() -> None:
    import select

    from sandboxrun.sandbox.supervisor.resolver import _answer

    addresses = [f"2606:4700:1111:2222:3333:4444:5555:{number:04x}" for number in range(500)]
    answer = _answer("9" * 20, "ok", addresses)
    assert 4000 < len(answer) <= select.PIPE_BUF
    number, verdict, *given = answer.removesuffix(b"\0").decode().split("\n")
    assert (number, verdict, given) == ("9" * 20, "ok", addresses[: len(given)])


def test_a_public_name_may_not_resolve_to_a_private_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's resolver is replaced: a real name with such an answer would need a DNS server."""
    import ipaddress
    import time

    from sandboxrun.sandbox.supervisor import resolver as module

    found = {
        "evil.example": "169.254.169.254",
        "mixed.example": "10.0.0.1",
        "listed.example": "10.0.0.2",
        "redis.internal": "10.0.0.3",
    }
    monkeypatch.setattr(module, "_look_up", lambda name: [ipaddress.ip_address(found[name])])
    denied: list[str] = []
    names = resolver("evil.example,mixed.example:80,listed.example,10.0.0.2,redis.internal:6379", denied)

    def ask(name: str) -> list[str]:
        assert names.question(b"name 1 " + name.encode()) is None
        deadline = time.monotonic() + 5
        while not (answers := names.take_answers()):
            assert time.monotonic() < deadline
        assert answers[0].endswith(b"\0")
        return answers[0][:-1].decode().split("\n")

    assert ask("evil.example")[1] == "denied"
    assert ask("mixed.example")[1] == "denied"
    assert ask("listed.example") == ["1", "ok", "10.0.0.2"]
    assert ask("redis.internal") == ["1", "ok", "10.0.0.3"]
    assert denied == ["evil.example", "mixed.example:80"]
    assert names.names(ipaddress.ip_address("169.254.169.254")) == frozenset()
    assert names.names(ipaddress.ip_address("10.0.0.2")) == {"listed.example"}


@pytest.mark.parametrize(
    "message", [b"", b"name", b"name 1", b"name x a", b"junk 1 a", b"name 999999999999999999999 a", b"\xff" * 10]
)
def test_junk_questions_are_ignored(message: bytes) -> None:
    assert resolver("a.example", []).question(message) is None


@pytest.mark.parametrize("name", ["a\0b", "..", "127.1", "x" * 300, "\ud800"])
def test_odd_names_do_not_exist(name: str) -> None:
    answer = resolver("*", []).question(b"name 1 " + name.encode("utf-8", "surrogatepass"))
    assert answer is not None
    assert json.loads(f"[{answer.decode().split(chr(10))[1]}]") == [int(socket.EAI_NONAME)]


def test_the_loop_is_a_value() -> None:
    loop, same, other = (parse_loop({"requestLimit": limit}, "demo-worker", "1") for limit in "223")
    assert loop == same != other
    assert hash(loop) == hash(same)
