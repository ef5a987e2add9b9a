"""TCP to where it was not granted. Each attempt works unconfined, fails confined with the exact errno, and the listener it
was after has no connection more."""

from __future__ import annotations

import errno
import socket

import pytest
from arena import Arena, Listener, full_backlog, in_every_child, listening, needs_ipv6
from attack import arrived, attempt

CONNECT = """
def attempt():
    with socket.create_connection((V["host"], V["port"]), timeout=5) as s:
        return s.recv(5).decode()
"""

# Ways to a port of an allowed host that was not granted (V["port"]); V["good"] was.
WAYS = {
    "create_connection": "return hello(socket.create_connection(('127.0.0.1', V['port'])).detach())",
    "connect_ex": """
        s = socket.socket()
        if found := s.connect_ex(("127.0.0.1", V["port"])):
            raise OSError(found, "connect")
        return hello(s.detach())""",
    "the socket class under Python's own": """
        import _socket
        s = _socket.socket()
        s.connect(("127.0.0.1", V["port"]))
        return s.recv(5).decode()""",
    "libc's connect": """
        s = socket.socket()
        if libc.connect(s.fileno(), inet(V["port"]), 16):
            raise OSError(ctypes.get_errno(), "connect")
        return hello(s.detach())""",
    "raw system calls": "fd = call('socket', 2, 1, 0); call('connect', fd, inet(V['port']), 16); return hello(fd)",
    "type flags": "fd = call('socket', 2, 1 | 0o2000000, 6); call('connect', fd, inet(V['port']), 16); return hello(fd)",
    "garbage in the high halves of registers": """
        fd = call("socket", 2 | HIGH, 1 | HIGH, 6 | HIGH)
        call("connect", fd | HIGH, inet(V["port"]), 16 | HIGH)
        return hello(fd)""",
    "a high half in the system call number": """
        s = socket.socket()
        call(NR["connect"] | HIGH, s.fileno(), inet(V["port"]), 16)
        return hello(s.detach())""",
    "an address of 128 bytes": "return opened(socket.socket(), inet(V['port']) + bytes(112))",
    "padding that is not zero": "return opened(socket.socket(), inet(V['port'])[:8] + b'\\xff' * 8)",
    "an IPv6 socket, mapped": "return opened(socket.socket(10), inet6(V['port'], '::ffff:127.0.0.1'))",
    "mapped, without the scope": "return opened(socket.socket(10), inet6(V['port'], '::ffff:127.0.0.1')[:24])",
    "mapped, with flow and scope": "return opened(socket.socket(10), inet6(V['port'], '::ffff:127.0.0.1', 0xFFFFFFFF, 1))",
    "mapped, unspecified": "return opened(socket.socket(10), inet6(V['port'], '::ffff:0.0.0.0') + bytes(100))",
    "the unspecified address": "return opened(socket.socket(), inet(V['port'], '0.0.0.0'))",
    "no host at all": "s = socket.socket(); s.connect(('', V['port'])); return hello(s.detach())",
    "a duplicate": "s = socket.socket(); return opened(s.dup())",
    "a duplicate with a high number": """
        s = socket.socket()
        fd = fcntl.fcntl(s, fcntl.F_DUPFD, 900)
        return opened(socket.socket(fileno=fd))""",
    "in the place of standard input": "s = socket.socket(); os.dup2(s.fileno(), 0); return opened(socket.socket(fileno=0))",
    "a socket received over a socket": """
        a, b = socket.socketpair()
        s = socket.socket()
        socket.send_fds(a, [b"x"], [s.fileno()])
        return opened(socket.socket(fileno=socket.recv_fds(b, 1, 1)[1][0]))""",
    "not blocking": """
        s = socket.socket()
        s.setblocking(False)
        if (found := s.connect_ex(("127.0.0.1", V["port"]))) not in (0, errno.EINPROGRESS):
            raise OSError(found, "connect")
        select.select([], [s], [], 5)
        s.setblocking(True)
        return hello(s.detach())""",
    "asyncio": """
        import asyncio
        async def go():
            reader, _ = await asyncio.open_connection("127.0.0.1", V["port"])
            return (await reader.readexactly(5)).decode()
        return asyncio.run(go())""",
    "with a time limit in the kernel": """
        s = socket.socket()
        s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", 5, 0))
        return opened(s)""",
    "an address that ends where memory does": """
        page = libc.mmap(None, ctypes.c_long(8192), 3, 0x22, -1, ctypes.c_long(0))
        libc.munmap(ctypes.c_void_p(page + 4096), ctypes.c_long(4096))
        ctypes.memmove(page + 4096 - 16, inet(V["port"]), 16)
        fd = call("socket", 2, 1, 0)
        call("connect", fd, page + 4096 - 16, 16)
        return hello(fd)""",
    "an address in a file": """
        with open("address", "w+b") as file:
            file.write(inet(V["port"])); file.flush()
            page = libc.mmap(None, ctypes.c_long(4096), 1, 1, file.fileno(), ctypes.c_long(0))
        fd = call("socket", 2, 1, 0)
        call("connect", fd, page, 16)
        return hello(fd)""",
    "after a connect that failed": """
        s = socket.socket()
        with socket.socket() as deaf:
            s.connect_ex(("127.0.0.1", V["closed"]))
        return opened(s)""",
    "from a thread": """
        found = []
        def go():
            try: found.append(opened(socket.socket()))
            except OSError as error: found.append(error)
        thread = threading.Thread(target=go); thread.start(); thread.join()
        if isinstance(found[0], OSError): raise found[0]
        return found[0]""",
    "from a signal handler": """
        found = []
        signal.signal(signal.SIGUSR1, lambda *_: found.append(opened(socket.socket())))
        signal.raise_signal(signal.SIGUSR1)
        return found[0]""",
}


@pytest.mark.parametrize("way", WAYS)
def test_no_way_of_connecting_reaches_a_port_not_granted(arena: Arena, listener: Listener, way: str) -> None:
    with listening() as denied, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        allow = {"net": f"127.0.0.1:{listener.port},127.0.0.1:{closed.getsockname()[1]}"}
        arena.refused(
            attempt(WAYS[way]),
            "EACCES",
            works="hello",
            allow=allow,
            port=denied.port,
            good=listener.port,
            closed=closed.getsockname()[1],
        )
        assert arrived(denied) == 1


@pytest.mark.parametrize("missing", [[], ["landlock-tcp"]], ids=["this kernel", "Landlock without TCP"])
def test_a_port_not_granted_is_refused_beside_one_that_is(arena: Arena, listener: Listener, missing: list[str]) -> None:
    with listening() as other:
        allow = {"net": f"127.0.0.1:{listener.port}"}
        assert arena.unconfined(CONNECT, host="127.0.0.1", port=other.port).value == "hello"
        assert arrived(other) == 1
        assert arena.confined(CONNECT, allow=allow, host="127.0.0.1", port=listener.port).value == "hello"
        refused = arena.confined(CONNECT, allow=allow, missing=missing, host="127.0.0.1", port=other.port)
        assert refused.errno == "EACCES"
        assert arrived(other) == 1
        wanted = f'Requires net access to "127.0.0.1:{other.port}"; grant it with: --allow-net=127.0.0.1:{other.port} (field allowNet of test:1:h)'
        assert wanted in refused.stderr.splitlines()


@pytest.mark.parametrize(
    ("listens", "host", "allow"),
    [
        ("127.0.0.1", "127.0.0.1", ""),
        ("127.0.0.1", "127.0.0.1", "127.0.0.2:PORT"),
        ("127.0.0.2", "127.0.0.2", "127.0.0.1:PORT"),
        ("127.0.0.4", "127.0.0.4", "127.0.0.0/30"),
        ("127.255.255.254", "127.255.255.254", "127.0.0.0/9"),
        ("127.0.0.1", "0.0.0.0", "127.0.0.2"),
        ("127.0.0.2", "::ffff:127.0.0.2", "127.0.0.1,[::1],[::ffff:127.0.0.1]"),
        ("127.0.0.1", "127.0.0.1", "[::1]:PORT"),
        ("127.0.0.1", "127.0.0.1", "[::]/0"),
        ("127.0.0.1", "::ffff:127.0.0.1", "[::1]:PORT,::/0"),
        ("::1", "::1", "127.0.0.1:PORT,0.0.0.0/0"),
        ("::1", "::", "127.0.0.1:PORT,0.0.0.0/0"),
        ("::1", "::1", "*"),
        ("127.0.0.1", "127.0.0.1", "*:PORT"),
        ("127.0.0.1", "localhost", "*.localhost"),
    ],
)
def test_no_other_address_is_reached(arena: Arena, listens: str, host: str, allow: str) -> None:
    family = socket.AF_INET6 if ":" in listens else socket.AF_INET
    with listening(family, (listens, 0)) as other:
        grant = {"net": allow.replace("PORT", str(other.port)).replace("[::]/0", "::/0")}
        arena.refused(CONNECT, "EACCES", works="hello", allow=grant, host=host, port=other.port)
        assert arrived(other) == 1


BOUND = attempt("""
    s = socket.socket(getattr(socket, V["family"]))
    s.bind((V["bound"], 0))
    return opened(s, (inet if V["family"] == "AF_INET" else inet6)(V["port"], V["host"]))
""")


@pytest.mark.parametrize(("family", "mapped"), [("AF_INET", ""), ("AF_INET6", "::ffff:")])
def test_the_unspecified_address_is_not_the_one_that_a_socket_is_bound_to(
    arena: Arena, listener: Listener, family: str, mapped: str
) -> None:
    """The kernel takes it for the socket's own address, where it has one: a second one of this machine."""
    listen = {"listen": "127.0.0.2:0"}
    way: dict[str, object] = {"family": family, "host": mapped + "0.0.0.0", "bound": mapped + "127.0.0.2"}
    way["port"] = listener.port
    with listening(address=("127.0.0.2", listener.port)) as other:
        assert arena.unconfined(BOUND, **way).value == "hello"
        assert (arrived(other), arrived(listener)) == (1, 0)
        refused = arena.confined(BOUND, allow={"net": f"127.0.0.3:{listener.port}", **listen}, **way)
        assert refused.errno == "EACCES", refused
        assert (arrived(other), arrived(listener)) == (1, 0)
        held = arena.confined(BOUND, allow={"net": f"127.0.0.1:{listener.port}", **listen}, **way)
        assert held.value == "hello", held
        assert (arrived(other), arrived(listener)) == (1, 1)


def test_the_unspecified_ipv6_address_is_not_the_ipv4_loopback_of_a_bound_socket(
    arena: Arena, listener: Listener
) -> None:
    """The kernel takes it for 127.0.0.1 where the socket is bound to a mapped address; [::1] is what is decided on."""
    needs_ipv6()
    way: dict[str, object] = {"family": "AF_INET6", "host": "::", "bound": "::ffff:127.0.0.2", "port": listener.port}
    assert arena.unconfined(BOUND, **way).value == "hello"
    assert arrived(listener) == 1
    allow = {"net": f"[::1]:{listener.port}", "listen": "127.0.0.2:0"}
    held = arena.confined(BOUND, allow=allow, **way)
    assert held.errno == "EAFNOSUPPORT", held
    assert arrived(listener) == 1


@in_every_child
def test_a_denied_port_of_an_allowed_block_is_refused(arena: Arena, listener: Listener) -> None:
    allow, deny = {"net": "127.0.0.0/8"}, {"net": f"127.0.0.1:{listener.port}"}
    held = arena.refused(CONNECT, "EACCES", works="hello", allow=allow, deny=deny, host="127.0.0.1", port=listener.port)
    assert f'Requires net access to "127.0.0.1:{listener.port}", which denyNet of test:1:h refuses' in held.stderr
    assert arrived(listener) == 1
    assert arena.confined(CONNECT, allow=allow, host="127.0.0.1", port=listener.port).value == "hello"


NUMERIC = [
    "0", "0x0", "127.1", "127.0.1", "0x7f.1", "0x7f000001", "0X7F000001", "2130706433", "017700000001", "0177.0.0.1", "127.0.0.01",
]  # fmt: skip


@pytest.mark.parametrize("deny", ["127.0.0.0/8,::1/128", "[::ffff:127.0.0.1],[::1]"])
@pytest.mark.parametrize("host", ["0.0.0.0", "::ffff:127.0.0.1", "::ffff:7f00:1", "::ffff:0.0.0.0", "127.0.0.1"])
def test_no_address_goes_around_its_denial(arena: Arena, listener: Listener, host: str, deny: str) -> None:
    allow = {"net": "0.0.0.0/0,::/0,localhost"}
    arena.refused(CONNECT, "EACCES", works="hello", allow=allow, deny={"net": deny}, host=host, port=listener.port)
    assert arrived(listener) == 1


def test_a_denied_block_of_mapped_addresses_is_denied(arena: Arena, listener: Listener) -> None:
    allow, deny = {"net": "127.0.0.0/8"}, {"net": "::ffff:127.0.0.0/104"}
    arena.refused(CONNECT, "EACCES", works="hello", allow=allow, deny=deny, host="127.0.0.1", port=listener.port)
    assert arrived(listener) == 1


@pytest.mark.parametrize("host", ["localhost", "LocalHost", *NUMERIC])
def test_no_spelling_of_a_host_goes_around_its_denial(arena: Arena, listener: Listener, host: str) -> None:
    allow, deny = {"net": "0.0.0.0/0,::/0,localhost"}, {"net": "127.0.0.1,[::1]"}
    arena.refused(CONNECT, "EACCES", works="hello", allow=allow, deny=deny, host=host, port=listener.port)
    assert arrived(listener) == 1


def test_ipv6_is_denied_by_its_address_however_it_is_written(arena: Arena) -> None:
    with listening(socket.AF_INET6, ("::1", 0)) as listener:
        for number, host in enumerate(["::", "0:0:0:0:0:0:0:1", "::0.0.0.1", "::1%1"], 1):
            arena.refused(
                CONNECT,
                "EACCES",
                works="hello",
                allow={"net": "::/0"},
                deny={"net": "[::1]"},
                host=host,
                port=listener.port,
            )
            assert arrived(listener) == number


# Disconnecting forgets the allowed peer; a disconnected socket may be connected again, or listen.
UNSPEC = {
    "2 bytes": "bytes(2)",
    "16 bytes": "bytes(16)",
    "128 bytes": "bytes(128)",
    "the denied address behind it": "bytes(2) + inet(V['port'])[2:]",
}


@pytest.mark.parametrize("address", UNSPEC)
@pytest.mark.parametrize("family", ["AF_INET", "AF_INET6"])
def test_disconnecting_with_af_unspec_is_refused(arena: Arena, listener: Listener, family: str, address: str) -> None:
    code = """
        host = ("" if V["family"] == "AF_INET" else "::ffff:") + "127.0.0.1"
        with socket.socket(getattr(socket, V["family"])) as s:
            s.connect((host, V["good"]))
            address = ADDRESS
            call("connect", s.fileno(), address, len(address))
            s.connect((host, V["port"]))
            return s.recv(5).decode()
    """
    with listening() as denied:
        arena.refused(
            attempt(code.replace("ADDRESS", UNSPEC[address])),
            "EACCES",
            works="hello",
            allow={"net": f"127.0.0.1:{listener.port}"},
            family=family,
            port=denied.port,
            good=listener.port,
        )
        assert arrived(denied) == 1


def test_af_unspec_on_a_fresh_socket_is_refused(arena: Arena) -> None:
    code = attempt("s = socket.socket(); return call('connect', s.fileno(), bytes(16), 16)")
    arena.refused(code, "EACCES", works=0, allow={"net": "127.0.0.0/8"})


MALFORMED = {
    "no length": ("inet(V['port'])", "0", "EINVAL", "EINVAL"),
    "one byte": ("inet(V['port'])", "1", "EINVAL", "EINVAL"),
    "one short": ("inet(V['port'])", "15", "EINVAL", "EINVAL"),
    "longer than any address": ("inet(V['port']) + bytes(1000)", "129", "EINVAL", "EINVAL"),
    "a negative length": ("inet(V['port'])", "-1", "EINVAL", "EINVAL"),
    "the most negative length": ("inet(V['port'])", "-(1 << 31)", "EINVAL", "EINVAL"),
    "the greatest length": ("inet(V['port'])", "(1 << 31) - 1", "EINVAL", "EINVAL"),
    "a length that is short in its low half": ("inet(V['port'])", "16 << 32 | 2", "EINVAL", "EINVAL"),
    "no address": ("0", "16", "EFAULT", "EFAULT"),
    "an address of the kernel": ("-4096", "16", "EFAULT", "EFAULT"),
    "the last address": ("-1", "16", "EFAULT", "EFAULT"),
    "memory that ends too early": ("page_end(inet(V['port'])[:8])", "16", "EFAULT", "EFAULT"),
    "memory nobody may read": ("unreadable(inet(V['port']))", "16", "EFAULT", "EACCES"),
    "IPv6 of a short length": ("inet6(V['port'], '::ffff:127.0.0.1')", "23", "EAFNOSUPPORT", "EINVAL"),
    "IPv6 on an IPv4 socket": ("inet6(V['port'], '::ffff:127.0.0.1')", "28", "EAFNOSUPPORT", "EACCES"),
    "another family": ("struct.pack('=H', 99) + inet(V['port'])[2:]", "16", "EAFNOSUPPORT", "EACCES"),
}
MEMORY = """
def page(data):
    start = libc.mmap(None, ctypes.c_long(8192), 3, 0x22, -1, ctypes.c_long(0))
    ctypes.memmove(start + 4096 - len(data), data, len(data))
    return start
def page_end(data):
    start = page(data)
    libc.munmap(ctypes.c_void_p(start + 4096), ctypes.c_long(4096))
    return start + 4096 - len(data)
def unreadable(data):
    start = page(data)
    libc.mprotect(ctypes.c_void_p(start), ctypes.c_long(8192), 0)
    return start + 4096 - len(data)
"""


@pytest.mark.parametrize("how", MALFORMED)
def test_a_malformed_address_reaches_nobody(arena: Arena, listener: Listener, how: str) -> None:
    """What the kernel refuses by itself: the supervisor, which reads in its place, takes it for nothing else."""
    address, length, free, held = MALFORMED[how]
    code = MEMORY + attempt(f"s = socket.socket(); return call('connect', s.fileno(), {address}, {length})")
    assert arena.unconfined(code, port=listener.port).errno == free
    assert arena.confined(code, allow={"net": "127.0.0.2"}, port=listener.port).errno == held
    assert arrived(listener) == 0


def test_a_connected_socket_stays_where_it_is(arena: Arena, listener: Listener) -> None:
    code = attempt("s = socket.create_connection(('127.0.0.1', V['good'])); return opened(s)")
    with listening() as denied:
        ports = {"port": denied.port, "good": listener.port}
        assert arena.unconfined(code, **ports).errno == "EISCONN"
        assert arena.confined(code, allow={"net": f"127.0.0.1:{listener.port}"}, **ports).errno == "EACCES"
        assert arrived(denied) == 0


def test_a_socket_that_gave_up_connecting_cannot_go_elsewhere(arena: Arena, listener: Listener) -> None:
    code = attempt("""
        s = socket.socket()
        s.setblocking(False)
        s.connect_ex(("127.0.0.1", V["hanging"]))
        s.shutdown(socket.SHUT_RDWR)
        s.setblocking(True)
        return opened(s)
    """)
    with full_backlog() as hanging:
        allow = {"net": f"127.0.0.1:{hanging}"}
        arena.refused(code, "EACCES", works="hello", allow=allow, hanging=hanging, port=listener.port)
    assert arrived(listener) == 1


@pytest.mark.parametrize("address", ["64:ff9b::7f00:1", "2002:7f00:1::1"])
@pytest.mark.parametrize("deny", ["127.0.0.1", "127.0.0.0/8", "localhost"])
def test_a_denied_address_is_denied_behind_a_gateway(arena: Arena, address: str, deny: str) -> None:
    needs_ipv6()
    code = "def attempt():\n    s = socket.socket(socket.AF_INET6)\n    s.setblocking(False)\n    return s.connect_ex((V['address'], 9))"
    free = arena.unconfined(code, address=address).value
    assert free in (errno.EINPROGRESS, errno.ENETUNREACH, errno.EHOSTUNREACH)
    assert arena.confined(code, allow={"net": "[::/0]"}, address=address).value == free
    held = arena.confined(code, allow={"net": "[::/0]"}, deny={"net": deny}, address=address)
    assert held.value == errno.EACCES
    assert f'Requires net access to "[{address}]:9"' in held.stderr
