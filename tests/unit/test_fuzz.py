"""Every parser of outside input against input nobody would write: what may come out, not only that nothing breaks.

Examples are drawn the same way in every run.
"""

# ruff: noqa: PT017 - the other outcome, a value, is checked too

from __future__ import annotations

import base64
import errno
import io
import ipaddress
import re
import socket
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir
from parsed import parse

from sandboxrun.config import fields as loop_settings
from sandboxrun.config import keys, permissions, secrets
from sandboxrun.config import worker as config
from sandboxrun.config.permissions import (
    KINDS,
    VERDICTS,
    NetTarget,
    Permissions,
    canonical_address,
    canonical_host,
    endpoint,
)
from sandboxrun.errors import ConfigError, FetchError, SandboxrunError, SecretError, UsageError
from sandboxrun.fetch import resolve
from sandboxrun.log import LINE_MAX_CHARS, Log, escape
from sandboxrun.protocol import BadRequest
from sandboxrun.protocol.reply import failure
from sandboxrun.protocol.request import ref_of
from sandboxrun.redis.address import parse_url
from sandboxrun.sandbox.supervisor import listener as notify
from sandboxrun.sandbox.supervisor import resolver as resolver_module
from sandboxrun.sandbox.supervisor.handlers.connect import InetAddress, parse_sockaddr
from sandboxrun.worker.request import Encoder

FEW, MANY = 50, 100  # examples a test: together about ten seconds
KEY = "demo-worker:1:h"


@pytest.fixture(autouse=True)
def _nothing_on_disk(tmp_path: Any) -> None:
    set_hypothesis_home_dir(tmp_path)  # it caches tables of characters


def fuzz(
    *strategies: st.SearchStrategy[Any], examples: int = MANY, **named: st.SearchStrategy[Any]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
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


# --- addresses and net lists


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


# --- the other lists


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


# --- hashes

_NAMES = [
    "type", "url", "version", "sha256", "pid", *loop_settings.ALIASES, *config.OPTION_FIELDS, *loop_settings.SECRET_FIELDS,
    *config.LOOP_NUMBERS, *config.LOOP_NAMES, *(kind.field(verdict) for kind in KINDS.values() for verdict in VERDICTS),
    "allowAll", "allowRun", "allowX", "denyNET", "allow", "other",
]  # fmt: skip
FIELD_NAMES = st.one_of(st.sampled_from(_NAMES).map(str.encode), BYTES)
PLAUSIBLE = st.sampled_from(
    [b"", b"0", b"1", b"1000", b"-1", b"99999999999999999", b"local", b"main", b"v1.2.3", b"https://codeberg.org/a/b/raw/branch/main/w.py",
     b"/tmp", b"a" * 64, b"sha256:" + b"A" * 64, b"demo-worker", b"127.0.0.1:80", b"x" * 70_000, b"--allow-net=a.example", b"\xff"]
)  # fmt: skip
HASHES = st.dictionaries(FIELD_NAMES, st.one_of(PLAUSIBLE, BYTES), max_size=8)
BASE = {b"url": b"https://codeberg.org/a/b/raw/branch/main/w.py", b"version": b"main"}


@fuzz(HASHES)
def test_fields_are_text_under_known_names(raw: dict[bytes, bytes]) -> None:
    try:
        fields = config.read_fields(raw, KEY)
    except ConfigError as error:
        one_line(error)
        return
    assert config.wanted_fields(fields) == list(fields)
    assert not set(fields) & set(loop_settings.ALIASES)
    assert all(len(value.encode()) <= config.value_limit(name) for name, value in fields.items())
    for name, value in fields.items():
        spelled = [name, *(alias for alias, first in loop_settings.ALIASES.items() if first == name)]
        assert value.encode() in [raw.get(spelling.encode()) for spelling in spelled]


@fuzz(HASHES, HASHES, st.booleans(), examples=250)
def test_a_hash_is_a_config_or_one_line(shared: dict[bytes, bytes], own: dict[bytes, bytes], complete: bool) -> None:
    own = {**own, **BASE} if complete else own
    try:
        worker = config.parse_worker("demo-worker", "1", shared, own)
    except ConfigError as error:
        one_line(error)
        assert KEY in str(error) or "demo-worker:h" in str(error)
        return
    assert (worker.key, worker.type, worker.id) == (KEY, "demo-worker", "1")
    assert worker.url.isprintable()
    assert config.check_version(worker.version, KEY) == worker.version
    assert worker.sha256 is None or bytes.fromhex(worker.sha256)
    loop = worker.loop
    numbers = (
        loop.response_stream_limit, loop.response_stream_max, loop.request_stream_limit, loop.request_limit, loop.block_millis, loop.reply_expire_seconds,
        loop.max_deliveries, loop.takeover_millis,
    )  # fmt: skip
    assert all(least <= n <= most for n, (_, least, most) in zip(numbers, config.LOOP_NUMBERS.values(), strict=True))
    # What was granted stands in the hashes, and nowhere else.
    words = b" ".join([*own, *shared, *own.values(), *shared.values()]).lower()
    for verdict, both in (("allow", worker.permissions.allow), ("deny", worker.permissions.deny)):
        for kind, targets in both.items():
            assert kind in KINDS
            assert not targets or verdict.encode() in words
    if b"allow" not in words:
        assert not any(worker.permissions.allow.values())
        assert not worker.permissions.allows_net(ipaddress.ip_address("1.1.1.1"), 443, ["a.example"])


@fuzz(TEXT, st.sampled_from(config.OPTION_FIELDS))
def test_options_grant_what_they_list_or_are_one_line(text: str, field: str) -> None:
    for options in (text, "--allow-net=a.example " + text, f"--deny-net={text} --allow-net=*", f"--allow-{text}"):
        try:
            worker = config.parse_worker("t", "1", {}, {**BASE, field.encode(): options.encode("utf-8", "replace")})
        except ConfigError as error:
            one_line(error)
            continue
        assert "--allow-all" not in options.split()
        if "--allow-net" not in options:
            assert not worker.permissions.allow.get("net")
        assert not worker.permissions.allows_net(ipaddress.ip_address("127.0.0.1"), 6379) or "127.0.0.1" in options


@fuzz(TEXT)
def test_types_and_ids_come_back_unchanged_or_as_one_line(text: str) -> None:
    for check in (keys.check_type, keys.check_id):
        try:
            assert check(text) == text
        except ConfigError as error:
            one_line(error)
            continue
        assert text.isascii()
        assert not set(text) & set(" :/\\*?[]{}\n\0")
        assert not text.startswith((".", "-"))
        assert keys.split_worker_key(keys.worker_key("t", text)) == ("t", text)


@fuzz(TEXT)
def test_a_worker_key_splits_into_a_type_and_an_id(text: str) -> None:
    for key in (text, f"t:{text}:h", f"{text}:1:h"):
        try:
            parts = keys.split_worker_key(key)
        except ConfigError as error:
            one_line(error)
            continue
        assert keys.worker_key(*parts) == key


def test_a_workers_own_list_replaces_the_shared_one_in_every_spelling() -> None:
    shared = {b"allowNET": b"shared.example"}
    try:
        worker = config.parse_worker("t", "1", shared, {**BASE, b"allowNet": b"own.example"})
    except ConfigError:
        return
    assert not worker.permissions.allows_name("shared.example")


def test_the_message_about_a_long_field_name_is_shown_whole() -> None:
    with pytest.raises(ConfigError) as error:
        config.parse_worker("t", "1", {}, {**BASE, b"allow" + b"X" * 3000: b""})
    assert len(escape(str(error.value))) <= LINE_MAX_CHARS


# --- URLs and versions

URLS = st.one_of(
    TEXT,
    TEXT.map("https://".__add__),
    TEXT.map("file://".__add__),
    st.builds(
        "{}://{}/{}".format,
        st.sampled_from(["https", "http", "HTTPS", "ftp"]),
        st.sampled_from(["github.com", "raw.githubusercontent.com", "gitlab.com", "codeberg.org", "127.0.0.1:1", "h", "u:p@h", "[::1]"]),
        st.lists(
            st.sampled_from(["a", "b", "main", "blob", "raw", "-", "branch", "refs", "heads", "{version}", "..", "", "w.py", "v1.2.3"]),
            max_size=8,
        ).map("/".join),
    ),
)  # fmt: skip
VERSIONS = st.one_of(st.sampled_from(["local", "main", "v1.2.3", "a" * 40, "feature/x"]), TEXT)


@fuzz(URLS, VERSIONS, examples=250)
def test_a_url_and_version_give_a_source_on_the_same_host_or_one_line(url: str, version: str) -> None:
    try:
        config.check_version(version, KEY)
        config._url(url, KEY)
    except ConfigError as error:
        one_line(error)
        return
    try:
        source = resolve.resolve(url, version, key=KEY)
    except (ConfigError, FetchError) as error:
        one_line(error)
        return
    if isinstance(source, resolve.LocalSource):
        assert version == "local"
        assert source.script.startswith("/")
        return
    before, after = resolve.urlsplit(url), resolve.urlsplit(source.url)
    moved = {"github.com": "raw.githubusercontent.com"}
    assert after.hostname in (before.hostname, moved.get(before.hostname or ""))
    assert (after.scheme, after.port) == (before.scheme, before.port)
    assert version in source.url
    assert "{version}" not in source.url
    assert source.mutable == resolve.is_mutable(source.version)
    # The version takes the place of a ref; it never moves the boundary to the host.
    assert after.netloc.count("/") == after.netloc.count("@") == 0
    try:
        resolve.ImportList.default().check(source.url)
    except FetchError as error:
        one_line(error)
    else:
        assert after.hostname in ("127.0.0.1", "::1", "localhost") or (
            after.scheme == "https" and (after.hostname or "").removesuffix(".") in resolve.DEFAULT_HOSTS
        )


@pytest.mark.parametrize("url", ["file://[", "file://]", "file://[x]/w.py"])
def test_a_malformed_file_url_is_a_config_error(url: str) -> None:
    try:
        resolve.resolve(url, "local", key=KEY)
    except ConfigError:
        return


@fuzz(TEXT, TEXT)
def test_import_lists_allow_the_hosts_they_name(text: str, url: str) -> None:
    try:
        allowed = resolve.ImportList.parse(text)
    except UsageError as error:
        one_line(error)
        return
    for candidate in (url, f"https://{url}", f"http://{url}", f"https://{text}/"):
        try:
            allowed.check(candidate)
        except FetchError as error:
            one_line(error)
            continue
        host = (resolve.urlsplit(candidate).hostname or "").removesuffix(".")
        assert host in ("127.0.0.1", "::1", "localhost") or any(
            host in (part.lower(), _idna(part)) for part in re.split(r"\s*,\s*|:[0-9]+|[][]", text.strip())
        )


def _idna(host: str) -> str:
    try:
        return canonical_host(host)
    except ValueError:
        return host


@fuzz(TEXT, examples=FEW)
def test_redis_urls_never_show_a_password(text: str) -> None:
    for url in (text, f"redis://user:pass{text}word@127.0.0.1:1/0", f"unix://{text}"):
        try:
            found = parse_url(url)
        except UsageError as error:
            one_line(error)
            assert "pass" not in str(error).replace("USER:PASSWORD", "").lower()
            continue
        assert "@" not in found.shown or not url.startswith("redis")


# --- what the kernel and the worker hand over


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


# --- secrets


@fuzz(
    st.one_of(
        BYTES,
        BYTES.map(b"worker-v0 ".__add__),
        st.text("0123456789abcdefABCDEF", max_size=70).map(lambda t: f"worker-v0 {t}\n".encode()),
    )
)
def test_a_key_line_is_a_key_or_one_line_that_does_not_show_it(line: bytes) -> None:
    try:
        key = secrets.parse_key_line(line)
    except SecretError as error:
        one_line(error)
        word = line.removeprefix(b"worker-v0 ").strip()
        assert len(word) < 30 or word.decode("utf-8", "replace") not in str(error)
        return
    assert len(key) in (16, 24, 32)
    assert line.startswith(b"worker-v0 " + line[10:].strip())
    assert bytes.fromhex(line[10:].decode()) == key


def sealed(text: bytes, key: bytes) -> dict[str, str]:
    """`text` under the right key, so that what is wrong is the text."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    data = AESGCM(key).encrypt(bytes(12), text, b"sandboxrun " + KEY.encode())
    return {
        "encryptedAlg": "aes-256-gcm",
        "encryptedIv": bytes(12).hex(),
        "encryptedJson": base64.b64encode(data).decode(),
    }


_ALG = st.one_of(st.none(), st.sampled_from(secrets.ALGORITHMS), TEXT)
_IV = st.one_of(st.sampled_from(["00" * 12, "00" * 16, "0", ""]), TEXT)
_BODY = st.one_of(TEXT, st.binary(max_size=64).map(lambda b: base64.b64encode(b).decode()), st.just("A" * 64))


@fuzz(_ALG, _IV, _BODY, st.sampled_from([16, 24, 32]), examples=250)
def test_garbage_does_not_decrypt(algorithm: str | None, iv: str, body: str, size: int) -> None:
    fields = {"encryptedIv": iv, "encryptedJson": body, **({} if algorithm is None else {"encryptedAlg": algorithm})}
    with pytest.raises(SecretError) as error:
        secrets.decrypt(fields, b"k" * size, worker_key=KEY, type_="demo-worker")
    one_line(error.value)
    assert (b"k" * size).hex() not in str(error.value)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@fuzz(
    st.dictionaries(st.text(max_size=8).filter(lambda n: n != "type"), _JSON, max_size=4),
    st.sampled_from(secrets.ALGORITHMS),
    TEXT,
    examples=FEW,
)
def test_secrets_round_trip_and_only_for_their_worker(found: dict[str, Any], algorithm: str, other: str) -> None:
    key = b"k" * secrets.key_bytes(algorithm)
    fields = secrets.encrypt(found, key, worker_key=KEY, type_="demo-worker", algorithm=algorithm)
    assert secrets.decrypt(fields, key, worker_key=KEY, type_="demo-worker") == {"type": "demo-worker", **found}
    with pytest.raises(SecretError):
        secrets.decrypt(fields, key, worker_key=KEY, type_="other")
    with pytest.raises(SecretError) as error:
        secrets.decrypt(fields, key[::-1][1:] + b"x", worker_key=KEY, type_="demo-worker")
    one_line(error.value)
    if algorithm == "aes-256-gcm" and other != KEY:
        with pytest.raises(SecretError):
            secrets.decrypt(fields, key, worker_key=other, type_="demo-worker")


@fuzz(st.one_of(BYTES, _JSON.map(lambda value: secrets.json.dumps(value).encode())))
def test_what_decrypts_to_another_text_is_one_line_that_does_not_show_it(text: bytes) -> None:
    key = bytes(32)
    with pytest.raises(SecretError) as error:
        secrets.decrypt(sealed(text, key), key, worker_key=KEY, type_="demo-worker")
    one_line(error.value)
    assert len(text) < 8 or text.decode("utf-8", "replace") not in str(error.value)


def test_deeply_nested_secrets_are_a_secret_error() -> None:
    key = bytes(32)
    with pytest.raises(SecretError):
        secrets.decrypt(sealed(b"[" * 100_000, key), key, worker_key=KEY, type_="t")


# --- requests, messages


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
