"""TCP sockets made into something else: fast open, MPTCP, options, listening. Each attempt works unconfined, fails confined
with the exact errno, and nothing arrives."""

from __future__ import annotations

import textwrap

import pytest
from arena import Arena, Listener, listening, needs_ipv6
from attack import RAW, arrived, attempt

FAST_OPEN = {
    "sendto": "s.sendto(b'fast', socket.MSG_FASTOPEN, ('127.0.0.1', V['port']))",
    "sendto, more flags": "s.sendto(b'fast', socket.MSG_FASTOPEN | socket.MSG_NOSIGNAL, ('127.0.0.1', V['port']))",
    "sendto, raw": "call('sendto', s.fileno() | HIGH, b'fast', 4, 0x20000000 | HIGH, inet(V['port']), 16 | HIGH)",
    "sendmsg": "s.sendmsg([b'fast'], [], socket.MSG_FASTOPEN, ('127.0.0.1', V['port']))",
    "sendmsg, raw": "call('sendmsg', s.fileno(), msghdr(b'fast', inet(V['port'])), 0x20000000 | HIGH)",
    "sendmmsg": "call('sendmmsg', s.fileno(), msghdr(b'fast', inet(V['port'])), 1, 0x20000000)",
    "TCP_FASTOPEN_CONNECT": "s.setsockopt(6, 30, 1); s.connect(('127.0.0.1', V['port'])); s.send(b'fast')",
    "TCP_FASTOPEN_CONNECT and an address in sendmsg": """
        s.setsockopt(6, 30, 1)
        s.connect(("127.0.0.1", V["good"]))
        s.sendmsg([b"fast"], [], 0, ("127.0.0.1", V["port"]))""",
}


@pytest.mark.parametrize("way", FAST_OPEN)
def test_tcp_fast_open_is_refused(arena: Arena, listener: Listener, way: str) -> None:
    code = attempt(f"s = socket.socket()\n{textwrap.dedent(FAST_OPEN[way])}\nreturn hello(s.detach())")
    with listening() as good:
        allow = {"net": f"127.0.0.1:{good.port}"}
        arena.refused(code, "EPERM", works="hello", allow=allow, port=listener.port, good=good.port)
        # The last way's connection goes where connect said; what counts is that confined there is none.
        assert arrived(listener) + arrived(good) == 1


@pytest.mark.parametrize(
    ("protocol", "family", "host"),
    [
        ("262", "2", "127.0.0.1"),
        ("262", "10", "::ffff:127.0.0.1"),
        ("262 | HIGH", "2 | HIGH", "127.0.0.1"),
    ],
    ids=["IPv4", "IPv6", "garbage in the high halves"],
)
def test_mptcp_is_refused(arena: Arena, listener: Listener, protocol: str, family: str, host: str) -> None:
    code = attempt(f"""
        fd = call("socket", {family}, 1, {protocol})
        return opened(socket.socket(fileno=fd), inet6(V["port"], V["host"]) if ":" in V["host"] else inet(V["port"]))
    """)
    free = arena.unconfined(code, host=host, port=listener.port)
    if free.errno in ("EPROTONOSUPPORT", "ENOPROTOOPT"):
        pytest.skip("this kernel has no MPTCP, so its refusal would show nothing")
    assert free.value == "hello"
    held = arena.confined(code, allow={"net": f"127.0.0.1:{listener.port}"}, host=host, port=listener.port)
    assert held.errno == "EPERM"
    assert arrived(listener) == 1


# Options that choose another path for packets, make a socket what it was not, or open ways of their own: level, name, value.
OPTIONS = {
    "a loose source route": (0, 4, "b'\\x83\\x07\\x04\\x7f\\x00\\x00\\x02\\x00'"),
    "a record of the route": (0, 4, "b'\\x07\\x07\\x04\\x00\\x00\\x00\\x00\\x00'"),
    "IP_TRANSPARENT": (0, 19, 1), "IP_FREEBIND": (0, 15, 1), "IP_BIND_ADDRESS_NO_PORT": (0, 24, 1), "IP_RECVERR": (0, 11, 1),
    "IP_LOCAL_PORT_RANGE": (0, 51, 0), "IP_UNICAST_IF": (0, 50, 0), "IP_MTU_DISCOVER": (0, 10, 3), "IP_HDRINCL": (0, 3, 1),
    "IPV6_TRANSPARENT": (41, 75, 1), "IPV6_FREEBIND": (41, 78, 1), "IPV6_RECVERR": (41, 25, 1), "IPV6_RTHDR": (41, 57, "b''"),
    "IPV6_HOPOPTS": (41, 54, "b''"), "IPV6_ADDRFORM": (41, 1, 2), "IPV6_PKTINFO": (41, 50, "bytes(20)"),
    "SO_BINDTODEVICE": (1, 25, "b'lo\\0'"), "SO_BINDTOIFINDEX": (1, 62, 0), "SO_MARK": (1, 36, 7), "SO_DONTROUTE": (1, 5, 1),
    "SO_BROADCAST": (1, 6, 1), "SO_ATTACH_FILTER": (1, 26, "program()"), "SO_LOCK_FILTER": (1, 44, 1), "SO_PASSCRED": (1, 16, 0),
    "SO_ATTACH_REUSEPORT_CBPF": (1, 51, "program()"), "SO_ZEROCOPY": (1, 60, 1), "SO_TXTIME": (1, 61, "b'\\x01' + bytes(7)"),
    "SO_REUSEPORT": (1, 15, 1), "SO_RCVBUFFORCE": (1, 33, 4096), "SO_DEBUG": (1, 1, 1), "SO_TIMESTAMPING": (1, 37, 1), "SO_BUSY_POLL": (1, 46, 0),
    "TCP_FASTOPEN": (6, 23, 5), "TCP_FASTOPEN_CONNECT": (6, 30, 1), "TCP_FASTOPEN_KEY": (6, 33, "bytes(16)"),
    "TCP_FASTOPEN_NO_COOKIE": (6, 34, 1), "TCP_DEFER_ACCEPT": (6, 9, 1), "TCP_REPAIR": (6, 19, 1), "TCP_ULP": (6, 31, "b'smc'"),
    "TCP_MD5SIG": (6, 14, "inet(0, '127.0.0.9') + bytes(112) + struct.pack('=BBHi', 0, 0, 3, 0) + b'key' + bytes(77)"),
    "TCP_CONGESTION": (6, 13, "b'reno'"), "TCP_SAVE_SYN": (6, 27, 1), "TCP_TX_DELAY": (6, 37, 0), "MPTCP's": (284, 1, 1),
    "netfilter's table": (0, 64, "bytes(100)"),
}  # fmt: skip
SET_ALL = """
def program():  # struct sock_fprog: one instruction, return everything
    global kept
    kept = ctypes.create_string_buffer(struct.pack("=HBBI", 6, 0, 0, 0xFFFFFFFF))
    return struct.pack("@HP", 1, ctypes.addressof(kept))
def set_one(fd, level, name, value):
    value = struct.pack("=i", value) if isinstance(value, int) else eval(value)
    try:
        call("setsockopt", fd, level, name, value, len(value))
    except OSError as error:
        return errno.errorcode[error.errno]
def attempt():
    found = {}
    for title, (level, name, value) in V["options"].items():
        def fresh():
            return socket.socket(socket.AF_INET6 if level == 41 else socket.AF_INET)
        with fresh() as one, fresh() as two:
            found[title] = [set_one(one.fileno(), level, name, value), set_one(two.fileno(), level | HIGH, name | HIGH, value),
                            set_one(-1, level, name, value)]
    return found
"""


@pytest.fixture(scope="module")
def option_errnos(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """What setting each option gave: unconfined and confined; on a socket, with high halves of registers, without a socket."""
    arena = Arena(tmp_path_factory.mktemp("options"))
    code = RAW + SET_ALL
    return arena.unconfined(code, options=OPTIONS).value, arena.confined(code, options=OPTIONS).value


@pytest.mark.parametrize("option", OPTIONS)
def test_no_option_makes_another_socket_of_a_tcp_socket(
    option_errnos: tuple[dict[str, list[str]], dict[str, list[str]]], option: str
) -> None:
    free, held = (errnos[option] for errnos in option_errnos)
    # Where this user or kernel cannot set it, EBADF shows that EPERM is not what the kernel says first.
    assert free[0] in (None, "EPERM", "ENOPROTOOPT", "ENOENT", "EACCES", "ENOTSUP", "ENOTCONN", "EINVAL"), free
    assert free[2] == "EBADF"
    assert held == ["EPERM"] * 3


def test_most_options_can_be_set_unconfined(
    option_errnos: tuple[dict[str, list[str]], dict[str, list[str]]],
) -> None:
    assert sum(errnos[0] is None for errnos in option_errnos[0].values()) >= 20


LISTEN = {
    "bind": "s.bind(('127.0.0.1', 0))",
    "bind, raw": "call('bind', s.fileno() | HIGH, inet(0), 16 | HIGH)",
    "bind, IPv6": "s = socket.socket(socket.AF_INET6); s.bind(('::1', 0))",
    "bind, mapped": "s = socket.socket(socket.AF_INET6); s.bind(('::ffff:127.0.0.1', 0))",
    "bind beside another": "s.setsockopt(1, socket.SO_REUSEADDR, 1); s.bind(('127.0.0.1', 0))",
    "bind and listen": "s.bind(('127.0.0.1', 0)); s.listen()",
    "listen without bind": "s.listen()",
    "listen, raw": "call('listen', s.fileno() | HIGH, 1 | HIGH)",
    "listen, IPv6": "s = socket.socket(socket.AF_INET6); s.listen()",
    "create_server": "s = socket.create_server(('127.0.0.1', 0))",
    "asyncio": """
        import asyncio
        async def go():
            server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
            return server.sockets[0].dup()
        s = asyncio.run(go())
        s = socket.socket(fileno=s.detach()) if hasattr(s, "detach") else s""",
    "a listening socket that accepts": """
        s.listen(1)
        port = s.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            s.accept()[0].close()""",
}


@pytest.mark.parametrize("way", LISTEN)
def test_listening_is_refused(arena: Arena, way: str) -> None:
    if "IPv6" in way:
        needs_ipv6()
    code = attempt(f"s = socket.socket()\n{textwrap.dedent(LISTEN[way])}\nreturn s.getsockname()[1] > 0")
    arena.refused(code, "EPERM", works=True, allow={"net": "127.0.0.0/8,[::1]"})


@pytest.mark.parametrize("name", ["accept", "accept4"])
def test_accepting_is_refused(arena: Arena, name: str) -> None:
    code = attempt(f"s = socket.socket(); call('{name}', s.fileno(), 0, 0, 0)")
    assert arena.unconfined(code).errno == "EINVAL"  # it does not listen
    assert arena.confined(code).errno == "EPERM"


@pytest.mark.parametrize("way", ["sendto", "sendto, raw"])
def test_sending_to_an_address_is_refused_even_where_tcp_ignores_it(arena: Arena, listener: Listener, way: str) -> None:
    code = attempt("""
        s = socket.create_connection(("127.0.0.1", V["good"]))
        if V["way"] == "sendto":
            return s.sendto(b"leak", ("127.0.0.1", V["port"]))
        return call("sendto", s.fileno(), b"leak", 4, 0, inet(V["port"]), 16)
    """)
    with listening() as denied:
        ports = {"port": denied.port, "good": listener.port}
        arena.refused(code, "EPERM", works=4, allow={"net": f"127.0.0.1:{listener.port}"}, way=way, **ports)
        assert arrived(denied) == 0
