"""Listening on 0.0.0.0 and [::]: as granted, on every address that is meant, and on no other."""

from __future__ import annotations

import contextlib
import socket
import threading

import pytest
from arena import Arena
from attack import RAW

# Binds and listens as `way` says, tells the port, and answers everybody for as long as it is told to.
SERVER = (
    RAW
    + """
def server():
    family = socket.AF_INET6 if ":" in V["host"] else socket.AF_INET
    s = socket.socket(family)
    if V["only"] is not None:
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, V["only"])
    if V["host"]:
        address = (inet6 if family == socket.AF_INET6 else inet)(V["port"], V["host"])
        call("bind", s.fileno(), address, len(address))
    call("listen", s.fileno(), 8)
    return s
def attempt():
    s = server()
    host, port = s.getsockname()[:2]
    os.write(1, f"PORT {host} {port}\\n".encode())
    s.settimeout(30)
    reached = []
    while True:
        peer, address = s.accept()
        peer.sendall(b"hello")
        if peer.recv(16) == b"end":
            return sorted(set(reached))
        reached.append(peer.getsockname()[0])
"""
)
GRANTS = ("0.0.0.0", "[::]", "127.0.0.1", "127.0.0.2", "[::1]")


def free_port() -> int:
    with socket.socket(socket.AF_INET6) as sock:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(("::", 0))
        return int(sock.getsockname()[1])


def reach(host: str, port: int, word: bytes = b"x") -> bool:
    """Whether a client gets an answer there."""
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=10) as sock:
        answer = sock.recv(5)
        sock.sendall(word)
        return answer == b"hello"
    return False


def served(
    arena: Arena, allow: str, host: str, *, port: int, deny: str = "", only: int | None = None
) -> tuple[set[str], str | None]:
    """The addresses at which clients were answered, and the errno if it did not listen."""
    variables = {"host": host, "port": port, "only": only}
    spec = {"allow": {"listen": allow}, "deny": {"listen": deny} if deny else {}}
    with arena.running(SERVER, variables=variables, **spec) as running:
        line = running.line().split()
        if line[0] != "PORT":
            assert not any(reach(address, port) for address in ("127.0.0.1", "127.0.0.2", "::1"))
            return set(), line[1] if line[0] == "NO" else "".join(line)
        found = {address for address in ("127.0.0.1", "127.0.0.2", "::1") if reach(address, int(line[2]))}
        for address in found:
            threading.Thread(target=reach, args=(address, int(line[2]), b"end"), daemon=True).start()
        running.process.wait(30)
    return found, None


V4, ALL = {"127.0.0.1", "127.0.0.2"}, {"127.0.0.1", "127.0.0.2", "::1"}
# What is granted, what is bound, IPV6_V6ONLY, and where clients are answered; None: refused.
TABLE = [
    ("0.0.0.0", "0.0.0.0", None, V4),
    ("0.0.0.0", "127.0.0.2", None, {"127.0.0.2"}),
    ("0.0.0.0", "::ffff:0.0.0.0", 0, V4),
    ("0.0.0.0", "::", None, None),
    ("0.0.0.0", "::", 1, None),
    ("0.0.0.0", "::1", None, None),
    ("[::]", "::", None, ALL),
    ("[::]", "::", 1, {"::1"}),
    ("[::]", "0.0.0.0", None, V4),
    ("[::]", "::ffff:127.0.0.1", 0, {"127.0.0.1"}),
    ("127.0.0.1", "127.0.0.1", None, {"127.0.0.1"}),
    ("127.0.0.1", "0.0.0.0", None, None),
    ("127.0.0.1", "127.0.0.2", None, None),
    ("127.0.0.1", "::", None, None),
    ("127.0.0.1", "::", 1, None),
    ("127.0.0.1", "::ffff:0.0.0.0", 0, None),
    ("[::1]", "::", None, None),
    ("[::1]", "::", 1, None),
    ("[::1]", "::1", None, {"::1"}),
]  # fmt: skip


@pytest.mark.parametrize(("granted", "host", "only", "answered"), TABLE)
def test_a_server_is_reached_where_it_is_granted_and_nowhere_else(
    arena: Arena, granted: str, host: str, only: int | None, answered: set[str] | None
) -> None:
    port = free_port()
    found, refusal = served(arena, f"{granted}:{port}", host, port=port, only=only)
    if answered is None:
        assert found == set() and refusal is not None and '"EACCES"' in refusal
    else:
        assert (found, refusal) == (answered, None)


@pytest.mark.parametrize(("host", "answered"), [("0.0.0.0", V4), ("::", ALL)])
def test_without_the_sandbox_the_wildcard_is_reached_at_every_address(
    arena: Arena, host: str, answered: set[str]
) -> None:
    # What the refusals above are compared with.
    code = SERVER.replace('os.write(1, f"PORT {host} {port}\\n".encode())', "threading.Thread(target=ask).start()")
    code += """
def ask():
    for address in ("127.0.0.1", "127.0.0.2", "::1"):
        try:
            with socket.create_connection((address, V["port"]), timeout=10) as s:
                s.recv(5), s.sendall(b"x")
        except ConnectionRefusedError:
            pass
    with socket.create_connection(("127.0.0.1", V["port"])) as s:
        s.recv(5), s.sendall(b"end")
"""
    free = arena.unconfined(code, host=host, port=free_port(), only=None)
    assert {address.removeprefix("::ffff:") for address in free.value} == answered


@pytest.mark.parametrize(
    ("allow", "deny", "host", "only", "answered"),
    [
        ("0.0.0.0", "127.0.0.1", "0.0.0.0", None, None),  # it would take what comes for 127.0.0.1
        ("0.0.0.0", "127.0.0.1", "127.0.0.2", None, {"127.0.0.2"}),
        ("127.0.0.1", "0.0.0.0", "127.0.0.1", None, None),
        ("[::]", "0.0.0.0", "::", None, None),
        ("[::]", "0.0.0.0", "::", 1, {"::1"}),
        ("[::]", "127.0.0.1", "::", 0, None),
        ("[::]", "[::1]", "::", 1, None),
        ("[::]", "[::]", "127.0.0.1", None, None),
    ],
)  # fmt: skip
def test_what_is_denied_is_left_out_of_no_wildcard(
    arena: Arena, allow: str, deny: str, host: str, only: int | None, answered: set[str] | None
) -> None:
    port = free_port()
    found, refusal = served(arena, f"{allow}:{port}", host, port=port, deny=f"{deny}:{port}", only=only)
    assert found == (answered or set())
    assert (refusal is None) == (answered is not None)


@pytest.mark.parametrize(
    ("granted", "host", "answered"),
    [("0.0.0.0", "0.0.0.0", V4), ("0.0.0.0", "", V4), ("[::]", "::", ALL), ("127.0.0.1", "", None), ("127.0.0.1", "0.0.0.0", None)],
)  # fmt: skip
def test_a_port_of_the_kernels_choice(arena: Arena, granted: str, host: str, answered: set[str] | None) -> None:
    found, refusal = served(arena, f"{granted}:0", host, port=0)
    assert (found, refusal is None) == (answered or set(), answered is not None)


def test_a_thread_that_changes_v6only_meanwhile_gets_no_denied_address(arena: Arena) -> None:
    code = RAW + """
def attempt():
    stop, listened, refused = [], 0, 0
    current = [socket.socket(socket.AF_INET6)]
    def flip():
        while not stop:
            for value in (0, 1):
                try:
                    current[0].setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, value)
                except OSError:
                    pass
    thread = threading.Thread(target=flip)
    thread.start()
    end = time.monotonic() + 30
    both = 0
    while time.monotonic() < end and not (listened >= 50 and refused >= 50):
        s = current[0] = socket.socket(socket.AF_INET6)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            call("bind", s.fileno(), inet6(V["port"], "::"), 28)
            call("listen", s.fileno(), 8)
            listened += 1
            both += not s.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
        except OSError as error:
            assert error.errno == errno.EACCES, error
            refused += 1
        s.close()
    stop.append(1)
    thread.join()
    return [listened > 0, refused > 0, both]
"""  # fmt: skip
    port = free_port()
    held = arena.confined(code, allow={"listen": f"[::]:{port}"}, deny={"listen": f"0.0.0.0:{port}"}, port=port)
    assert held.value == [True, True, 0], held


def test_asyncio_and_http_server_serve_on_the_wildcard(arena: Arena) -> None:
    code = """
    import asyncio, http.server, threading
    def attempt():
        async def main():
            server = await asyncio.start_server(lambda reader, writer: writer.close(), "0.0.0.0", V["ports"][0])
            found = server.sockets[0].getsockname()[0]
            server.close()
            return found
        web = http.server.ThreadingHTTPServer(("", V["ports"][1]), http.server.BaseHTTPRequestHandler)
        return [asyncio.run(main()), web.server_address[0]]
    """
    ports = [free_port(), free_port()]
    allow = {"listen": ",".join(f"0.0.0.0:{port}" for port in ports)}
    assert arena.confined(code, allow=allow, ports=ports).value == ["0.0.0.0", "0.0.0.0"]
