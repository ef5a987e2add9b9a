from __future__ import annotations

import ipaddress
import json
import marshal

import pytest

from sandboxrun.config.permissions import (
    KINDS,
    Denial,
    Kind,
    NetTarget,
    Permissions,
    RedisTarget,
    Verdict,
    canonical_address,
    canonical_host,
    is_public,
    parse_list,
)
from sandboxrun.errors import ConfigError


def net(allow: str = "", deny: str = "") -> Permissions:
    return Permissions.parse([("allow", "net", allow, "allowNet"), ("deny", "net", deny, "denyNet")])


def allows(permissions: Permissions, address: str, port: int, *names: str) -> bool:
    return permissions.allows_net(ipaddress.ip_address(address), port, names)


@pytest.mark.parametrize(
    ("target", "yes", "no"),
    [
        ("1.2.3.4:80", [("1.2.3.4", 80), ("::ffff:1.2.3.4", 80)], [("1.2.3.4", 81), ("1.2.3.5", 80), ("::1.2.3.4", 80)]),
        ("1.2.3.4", [("1.2.3.4", 1), ("1.2.3.4", 65535)], [("1.2.3.5", 1)]),
        ("[2001:db8::1]:443", [("2001:db8::1", 443)], [("2001:db8::1", 444), ("2001:db8::2", 443)]),
        ("::1", [("::1", 5)], [("127.0.0.1", 5)]),
        ("[::ffff:127.0.0.1]:80", [("127.0.0.1", 80), ("::ffff:127.0.0.1", 80)], [("::1", 80)]),
        ("10.0.0.0/8", [("10.255.0.1", 9)], [("11.0.0.1", 9)]),
        ("10.0.0.0/8:80", [("10.0.0.1", 80)], [("10.0.0.1", 81)]),
        ("[fd00::/8]:80", [("fd12::1", 80)], [("fe80::1", 80)]),
        ("127.0.0.1:6379", [("0.0.0.0", 6379)], [("::", 6379)]),
        ("*", [("8.8.8.8", 53), ("2606:4700::1", 443)], [("127.0.0.1", 80), ("10.0.0.1", 80), ("169.254.169.254", 80), ("::1", 80), ("224.0.0.1", 80)]),
        ("*:443", [("8.8.8.8", 443)], [("8.8.8.8", 80)]),
    ],
)  # fmt: skip
def test_net_targets_by_address(target: str, yes: list[tuple[str, int]], no: list[tuple[str, int]]) -> None:
    for address, port in yes:
        assert allows(net(target), address, port), (address, port)
    for address, port in no:
        assert not allows(net(target), address, port), (address, port)


def test_net_targets_by_name_count_only_for_names_that_were_resolved() -> None:
    permissions = net("api.example.com:443,*.example.org")
    assert allows(permissions, "1.2.3.4", 443, "api.example.com")
    assert not allows(permissions, "1.2.3.4", 80, "api.example.com")
    assert not allows(permissions, "1.2.3.4", 443, "example.com")
    assert not allows(permissions, "1.2.3.4", 443)
    assert allows(permissions, "1.2.3.4", 1, "a.b.example.org")
    assert not allows(permissions, "1.2.3.4", 1, "example.org")
    assert not allows(permissions, "1.2.3.4", 1, "evilexample.org")
    assert permissions.allows_name("api.example.com")
    assert not permissions.allows_name("www.example.com")


@pytest.mark.parametrize("spelling", ["64:ff9b::a01:203", "2002:a01:203::1", "::ffff:10.1.2.3"])
def test_an_address_is_denied_however_a_gateway_would_reach_it(spelling: str) -> None:
    assert allows(net("[::/0],0.0.0.0/0"), spelling, 80)
    for denied in ("10.1.0.0/16", "10.1.2.3:80"):
        assert not allows(net("[::/0],0.0.0.0/0", denied), spelling, 80)
    assert allows(net("[::/0],0.0.0.0/0", "10.1.2.3:81,10.1.2.4"), spelling, 80)
    assert allows(net("*", "10.1.2.3"), "64:ff9b::808:808", 80)
    assert not allows(net("*", "8.8.8.8"), "64:ff9b::808:808", 80)


@pytest.mark.parametrize("spelling", ["64:ff9b::a01:203", "2002:a01:203::1"])
def test_an_allowed_address_is_not_allowed_through_a_gateway(spelling: str) -> None:
    for allowed in ("10.1.2.3", "10.0.0.0/8", "0.0.0.0/0"):
        assert not allows(net(allowed), spelling, 80)


def test_a_denied_name_is_denied_through_a_gateway_and_an_allowed_one_not_allowed() -> None:
    address = ipaddress.ip_address("64:ff9b::808:808")
    names = {"denied_names": ("dns.example",)}
    assert net("[::/0]").allows_net(address, 80, **names)
    assert not net("[::/0]", "dns.example").allows_net(address, 80, **names)
    assert not net("dns.example").allows_net(address, 80, **names)


def test_deny_beats_allow() -> None:
    permissions = net("10.0.0.0/8,*.example.com", "10.1.0.0/16,10.2.0.1:22,secret.example.com,half.example.com:22")
    assert allows(permissions, "10.0.0.1", 80)
    assert not allows(permissions, "10.1.2.3", 80)
    assert not allows(permissions, "10.2.0.1", 22)
    assert allows(permissions, "10.2.0.1", 23)
    assert not permissions.allows_name("secret.example.com")
    assert not allows(permissions, "10.0.0.9", 80, "secret.example.com", "www.example.com")
    assert permissions.allows_name("half.example.com")
    assert not allows(permissions, "1.1.1.1", 22, "half.example.com")


@pytest.mark.parametrize("text", ["", " ", ",", " , ,"])
def test_an_empty_list_grants_nothing(text: str) -> None:
    permissions = net(text)
    assert permissions.allow["net"] == ()
    assert not allows(permissions, "127.0.0.1", 80)
    assert not permissions.allows_name("localhost")


@pytest.mark.parametrize(
    "text",
    ["a:0", "a:65536", "a:x", "a:", "[::1", "[::1]x", "[1.2.3.4]:80", "1.2.3", "127.1", "0x7f.1", "2130706433", "1.2.3.4/33", "10.0.0.1/8",
     "0.0.0.0", "::", "a b", "http://a", "*.", "*.*.com", "a..b", "-a", "a\0b", "x" * 64, "fe80::1%eth0", "*evil.com", "1.2.3.4:80:90"],
)  # fmt: skip
def test_odd_net_targets_are_errors_that_name_the_field(text: str) -> None:
    with pytest.raises(ConfigError, match="allowNet has"):
        net(text)


def test_hosts_are_canonical() -> None:
    assert canonical_host("API.Example.COM.") == "api.example.com"
    assert canonical_host("bücher.example") == "xn--bcher-kva.example"
    assert NetTarget.parse("LocalHost:80") == NetTarget(host="localhost", port=80)


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "100.64.0.1", "::1", "fe80::1", "fd00::1", "::ffff:10.0.0.1",
                                     "64:ff9b::a00:1", "2002:a00:1::", "0.0.0.0", "::", "224.0.0.1", "ff02::1", "192.168.1.1"])  # fmt: skip
def test_addresses_that_no_public_name_may_have(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


def test_public_addresses_and_canonical_forms() -> None:
    assert is_public(ipaddress.ip_address("1.1.1.1"))
    assert is_public(ipaddress.ip_address("64:ff9b::101:101"))
    assert str(canonical_address(ipaddress.ip_address("::ffff:0.0.0.0"))) == "127.0.0.1"
    assert str(canonical_address(ipaddress.ip_address("fe80::1%3"))) == "fe80::1"


def test_a_denial_names_the_narrowest_grant() -> None:
    denial = Denial(Kind.NET, "1.2.3.4:80", "1.2.3.4:80", "demo-worker:1:h")
    assert denial.fields == {"kind": "net", "target": "1.2.3.4:80", "grant": "1.2.3.4:80"}
    assert str(denial) == (
        'Requires net access to "1.2.3.4:80"; grant it with: --allow-net=1.2.3.4:80 (field allowNet of demo-worker:1:h)'
    )


def test_a_denial_by_an_entry_names_no_grant_that_would_not_help() -> None:
    denial = Denial(Kind.NET, "1.2.3.4:80", None, "demo-worker:1:h")
    assert denial.fields["grant"] is None
    assert str(denial) == ('Requires net access to "1.2.3.4:80", which denyNet of demo-worker:1:h refuses')
    permissions = net("10.0.0.0/8,*.example.com", "10.1.0.0/16:80,secret.example.com,half.example.com:22")
    for address, port, names, denied in [
        ("10.1.2.3", 80, (), True),
        ("::ffff:10.1.2.3", 80, (), True),
        ("10.1.2.3", 81, (), False),
        ("192.0.2.1", 80, (), False),
        ("1.1.1.1", 22, ("half.example.com",), True),
    ]:
        assert permissions.denies_net(ipaddress.ip_address(address), port, names) is denied, address
    assert permissions.denies_name("secret.example.com")
    assert not permissions.denies_name("half.example.com")
    assert not permissions.denies_name("www.example.org")


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("read", "rel"),
        ("read", "/a/../b"),
        ("write", "/a\0b"),
        ("env", "A=B"),
        ("env", "LD_PRELOAD"),
        ("env", "PYTHONPATH"),
        ("env", "HOME"),
    ],
)
def test_odd_paths_and_variables_are_errors(kind: str, text: str) -> None:
    with pytest.raises(ConfigError):
        Permissions.parse([("allow", kind, text, "x")])


def test_lists_are_bounded() -> None:
    with pytest.raises(ConfigError, match="at most 256"):
        net(",".join(f"h{n}" for n in range(257)))


def test_every_kind_has_its_flag_and_field() -> None:
    assert [(kind.flag(), kind.field(), kind.flag("deny"), kind.field("deny")) for kind in KINDS.values()][:2] == [
        ("--allow-net", "allowNet", "--deny-net", "denyNet"),
        ("--allow-read", "allowRead", "--deny-read", "denyRead"),
    ]


def test_a_kind_is_its_text_in_json_and_as_a_key_and_permissions_can_be_marshalled() -> None:
    for kind in Kind:
        assert (f"{kind}", json.dumps({kind: kind})) == (KINDS[kind], f'{{"{kind}": "{kind}"}}')
        assert {str(kind): 1}[kind] == 1
    lists = [(verdict, kind, "", "x") for verdict in Verdict for kind in Kind]
    permissions = Permissions.parse(lists)
    assert marshal.loads(marshal.dumps((permissions.allow, permissions.deny))) == (dict.fromkeys(KINDS, ()),) * 2


def test_what_is_shown_reads_back_as_the_same() -> None:
    entries = {
        "net": "example.com,example.com:443,*.example.com:1,*,*:80,127.0.0.1:5,[::1]:5,10.0.0.0/8,[2001:db8::/32]:9,::1",
        "listen": "127.0.0.1:0,[::1]:8000",
        "redis": "chat:*,%R~config:?,%W~log:*,+pubsub:news.*,+eval,+xgroup|destroy",
        "read": "/srv/data",
    }
    for name, text in entries.items():
        targets = parse_list(KINDS[name], text, "x")
        assert len(targets) == len(text.split(","))
        assert parse_list(KINDS[name], ",".join(map(str, targets)), "x") == targets


@pytest.mark.parametrize(
    "text", ["+config", "+client|list", "+keys", "+SCAN", "+acl|setuser", "+@all", "a b", "", "[a]", "a)"]
)
def test_redis_grants_that_are_never_given(text: str) -> None:
    with pytest.raises(ValueError):
        RedisTarget.parse(text)


def test_redis_patterns_match_as_redis_does() -> None:
    assert RedisTarget.parse("~chat:*").matches("chat:1:x")
    assert RedisTarget.parse("%R~a?c").matches("abc")
    assert not RedisTarget.parse("a.c").matches("abc")
    assert not RedisTarget.parse("chat:*").matches("xchat:1")
