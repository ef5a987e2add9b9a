"""The parsers of permission lists, against input nobody would write: what may come out, not only that nothing breaks."""

# ruff: noqa: PT017 - the other outcome, a value, is checked too

from __future__ import annotations

import ipaddress
import socket
from typing import Any

import pytest
from fuzzing import ADDRESSES, PORTS, TEXT, V4, V6, fuzz, one_line
from hypothesis import assume
from hypothesis import strategies as st

from sandboxrun.config import permissions
from sandboxrun.config.permissions import (
    KINDS,
    VERDICTS,
    NetTarget,
    Permissions,
    canonical_address,
    canonical_host,
    endpoint,
)
from sandboxrun.errors import ConfigError
from sandboxrun.log import LINE_MAX_CHARS, escape
from sandboxrun.sandbox.supervisor.handlers.connect import InetAddress

KEY = "demo-worker:1:h"


def spellings(address: permissions.IPAddress) -> list[permissions.IPAddress]:
    """Other forms in which connect(2) can be given what goes to the same place."""
    found = [address]
    if isinstance(address, ipaddress.IPv4Address):
        found.append(ipaddress.IPv6Address((0xFFFF << 32) | int(address)))
    elif address.ipv4_mapped is not None:
        found.append(address.ipv4_mapped)
    else:
        found.append(ipaddress.IPv6Address(f"{address}%7"))
    if str(canonical_address(address)) == "127.0.0.1":
        found += [ipaddress.ip_address("0.0.0.0"), ipaddress.ip_address("::ffff:0.0.0.0")]
    if str(canonical_address(address)) == "::1":
        found.append(ipaddress.ip_address("::"))
    return found


def written(address: permissions.IPAddress) -> list[str]:
    """Ways to write one address in a net list."""
    if isinstance(address, ipaddress.IPv4Address):
        return [str(address), f"{address}/32", f"::ffff:{address}", f"[::ffff:{address}]"]
    return [str(address), f"[{address}]", f"[{address.exploded}]", f"[{address}]".upper(), f"{address}/128"]


@fuzz(ADDRESSES, PORTS)
def test_a_listed_address_is_allowed_in_every_spelling_and_nothing_else_is(address: Any, port: int) -> None:
    address = canonical_address(address)
    for text in written(address):
        target = f"{text}:{port}" if text.endswith("]") or ("/" not in text and ":" not in text) else text
        for verdict in VERDICTS:
            lists = [(verdict, "net", target, "x")] + ([("allow", "net", "0.0.0.0/0,::/0", "x")] * (verdict == "deny"))
            rights = Permissions.parse(lists)
            for spelling in spellings(address):
                assert rights.allows_net(spelling, port) == (verdict == "allow"), (target, spelling)
                if target != text:
                    assert rights.allows_net(spelling, port % 65535 + 1) == (verdict == "deny")
            other = (
                ipaddress.ip_address(int(address) ^ 4)
                if address.version == 4
                else address + 4 * (-1) ** (int(address) >> 3)
            )
            if canonical_address(other) == other:
                assert rights.allows_net(other, port) == (verdict == "deny"), (target, other)  # fmt: skip


@fuzz(ADDRESSES, PORTS, st.lists(TEXT, max_size=4))
def test_an_unset_or_empty_list_allows_nothing(address: Any, port: int, names: list[str]) -> None:
    for text in (None, "", " ", ",", " , ,, "):
        rights = Permissions.parse([("allow", "net", text, "x")] if text is not None else [])
        assert not rights.allows_net(address, port, names)
        assert not any(map(rights.allows_name, names))
        assert not any(rights.lists_answer(name, address) for name in names)


NETWORKS = st.builds(
    lambda address, bits: (
        ipaddress.ip_network((int(address), min(bits, address.max_prefixlen)), strict=False)
        if address.version == 4
        else ipaddress.IPv6Network((int(address), bits), strict=False)
    ),
    st.one_of(V4, V6),
    st.integers(0, 128),
).filter(lambda network: not (network.prefixlen == network.max_prefixlen and network.network_address.is_unspecified))


@fuzz(NETWORKS, st.randoms(use_true_random=False), PORTS)
def test_deny_beats_allow(network: Any, random: Any, port: int) -> None:
    inside = type(network.network_address)(random.randint(int(network[0]), int(network[-1])))
    assume(canonical_address(inside) == inside)
    denied = Permissions.parse(
        [("allow", "net", f"{network},0.0.0.0/0,::/0,*", "x"), ("deny", "net", str(network), "x")]
    )
    allowed = Permissions.parse([("allow", "net", str(network), "x")])
    for spelling in spellings(inside):
        assert allowed.allows_net(spelling, port)
        assert not denied.allows_net(spelling, port)


@fuzz(V4, st.integers(1, 31), PORTS)
def test_a_block_of_mapped_addresses_is_the_block_of_ipv4_addresses(address: Any, bits: int, port: int) -> None:
    """Smallest: deny ::ffff:10.0.0.0/104 does not deny 10.0.0.1, nor [::ffff:10.0.0.1]."""
    base = ipaddress.ip_network(f"{address}/{bits}", strict=False)
    rights = Permissions.parse(
        [("allow", "net", "0.0.0.0/0", "x"), ("deny", "net", f"::ffff:{base[0]}/{96 + bits}", "x")]
    )
    for spelling in spellings(base[-1]):
        assert not rights.allows_net(spelling, port)


@pytest.mark.parametrize(
    "text",
    [
        "0.0.0.0",
        "::",
        "[::]",
        "[0:0::0]:80",
        "0.0.0.0/32",
        "::/128",
        "[::ffff:0.0.0.0]",
        "::ffff:0:0/128",
    ],
)
def test_the_unspecified_address_is_refused_in_every_spelling(text: str) -> None:
    with pytest.raises(ValueError):
        NetTarget.parse(text)


@pytest.mark.parametrize("text", ["fec0::1", "64:ff9b:1::a00:1", "::10.0.0.1"])
def test_deprecated_and_local_use_blocks_are_not_public(text: str) -> None:
    """Site-local (RFC 3879), local-use NAT64 of a private address (RFC 8215), IPv4-compatible (RFC 4291 2.5.5.1)."""
    assert not permissions.is_public(ipaddress.ip_address(text))


@fuzz(ADDRESSES, PORTS)
def test_a_wildcard_allows_public_addresses_only_and_equally_in_every_spelling(address: Any, port: int) -> None:
    rights = Permissions.parse([("allow", "net", "*", "x")])
    decided = {rights.allows_net(spelling, port) for spelling in spellings(address)}
    assert len(decided) == 1
    canonical = canonical_address(address)
    assert canonical_address(canonical) == canonical
    if canonical.is_loopback or canonical.is_private or canonical.is_link_local or canonical.is_multicast:
        assert decided == {False}


@fuzz(ADDRESSES, PORTS, st.booleans())
def test_a_refused_connection_is_allowed_by_the_grant_its_message_names(address: Any, port: int, mapped: bool) -> None:
    if mapped and address.version == 4:
        address = ipaddress.IPv6Address(f"::ffff:{address}")
    shown = str(InetAddress(address, port))
    target = NetTarget.parse(shown)
    assert target.port == port
    assert Permissions(allow={"net": (target,)}).allows_net(address, port)
    assert f"--allow-net={shown} " in str(permissions.Denial(permissions.Kind.NET, shown, shown, KEY))


@fuzz(TEXT, examples=250)
def test_net_targets_round_trip_or_are_a_value_error(text: str) -> None:
    try:
        target = NetTarget.parse(text)
    except ValueError:
        return
    assert sum(part is not None for part in (target.network, target.host, target.suffix)) <= 1
    assert target.port is None or 0 < target.port < 65536
    if target.network is not None:
        form = str(target.network) if target.network.num_addresses > 1 else str(target.network[0])
        again = (
            f"[{form}]:{target.port}"
            if target.port and ":" in form
            else endpoint(form, target.port)
            if target.port
            else form
        )
        assert target.matches(target.network[0], target.port or 1, ())
        assert not target.matches_name("example.com")
    elif target.host is not None or target.suffix is not None:
        name = target.host or "*" + (target.suffix or "")
        again = endpoint(name, target.port) if target.port else name
        own = target.host or "a" + (target.suffix or "")
        assert target.matches_name(own)
        assert not target.matches_name("x" + own) or target.suffix
        assert canonical_host(own) == own
        assert not target.matches(ipaddress.ip_address("192.0.2.1"), target.port or 1, ())
    else:
        again = f"*:{target.port}" if target.port else "*"
    assert NetTarget.parse(again) == target


@fuzz(TEXT, examples=250)
def test_canonical_hosts_are_plain_names(text: str) -> None:
    try:
        host = canonical_host(text)
    except ValueError:
        return
    assert host.isascii()
    assert host.isprintable()
    assert host == host.lower()
    assert 0 < len(host) <= 253
    assert not set(host) & set(" /:@[]*%\\,")
    assert canonical_host(host) == canonical_host(host + ".") == canonical_host(host.upper()) == host
    with pytest.raises(ValueError):
        ipaddress.ip_address(host)
    with pytest.raises(OSError):  # no form that libc would read as an IPv4 address
        socket.inet_aton(host)


@fuzz(TEXT)
def test_paths_are_absolute_and_stable(text: str) -> None:
    try:
        path = permissions.parse_path(text)
    except ValueError:
        return
    assert path.startswith("/")
    assert "\0" not in path
    assert not {"..", "."} & set(path.split("/"))
    assert permissions.parse_path(path) == path


@fuzz(TEXT)
def test_environment_names_are_plain(text: str) -> None:
    for candidate in (text, "LD_" + text, "PYTHON" + text):
        try:
            name = permissions.parse_env(candidate)
        except ValueError:
            continue
        assert name == candidate == text
        assert name.isascii()
        assert name.isidentifier()


@fuzz(st.sampled_from(list(KINDS.values())), st.lists(TEXT, max_size=5))
def test_lists_give_targets_or_one_line(kind: permissions.Kind, entries: list[str]) -> None:
    text = ",".join(entries)
    try:
        targets = permissions.parse_list(kind, text, f"field {kind.field()} of {KEY}")
    except ConfigError as error:
        one_line(error)
        assert kind.field() in str(error)
        return
    assert len(targets) == len(set(targets)) <= len(text)
    assert permissions.parse_list(kind, f" ,{text} , {text},", "x") == targets
    assert bool(targets) == bool(text.replace(",", "").strip())


def test_too_many_entries_are_refused() -> None:
    most = ",".join(f"h{i}" for i in range(permissions.TARGETS_MAX))
    assert len(permissions.parse_list(KINDS["net"], most, "x")) == permissions.TARGETS_MAX
    with pytest.raises(ConfigError, match="at most"):
        permissions.parse_list(KINDS["net"], most + ",one-more", "x")


@pytest.mark.parametrize("text", ["1" * 3000, "[" + "1" * 3000 + "]", "1" * 3000 + "/8"])
def test_the_message_about_a_long_entry_is_shown_whole(text: str) -> None:
    with pytest.raises(ConfigError) as error:
        permissions.parse_list(KINDS["net"], text, "x")
    assert len(escape(str(error.value))) <= LINE_MAX_CHARS
