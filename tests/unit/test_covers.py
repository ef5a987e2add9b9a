"""Whether one grant lies within another. The rule that matters: what the inner one allows, the outer one allows."""

from __future__ import annotations

import ipaddress
import itertools
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir

from sandboxrun.config.covers import ANY, ANY_PORT, covers, glob_covers, globs_meet, is_below, writes_hash
from sandboxrun.config.permissions import (
    KINDS,
    IPAddress,
    ListenTarget,
    NetTarget,
    Permissions,
    RedisTarget,
    canonical_address,
    is_public,
)


@pytest.fixture(autouse=True)
def _nothing_on_disk(tmp_path: Any) -> None:
    set_hypothesis_home_dir(tmp_path)


def many(**strategies: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
        bounds = settings(
            derandomize=True, deadline=None, database=None, max_examples=500, suppress_health_check=checks
        )
        return bounds(given(**strategies)(test))

    return decorate


@pytest.mark.parametrize(
    ("kind", "outer", "inside", "outside"),
    [
        ("net", "example.com", "example.com example.com:443", "www.example.com * 1.2.3.4 example.org *.example.com"),
        ("net", "example.com:443", "example.com:443", "example.com example.com:80"),
        ("net", "*.example.com", "a.example.com a.b.example.com:1 *.example.com *.b.example.com:80", "example.com evilexample.com *"),
        ("net", "*.example.com:443", "a.example.com:443", "a.example.com *.example.com"),
        ("net", "10.0.0.0/8", "10.1.2.3 10.1.2.3:80 10.0.0.0/8 10.1.0.0/16:80", "11.0.0.1 0.0.0.0/0 ::/0 ten.example"),
        ("net", "127.0.0.1:80", "127.0.0.1:80 [::ffff:127.0.0.1]:80", "127.0.0.1 127.0.0.1:81 localhost:80 [::1]:80"),
        ("net", "0.0.0.0/0", "127.0.0.1 8.8.8.8:53", "::1 example.com *"),
        ("net", "*", "* *:80 example.com *.example.com 8.8.8.8 8.8.8.0/24 2606:4700::/32",
         "127.0.0.1 10.0.0.0/8 0.0.0.0/0 0.0.0.0/4 ::/0 169.254.169.254 localhost a.localhost:80 *.localhost fe80::1 2002::/16 64:ff9b::a00:1"),
        ("net", "*:443", "example.com:443 *:443", "example.com * *:80"),
        ("read", "/srv", "/srv /srv/a/b", "/ /srvx /sr /etc"),
        ("write", "/", "/ /a", ""),
        ("run", "git", "git /usr/bin/git /usr/local/bin/git /bin/git", "/opt/git /usr/bin/git2 /usr/bin/git/x gitk"),
        ("run", "/usr/bin/git", "/usr/bin/git", "git /usr/bin/gitk"),
        ("run", "/opt/tools", "/opt/tools/a", "a /opt/toolsx"),
        ("listen", "127.0.0.1:80", "127.0.0.1:80 localhost:80", "127.0.0.1:0 0.0.0.0:80 [::1]:80"),
        ("env", "TZ", "TZ", "TZX T"),
        ("redis", "chat:*", "chat:* chat:1 %R~chat:a* %W~chat:? chat:*:x", "chat* cha* * +get +pubsub:chat:*"),
        ("redis", "%R~config:*", "%R~config:a", "config:a %W~config:a"),
        ("redis", "a?c", "abc a?c", "a*c ac abbc"),
        ("redis", "*", "* a %R~*", "+pubsub:a +eval"),
        ("redis", "+pubsub:news*", "+pubsub:news +pubsub:news.a*", "+pubsub:new* news"),
        ("redis", "+xgroup", "+xgroup +xgroup|destroy", "+xgroupx +xadd|destroy xgroup"),
        ("redis", "+xgroup|destroy", "+xgroup|destroy", "+xgroup +xgroup|create"),
    ],
)  # fmt: skip
def test_what_lies_within_and_what_does_not(kind: str, outer: str, inside: str, outside: str) -> None:
    parse = KINDS[kind].parse
    for text in inside.split():
        assert covers(kind, parse(outer), parse(text)), text
    for text in outside.split():
        assert not covers(kind, parse(outer), parse(text)), text


def test_wildcards_that_only_a_ceiling_has() -> None:
    for kind, text in [("read", "/a"), ("write", "/"), ("run", "git"), ("env", "TZ"), ("listen", "0.0.0.0:0")]:
        assert covers(kind, ANY, KINDS[kind].parse(text))
    ports = ListenTarget(ipaddress.ip_address("127.0.0.1"), ANY_PORT)
    assert covers("listen", ports, ListenTarget.parse("127.0.0.1:0"))
    assert covers("listen", ports, ListenTarget.parse("127.0.0.1:8000"))
    assert not covers("listen", ports, ListenTarget.parse("0.0.0.0:8000"))
    outers = {
        "0.0.0.0:8000": {"0.0.0.0:8000", "127.0.0.1:8000", "[::ffff:10.0.0.1]:8000"},
        "[::]:8000": {"0.0.0.0:8000", "127.0.0.1:8000", "[::ffff:10.0.0.1]:8000", "[::]:8000", "[::1]:8000"},
        "[::1]:8000": {"[::1]:8000"},
    }
    inners = {*outers["[::]:8000"], "0.0.0.0:8001", "127.0.0.1:0", "[::]:0"}
    for outer, within in outers.items():
        for inner in inners:
            assert covers("listen", ListenTarget.parse(outer), ListenTarget.parse(inner)) == (inner in within)
    commands = RedisTarget("command", ANY)
    assert covers("redis", commands, RedisTarget.parse("+eval"))
    assert covers("redis", commands, RedisTarget.parse("+xgroup|destroy"))
    assert not covers("redis", commands, RedisTarget.parse("eval"))


NAMES = st.sampled_from(
    ["a", "b.a", "c.b.a", "a.b", "localhost", "x.localhost", "b.a.localhost", "example.com", "www.example.com"]
)
ADDRESSES: st.SearchStrategy[IPAddress] = st.one_of(
    st.ip_addresses(v=4),
    st.ip_addresses(v=6),
    st.sampled_from(
        "127.0.0.1 ::1 10.0.0.1 8.8.8.8 0.0.0.0 169.254.169.254 168.63.129.16 100.64.0.1 192.88.99.1 64:ff9b::808:808 2002:a00:1::1 "
        "::ffff:8.8.8.8 2606:4700::1 fe80::1 224.0.0.1 255.255.255.255".split()
    ).map(ipaddress.ip_address),
)
PORTS = st.sampled_from([None, 1, 443])


@st.composite
def networks(draw: st.DrawFn) -> Any:
    address = draw(ADDRESSES)
    length = draw(st.integers(0, address.max_prefixlen))
    return ipaddress.ip_network(f"{address}/{length}", strict=False)


@st.composite
def targets(draw: st.DrawFn) -> NetTarget:
    what = draw(st.sampled_from(["network", "host", "suffix", "any"]))
    port = draw(PORTS)
    if what == "network":
        return NetTarget(network=draw(networks()), port=port)
    if what == "host":
        return NetTarget(host=draw(NAMES), port=port)
    return NetTarget(suffix="." + draw(NAMES) if what == "suffix" else None, port=port)


def reaches(target: NetTarget, address: IPAddress, port: int, name: str) -> bool:
    """As the supervisor decides; localhost is the one name that may stand for loopback (resolver.py)."""
    local = name.endswith("localhost") and canonical_address(address).is_loopback
    return Permissions(allow={"net": (target,)}).allows_net(address, port, [name], [name] if local else [])


@many(outer=targets(), inner=targets(), address=ADDRESSES, port=st.sampled_from([1, 443]), name=NAMES, data=st.data())
def test_what_a_covered_net_entry_reaches_its_cover_reaches(
    outer: NetTarget, inner: NetTarget, address: IPAddress, port: int, name: str, data: st.DataObject
) -> None:
    if inner.network is not None:
        address = inner.network[data.draw(st.integers(0, inner.network.num_addresses - 1))]
    if covers("net", outer, inner) and reaches(inner, address, port, name):
        assert reaches(outer, address, port, name)


@many(network=networks(), data=st.data())
def test_a_block_within_the_public_ones_is_public_in_every_address(network: Any, data: st.DataObject) -> None:
    if covers("net", NetTarget(), NetTarget(network=network)):
        assert is_public(network[data.draw(st.integers(0, network.num_addresses - 1))])


PATTERNS = st.text("ab*?:", min_size=1, max_size=6)


@many(outer=PATTERNS, inner=PATTERNS, names=st.lists(st.text("abc:", max_size=7), max_size=20))
def test_what_a_covered_pattern_matches_its_cover_matches(outer: str, inner: str, names: list[str]) -> None:
    # Names that the inner pattern is likely to match, beside any.
    names += [inner.replace("*", text).replace("?", "c") for text in ("", "a", "bc", ":")]
    if glob_covers(outer, inner):
        for name in names:
            assert not RedisTarget("rw", inner).matches(name) or RedisTarget("rw", outer).matches(name), name


@many(pattern=PATTERNS, name=st.text("ab:", max_size=7))
def test_a_pattern_covers_itself_and_exactly_the_names_that_it_matches(pattern: str, name: str) -> None:
    assert glob_covers(pattern, pattern)
    assert glob_covers("*", pattern)
    assert glob_covers(pattern, name) == RedisTarget("rw", pattern).matches(name)


def test_a_hostile_pattern_costs_no_time() -> None:
    assert not glob_covers("*a" * 128, "a" * 127 + "b" * 128)
    assert not glob_covers("*?" * 64 + "b", "*" * 256)


SEGMENTS = st.lists(st.sampled_from(["a", "ab", "b"]), max_size=4).map(lambda parts: "/" + "/".join(parts))


@many(outer=SEGMENTS, inner=SEGMENTS, below=SEGMENTS)
def test_what_lies_below_a_covered_path_lies_below_its_cover(outer: str, inner: str, below: str) -> None:
    if covers("read", outer, inner):
        assert is_below((inner.rstrip("/") + below).rstrip("/") or "/", outer)


# A name that two patterns of three characters share has at most six.
SHORT_NAMES = ["".join(letters) for length in range(7) for letters in itertools.product("a:b", repeat=length)]


@many(first=st.text("ab:*?", max_size=3), second=st.text("ab:*?", max_size=3))
def test_two_patterns_meet_if_some_name_matches_both(first: str, second: str) -> None:
    assert globs_meet(first, second) == any(
        fnmatchcase(name, first) and fnmatchcase(name, second) for name in SHORT_NAMES
    )


@pytest.mark.parametrize(
    ("pattern", "covers_hash"),
    [
        ("chat:h", True), ("chat:1:h", True), ("chat:*", True), ("*", True), ("c*", True), ("ch?t:?:h", True), ("*:h", True),
        ("chat:*:z", False), ("chat:log:*:h", False), ("chat:*:log:h", False), ("chat:a*b", False), ("chat:a*:h", True),
        ("chat", False), ("chat:", False), ("chat:1:h:", False), ("chatter:*", False), ("cha:*", False), ("chat::h", True),
        ("chat:@:h", False), ("chat:{1}:h", False), ("chat:req:x", False), ("chat:*:?", True), ("chat:?", True), ("chat*h", True),
        ("*" * 256, True), ("*a" * 128, False), ("?" * 6, True), ("?" * 5, False),
    ],
)  # fmt: skip
def test_which_patterns_cover_a_hash_of_a_type(pattern: str, covers_hash: bool) -> None:
    assert writes_hash(pattern, "chat") is covers_hash
