"""Races against the supervisor: between its check and the use, against its wait, and for its attention.

Where a race can be won unconfined, the test shows that it was; confined, what was not granted is never reached, and the
supervisor serves on.
"""

from __future__ import annotations

import textwrap

import pytest
from arena import Arena, Listener, full_backlog, in_every_child
from attack import arrived, counting
from racing import ROUNDS, race, reached_only_granted, won

# The address is rewritten while it is read: V["good"] is granted, V["port"] is not.
REWRITES = {
    "the whole address": """
        good, evil = inet(V["good"]), inet(V["port"])
        buffer = ctypes.create_string_buffer(good, 16)
        with racing(lambda: setattr(buffer, "raw", evil), lambda: setattr(buffer, "raw", good)):
            return many(buffer)""",
    "its port": """
        buffer = ctypes.create_string_buffer(inet(V["good"]), 16)
        ports = [inet(V[name])[2:4] for name in ("port", "good")]
        at = ctypes.addressof(buffer) + 2
        with racing(*[lambda port=port: ctypes.memmove(at, port, 2) for port in ports]):
            return many(buffer)""",
    "not blocking": """
        good, evil = inet(V["good"]), inet(V["port"])
        buffer = ctypes.create_string_buffer(good, 16)
        with racing(lambda: setattr(buffer, "raw", evil), lambda: setattr(buffer, "raw", good)):
            return many(buffer, flags=socket.SOCK_NONBLOCK)""",
    "mapped": """
        good, evil = (inet6(V[name], "::ffff:127.0.0.1") for name in ("good", "port"))
        buffer = ctypes.create_string_buffer(good, 28)
        with racing(lambda: setattr(buffer, "raw", evil), lambda: setattr(buffer, "raw", good)):
            return many(buffer, length=28, family=10)""",
    "the page under it": """
        fds = []
        for name in ("good", "port"):
            fds.append(os.open(name, os.O_RDWR | os.O_CREAT))
            os.write(fds[-1], inet(V[name]))
        page = libc.mmap(None, ctypes.c_long(4096), 1, 1, fds[0], ctypes.c_long(0))
        swap = [lambda fd=fd: libc.mmap(ctypes.c_void_p(page), ctypes.c_long(4096), 1, 0x11, fd, ctypes.c_long(0)) for fd in fds[::-1]]
        with racing(*swap):
            return many(page)""",
    "the file it lies in": """
        good, evil = inet(V["good"]), inet(V["port"])
        fd = os.open("address", os.O_RDWR | os.O_CREAT)
        os.write(fd, good)
        page = libc.mmap(None, ctypes.c_long(4096), 1, 1, fd, ctypes.c_long(0))
        with racing(lambda: os.pwrite(fd, evil, 0), lambda: os.pwrite(fd, good, 0)):
            return many(page)""",
}


@pytest.mark.parametrize("what", REWRITES)
def test_an_address_rewritten_meanwhile_reaches_only_what_is_granted(arena: Arena, what: str) -> None:
    with counting() as granted, counting() as denied:
        reached_only_granted(arena, race(REWRITES[what]), granted, denied)


def test_a_host_rewritten_meanwhile_reaches_only_what_is_granted(arena: Arena) -> None:
    code = race("""
        buffer = ctypes.create_string_buffer(inet(V["good"]), 16)
        at = ctypes.addressof(buffer) + 7
        with racing(lambda: ctypes.memmove(at, b"\\2", 1), lambda: ctypes.memmove(at, b"\\1", 1)):
            return many(buffer)
    """)
    with counting() as granted, counting(("127.0.0.2", granted.port)) as denied:
        reached_only_granted(arena, code, granted, denied)


@in_every_child
def test_a_family_rewritten_meanwhile_never_disconnects(arena: Arena, listener: Listener) -> None:
    code = race("""
        buffer = ctypes.create_string_buffer(inet(V["good"]), 16)
        with racing(lambda: ctypes.memmove(buffer, b"\\0", 1), lambda: ctypes.memmove(buffer, b"\\2", 1)):
            for _ in range(300):
                with socket.create_connection(("127.0.0.1", V["good"])) as s:
                    time.sleep(0.00005)
                    connect(s.fileno(), buffer)
        return tries
    """)
    assert any("done" in arena.unconfined(code, good=listener.port).value for _ in range(ROUNDS))
    found = arena.confined(code, allow={"net": f"127.0.0.1:{listener.port}"}, good=listener.port).value
    assert set(found) <= {"EISCONN", "EACCES"}
    assert sum(found.values()) == 300


# The memory of the denied address comes and goes.
VANISHING = {
    "unmapped": """
        page, evil = mapped_page(), inet(V["port"])
        def appear():
            libc.mmap(ctypes.c_void_p(page), ctypes.c_long(4096), 3, 0x32, -1, ctypes.c_long(0))
            ctypes.memmove(page, evil, 16)
        with racing(lambda: libc.munmap(ctypes.c_void_p(page), ctypes.c_long(4096)), appear):
            return many(page)""",
    "unreadable": """
        page = mapped_page(inet(V["port"]))
        with racing(*[lambda mode=mode: libc.mprotect(ctypes.c_void_p(page), ctypes.c_long(4096), mode) for mode in (0, 3)]):
            return many(page)""",
    "emptied": """
        page, evil = mapped_page(inet(V["port"])), inet(V["port"])
        with racing(lambda: libc.madvise(ctypes.c_void_p(page), ctypes.c_long(4096), 4), lambda: ctypes.memmove(page, evil, 16)):
            return many(page)""",
    "cut off": """
        evil = inet(V["port"])
        fd = os.open("address", os.O_RDWR | os.O_CREAT)
        os.write(fd, evil)
        page = libc.mmap(None, ctypes.c_long(4096), 1, 1, fd, ctypes.c_long(0))
        with racing(lambda: os.ftruncate(fd, 0), lambda: os.pwrite(fd, evil, 0)):
            return many(page)""",
}


@pytest.mark.parametrize("how", VANISHING)
def test_an_address_that_vanishes_meanwhile_is_no_way_through(arena: Arena, how: str) -> None:
    body = textwrap.dedent(VANISHING[how]).strip("\n")
    code = race(
        "def go():\n"
        + textwrap.indent(body, "    ")
        + "\nfound = go()\nconnect(socket.socket().detach(), inet(V['good']))\nreturn found"
    )
    with counting() as granted, counting() as denied:
        ports = {"good": granted.port, "port": denied.port}
        won(arena, code, denied, **ports)
        assert granted.arrived() > 0
        held = arena.confined(code, allow={"net": f"127.0.0.1:{granted.port}"}, **ports)
        assert set(held.value) <= {"done", "EACCES", "EFAULT"}, held
        assert held.value["done"] == 1  # the granted one, afterwards
        assert (granted.arrived(), denied.arrived()) == (1, 0)


# What stands at the descriptor's number changes while the call is decided.
SWAPS = {
    "TCP and a Unix socket": ("socket.socket()", "socket.socketpair()[0]", {"EISCONN", "EACCES", "EINVAL", "EAFNOSUPPORT"}),
    "TCP and a file": ("socket.socket()", "open('/dev/null')", {"ENOTSOCK"}),
    "TCP and nothing": ("socket.socket()", "None", {"EBADF"}),
    "IPv4 and IPv6": ("socket.socket()", "socket.socket(10)", {"EINVAL", "EAFNOSUPPORT"}),
    "blocking and not blocking": ("socket.socket()", "socket.socket(2, 1 | socket.SOCK_NONBLOCK)", {"EINPROGRESS"}),
    "unconnected and connected": ("socket.socket()", "socket.create_connection(('127.0.0.1', V['good']))", {"EISCONN"}),
}  # fmt: skip


@pytest.mark.parametrize("target", ["granted", "denied"])
@pytest.mark.parametrize("what", SWAPS)
def test_a_descriptor_swapped_meanwhile_goes_nowhere_else(
    arena: Arena, listener: Listener, what: str, target: str
) -> None:
    one, other, errnos = SWAPS[what]
    code = race(f"""
        fd, address = 700, inet(V["target"])
        keep = []
        def put(make):
            thing = make()
            if thing is None:
                libc.close(fd)
            else:
                os.dup2(thing.fileno(), fd)
                keep[:] = [thing]
        with racing(lambda: put(lambda: {one}), lambda: put(lambda: {other})):
            while sum(tries.values()) < 300 or not (tries["done"] or tries["EACCES"] == sum(tries.values())):
                time.sleep(0.00005)
                connect(fd, address)
        return tries
    """)
    with counting() as granted, counting() as denied:
        ports = {"good": granted.port, "target": granted.port if target == "granted" else denied.port}
        assert arena.unconfined(code, **ports).value["done"] > 0
        assert (denied.arrived() > 0) is (target == "denied")
        held = arena.confined(code, allow={"net": f"127.0.0.1:{granted.port}"}, **ports).value
        assert denied.arrived() == 0
        if target == "denied":
            assert (held["EACCES"], sum(held.values())) == (300, 300)
        else:
            assert held["done"] > 0
            assert {name for name in held if held[name]} <= {"done", "EISCONN", "EBADF"} | errnos, held


def test_a_flag_flipped_meanwhile_lets_nothing_through(arena: Arena, listener: Listener) -> None:
    code = race("""
        fd, box = 700, []
        os.dup2(0, fd)
        with racing(lambda: os.set_blocking(fd, False), lambda: os.set_blocking(fd, True)):
            for number in range(300):
                with socket.socket() as s:
                    os.dup2(s.fileno(), fd)
                    connect(fd, inet(V["port"] if number % 2 else V["good"]))
        return tries
    """)
    with counting() as granted, counting() as denied:
        ports = {"good": granted.port, "port": denied.port}
        assert arena.unconfined(code, **ports).errno is None
        assert denied.arrived() == 150
        held = arena.confined(code, allow={"net": f"127.0.0.1:{granted.port}"}, **ports).value
        assert held["EACCES"] == 150
        assert set(held) <= {"done", "EINPROGRESS", "EACCES"}
        assert denied.arrived() == 0


def test_a_supervisor_made_to_wait_by_a_flipped_flag_ends_with_its_worker(arena: Arena) -> None:
    code = race("""
        begun = threading.Event()
        def hang(s):
            begun.wait()
            libc.connect(s.fileno(), inet(V["hanging"]), 16)
        sockets = [socket.socket() for _ in range(8)]
        for s in sockets:  # before the race: a thread is asked for as well, and would wait with the rest
            threading.Thread(target=hang, args=(s,), daemon=True).start()
        flips = [lambda s=s, on=on: s.setblocking(on) for on in (False, True) for s in sockets]
        for s in sockets:  # now: a thread is started by a trapped call too, which would wait with the supervisor
            threading.Thread(target=hang, args=(s,), daemon=True).start()
        with racing(*flips):
            begun.set()
            time.sleep(0.3)
        return "over"
    """)
    with full_backlog() as hanging:
        found = arena.confined(code, allow={"net": "127.0.0.1"}, hanging=hanging)
    assert (found.value, found.code) == ("over", 0)


@pytest.mark.parametrize("restart", [False, True], ids=["interrupting", "restarting"])
def test_a_storm_of_signals_lets_nothing_through(arena: Arena, listener: Listener, restart: bool) -> None:
    code = race("""
        rung = []
        signal.signal(signal.SIGALRM, lambda *_: rung.append(1))
        signal.siginterrupt(signal.SIGALRM, not V["restart"])
        signal.setitimer(signal.ITIMER_REAL, 0.0003, 0.0003)
        for _ in range(400):
            with socket.socket() as s:
                connect(s.fileno(), inet(V["port"]))
        signal.setitimer(signal.ITIMER_REAL, 0)
        tries["rung"] = min(len(rung), 10)
        with socket.create_connection(("127.0.0.1", V["good"])) as s:
            tries["after"] = s.recv(5).decode()
        return tries
    """)
    with counting() as denied:
        variables = {"good": listener.port, "port": denied.port, "restart": restart}
        free = arena.unconfined(code, **variables).value
        assert denied.arrived() >= free["done"] > 0
        held = arena.confined(code, allow={"net": f"127.0.0.1:{listener.port}"}, **variables).value
        assert (held.pop("rung"), held.pop("after")) == (10, "hello")
        assert set(held) <= ({"EACCES"} if restart else {"EACCES", "EINTR"})
        assert sum(held.values()) == 400
        assert denied.arrived() == 0


def test_a_storm_of_signals_makes_no_connect_seem_done(arena: Arena) -> None:
    code = race("""
        signal.signal(signal.SIGALRM, lambda *_: None)
        signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0002)
        for _ in range(600):
            with socket.socket() as s:
                s.connect(("127.0.0.1", V["port"]))
                try:
                    s.getpeername()
                    tries["connected"] += 1
                except OSError as error:
                    tries[errno.errorcode[error.errno]] += 1
        signal.setitimer(signal.ITIMER_REAL, 0)
        return tries
    """)
    with counting() as granted:
        assert arena.unconfined(code, port=granted.port).value == {"connected": 600}
        held = arena.confined(code, allow={"net": f"127.0.0.1:{granted.port}"}, port=granted.port)
        assert held.value == {"connected": 600}


def test_a_restarted_call_is_decided_anew(arena: Arena, listener: Listener) -> None:
    code = race("""
        buffer, s, found = ctypes.create_string_buffer(inet(V["hanging"]), 16), socket.socket(), []
        signal.signal(signal.SIGUSR1, lambda *_: None)
        signal.siginterrupt(signal.SIGUSR1, False)
        thread = threading.Thread(target=lambda: found.append(connect(s.fileno(), buffer)), daemon=True)
        thread.start()
        evil = inet(V["port"])
        for _ in range(200):  # until the thread is in the call, and was interrupted there
            thread.join(0.02)
            if found:
                return found
            buffer.raw = evil
            signal.pthread_kill(thread.ident, signal.SIGUSR1)
    """)
    # Unconfined the first address stays; the supervisor hears of a new call, with what the memory holds by then.
    with full_backlog() as hanging:
        allow = {"net": f"127.0.0.1:{hanging}"}
        assert arena.confined(code, allow=allow, hanging=hanging, port=listener.port).value == ["EACCES"]
    assert arrived(listener) == 0
