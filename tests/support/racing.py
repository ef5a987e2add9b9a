"""Code that races against the supervisor, and how to tell that a race was won."""

from __future__ import annotations

from typing import Any

import pytest
from arena import Arena
from attack import Counter, attempt

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
