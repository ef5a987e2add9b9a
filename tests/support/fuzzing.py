"""Input nobody would write, and how tests draw it (hypothesis)."""

from __future__ import annotations

import io
import ipaddress
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandboxrun.log import LINE_MAX_CHARS, Log

FEW, MANY = 50, 100  # examples a test: together about ten seconds


def fuzz(
    *strategies: st.SearchStrategy[Any], examples: int = MANY, **named: st.SearchStrategy[Any]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Examples are drawn the same way in every run."""

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        limits = settings(
            derandomize=True,
            deadline=None,
            database=None,
            max_examples=examples,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.function_scoped_fixture],
        )  # fmt: skip
        return limits(given(*strategies, **named)(test))

    return decorate


def one_line(error: Exception) -> None:
    """What the operator gets to see is one printable, bounded line, in text and in JSON."""
    for as_json in (False, True):
        stream = io.StringIO()
        Log(stream=stream, json=as_json).error("error", str(error))
        text = stream.getvalue()
        assert text.endswith("\n")
        assert text[:-1].isprintable()
        if not as_json:
            assert len(text) <= LINE_MAX_CHARS + 10


# Pieces that parsers stumble over: separators of each grammar, odd Unicode, controls, numbers, near-misses.
PIECES = st.sampled_from(
    [*" ,:;/\\.@%#?=&[]{}*-_'\"$\t\n\r\0\x1b\x7f\x9b", "\u00a0", "\u00df", "\u0130", "\u2028", "\u202e", "\u3002", "\ufeff",
     "\uff0e", "\uff11", "\u0661", "..", "//", "::", "0", "1", "65535", "65536", "0x7f", "127.1", "127.0.0.1", "0.0.0.0", "[::1]",
     "::ffff:1.2.3.4", "fe80::1%1", "/32", "/0", "a", "xn--", "xn--nxasmq6b", "localhost", "example.com", "*.example.com", "http://",
     "https://", "file://", "{version}", "local", "v1.2.3", "worker-v0 ", "--allow-net=", "--deny-read=", "--allow-all", "-A",
     "/etc/passwd", "PATH", "LD_PRELOAD", "HOME2", "e\u0301", "\U0001f600"]
)  # fmt: skip
TEXT = st.one_of(
    st.text(max_size=30), st.lists(PIECES, max_size=8).map("".join), st.text("0123456789abcdef:./[]*%-", max_size=24)
)
BYTES = st.one_of(st.binary(max_size=60), TEXT.map(lambda t: t.encode("utf-8", "surrogatepass")))  # fmt: skip

V4 = st.ip_addresses(v=4)
V6 = st.ip_addresses(v=6)
SPECIAL = st.sampled_from(
    ["127.0.0.1", "0.0.0.0", "10.0.0.1", "169.254.169.254", "255.255.255.255", "224.0.0.1", "::1", "::", "fe80::1",
     "ff02::1", "::ffff:10.0.0.1", "::ffff:0.0.0.0", "64:ff9b::a00:1", "2002:a00:1::1", "fd00::1", "100.64.0.1"]
).map(ipaddress.ip_address)  # fmt: skip
ADDRESSES = st.one_of(V4, V6, SPECIAL)
PORTS = st.integers(1, 65535)
