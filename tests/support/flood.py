"""Workers that keep their supervisor busy, by connects that hang and by floods of senseless calls."""

from __future__ import annotations

import os

from attack import attempt

from sandboxrun.sandbox.compile.grants import TRAPPED

CALLS = TRAPPED[os.uname().machine]

# `hang(count)` starts threads that hang in connect to V["hanging"]; `let_go()` ends all of them.
HANGING = """
threading.stack_size(128 * 1024)
sockets, threads, errors = [], [], []
def stay(s):
    if libc.connect(s.fileno(), inet(V["hanging"]), 16) < 0:
        errors.append(errno.errorcode[ctypes.get_errno()])
def hang(count):
    for _ in range(count):
        sockets.append(socket.socket())
        threads.append(threading.Thread(target=stay, args=(sockets[-1],), daemon=True))
        threads[-1].start()
def let_go():
    for s in sockets:
        with contextlib.suppress(OSError):
            s.shutdown(socket.SHUT_RDWR)
    for thread in threads:
        thread.join()
def say(*words):
    os.write(1, " ".join(map(str, words)).encode() + b"\\n")
def good(number=1):
    return [opened(socket.socket(), inet(V["port"])) for _ in range(number)] == ["hello"] * number
def refused(s):
    try:
        call("connect", s.fileno(), inet(V["port"]), 16)
    except OSError as error:
        return errno.errorcode[error.errno]
"""


def worker(body: str) -> str:
    return attempt(body).replace("def attempt():", "import contextlib\n" + HANGING + "def attempt():", 1)


# `wild(rng, name)` makes one senseless call; V["calls"] has the numbers.
WILD = """
import random
PAGE = 4096
def protect(page, mode):
    libc.mprotect(ctypes.c_void_p(page), ctypes.c_long(PAGE), mode)
own = libc.mmap(None, ctypes.c_long(3 * PAGE), 3, 0x22, -1, ctypes.c_long(0))
closed, fleeting = own + PAGE, own + 2 * PAGE
protect(closed, 0)
ctypes.memmove(closed - 16, inet(V["port"]), 16)
POINTERS = [0, 1, 8, own, closed - 16, closed - 8, closed - 1, closed, fleeting, 1 << 47, (1 << 47) - 16, (1 << 63) - 1,
            1 << 63, 0xFFFFFFFF81000000, 0xFFFFFFFFFFFFF000, (1 << 64) - 1]
NUMBERS = [0, 1, 2, 15, 16, 28, 128, 129, 4095, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 32 | 16, 1 << 63, (1 << 64) - 1]
stream, streams = socket.socket(), socket.socketpair()
FDS = [-1, -100, 0, 3, 900, 1 << 30, 1 << 31, (1 << 32) - 1, 1 << 32, stream.fileno(), stream.fileno() | 1 << 32, streams[0].fileno()]
SHAPES = {"connect": "fpn", "bind": "fpn", "listen": "fn", "clone": "tpppp", "fork": "", "vfork": "", "chmod": "pn",
          "fchmod": "fn", "fchmodat": "fpn", "fchmodat2": "fpnn", "utimensat": "fppn"}
THREAD = 0x3D0F00  # the flags of a C library
KINDS = {"f": FDS, "p": POINTERS, "n": NUMBERS, "t": [THREAD, THREAD | 1 << 32, THREAD | 1 << 63]}
def wild(rng, name):
    args = [ctypes.c_long(rng.choice(KINDS[kind])) for kind in SHAPES[name]]
    result = libc.syscall(ctypes.c_long(V["calls"][name]), *args)
    return errno.errorcode[ctypes.get_errno()] if result < 0 else "done"
def flicker():
    while True:  # the memory comes and goes while the supervisor reads it
        protect(fleeting, 0)
        libc.madvise(ctypes.c_void_p(fleeting), ctypes.c_long(PAGE), 4)
        protect(fleeting, 3)
def flood(seed, times):
    rng, found = random.Random(seed), {}
    for _ in range(times):
        for name in V["names"]:
            found.setdefault(name, set()).add(wild(rng, name))
    return found
"""


def flooding(body: str) -> str:
    return worker(body).replace("def attempt():", WILD + "def attempt():", 1)


def trapped(grants: dict[str, str]) -> list[str]:
    """The trapped calls that reach the supervisor under these grants."""
    without = {"bind", "listen"} if "listen" not in grants else set()
    return sorted(CALLS.keys() - without)
