"""The system call filter: one table, compiled by libseccomp in the supervisor (seccomp(2)).

Default deny. What the table does not allow fails with EPERM; calls that libc tries first and falls back from fail
with ENOSYS; `connect` goes to the supervisor; a foreign architecture or the x32 table kills the process. The program
depends on `unix_sockets` and on the child's pid only; the pid is put in after compiling (`for_pid`).

Conditions compare the low 32 bits alone where the kernel's argument is an int: it ignores what the upper half of the
register holds, so a rule that looked at it could be stepped around.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
import termios
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from sandboxrun.errors import SandboxError

if TYPE_CHECKING:
    import pyseccomp

_INT = 0xFFFFFFFF
# Stands for the child's pid while compiling; never a real pid (PID_MAX_LIMIT is 4194304) and never another constant.
_PID = 0x7BADC0DE

# include/uapi/linux/sched.h
_THREAD = 0x00000100 | 0x00000200 | 0x00000400 | 0x00000800 | 0x00010000  # VM, FS, FILES, SIGHAND, THREAD
_NOT_THREAD = (
    0x000000FF  # exit signal
    | 0x00001000 | 0x00002000 | 0x00004000  # PIDFD, PTRACE, VFORK
    | 0x00020000 | 0x00800000  # NEWNS, UNTRACED
    | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000  # NEWCGROUP, UTS, IPC, USER, PID, NET
)  # fmt: skip

_SOCK_TYPE_MASK = 0xF  # net/socket.c: the rest are SOCK_NONBLOCK and SOCK_CLOEXEC
_MSG_FASTOPEN = 0x20000000


class Arg(NamedTuple):
    """`args[position] & mask == value`."""

    position: int
    mask: int
    value: int


def _int(index: int, value: int) -> Arg:
    return Arg(index, _INT, value)


class Rule(NamedTuple):
    """One row: a system call, the conditions that must all hold, and why it is there."""

    name: str
    args: tuple[Arg, ...] = ()
    reason: str = ""


_ALLOWED = {
    # The loop of a busy worker first.
    "data": "read write recvfrom poll ppoll epoll_wait epoll_pwait epoll_pwait2 futex readv writev select pselect6 "
    "pread64 pwrite64 preadv pwritev preadv2 pwritev2 lseek close close_range recvmsg recvmmsg shutdown",
    "memory": "mmap munmap mprotect mremap madvise brk msync mincore mlock munlock membarrier",
    "time": "clock_gettime clock_getres clock_nanosleep nanosleep gettimeofday time times getitimer setitimer alarm "
    "timer_create timer_settime timer_gettime timer_getoverrun timer_delete timerfd_create timerfd_settime timerfd_gettime",
    "files (Landlock decides)": "open openat openat2 creat fstat stat lstat newfstatat statx statfs fstatfs access faccessat "
    "faccessat2 readlink readlinkat getdents getdents64 getcwd chdir fchdir mkdir mkdirat rmdir unlink unlinkat rename "
    "renameat renameat2 link linkat symlink symlinkat truncate ftruncate fsync fdatasync sync_file_range fallocate fadvise64 "
    "flock copy_file_range sendfile umask",
    "descriptors": "dup dup2 dup3 pipe pipe2 eventfd eventfd2 epoll_create epoll_create1 epoll_ctl signalfd signalfd4",
    "threads": "exit exit_group set_robust_list get_robust_list rseq set_tid_address sched_yield gettid futex_waitv "
    "restart_syscall wait4 waitid getcpu",
    "signals": "rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigtimedwait rt_sigsuspend sigaltstack pause",
    "about itself": "getpid getppid getuid geteuid getgid getegid getresuid getresgid getgroups getpgrp uname sysinfo "
    "getrusage getrlimit setrlimit capget getrandom",
    "sockets that are there": "getsockname getpeername getsockopt",
}

# ioctl(2) requests on descriptors a worker can have. No TIOCSTI, FIOASYNC, FIOSETOWN, SIOC* configuration.
_IOCTLS = {
    "FIONREAD": termios.FIONREAD, "FIONBIO": termios.FIONBIO, "FIOCLEX": termios.FIOCLEX,
    "FIONCLEX": termios.FIONCLEX, "TCGETS": termios.TCGETS, "TIOCGWINSZ": termios.TIOCGWINSZ,
}  # fmt: skip
# No F_SETOWN or F_SETSIG (signals to others), F_NOTIFY, F_SETLEASE.
_FCNTLS = {
    name: getattr(fcntl, name)
    for name in ("F_DUPFD", "F_DUPFD_CLOEXEC", "F_GETFD", "F_SETFD", "F_GETFL", "F_GETLK", "F_SETLK", "F_SETLKW",
                 "F_OFD_GETLK", "F_OFD_SETLK", "F_OFD_SETLKW")
} | {"F_SETPIPE_SZ": 1031, "F_GETPIPE_SZ": 1032}  # fmt: skip
_PRCTLS = {"PR_SET_NAME": 15, "PR_GET_NAME": 16, "PR_GET_DUMPABLE": 3, "PR_GET_NO_NEW_PRIVS": 39, "PR_CAPBSET_READ": 23,
           "PR_SET_VMA": 0x53564D41}  # fmt: skip
# Fast open, ULP, REPAIR, MD5, source routes, multicast, binding to a device and all else: refused.
_SOCKOPTS = {
    socket.SOL_SOCKET: ("SO_REUSEADDR", "SO_KEEPALIVE", "SO_SNDBUF", "SO_RCVBUF", "SO_LINGER", "SO_RCVTIMEO", "SO_SNDTIMEO",
                        "SO_OOBINLINE", "SO_REUSEPORT", "SO_RCVLOWAT", "SO_PRIORITY"),
    socket.IPPROTO_TCP: ("TCP_NODELAY", "TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT", "TCP_CORK",
                         "TCP_QUICKACK", "TCP_MAXSEG", "TCP_SYNCNT", "TCP_LINGER2", "TCP_NOTSENT_LOWAT", "TCP_WINDOW_CLAMP"),
    socket.IPPROTO_IP: ("IP_TOS", "IP_TTL"),
    socket.IPPROTO_IPV6: ("IPV6_V6ONLY", "IPV6_TCLASS", "IPV6_UNICAST_HOPS"),
}  # fmt: skip

# libc and the standard library try these and fall back when the kernel does not know them.
_ABSENT = "clone3 memfd_secret io_uring_setup pidfd_open pidfd_send_signal process_madvise map_shadow_stack mseal"


def rules(*, unix_sockets: bool) -> Iterator[Rule]:
    """The rows that allow. `unix_sockets`: Redis is reached by one, and `connect` is still the supervisor's."""
    for reason, names in _ALLOWED.items():
        for name in names.split():
            yield Rule(name, reason=reason)
    for family in (socket.AF_INET, socket.AF_INET6):
        for protocol in (0, socket.IPPROTO_TCP):
            yield Rule(
                "socket", (_int(0, family), Arg(1, _SOCK_TYPE_MASK, socket.SOCK_STREAM), _int(2, protocol)), "TCP only"
            )
    unix = (_int(0, socket.AF_UNIX), Arg(1, _SOCK_TYPE_MASK, socket.SOCK_STREAM), _int(2, 0))
    if unix_sockets:
        yield Rule("socket", unix, "Redis on a Unix socket")
    # Streams only: a datagram pair could send to any path with sendmsg(2), whose address no filter can see.
    yield Rule("socketpair", unix, "event loops wake themselves with one")
    yield Rule("sendto", (Arg(3, _MSG_FASTOPEN, 0), Arg(4, 0xFFFFFFFFFFFFFFFF, 0)), "no address, no fast open")
    yield Rule("sendmsg", (Arg(2, _MSG_FASTOPEN, 0),), "no fast open; TCP ignores an address")
    yield Rule("sendmmsg", (Arg(3, _MSG_FASTOPEN, 0),), "no fast open; TCP ignores an address")
    for level, options in _SOCKOPTS.items():
        for name in options:
            yield Rule("setsockopt", (_int(1, level), _int(2, _sockopt(name))), name)
    for name, request in _IOCTLS.items():
        yield Rule("ioctl", (_int(1, request),), name)
    for name, command in _FCNTLS.items():
        yield Rule("fcntl", (_int(1, command),), name)
    # O_ASYNC on a terminal would send SIGIO to the operator's foreground processes.
    yield Rule("fcntl", (_int(1, fcntl.F_SETFL), Arg(2, os.O_ASYNC, 0)), "F_SETFL without O_ASYNC")
    for name, option in _PRCTLS.items():
        yield Rule("prctl", (_int(0, option),), name)
    yield Rule("clone", (Arg(0, _THREAD | _NOT_THREAD, _THREAD),), "threads only")
    for name in ("kill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo"):
        yield Rule(name, (_int(0, _PID),), "itself only")
    for name in ("prlimit64", "sched_getaffinity", "sched_setaffinity", "sched_getparam", "sched_getscheduler"):
        yield Rule(name, (_int(0, 0),), "itself only")
    yield Rule("prlimit64", (_int(0, _PID),), "itself only")
    for name in ("getpriority", "setpriority"):
        yield Rule(name, (_int(0, os.PRIO_PROCESS), _int(1, 0)), "itself only")


def compile_program(*, unix_sockets: bool) -> bytes:
    """The BPF program for this machine's architecture, with `_PID` where the pid belongs. Raises SandboxError."""
    try:
        import pyseccomp
    except (ImportError, RuntimeError, OSError) as error:
        raise SandboxError(
            f"libseccomp cannot be loaded ({error}): install it, on Debian with apt-get install libseccomp2"
        ) from error
    try:
        program = pyseccomp.SyscallFilter(pyseccomp.ERRNO(errno.EPERM))
        program.set_attr(pyseccomp.Attr.ACT_BADARCH, pyseccomp.KILL_PROCESS)
        program.set_attr(pyseccomp.Attr.CTL_OPTIMIZE, 2)  # a binary tree over the numbers, not a list
        for rule in rules(unix_sockets=unix_sockets):
            _add(program, pyseccomp.ALLOW, rule)
        for name in _ABSENT.split():
            _add(program, pyseccomp.ERRNO(errno.ENOSYS), Rule(name))
        _add(program, pyseccomp.NOTIFY, Rule("connect"))
        fd = os.memfd_create("seccomp", os.MFD_CLOEXEC)
        with open(fd, "w+b") as file:
            program.export_bpf(file)
            file.seek(0)
            return file.read()
    except (OSError, ValueError) as error:
        raise SandboxError(f"libseccomp cannot build the filter: {error}; version 2.5 or newer is needed") from error


def for_pid(program: bytes, pid: int) -> bytes:
    """`program` with the child's pid in place of the placeholder (struct sock_filter: u16 u8 u8 u32)."""
    instructions = struct.iter_unpack("=HBBI", program)
    return b"".join(struct.pack("=HBBI", code, jt, jf, pid if k == _PID else k) for code, jt, jf, k in instructions)


def _add(program: pyseccomp.SyscallFilter, action: int, rule: Rule) -> None:
    from pyseccomp import MASKED_EQ, Arch, Arg, resolve_syscall

    number = resolve_syscall(Arch.NATIVE, rule.name)
    # A name this libseccomp does not know (-1) stays refused; one this architecture lacks libseccomp skips itself.
    if number != -1:
        program.add_rule(action, number, *(Arg(a.position, MASKED_EQ, a.mask, a.value) for a in rule.args))


def _sockopt(name: str) -> int:
    # Not every Python names every option: linux/tcp.h, asm-generic/socket.h.
    missing = {
        "TCP_NOTSENT_LOWAT": 25,
        "TCP_USER_TIMEOUT": 18,
        "SO_PRIORITY": 12,
        "IP_TOS": 1,
        "IP_TTL": 2,
        "IPV6_TCLASS": 67,
    }
    return int(getattr(socket, name, None) or missing[name])
