"""The filter's table against the kernel, row by row: what it allows goes through, and no condition can be left out.

Written by hand and not from the table, so that a row or a condition that goes missing fails here: `mutate.py` takes each
out in turn. That what is refused would have worked is shown by the attacks in the other files.
"""

from __future__ import annotations

import os
import socket
import subprocess

import pytest
from arena import Arena

pyseccomp = pytest.importorskip("pyseccomp")

PRELUDE = """
import ctypes, signal, struct, threading
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
signal.signal(signal.SIGALRM, lambda *_: None)
EVERY = [-1] * 6

def call(name, *args):
    given = [a if isinstance(a, (bytes, ctypes.Array)) else ctypes.c_long(a) for a in args]
    result = libc.syscall(ctypes.c_long(V["numbers"][name]), *given)
    return errno.errorcode[ctypes.get_errno()] if result == -1 else "ok"
"""

# Called with -1 everywhere they fail without effect; what they fail with shows that they were let through.
HARMLESS = (
    "read write recvfrom poll ppoll epoll_wait epoll_pwait epoll_pwait2 futex readv writev select pselect6 pread64 pwrite64 "
    "preadv pwritev preadv2 pwritev2 lseek close recvmsg recvmmsg shutdown mmap munmap mprotect mremap madvise brk "
    "msync mincore mlock munlock membarrier nanosleep gettimeofday time times "
    "getitimer setitimer timer_settime timer_gettime timer_getoverrun timer_delete timerfd_create "
    "timerfd_settime timerfd_gettime open openat openat2 creat fstat stat lstat newfstatat statx statfs fstatfs access faccessat "
    "faccessat2 readlink readlinkat getdents getdents64 getcwd chdir fchdir mkdir mkdirat rmdir unlink unlinkat rename renameat "
    "link linkat symlink symlinkat truncate ftruncate fsync fdatasync sync_file_range fadvise64 flock "
    "copy_file_range sendfile dup dup2 dup3 pipe pipe2 eventfd eventfd2 epoll_create epoll_create1 epoll_ctl signalfd signalfd4 "
    "set_robust_list rseq sched_yield gettid futex_waitv restart_syscall wait4 waitid getcpu "
    "sched_get_priority_max sched_get_priority_min "
    "rt_sigaction rt_sigprocmask rt_sigpending rt_sigtimedwait rt_sigsuspend sigaltstack getpid getppid getuid geteuid getgid "
    "getegid getresuid getresgid getgroups getpgrp uname sysinfo getrusage getrlimit setrlimit getrandom getsockname "
    "getpeername connect chmod fchmod fchmodat fchmodat2 utimensat"
).split()
OLD = (  # that the generic table of newer architectures does without
    "poll epoll_wait select time open creat stat lstat access readlink getdents mkdir rmdir unlink rename link symlink dup2 pipe "
    "eventfd epoll_create signalfd getpgrp alarm pause chmod fork vfork arch_prctl"
).split()
ABSENT = (
    "clone3 memfd_secret io_uring_setup pidfd_open pidfd_send_signal process_madvise map_shadow_stack mseal".split()
)
UNSUPPORTED = "getxattr listxattr lgetxattr llistxattr fgetxattr flistxattr".split()
OPTIONS = [  # of setsockopt: SOL_SOCKET, IPPROTO_TCP, IPPROTO_IP, IPPROTO_IPV6
    *((1, option) for option in (2, 9, 7, 8, 13, 20, 21, 10, 18, 12)),
    *((6, option) for option in (1, 4, 5, 6, 18, 3, 12, 2, 7, 8, 25, 10)),
    *((0, option) for option in (1, 2)),
    *((41, option) for option in (26, 67, 16)),
]
LATER = {"memfd_secret": 447, "fchmodat2": 452, "map_shadow_stack": 453, "mseal": 462}
OTHERS = (
    "socket socketpair sendto sendmsg sendmmsg setsockopt ioctl fcntl prctl clone kill tgkill rt_sigqueueinfo rt_tgsigqueueinfo "
    "getsockopt close_range renameat2 get_robust_list fallocate prlimit64 sched_getaffinity sched_setaffinity sched_getparam sched_getscheduler getpriority setpriority alarm pause umask "
    "clock_gettime clock_getres clock_nanosleep timer_create capget set_tid_address exit exit_group bind listen accept accept4 execve fork vfork arch_prctl tkill"
).split()


@pytest.fixture(scope="module")
def numbers() -> dict[str, int]:
    found = {
        name: LATER.get(name) or pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name)
        for name in {*HARMLESS, *ABSENT, *UNSUPPORTED, *OTHERS}
    }
    missing = {name for name, number in found.items() if number < 0}
    assert missing <= (set() if os.uname().machine == "x86_64" else set(OLD))
    return {name: number for name, number in found.items() if number >= 0}


def test_what_is_allowed_goes_through(arena: Arena, numbers: dict[str, int]) -> None:
    code = (
        PRELUDE
        + """
def attempt():
    found = {}
    for name in V["harmless"]:
        # -1 as the fields that make pointers of it, and a length that no address has
        found[name] = call(name, *EVERY)
    me = os.getpid()
    found["alarm"] = call("alarm", 1) if "alarm" in V["numbers"] else "ok"
    found["pause"] = call("pause") if "pause" in V["numbers"] else "EINTR"
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    found["rt_sigsuspend waits"] = call("rt_sigsuspend", bytes(8), 8)
    found["umask"] = call("umask", 0o077)
    for name in ("clock_gettime", "clock_getres", "clock_nanosleep", "timer_create"):
        found[name] = call(name, 3, -1, -1, -1)
    found["set_tid_address"] = call("set_tid_address", 0)
    for family in (2, 10):
        for protocol in (0, 6):
            found[f"socket {family} {protocol}"] = call("socket", family, 1 | 0o2000000, protocol)
    found["socketpair stream"] = call("socketpair", 1, 1, 0, (ctypes.c_int * 2)())
    found["sendto"] = call("sendto", -1, b"", 0, 0x4000, 0, 0)
    found["sendmsg"] = call("sendmsg", -1, -1, 0x4000)
    found["sendmmsg"] = call("sendmmsg", -1, -1, 1, 0x4000)
    with socket.socket() as s:
        for level, option in V["options"]:
            found[f"setsockopt {level} {option}"] = call("setsockopt", s.fileno(), level, option, -1, 4)
        for level, option in ((1, 3), (1, 63), (6, 11), (0, 100), (41, 100)):
            found[f"getsockopt {level} {option}"] = call("getsockopt", s.fileno(), level, option, -1, -1)
        for request in V["ioctls"]:
            found[f"ioctl {request}"] = call("ioctl", s.fileno(), request, -1)
    for command in V["fcntls"]:
        found[f"fcntl {command}"] = call("fcntl", -1, command, 0)
    for mode in (0, 3):
        found[f"fallocate {mode}"] = call("fallocate", -1, mode, 0, 1)
    for option in V["prctls"]:
        found[f"prctl {option}"] = call("prctl", option, -1, -1, -1, -1)
    for name in ("kill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo"):
        found[name] = call(name, me, me, 0, -1) if "tg" in name else call(name, me, 0, -1)
    for who in (0, me):
        found[f"prlimit64 {who == me}"] = call("prlimit64", who, -1, 0, 0)
        for name in ("sched_getaffinity", "sched_setaffinity", "sched_getparam", "sched_getscheduler"):
            found[f"{name} {who == me}"] = call(name, who, -1, -1)
        for name in ("getpriority", "setpriority"):
            found[f"{name} {who == me}"] = call(name, 0, who, os.nice(0))
    found["get_robust_list"] = call("get_robust_list", 0, -1, -1)
    found["close_range"] = call("close_range", 2000, 2000, ~2)
    found["renameat2"] = call("renameat2", -1, -1, -1, -1, ~4)
    thread = threading.Thread(target=int)  # clone, exit and rt_sigreturn are used, or nothing here would come back
    thread.start()
    thread.join()
    found["absent"] = sorted({call(name, *EVERY) for name in V["absent"]})
    found["unsupported"] = sorted({call(name, *EVERY) for name in V["unsupported"]})
    found["copied"] = call("ioctl", -1, 0x40049409, -1)
    found["no room"] = [call("fallocate", -1, mode, 0, 1) for mode in (1, 0x08, 0x10, 0x11, 0x20, 0x40)]
    return found
"""
    )
    found = arena.confined(
        code,
        numbers=numbers,
        harmless=[name for name in HARMLESS if name in numbers],
        absent=ABSENT,
        unsupported=UNSUPPORTED,
        options=OPTIONS,
        ioctls=[0x541B, 0x5421, 0x5451, 0x5450, 0x5401, 0x5413],
        fcntls=[0, 1030, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1031, 1032],
        prctls=[15, 16, 3, 39, 23, 0x53564D41],
    ).value
    assert found is not None
    assert {name for name, outcome in found.items() if outcome == "EPERM"} == set()
    assert (found.pop("absent"), found.pop("unsupported")) == (["ENOSYS"], ["ENOTSUP"])
    assert (found.pop("no room"), found.pop("copied")) == (["ENOTSUP"] * 6, "ENOTSUP")
    assert {name for name, outcome in found.items() if outcome == "ENOSYS"} <= {
        "futex"
    }  # its own word for a command -1
    assert found["pause"] == found["rt_sigsuspend waits"] == "EINTR"
    assert {found[f"socket {family} {protocol}"] for family in (2, 10) for protocol in (0, 6)} == {"ok"}
    assert found["connect"] == found["fchmod"] == "EBADF" or found["connect"] == "EINVAL"


def test_exit_group_goes_through(arena: Arena, numbers: dict[str, int]) -> None:
    code = PRELUDE + "\ndef attempt():\n    call('exit_group', 7)\n    return 'still here'"
    assert arena.confined(code, numbers=numbers).code == 7


def test_exit_goes_through(arena: Arena, numbers: dict[str, int]) -> None:
    code = (
        PRELUDE
        + """
def attempt():
    came_back = []
    thread = threading.Thread(target=lambda: came_back.append(call("exit", 0)), daemon=True)
    thread.start()
    thread.join(0.3)  # Python does not learn of such an end
    return came_back
"""
    )
    assert arena.confined(code, numbers=numbers).value == []


def test_what_is_granted_goes_through(arena: Arena, numbers: dict[str, int]) -> None:
    code = (
        PRELUDE
        + """
def attempt():
    found = {name: call(name, *EVERY) for name in ("bind", "listen", "accept", "accept4", "execve")}
    found["unix"] = call("socket", 1, 1, 0)
    for triple in ((1, 2, 0), (1, 5, 0), (1, 1, 1), (40, 1, 0)):
        assert call("socket", *triple) == "EPERM", triple
    assert call("recvmsg", -1, -1, 0) == call("recvmmsg", -1, -1, 0, 0, 0) == "EPERM"  # descriptors from Redis's end
    children = []
    for name, args in (("fork", ()), ("clone", (17, 0, 0, 0, 0))):
        if name in V["numbers"]:
            pid = libc.syscall(ctypes.c_long(V["numbers"][name]), *[ctypes.c_long(a) for a in args])
            if pid == 0:
                while True:
                    signal.pause()
            found[name] = "ok" if pid > 0 else errno.errorcode[ctypes.get_errno()]
            children.append(pid)
    import subprocess
    found["vfork"] = subprocess.run(["true"]).returncode  # which is how CPython starts one; it begins with arch_prctl
    for pid in children:
        found[f"kill {len(found)}"] = call("kill", pid, 0)
        found[f"tgkill {len(found)}"] = call("tgkill", pid, pid, 0)
        info = struct.pack("=iii", 0, 0, -1) + bytes(116)  # SI_QUEUE
        found[f"rt_sigqueueinfo {len(found)}"] = call("rt_sigqueueinfo", pid, 10, info)
        found[f"rt_tgsigqueueinfo {len(found)}"] = call("rt_tgsigqueueinfo", pid, pid, 10, info)
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    return found
"""
    )
    allow = {"listen": "127.0.0.1:1", "run": "true"}
    held = arena.confined(code, allow=allow, redis="/run/no-redis", numbers=numbers)
    assert held.value is not None, held
    assert {name for name, outcome in held.value.items() if outcome in ("EPERM", "ENOSYS")} == set()
    assert held.value["vfork"] == 0


def test_vfork_is_allowed_with_programs(arena: Arena, numbers: dict[str, int]) -> None:
    # After EPERM CPython would fork. What comes back of a vfork(2) that succeeds may crash: so in a process of its own.
    if "vfork" not in numbers:
        pytest.skip("this architecture has no such call")
    code = (
        PRELUDE
        + """
def attempt():
    pid = os.fork()
    if pid == 0:
        os._exit(9 if call("vfork") == "EPERM" else 0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 9
"""
    )
    assert arena.confined(code, allow={"run": "true"}, numbers=numbers).value is True


REFUSED = """
def attempt():
    found = {}
    me, other = os.getpid(), V["other"]
    fastopen, high = 0x20000000, 1 << 32
    for family, kind, protocol in V["sockets"]:
        found[f"socket {family} {kind} {protocol}"] = call("socket", family, kind, protocol)
    for family, kind, protocol in ((1, 2, 0), (1, 5, 0), (2, 1, 0), (1, 1, 1), (1, 1 | high, 2)):
        found[f"socketpair {family} {kind} {protocol}"] = call("socketpair", family, kind, protocol, (ctypes.c_int * 2)())
    with socket.socket() as s:
        fd = s.fileno()
        found["sendto fast open"] = call("sendto", fd, b"", 0, fastopen, 0, 0)
        found["sendto fast open, high"] = call("sendto", fd, b"", 0, fastopen | high, 0, 0)
        found["sendto address"] = call("sendto", fd, b"", 0, 0, bytes(16), 16)
        found["sendto high address"] = call("sendto", fd, b"", 0, 0, high, 16)
        found["sendmsg fast open"] = call("sendmsg", fd, bytes(56), fastopen)
        found["sendmmsg fast open"] = call("sendmmsg", fd, bytes(64), 1, fastopen)
        for level, option in V["options"]:
            found[f"setsockopt {level} {option}"] = call("setsockopt", fd, level, option, bytes(16), 16)
        for level, option in ((1, 64), (1, 77), (2, 1), (255, 1), (284, 1), (282, 1)):
            found[f"getsockopt {level} {option}"] = call("getsockopt", fd, level, option, bytes(64), bytes(8))
        for request in V["ioctls"]:
            found[f"ioctl {request}"] = call("ioctl", fd, request, bytes(64))
        for command in (8, 9, 10, 11, 15, 16, 1024, 1025, 1026, 1033, 1034, 1035, 4 | 1 << 10):
            found[f"fcntl {command}"] = call("fcntl", fd, command, 0)
        found["fcntl O_ASYNC"] = call("fcntl", fd, 4, 0o20000)
        for name in ("bind", "listen", "accept", "accept4"):
            found[name] = call(name, fd, 0, 0, 0)
    for mode in (2, 4, 7, 0x12, 0x13, 0x80, 0x83, 1 << 31, -1):
        found[f"fallocate {mode}"] = call("fallocate", -1, mode, 0, 1)
    found["close_range"] = call("close_range", 2000, 2000, 2)
    found["renameat2"] = call("renameat2", -1, bytes(1), -1, bytes(1), 4)
    for who in (other, me):  # Landlock refuses the first with the same errno
        found[f"get_robust_list {who}"] = call("get_robust_list", who, bytes(8), bytes(8))
    found["capget"] = call("capget", bytes(8), 0)
    for name in ("clock_gettime", "clock_getres", "clock_nanosleep", "timer_create"):
        for clock in (~other << 3 | 2, -1, 1 << 31):
            found[f"{name} {clock}"] = call(name, clock, -1, -1, -1)
    for option in (1, 4, 8, 22, 24, 28, 35, 36, 38, 47, 0x59616D61, 53, 59):
        found[f"prctl {option}"] = call("prctl", option, 0, 0, 0, 0)
    thread = 0x100 | 0x200 | 0x400 | 0x800 | 0x10000
    for flags in (0, 17, 0x4111, thread & ~0x10000, thread & ~0x100, *(thread | bit for bit in V["bits"]), *(17 | bit for bit in V["bits"])):
        found[f"clone {flags:x}"] = call("clone", flags, 0, 0, 0, 0)
    for name in ("fork", "vfork", "execve", "arch_prctl"):
        if name in V["numbers"]:
            found[name] = call(name, 0x1001, 0, 0)
    info = struct.pack("=iii", 0, 0, -1) + bytes(116)  # SI_QUEUE: others the kernel refuses itself
    for who in (other, 0, -1, -other, 1):
        found[f"kill {who}"] = call("kill", who, 0)
        found[f"rt_sigqueueinfo {who}"] = call("rt_sigqueueinfo", who, 0, info)
    found["tgkill"] = call("tgkill", other, other, 0)
    found["rt_tgsigqueueinfo"] = call("rt_tgsigqueueinfo", other, other, 0, info)
    found["tkill"] = call("tkill", other, 0)
    for name in ("prlimit64", "sched_getaffinity", "sched_setaffinity", "sched_getparam", "sched_getscheduler"):
        found[name] = call(name, other, 7 if name == "prlimit64" else 128, 0, bytes(128))
    for name in ("getpriority", "setpriority"):
        for which, who in ((0, other), (0, V["nobody"]), (1, 0), (2, 0), (1, me), (2, me)):
            found[f"{name} {which} {who}"] = call(name, which, who, 19)
    return found
"""


def test_no_condition_can_be_left_out(arena: Arena, numbers: dict[str, int]) -> None:
    tcp, ip, ip6 = socket.IPPROTO_TCP, socket.IPPROTO_IP, socket.IPPROTO_IPV6
    high = 1 << 32
    with subprocess.Popen(["sleep", "60"]) as other:
        try:
            held = arena.confined(
                PRELUDE + REFUSED,
                missing=["landlock-refer", "landlock-tcp", "landlock-ioctl", "landlock-scope"],  # the filter alone
                numbers=numbers,
                other=other.pid,
                nobody=1 << 22,  # the kernel's own limit of pids: root's processes it guards itself, with the same errno
                sockets=[
                    [1, 1, 0], [3, 1, 0], [16, 3, 0], [17, 3, 0], [38, 5, 0], [40, 1, 0], [43, 1, 0],
                    [2, 2, 0], [2, 3, 0], [2, 3, 6], [2, 5, 0], [10, 2, 0], [10, 3, 58], [10, 10, 0],
                    [2, 1, 262], [10, 1, 262], [2, 1, 132], [2, 1, 1], [2, 1, 17], [10, 1, 132], [2, 1, 262 | high], [2, 2 | high, 0],
                    [1, 1, 6], [2, 2, 6], [10, 2, 6],
                ],
                options=[
                    [1, 25], [1, 26], [1, 36], [1, 50], [1, 1], [1, 3], [1, 5], [1, 6], [1, 32], [1, 33], [1, 60],
                    [tcp, 23], [tcp, 30], [tcp, 33], [tcp, 31], [tcp, 19], [tcp, 14], [tcp, 13], [tcp, 38], [tcp, 9],
                    [ip, 4], [ip, 19], [ip, 15], [ip, 35], [ip, 10], [ip, 3], [ip, 49],
                    [ip6, 57], [ip6, 75], [ip6, 20], [ip6, 50], [ip6, 17], [255, 1], [41, 1], [132, 2],
                    [tcp, 20], [ip, 21], [2, 2], [3, 26],
                    *([level, option] for level in (1, 2, tcp, ip, ip6) for option in range(80) if (level, option) not in OPTIONS),
                ],
                ioctls=[0x5412, 0x541C, 0x540E, 0x5423, 0x5452, 0x8901, 0x8902, 0x8914, 0x8933, 0x8946, 0xC0045878, 0x5402],
                bits=[0x1000, 0x2000, 0x8000, 0x20000, 0x800000, *(1 << bit for bit in range(25, 31))],
            )  # fmt: skip
            assert held.value is not None, held
            assert {name: outcome for name, outcome in held.value.items() if outcome != "EPERM"} == {}
            assert other.poll() is None
        finally:
            other.kill()


def test_what_run_grants_is_no_more_than_processes(arena: Arena, numbers: dict[str, int]) -> None:
    code = (
        PRELUDE
        + """
def attempt():
    found = {f"clone {bit:x}": call("clone", 17 | bit, 0, 0, 0, 0) for bit in V["bits"]}
    for name in ("setsid", "setpgid", "execveat", "unshare", "setns", "ptrace"):
        found[name] = call(name, 0, 0, 0, 0, 0)
    if "arch_prctl" in V["numbers"]:
        found["arch_prctl"] = call("arch_prctl", 0x1001, 0)
    return found
"""
    )
    numbers = numbers | {
        name: pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name)
        for name in ("setsid", "setpgid", "execveat", "unshare", "setns", "ptrace")
    }
    bits = [0x1000, 0x2000, 0x8000, 0x20000, 0x800000, *(1 << bit for bit in range(25, 31))]
    held = arena.confined(code, allow={"run": "true"}, numbers=numbers, bits=bits)
    assert held.value is not None, held
    assert {name: outcome for name, outcome in held.value.items() if outcome != "EPERM"} == {}
