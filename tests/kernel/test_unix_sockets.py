"""Unix sockets, however they are reached. Each attempt works unconfined, fails confined with the exact errno, and nothing
arrives."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from arena import Arena, listening
from attack import arrived, attempt, receiving


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A short one: an address has room for 107 characters (unix(7))."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


UNIX = """
def attempt():
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(V["path"])
        return s.recv(5).decode()
"""
UNIX_WAYS = {
    "path": "return u(V['path'])",
    "relative path": "return u(os.path.relpath(V['path']))",
    "symlink": "os.symlink(V['path'], 'link'); return u('link')",
    "folder's symlink": "os.symlink(os.path.dirname(V['path']), 'dir'); return u('dir/s')",
    "folder's descriptor": "fd = os.open(os.path.dirname(V['path']), os.O_PATH); return u(f'/proc/self/fd/{fd}/s')",
    "raw": "fd = call('socket', 1, 1, 0); call('connect', fd, un(V['path']), len(V['path']) + 2); return hello(fd)",
    "garbage in the high halves": """
        fd = call("socket", 1 | HIGH, 1 | HIGH, HIGH)
        call("connect", fd | HIGH, un(V["path"]), len(V["path"]) + 2 | HIGH)
        return hello(fd)""",
    "asyncio": """
        import asyncio
        async def go():
            reader, _ = await asyncio.open_unix_connection(V["path"])
            return (await reader.readexactly(5)).decode()
        return asyncio.run(go())""",
}  # fmt: skip
UN = """
def un(path):
    return struct.pack("=H", 1) + os.fsencode(path)
def u(path):
    s = socket.socket(1)
    s.connect(path)
    return hello(s.detach())
"""


@pytest.mark.parametrize("way", UNIX_WAYS)
def test_a_unix_socket_is_refused(arena: Arena, tmp_path: Path, way: str) -> None:
    path = str(tmp_path / "s")
    with listening(socket.AF_UNIX, path) as listener:
        allow = {"read": str(tmp_path), "net": "*"}
        arena.refused(UN + attempt(UNIX_WAYS[way]), "EPERM", works="hello", allow=allow, path=path)
        assert arrived(listener) == 1


def test_a_unix_socket_in_a_folder_granted_for_writing_is_refused(arena: Arena, tmp_path: Path) -> None:
    folder = tmp_path / "granted"
    folder.mkdir()
    with listening(socket.AF_UNIX, str(folder / "s")) as listener:
        arena.refused(UNIX, "EPERM", works="hello", allow={"write": str(folder)}, path=str(folder / "s"))
        assert arrived(listener) == 1


@pytest.mark.parametrize("missing", [[], ["landlock-scope"]], ids=["this kernel", "Landlock without scopes"])
def test_an_abstract_unix_socket_is_refused(arena: Arena, missing: list[str]) -> None:
    name = f"\0sandboxrun-test-{os.getpid()}"
    with listening(socket.AF_UNIX, name) as listener:
        assert arena.unconfined(UNIX, path=name).value == "hello"
        assert arena.confined(UNIX, missing=missing, path=name).errno == "EPERM"
        assert arrived(listener) == 1


DATAGRAM = {
    "sendto": "return socket.socket(1, 2).sendto(b'leak', V['path'])",
    "sendmsg": "return socket.socket(1, 2).sendmsg([b'leak'], [], 0, V['path'])",
    "sendmsg with a descriptor": """
        s = socket.socket(1, 2)
        return s.sendmsg([b"leak"], [(1, 1, struct.pack("=i", 0))], 0, V["path"])""",
    "connect": "s = socket.socket(1, 2); s.connect(V['path']); return s.send(b'leak')",
    "SOCK_RAW, which is the same": "return socket.socket(1, 3).sendto(b'leak', V['path'])",
    "one of a pair": "a, b = socket.socketpair(1, 2); return a.sendto(b'leak', V['path'])",
    "one of a pair, sendmsg": "a, b = socket.socketpair(1, 2); return a.sendmsg([b'leak'], [], 0, V['path'])",
    "one of a pair, sendmmsg": """
        a, b = socket.socketpair(1, 2)
        return 4 * call("sendmmsg", a.fileno(), msghdr(b"leak", un(V["path"])), 1, 0)""",
    "one of a pair, raw": """
        call("socketpair", 1 | HIGH, 2 | HIGH, HIGH, pair := ctypes.create_string_buffer(8))
        fd = struct.unpack("=ii", pair.raw)[0]
        return call("sendmsg", fd, msghdr(b"leak", un(V["path"])), 0)""",
    "one of a pair, connected anew": "a, b = socket.socketpair(1, 2); a.connect(V['path']); return a.send(b'leak')",
}


@pytest.mark.parametrize(
    ("way", "name"),
    [*((way, "path") for way in DATAGRAM), *((way, "abstract") for way in DATAGRAM if "one of a pair" in way)],
)
def test_a_unix_datagram_is_refused(arena: Arena, tmp_path: Path, way: str, name: str) -> None:
    path = str(tmp_path / "s") if name == "path" else f"\0sandboxrun-test-{os.getpid()}"
    with receiving(socket.AF_UNIX, path) as receiver:
        arena.refused(UN + attempt(DATAGRAM[way]), "EPERM", works=4, allow={"read": str(tmp_path)}, path=path)
        assert receiver.arrived() == b"leak"


def test_unix_packets_are_refused(arena: Arena, tmp_path: Path) -> None:
    code = attempt("s = socket.socket(1, 5); s.connect(V['path']); return s.send(b'leak')")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.bind(str(tmp_path / "s"))
        server.listen()
        server.setblocking(False)
        arena.refused(code, "EPERM", works=4, path=str(tmp_path / "s"))
        server.accept()[0].close()
        with pytest.raises(BlockingIOError):
            server.accept()


@pytest.mark.parametrize("kind", ["connect", "sendmsg"])
def test_one_of_a_pair_of_streams_reaches_nobody_else(arena: Arena, tmp_path: Path, kind: str) -> None:
    code = UN + attempt("""
        a, b = socket.socketpair()
        if V["kind"] == "connect":
            a.connect(V["path"])
        return a.sendmsg([b"leak"], [], 0, V["path"])
    """)
    path = str(tmp_path / "s")
    with listening(socket.AF_UNIX, path) as listener:
        assert arena.unconfined(code, kind=kind, path=path).errno == "EISCONN"
        held = arena.confined(code, kind=kind, path=path)
        assert held.errno == ("EACCES" if kind == "connect" else "EISCONN")
        assert arrived(listener) == 0


SERVE = {
    "a path": "s = socket.socket(1); s.bind('own'); s.listen()",
    "an abstract name": "s = socket.socket(1); s.bind('\\0sandboxrun-test-own'); s.listen()",
    "a name the kernel chooses": "s = socket.socket(1, 2); call('bind', s.fileno(), struct.pack('=H', 1), 2)",
    "one of a pair": "s, other = socket.socketpair(); s.bind('own')",
    "a socket's file": "call('mknodat', -100, b'own', 0o140600, 0)",
    "a named pipe": "os.mkfifo('own')",
    "a named pipe, raw": "call('mknodat', -100, b'own', 0o010600 | HIGH, 0)",
}


@pytest.mark.parametrize("way", SERVE)
def test_no_place_to_be_met_at_can_be_made(arena: Arena, way: str) -> None:
    arena.refused(attempt(SERVE[way] + "; return 'made'"), "EPERM", works="made")
    assert not list(arena.scratch.iterdir())


# With a Redis on a Unix socket, Unix streams can be opened: V["server"] may be connected, V["other"] not.
BESIDE_REDIS = {
    "path": "return u(V['other'])",
    "relative path": "return u(os.path.relpath(V['other']))",
    "through ..": "return u(V['folder'] + '/redis.d/../other')",
    "symlink": "os.symlink(V['other'], 'link'); return u('link')",
    "the same beginning": "return u(V['server'] + '.other')",
    "the same name, relative": "os.chdir(V['folder'] + '/redis.d'); return u('redis')",
    "abstract": "return u(chr(0) + V['server'])",
    "not blocking": "s = socket.socket(1); s.setblocking(False); s.connect(V['other']); s.setblocking(True); return hello(s.detach())",
}


@pytest.mark.parametrize("way", BESIDE_REDIS)
def test_where_redis_is_a_unix_socket_no_other_one_can_be_connected(arena: Arena, tmp_path: Path, way: str) -> None:
    code = UN + attempt(BESIDE_REDIS[way])
    redis, folder = str(tmp_path / "redis"), tmp_path / "redis.d"
    folder.mkdir()
    names = {"other": str(tmp_path / "other"), "folder": str(tmp_path), "server": redis}
    with contextlib.ExitStack() as stack:
        others = [
            stack.enter_context(listening(socket.AF_UNIX, path))
            for path in (names["other"], redis + ".other", str(folder / "redis"), "\0" + redis)
        ]
        server = stack.enter_context(listening(socket.AF_UNIX, redis))
        assert arena.confined(UNIX, redis=redis, path=redis).value == "hello"
        assert arena.unconfined(code, **names).value == "hello"
        arena.empty_scratch()
        held = arena.confined(code, allow={"read": str(tmp_path)}, redis=redis, **names)
        assert held.errno == "EACCES"
        assert (sum(map(arrived, others)), arrived(server)) == (1, 1)


def test_where_redis_is_a_unix_socket_its_path_connects_nothing_but_streams(arena: Arena, tmp_path: Path) -> None:
    code = UN + attempt("""
        found = []
        for s in (socket.socket(), socket.socket(10)):
            address = un(V["server"])
            found.append(libc.connect(s.fileno(), address, len(address)) and errno.errorcode[ctypes.get_errno()])
        s = socket.socket(1)
        for address in (inet(V["port"]), inet(V["port"]) + bytes(50), bytes(2), un("") , un(V["server"])[:-1]):
            found.append(libc.connect(s.fileno(), address, len(address)) and errno.errorcode[ctypes.get_errno()])
        return found
    """)
    redis = str(tmp_path / "redis")
    with listening(socket.AF_UNIX, redis) as server, listening() as denied, listening() as granted:
        assert set(arena.unconfined(code, server=redis, port=denied.port).value) <= {
            "EAFNOSUPPORT",
            "EINVAL",
            "ECONNREFUSED",
            "ENOENT",
        }
        allow = {"net": f"127.0.0.1:{granted.port}"}
        assert arena.confined(code, allow=allow, redis=redis, server=redis, port=denied.port).value == ["EACCES"] * 7
        assert arena.confined(code, allow=allow, redis=redis, server=redis, port=granted.port).value == ["EACCES"] * 7
        assert (arrived(server), arrived(denied), arrived(granted)) == (0, 0, 0)


def test_no_other_socket_can_be_put_in_the_place_of_redis(arena: Arena, tmp_path: Path) -> None:
    code = UN + attempt("""
        os.unlink(V["server"])  # a rename would be refused: no sockets may be made
        os.symlink(V["other"], V["server"])
        return u(V["server"])
    """)
    folder = tmp_path / "granted"
    folder.mkdir()
    redis, names = str(folder / "redis"), {"server": str(folder / "redis"), "other": str(tmp_path / "other")}
    with listening(socket.AF_UNIX, names["other"]) as other:
        with listening(socket.AF_UNIX, redis):
            assert arena.unconfined(code, **names).value == "hello"
        os.unlink(redis)
        with listening(socket.AF_UNIX, redis):
            held = arena.confined(code, allow={"write": str(folder)}, redis=redis, **names)
            assert (held.errno, held.code) == ("NO OUTCOME", 1)  # such a grant is refused before anything runs
            assert f"or take Redis's place ({redis})" in held.stderr
            assert arena.confined(code, redis=redis, **names).errno == "EACCES"
        assert arrived(other) == 1


RECEIVED = (
    UN
    + """
def received():
    with socket.socket(1) as s:
        s.connect(V["server"])
        return socket.socket(fileno=socket.recv_fds(s, 5, 1)[1][0])
"""
)


@contextlib.contextmanager
def handing_out(path: str, sock: socket.socket) -> Iterator[None]:
    """A Unix listener at `path` that gives a descriptor to whoever connects."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    with server.accept()[0] as peer:
                        socket.send_fds(peer, [b"hello"], [sock.fileno()])

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize(
    ("family", "type", "way"),
    [
        (2, 2, "s.connect(('127.0.0.1', V['port'])); return s.send(b'leak')"),
        (2, 2, "return s.sendto(b'leak', ('127.0.0.1', V['port']))"),
        (2, 2, "return s.sendmsg([b'leak'], [], 0, ('127.0.0.1', V['port']))"),
        (1, 2, "s.connect(V['path']); return s.send(b'leak')"),
        (1, 2, "return s.sendto(b'leak', V['path'])"),
    ],
    ids=["UDP connect", "UDP sendto", "UDP sendmsg", "Unix datagram connect", "Unix datagram sendto"],
)
def test_a_datagram_socket_that_redis_would_hand_over_leads_nowhere(
    arena: Arena, tmp_path: Path, family: int, type: int, way: str
) -> None:
    redis, path = str(tmp_path / "redis"), str(tmp_path / "datagrams")
    code = RECEIVED + attempt("s = received()\n" + way)
    with (
        socket.socket(family, type) as gift,
        handing_out(redis, gift),
        receiving(family, path if family == 1 else ("127.0.0.1", 0)) as receiver,
    ):
        names = {"server": redis, "path": path} | ({"port": receiver.port} if family == 2 else {})
        assert arena.unconfined(code, **names).value == 4
        assert receiver.arrived() == b"leak"
    with (
        socket.socket(family, type) as gift,
        handing_out(redis + "2", gift),
        receiving(family, path + "2" if family == 1 else ("127.0.0.1", 0)) as receiver,
    ):
        names = {"server": redis + "2", "path": path + "2"} | ({"port": receiver.port} if family == 2 else {})
        held = arena.confined(code, allow={"net": "127.0.0.1"}, redis=redis + "2", **names)
        # It is not even received: no filter sees the address of sendmsg(2).
        assert (held.errno, receiver.arrived()) == ("EPERM", b"")
