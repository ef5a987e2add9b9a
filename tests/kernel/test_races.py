"""Races against the supervisor: between its check and the use, against its wait, and for its attention.

Where a race can be won unconfined, the test shows that it was; confined, what was not granted is never reached, and the
supervisor serves on.
"""

from __future__ import annotations

import signal
import textwrap
from typing import Any

import pytest
from arena import Arena, Listener, full_backlog
from attack import X86_64, Counter, arrived, attempt, counting

# `racing(act)` runs act() over and over in a thread until the block ends; `tries` counts what connects gave.
RACING = """
import collections, contextlib
sys.setswitchinterval(0.0001)
tries = collections.Counter()
@contextlib.contextmanager
def racing(*acts):
    stop = []
    def run():
        turn = 0
        while not stop:
            acts[turn]()  # one a turn: threads change places between turns, so after any of them
            turn = (turn + 1) % len(acts)
    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.append(1)
        thread.join()
counted = threading.Lock()
def connect(fd, address, length=16):
    address = ctypes.c_void_p(address) if isinstance(address, int) else address
    found = errno.errorcode[ctypes.get_errno()] if libc.connect(fd, address, length) else None
    with counted:  # a thread that is stopped between reading and writing would take back what all others counted
        tries[found or "done"] += 1
    return found
def many(address, times=300, length=16, family=2, flags=0):
    for _ in range(times):
        time.sleep(0.00005)  # let the other thread run, and stop it anywhere
        with socket.socket(family, 1 | flags) as s:
            if connect(s.fileno(), address, length) == "EINPROGRESS":
                tries["done"] += select.select([], [s], [], 5)[1] == [s]
                del tries["EINPROGRESS"]
    return tries
def mapped_page(data=b""):
    page = libc.mmap(None, ctypes.c_long(4096), 3, 0x22, -1, ctypes.c_long(0))
    ctypes.memmove(page, data, len(data))
    return page
"""


ROUNDS = 8


def race(body: str) -> str:
    return attempt(body).replace("def attempt():", RACING + "def attempt():", 1)


def won(arena: Arena, code: str, denied: Counter, **ports: int) -> Any:
    """Run a race for `denied` unconfined until it was won; a thread may not get its turn on a busy machine."""
    for _ in range(ROUNDS):
        free = arena.unconfined(code, **ports)
        arena.empty_scratch()
        assert free.errno is None, free
        if denied.arrived():
            return free.value
    pytest.fail("the race was never won unconfined, so it would show nothing")


def reached_only_granted(arena: Arena, code: str, granted: Counter, denied: Counter) -> None:
    """Run a race for `denied`, which unconfined is won at times and confined never."""
    ports = {"good": granted.port, "port": denied.port}
    won(arena, code, denied, **ports)
    granted.arrived()
    for _ in range(ROUNDS):
        arena.empty_scratch()
        held = arena.confined(code, allow={"net": f"127.0.0.1:{granted.port}"}, **ports)
        assert held.errno is None, held
        assert (granted.arrived(), denied.arrived()) == (held.value.get("done", 0), 0)
        assert set(held.value) <= {"done", "EACCES"}
        assert sum(held.value.values()) == 300
        if "done" in held.value:
            return
    pytest.fail("the granted address was never there confined, so the race would show nothing")


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


def test_threads_that_die_in_the_call_are_forgotten(arena: Arena, listener: Listener) -> None:
    # A handler of machine code that ends its thread alone: exit(0)
    handler = "31ffb83c0000000f05" if X86_64 else "000080d2a80b80d2010000d4"
    code = race("""
        page = mmap.mmap(-1, 4096, prot=7)
        page.write(bytes.fromhex(V["handler"]))
        class Action(ctypes.Structure):
            _fields_ = [("handler", ctypes.c_void_p), ("rest", ctypes.c_char * 256)]
        libc.sigaction(signal.SIGUSR2, ctypes.byref(Action(ctypes.addressof(ctypes.c_char.from_buffer(page)))), None)
        words = []
        def hang():
            words.append(word := ctypes.c_int(1))
            call(V["set_tid_address"], ctypes.byref(word))  # the kernel clears it when the thread has ended
            libc.connect(socket.socket().detach(), inet(V["hanging"]), 16)
        threads = [threading.Thread(target=hang, daemon=True) for _ in range(20)]
        for thread in threads:
            thread.start()
        while len(words) < 20:
            time.sleep(0.001)
        time.sleep(0.1)
        for thread in threads:
            signal.pthread_kill(thread.ident, signal.SIGUSR2)
        while any(word.value for word in words):
            time.sleep(0.001)
        found = [connect(socket.socket().detach(), inet(V["port"])), opened(socket.socket(), inet(V["good"]))]
        os.write(1, b"OUTCOME " + json.dumps({"value": found}).encode() + b"\\n")
        os._exit(0)  # Python would wait for what those threads held
    """)
    with counting() as denied, full_backlog() as hanging:
        variables = {
            "good": listener.port,
            "port": denied.port,
            "hanging": hanging,
            "handler": handler,
            "set_tid_address": 218 if X86_64 else 96,
        }
        assert arena.unconfined(code, **variables).value == [None, "hello"]
        assert denied.arrived() == 1
        allow = {"net": f"127.0.0.1:{listener.port},127.0.0.1:{hanging}"}
        assert arena.confined(code, allow=allow, **variables).value == ["EACCES", "hello"]
        assert denied.arrived() == 0


def test_a_thread_that_outlives_the_first_one_has_no_more_rights(arena: Arena) -> None:
    code = race("""
        word = ctypes.c_int(1)
        def go():
            while word.value:
                time.sleep(0.001)
            found = [connect(call("socket", 2, 1, 0), inet(V["port"])) for _ in range(50)]
            os.write(1, b"OUTCOME " + json.dumps({"value": sorted(set(map(str, found)))}).encode() + b"\\n")
            os._exit(0)
        call(V["set_tid_address"], ctypes.byref(word))
        threading.Thread(target=go).start()
        call("exit", 0)  # of this thread only
    """)
    with counting() as denied:
        variables = {"port": denied.port, "set_tid_address": 218 if X86_64 else 96}
        assert arena.unconfined(code, **variables).value == ["None"]
        assert denied.arrived() == 50
        assert arena.confined(code, **variables).value == ["EACCES"]
        assert denied.arrived() == 0


def test_a_flood_from_50_threads_is_decided_one_by_one(arena: Arena) -> None:
    code = race("""
        start = threading.Barrier(50)
        def flood(number):
            start.wait()
            for _ in range(20):
                with socket.socket() as s:
                    connect(s.fileno(), inet(V["port"] if number % 2 else V["good"]))
        threads = [threading.Thread(target=flood, args=(number,)) for number in range(50)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        return tries
    """)
    with counting() as granted, counting() as denied:
        ports = {"good": granted.port, "port": denied.port}
        assert arena.unconfined(code, **ports).value == {"done": 1000}
        assert (granted.arrived(), denied.arrived()) == (500, 500)
        held = arena.confined(code, allow={"net": f"127.0.0.1:{granted.port}"}, **ports).value
        assert held == {"done": 500, "EACCES": 500}
        assert (granted.arrived(), denied.arrived()) == (500, 0)


def test_while_connects_hang_others_are_refused_and_served(arena: Arena, listener: Listener) -> None:
    code = race("""
        for _ in range(100):
            threading.Thread(target=lambda: libc.connect(socket.socket().detach(), inet(V["hanging"]), 16), daemon=True).start()
        for number in range(100):
            with socket.socket() as s:
                connect(s.fileno(), inet(V["port"] if number % 2 else V["good"]))
        return tries
    """)
    with counting() as denied, full_backlog() as hanging:
        ports = {"good": listener.port, "port": denied.port, "hanging": hanging}
        assert arena.unconfined(code, **ports).value == {"done": 100}
        assert denied.arrived() == 50
        allow = {"net": f"127.0.0.1:{listener.port},127.0.0.1:{hanging}"}
        assert arena.confined(code, allow=allow, **ports).value == {"done": 50, "EACCES": 50}
        assert denied.arrived() == 0


@pytest.mark.parametrize("way", ["close", "dup2", "shutdown"])
def test_a_socket_taken_away_from_a_hanging_connect_goes_nowhere_else(
    arena: Arena, listener: Listener, way: str
) -> None:
    code = race("""
        s, inside = socket.socket(), threading.Event()
        def hang():
            inside.set()
            libc.connect(s.fileno(), inet(V["hanging"]), 16)
        threading.Thread(target=hang, daemon=True).start()
        inside.wait()
        time.sleep(0.1)
        fd = s.fileno()
        if V["way"] == "shutdown":
            s.shutdown(socket.SHUT_RDWR)
        elif V["way"] == "close":
            os.close(fd)
            assert call("socket", 2, 1, 0) == fd
        else:
            os.dup2(socket.socket().detach(), fd)
        if V["way"] != "shutdown" and connect(fd, inet(V["port"])) is None:
            fd = os.dup2(socket.socket().detach(), fd)
        return [tries, opened(socket.socket(), inet(V["good"]))]
    """)
    with counting() as denied, full_backlog() as hanging:
        variables = {"good": listener.port, "port": denied.port, "hanging": hanging, "way": way}
        sure = {} if way == "shutdown" else {"done": 1}
        assert arena.unconfined(code, **variables).value == [sure, "hello"]
        assert denied.arrived() == len(sure)
        allow = {"net": f"127.0.0.1:{listener.port},127.0.0.1:{hanging}"}
        held = arena.confined(code, allow=allow, **variables)
        assert held.value == [{"EACCES": 1} if sure else {}, "hello"], held
        assert denied.arrived() == 0


@pytest.mark.parametrize("way", ["returns", "os._exit", "SIGKILL", "a fault"])
def test_a_worker_that_ends_with_connects_under_way_ends(arena: Arena, way: str) -> None:
    code = race("""
        inside = threading.Barrier(21)
        def hang():
            inside.wait()
            libc.connect(socket.socket().detach(), inet(V["hanging"]), 16)
        for _ in range(20):
            threading.Thread(target=hang, daemon=True).start()
        inside.wait()
        time.sleep(0.05)
        if V["way"] == "os._exit": os._exit(7)
        if V["way"] == "SIGKILL": os.kill(os.getpid(), 9)
        if V["way"] == "a fault": ctypes.string_at(8)
        return "over"
    """)
    expected = {"returns": 0, "os._exit": 7, "SIGKILL": 128 + signal.SIGKILL, "a fault": 128 + signal.SIGSEGV}[way]
    with full_backlog() as hanging:
        found = arena.confined(code, allow={"net": "127.0.0.1"}, hanging=hanging, way=way)
    assert (found.value, found.code) == ("over" if way == "returns" else None, expected)
