"""What a worker must not do. Each test shows that the act succeeds unconfined, fails confined with the exact errno, and
that nothing arrived on the other side."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from arena import Arena, Listener, listening, wait_for

CONNECT = """
def attempt():
    with socket.create_connection((V["host"], V["port"]), timeout=5) as s:
        return s.recv(5).decode()
"""


@pytest.mark.parametrize("abi", [None, 3], ids=["this kernel", "Landlock without TCP"])
def test_another_port_of_an_allowed_host_is_refused(arena: Arena, listener: Listener, abi: int | None) -> None:
    with listening() as other:
        allow = {"net": f"127.0.0.1:{listener.port}"}
        assert arena.unconfined(CONNECT, host="127.0.0.1", port=other.port).value == "hello"
        assert other.connections == 1
        assert arena.confined(CONNECT, allow=allow, host="127.0.0.1", port=listener.port).value == "hello"
        refused = arena.confined(CONNECT, allow=allow, abi=abi, host="127.0.0.1", port=other.port)
        assert refused.errno == "EACCES"
        assert other.connections == 1
        wanted = f'Requires net access to "127.0.0.1:{other.port}"; grant it with: --allow-net=127.0.0.1:{other.port} (field allowNet of test:1:h)'
        assert wanted in refused.stderr.splitlines()


def test_another_address_with_an_allowed_port_is_refused(arena: Arena) -> None:
    with listening(address=("127.0.0.2", 0)) as other:
        allow = {"net": f"127.0.0.1:{other.port}"}
        assert arena.unconfined(CONNECT, host="127.0.0.2", port=other.port).value == "hello"
        assert arena.confined(CONNECT, allow=allow, host="127.0.0.2", port=other.port).errno == "EACCES"
        assert other.connections == 1


def test_a_denied_port_of_an_allowed_block_is_refused(arena: Arena, listener: Listener) -> None:
    deny = {"net": f"127.0.0.1:{listener.port}"}
    allow = {"net": "127.0.0.0/8"}
    assert arena.unconfined(CONNECT, host="127.0.0.1", port=listener.port).value == "hello"
    assert arena.confined(CONNECT, allow=allow, deny=deny, host="127.0.0.1", port=listener.port).errno == "EACCES"
    assert listener.connections == 1
    assert arena.confined(CONNECT, allow=allow, host="127.0.0.1", port=listener.port).value == "hello"


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::ffff:127.0.0.1", "::ffff:0.0.0.0", "localhost", "127.1", "0x7f000001", "2130706433"]
)
def test_no_spelling_of_an_address_goes_around_its_denial(arena: Arena, listener: Listener, host: str) -> None:
    allow, deny = {"net": "0.0.0.0/0,::/0,localhost"}, {"net": "127.0.0.1,[::1]"}
    assert arena.unconfined(CONNECT, host=host, port=listener.port).value == "hello"
    assert arena.confined(CONNECT, allow=allow, deny=deny, host=host, port=listener.port).errno == "EACCES"
    assert listener.connections == 1


def test_nothing_listed_is_nothing_granted(arena: Arena, listener: Listener) -> None:
    assert arena.unconfined(CONNECT, host="127.0.0.1", port=listener.port).value == "hello"
    assert arena.confined(CONNECT, allow={"net": ""}, host="127.0.0.1", port=listener.port).errno == "EACCES"
    assert listener.connections == 1


def test_a_non_blocking_connect_is_refused(arena: Arena, listener: Listener) -> None:
    code = """
    def attempt():
        import select
        with socket.socket() as s:
            s.setblocking(False)
            result = s.connect_ex(("127.0.0.1", V["port"]))
            if result != errno.EINPROGRESS:
                raise OSError(result, "connect")
            select.select([], [s], [], 5)
            s.setblocking(True)
            return s.recv(5).decode()
    """
    assert arena.unconfined(code, port=listener.port).value == "hello"
    assert arena.confined(code, port=listener.port).errno == "EACCES"
    assert listener.connections == 1
    assert arena.confined(code, allow={"net": f"127.0.0.1:{listener.port}"}, port=listener.port).value == "hello"


def test_disconnecting_with_af_unspec_is_refused(arena: Arena, listener: Listener) -> None:
    code = """
    def attempt():
        import ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        with socket.create_connection(("127.0.0.1", V["port"])) as s:
            if libc.connect(s.fileno(), bytes(16), 16):
                raise OSError(ctypes.get_errno(), "connect")
        return "disconnected"
    """
    assert arena.unconfined(code, port=listener.port).value == "disconnected"
    assert arena.confined(code, allow={"net": f"127.0.0.1:{listener.port}"}, port=listener.port).errno == "EACCES"


def test_tcp_fast_open_by_flag_is_refused(arena: Arena, listener: Listener) -> None:
    code = """
    def attempt():
        with socket.socket() as s:
            s.sendto(b"fast", socket.MSG_FASTOPEN, ("127.0.0.1", V["port"]))
            return s.recv(5).decode()
    """
    assert arena.unconfined(code, port=listener.port).value == "hello"
    assert arena.confined(code, port=listener.port).errno == "EPERM"
    assert listener.connections == 1


def test_tcp_fast_open_by_sendmsg_is_refused(arena: Arena, listener: Listener) -> None:
    code = """
    def attempt():
        with socket.socket() as s:
            s.sendmsg([b"fast"], [], socket.MSG_FASTOPEN, ("127.0.0.1", V["port"]))
            return s.recv(5).decode()
    """
    assert arena.unconfined(code, port=listener.port).value == "hello"
    assert arena.confined(code, port=listener.port).errno == "EPERM"
    assert listener.connections == 1


def test_mptcp_is_refused(arena: Arena, listener: Listener) -> None:
    code = """
    def attempt():
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262) as s:
            s.connect(("127.0.0.1", V["port"]))
            return s.recv(5).decode()
    """
    free = arena.unconfined(code, port=listener.port)
    if free.errno in ("EPROTONOSUPPORT", "ENOPROTOOPT"):
        pytest.skip("this kernel has no MPTCP, so its refusal would show nothing")
    assert free.value == "hello"
    assert arena.confined(code, port=listener.port).errno == "EPERM"
    assert listener.connections == 1


def test_an_address_rewritten_by_a_racing_thread_reaches_only_the_allowed_host(
    arena: Arena, listener: Listener
) -> None:
    code = """
    def attempt():
        import ctypes, struct, threading, time
        libc = ctypes.CDLL(None, use_errno=True)
        good = struct.pack("=HH4s8x", 2, socket.htons(V["allowed"]), bytes([127, 0, 0, 1]))
        evil = struct.pack("=HH4s8x", 2, socket.htons(V["denied"]), bytes([127, 0, 0, 1]))
        buffer = ctypes.create_string_buffer(good, 16)
        sys.setswitchinterval(0.0001)
        stop = []
        def flip():
            turn = 0
            while not stop:
                buffer.raw = (evil, good)[turn]  # one a turn: threads change places between turns, so after either
                turn ^= 1
        thread = threading.Thread(target=flip)
        thread.start()
        done = refused = 0
        for _ in range(300):
            time.sleep(0.00005)  # let the other thread run, and stop it anywhere
            with socket.socket() as s:
                if libc.connect(s.fileno(), buffer, 16) == 0:
                    done += 1
                else:
                    refused += 1
        stop.append(1)
        thread.join()
        return [done, refused]
    """
    with listening() as denied:
        free = arena.unconfined(code, allowed=listener.port, denied=denied.port)
        # Both listeners accept in threads of their own: wait until every connection made is counted.
        wait_for(lambda: listener.connections + denied.connections == free.value[0])
        assert denied.connections > 0, "the race was never lost unconfined, so it would show nothing"
        before = (listener.connections, denied.connections)
        held = arena.confined(
            code, allow={"net": f"127.0.0.1:{listener.port}"}, allowed=listener.port, denied=denied.port
        )
        assert held.value[0] > 0
        assert sum(held.value) == 300
        wait_for(lambda: listener.connections == before[0] + held.value[0])
        assert denied.connections == before[1]


@pytest.mark.parametrize("way", ["sendto", "sendmsg", "connect and send"])
def test_udp_is_refused(arena: Arena, way: str) -> None:
    code = """
    def attempt():
        peer = ("127.0.0.1", V["port"])
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            if V["way"] == "sendto":
                return s.sendto(b"leak", peer)
            if V["way"] == "sendmsg":
                return s.sendmsg([b"leak"], [], 0, peer)
            s.connect(peer)
            return s.send(b"leak")
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(5)
        port = receiver.getsockname()[1]
        assert arena.unconfined(code, way=way, port=port).value == 4
        assert receiver.recv(16) == b"leak"
        assert arena.confined(code, allow={"net": f"127.0.0.1:{port}"}, way=way, port=port).errno == "EPERM"
        receiver.setblocking(False)
        with pytest.raises(BlockingIOError):
            receiver.recv(16)


UNIX = """
def attempt():
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(V["path"])
        return s.recv(5).decode()
"""


def test_a_unix_socket_is_refused(arena: Arena, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with listening(socket.AF_UNIX, path) as listener:
        assert arena.unconfined(UNIX, path=path).value == "hello"
        assert arena.confined(UNIX, allow={"read": str(tmp_path)}, path=path).errno == "EPERM"
        assert listener.connections == 1


def test_an_abstract_unix_socket_is_refused(arena: Arena) -> None:
    name = f"\0sandboxrun-test-{os.getpid()}"
    with listening(socket.AF_UNIX, name) as listener:
        assert arena.unconfined(UNIX, path=name).value == "hello"
        assert arena.confined(UNIX, path=name).errno == "EPERM"
        assert listener.connections == 1


def test_where_redis_is_a_unix_socket_no_other_one_can_be_connected(arena: Arena, tmp_path: Path) -> None:
    redis, other = str(tmp_path / "redis"), str(tmp_path / "other")
    with listening(socket.AF_UNIX, redis) as allowed, listening(socket.AF_UNIX, other) as denied:
        assert arena.unconfined(UNIX, path=other).value == "hello"
        assert arena.confined(UNIX, redis=redis, path=redis).value == "hello"
        assert arena.confined(UNIX, redis=redis, path=other).errno == "EACCES"
        assert (allowed.connections, denied.connections) == (1, 1)


def test_listening_is_refused(arena: Arena) -> None:
    code = """
    def attempt():
        with socket.socket() as s:
            if V["bind"]:
                s.bind(("127.0.0.1", 0))
            s.listen()
            return s.getsockname()[1] > 0
    """
    for bind in (True, False):  # listen(2) without bind(2) takes a port by itself
        assert arena.unconfined(code, bind=bind).value is True
        assert arena.confined(code, allow={"net": "127.0.0.0/8"}, bind=bind).errno == "EPERM"


def test_the_32_bit_system_call_table_kills(arena: Arena) -> None:
    if os.uname().machine != "x86_64":
        pytest.skip("int 0x80 is of x86")
    code = """
    def attempt():
        import ctypes, mmap
        # mov eax, 20 (getpid of i386); int 0x80; ret
        page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        page.write(bytes([0xB8, 20, 0, 0, 0, 0xCD, 0x80, 0xC3]))
        call = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
        return call() == os.getpid()
    """
    free = arena.unconfined(code)
    if free.errno == "NO OUTCOME":
        pytest.skip("this kernel has no 32-bit system calls")
    assert free.value is True
    assert arena.confined(code).code == 128 + 31  # SIGSYS
