"""Threads that die, flood the supervisor, or hang in a connect: what is refused stays refused."""

from __future__ import annotations

import signal

import pytest
from arena import Arena, Listener, full_backlog
from attack import X86_64, counting
from racing import race


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
