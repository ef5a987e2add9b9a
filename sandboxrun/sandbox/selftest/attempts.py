"""The attempts of `sandboxrun check`, each a function: it returns where it works and raises OSError where it is refused.

Run twice from the same text, as a plain process and as a worker. What they are aimed at, and where the outcomes go, stands
in the JSON file that the variable CHECK names. trial.py makes it, and looks whether anything arrived.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import json
import mmap
import os
import resource
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

V: dict[str, Any] = {}

_NR = {
    "x86_64": {"ptrace": 101, "add_key": 248, "shmget": 29, "shmctl": 31, "mq_open": 240, "mq_unlink": 241,
               "io_uring_setup": 425, "unshare": 272, "process_vm_readv": 310, "connect": 42},
    "aarch64": {"ptrace": 117, "add_key": 217, "shmget": 194, "shmctl": 195, "mq_open": 180, "mq_unlink": 181,
                "io_uring_setup": 425, "unshare": 97, "process_vm_readv": 270, "connect": 203},
}[os.uname().machine]  # fmt: skip
_MSG_FASTOPEN = 0x20000000
_PTRACE_SEIZE = 0x4206
_CLONE_NEWUSER = 0x10000000
_THREAD_TRIES = 200
_SYSTEM_V_PRIVATE, _IPC_RMID = 0, 0
_RACES, _RACE_SECONDS, _RACES_AT_LEAST = 300, 2, 30  # without the sandbox one in three is won

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _call(name: str, *args: object) -> int:
    result = int(
        _libc.syscall(ctypes.c_long(_NR[name]), *(ctypes.c_long(a) if isinstance(a, int) else a for a in args))
    )
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return result


def _inet(port: int) -> bytes:
    """struct sockaddr_in, ip(7)."""
    return struct.pack("=H", socket.AF_INET) + struct.pack("!H", port) + socket.inet_aton("127.0.0.1") + bytes(8)


def tcp() -> None:
    socket.create_connection(("127.0.0.1", V["ports"]["tcp"]), 5).close()


def tcp_race() -> None:
    """A thread changes the address between the moment it is looked at and the moment it is used."""
    address = ctypes.create_string_buffer(_inet(V["ports"]["granted"]), 16)
    granted, other = (struct.pack("!H", V["ports"][name]) for name in ("granted", "tcp_race"))
    over = False

    def change() -> None:
        ports = itertools.cycle((other, granted))
        while not over:  # one change a turn: between two turns Python changes threads
            ctypes.memmove(ctypes.addressof(address) + 2, next(ports), 2)

    sys.setswitchinterval(1e-5)
    thread = threading.Thread(target=change)
    thread.start()
    try:
        over_at = time.monotonic() + _RACE_SECONDS  # each takes some turns of the scheduler: long on a busy machine
        for race in range(_RACES):
            if race >= _RACES_AT_LEAST and time.monotonic() > over_at:
                break
            time.sleep(0.00005)  # let the other thread run, and stop it anywhere
            with socket.socket() as sock:
                try:
                    _call("connect", sock.fileno(), address, 16)
                except OSError:
                    continue
                if sock.getpeername()[1] == V["ports"]["tcp_race"]:
                    return
    finally:
        over = True
        thread.join()
    raise OSError(errno.EACCES, "every connection went to the granted address")


def tcp_fast_open() -> None:
    """A connection that is opened by sending."""
    with socket.socket() as sock:
        sock.sendto(b"x", _MSG_FASTOPEN, ("127.0.0.1", V["ports"]["tcp_fast_open"]))


def udp() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"x", ("127.0.0.1", V["ports"]["udp"]))


def unix() -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(V["unix"])


def unix_abstract() -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(f"\0{V['unix_abstract']}")


def netlink() -> None:
    socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).close()


def listen() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()


def name() -> None:
    socket.getaddrinfo("localhost", 80)


def io_uring() -> None:
    os.close(_call("io_uring_setup", 1, ctypes.create_string_buffer(120)))


def read() -> None:
    with open(V["files"]["read"]) as file:
        file.read()


def read_by_symlink() -> None:
    os.symlink(V["files"]["read_by_symlink"], "symlink")
    with open("symlink") as file:
        file.read()


def list_folder() -> None:
    os.listdir(V["outside"])


def write() -> None:
    with open(V["files"]["write"], "a") as file:
        file.write("changed")


def create() -> None:
    with open(f"{V['outside']}/created", "w"):
        pass


def truncate() -> None:
    os.truncate(V["files"]["truncate"], 0)


def truncate_readable() -> None:
    """One that reading is granted of."""
    os.truncate(V["readable"], 0)


def change_mode() -> None:
    os.chmod(V["files"]["change_mode"], 0o777)


def remove() -> None:
    os.unlink(V["files"]["remove"])


def move() -> None:
    os.rename(V["files"]["move"], "moved")


def hard_link() -> None:
    os.link(V["files"]["hard_link"], "linked")


def terminal() -> None:
    """One that other programs use, by its name."""
    fd = os.open(V["terminal"], os.O_RDWR | os.O_NOCTTY)
    os.write(fd, b"x")


def environment_of_another() -> None:
    with open(f"/proc/{V['victim']}/environ", "rb") as file:
        file.read()


def memory_of_supervisor() -> None:
    os.close(os.open(f"/proc/{V['supervisor']}/mem", os.O_RDONLY))


def memory_of_another() -> None:
    here, there = ctypes.create_string_buffer(4), (ctypes.c_size_t * 2)(V["address"], 4)
    _call("process_vm_readv", V["victim"], (ctypes.c_size_t * 2)(ctypes.addressof(here), 4), 1, there, 1, 0)


def trace() -> None:
    _call("ptrace", _PTRACE_SEIZE, V["victim"], 0, 0)


def limit_another() -> None:
    resource.prlimit(V["victim"], resource.RLIMIT_CORE, (0, 0))


def slow_down_another() -> None:
    os.setpriority(os.PRIO_PROCESS, V["victim"], 19)


def kill() -> None:
    os.kill(V["to_kill"], signal.SIGKILL)


def execute() -> None:
    os.execv("/bin/sh", ["sh", "-c", ": >executed"])


def new_process() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def user_namespace() -> None:
    _call("unshare", _CLONE_NEWUSER)


def keyring() -> None:
    session = ctypes.c_long(-2)  # KEY_SPEC_PROCESS_KEYRING: gone with the process
    _call("add_key", ctypes.c_char_p(b"user"), ctypes.c_char_p(b"sandboxrun-check"), ctypes.c_char_p(b"x"), 1, session)


def shared_memory() -> None:
    _call("shmctl", _call("shmget", _SYSTEM_V_PRIVATE, 4096, 0o600), _IPC_RMID, 0)


def message_queue() -> None:
    queue = ctypes.c_char_p(b"sandboxrun-check-%d" % os.getpid())
    os.close(_call("mq_open", queue, os.O_CREAT | os.O_RDWR, 0o600, 0))
    _call("mq_unlink", queue)


def own_environment() -> None:
    """What is in the operator's, and not granted."""
    if V["variable"] not in os.environ:
        raise OSError(errno.ENOENT, "no such variable")


def descriptor() -> None:
    """A file that the operator's shell has left open for those that it starts."""
    os.fstat(V["descriptor"])


def other_table() -> None:
    """int 0x80: the system call table of 32-bit programs, where the numbers mean other calls."""
    code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")  # mov eax, 20 (getpid); int 0x80; ret
    result = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()
    if result < 0:
        raise OSError(-result, "int 0x80")


def limit_memory() -> None:
    mmap.mmap(-1, V["limits"]["memory"], flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()


def limit_threads() -> None:
    over = threading.Event()
    threads = [threading.Thread(target=over.wait, daemon=True) for _ in range(V["limits"]["threads"])]
    try:
        for thread in threads:
            thread.start()
    except RuntimeError as error:
        raise OSError(errno.EAGAIN, "thread") from error
    finally:
        over.set()
        for thread in threads:
            if thread.ident is not None:
                thread.join()


def limit_files() -> None:
    found: list[int] = []
    try:
        for _ in range(V["limits"]["files"]):
            found.append(os.open("/dev/null", os.O_RDONLY))
    finally:
        for fd in found:
            os.close(fd)


def limit_scratch() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with open("long", "wb", buffering=0) as file:
        file.seek(V["limits"]["scratch"])
        file.write(b"x")


def granted_tcp() -> None:
    socket.create_connection(("127.0.0.1", V["ports"]["granted_tcp"]), 5).close()


def granted_file() -> None:
    with open(V["readable"]) as file:
        file.read()


def scratch_file() -> None:
    with open("scratch", "w") as file:
        file.write("x")
    os.chmod("scratch", 0o600)
    os.rename("scratch", "renamed")


def thread() -> None:
    for tries in range(_THREAD_TRIES, 0, -1):
        started = threading.Thread(target=int)
        try:
            started.start()
        except RuntimeError:  # those of limit_threads count until the kernel has removed them, after they were joined
            if tries == 1:
                raise
            time.sleep(0.01)
        else:
            started.join()
            return


def _outcome(attempt: Callable[[], None]) -> str:
    """ "works", or the name of an errno or of an exception."""
    try:
        attempt()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    except Exception as error:
        return repr(error)
    return "works"


def _apart(attempt: Callable[[], None]) -> str:
    """In a process of its own: what works may end or replace it."""
    pid = os.fork()
    if pid == 0:
        outcome = _outcome(attempt)
        os._exit(0 if outcome == "works" else getattr(errno, outcome, 255))
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code < 0:
        return signal.Signals(-code).name
    return errno.errorcode.get(code, "works" if code == 0 else "an exception")


def main() -> None:
    with open(os.environ["CHECK"]) as file:
        V.update(json.load(file))
    run = _apart if V["apart"] else _outcome
    with open(V["results"], "a") as results:
        for found in V["attempts"]:
            outcome = run(getattr(sys.modules["__main__"], found))
            results.write(json.dumps([found, outcome]) + "\n")
            results.flush()  # the next one may be the end of this process


if __name__ == "__main__":
    main()
