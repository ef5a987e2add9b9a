"""The system call filter: one table, compiled by libseccomp in the supervisor (seccomp(2)).

Default deny. What the table does not have fails with EPERM; a foreign architecture or the x32 table kills the process.
The program depends on the `Grants` and on the child's pid only; the pid is put in after compiling (`for_pid`), so that
a program can be kept.

Conditions compare the low 32 bits alone if the kernel's argument is an int: it ignores the upper half of the register, so
a worker could evade a rule that compared it.
"""

from __future__ import annotations

import enum
import errno
import fcntl
import os
import socket
import termios
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from sandboxrun.errors import SandboxError
from sandboxrun.sandbox.compile.grants import PID_PLACEHOLDER, Grants

if TYPE_CHECKING:
    import pyseccomp

_INT = 0xFFFFFFFF
_POINTER = 0xFFFFFFFFFFFFFFFF
# include/uapi/linux/sched.h
_THREAD = 0x00000100 | 0x00000200 | 0x00000400 | 0x00000800 | 0x00010000  # VM, FS, FILES, SIGHAND, THREAD
_NEVER_CLONED = (
    0x00001000 | 0x00002000  # PIDFD, PTRACE
    | 0x00020000 | 0x00800000  # NEWNS, UNTRACED
    | 0x00008000  # PARENT: a child of the supervisor's
    | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000  # NEWCGROUP, UTS, IPC, USER, PID, NET
)  # fmt: skip
_NOT_A_THREAD = _NEVER_CLONED | 0x000000FF | 0x00004000  # exit signal, VFORK

_SOCK_TYPE_MASK = 0xF  # net/socket.c: the rest are SOCK_NONBLOCK and SOCK_CLOEXEC
_MSG_FASTOPEN = 0x20000000


class Action(enum.Enum):
    """What the filter does with a call. The value is how documents say it."""

    ALLOW = "allowed"
    ASK = "asks the supervisor"
    ABSENT = "fails with ENOSYS"  # libc and the standard library try these first and fall back
    UNSUPPORTED = "fails with ENOTSUP"  # what file systems without the feature answer


class Arg(NamedTuple):
    """`args[position] & mask == value`; `text` is how documents say it."""

    position: int
    mask: int
    value: int
    text: str


class Rule(NamedTuple):
    """One row: a system call, the conditions that must all hold, what is done, why, and the grant it takes."""

    name: str
    reason: str
    args: tuple[Arg, ...] = ()
    action: Action = Action.ALLOW
    when: str = ""  # what Grants must say


_FREELY = {
    # What a busy worker does all day first.
    "data": "read write recvfrom poll ppoll epoll_wait epoll_pwait epoll_pwait2 futex readv writev select pselect6 "
    "pread64 pwrite64 preadv pwritev preadv2 pwritev2 lseek close shutdown",
    "memory": "mmap munmap mprotect mremap madvise brk msync mincore mlock munlock membarrier",
    "time": "nanosleep gettimeofday time times getitimer setitimer alarm "
    "timer_settime timer_gettime timer_getoverrun timer_delete timerfd_create timerfd_settime timerfd_gettime",
    "files: Landlock decides": "open openat openat2 creat fstat stat lstat newfstatat statx statfs fstatfs access faccessat "
    "faccessat2 readlink readlinkat getdents getdents64 getcwd chdir fchdir mkdir mkdirat rmdir unlink unlinkat rename "
    "renameat link linkat symlink symlinkat truncate ftruncate fsync fdatasync sync_file_range fadvise64 "
    "flock copy_file_range sendfile umask",
    "descriptors": "dup dup2 dup3 pipe pipe2 eventfd eventfd2 epoll_create epoll_create1 epoll_ctl signalfd signalfd4",
    "threads": "exit exit_group set_robust_list rseq set_tid_address sched_yield gettid futex_waitv "
    "restart_syscall wait4 waitid getcpu sched_get_priority_max sched_get_priority_min",
    "signals": "rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigtimedwait rt_sigsuspend sigaltstack pause",
    "about itself": "getpid getppid getuid geteuid getgid getegid getresuid getresgid getgroups getpgrp uname sysinfo "
    "getrusage getrlimit setrlimit getrandom",
    "sockets that are there": "getsockname getpeername",
}
_CLOSE_RANGE_UNSHARE, _RENAME_WHITEOUT = 1 << 1, 1 << 2  # linux/close_range.h, linux/fs.h
_FICLONE = 0x40049409  # linux/fs.h
_IOCTLS = {
    "FIONREAD": termios.FIONREAD, "FIONBIO": termios.FIONBIO, "FIOCLEX": termios.FIOCLEX,
    "FIONCLEX": termios.FIONCLEX, "TCGETS": termios.TCGETS, "TIOCGWINSZ": termios.TIOCGWINSZ,
}  # fmt: skip
_FCNTLS = {
    name: getattr(fcntl, name)
    for name in ("F_DUPFD", "F_DUPFD_CLOEXEC", "F_GETFD", "F_SETFD", "F_GETFL", "F_GETLK", "F_SETLK", "F_SETLKW",
                 "F_OFD_GETLK", "F_OFD_SETLK", "F_OFD_SETLKW")
} | {"F_SETPIPE_SZ": 1031, "F_GETPIPE_SZ": 1032}  # fmt: skip
_PRCTLS = {"PR_SET_NAME": 15, "PR_GET_NAME": 16, "PR_GET_DUMPABLE": 3, "PR_GET_NO_NEW_PRIVS": 39, "PR_CAPBSET_READ": 23,
           "PR_SET_VMA": 0x53564D41}  # fmt: skip
# Of fallocate(2), FALLOC_FL_*. RLIMIT_FSIZE is compared with a file's size: what keeps the size takes room beyond it, and
# a range that is inserted moves data past it. Punching a hole takes no room.
_FALLOCATES = {"mode 0": 0, "PUNCH_HOLE with KEEP_SIZE": 0x02 | 0x01}
_NO_FALLOCATES = {"KEEP_SIZE": 0x01, "COLLAPSE_RANGE": 0x08, "ZERO_RANGE": 0x10, "ZERO_RANGE with KEEP_SIZE": 0x10 | 0x01,
                  "INSERT_RANGE": 0x20, "UNSHARE_RANGE": 0x40}  # fmt: skip
# Not SO_REUSEPORT: who listens where another program of the same user does would get some of its connections.
_SOCKOPTS = {
    "SOL_SOCKET": ("SO_REUSEADDR", "SO_KEEPALIVE", "SO_SNDBUF", "SO_RCVBUF", "SO_LINGER", "SO_RCVTIMEO", "SO_SNDTIMEO",
                   "SO_OOBINLINE", "SO_RCVLOWAT", "SO_PRIORITY"),
    "IPPROTO_TCP": ("TCP_NODELAY", "TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT", "TCP_CORK",
                    "TCP_QUICKACK", "TCP_MAXSEG", "TCP_SYNCNT", "TCP_LINGER2", "TCP_NOTSENT_LOWAT", "TCP_WINDOW_CLAMP"),
    "IPPROTO_IP": ("IP_TOS", "IP_TTL"),
    "IPPROTO_IPV6": ("IPV6_V6ONLY", "IPV6_TCLASS", "IPV6_UNICAST_HOPS"),
}  # fmt: skip
# Not every Python names every option: linux/tcp.h, asm-generic/socket.h, linux/in.h, linux/in6.h.
_MORE_SOCKOPTS = {"TCP_NOTSENT_LOWAT": 25, "TCP_USER_TIMEOUT": 18, "SO_PRIORITY": 12, "IP_TOS": 1, "IP_TTL": 2,
                  "IPV6_TCLASS": 67}  # fmt: skip

# Calls newer than some libseccomp: one number on every architecture (include/uapi/asm-generic/unistd.h).
_LATER = {"memfd_secret": 447, "fchmodat2": 452, "map_shadow_stack": 453, "mseal": 462}


def _int(position: int, value: int, text: str) -> Arg:
    return Arg(position, _INT, value, text)


def rules() -> Iterator[Rule]:
    """Every row, for all grants."""
    for reason, names in _FREELY.items():
        for name in names.split():
            yield Rule(name, reason)
    for name in ("clock_gettime", "clock_getres", "clock_nanosleep", "timer_create"):
        yield Rule(name, "no processor time of others", (Arg(0, 1 << 31, 0, "a clock of the system or its own"),))
    yield from _network_rules()
    # With a table of its own a thread would have as many files again, and the supervisor could not look into it.
    shared = Arg(2, _CLOSE_RANGE_UNSHARE, 0, "without CLOSE_RANGE_UNSHARE")
    yield Rule("close_range", "one table of descriptors", (shared,))
    ordinary = Arg(4, _RENAME_WHITEOUT, 0, "without RENAME_WHITEOUT")
    yield Rule("renameat2", "Landlock decides; a whiteout is a device", (ordinary,))
    for name, request in _IOCTLS.items():
        yield Rule("ioctl", "no TIOCSTI, FIOASYNC, FIOSETOWN, SIOC*", (_int(1, request, name),))
    # pathlib tries it first, and falls back on this errno but not on EPERM.
    yield Rule("ioctl", "files are copied", (_int(1, _FICLONE, "FICLONE"),), action=Action.UNSUPPORTED)
    for name, command in _FCNTLS.items():
        yield Rule("fcntl", "no F_SETOWN, F_SETSIG, F_NOTIFY, F_SETLEASE", (_int(1, command, name),))
    setfl = (_int(1, fcntl.F_SETFL, "F_SETFL"), Arg(2, os.O_ASYNC, 0, "without O_ASYNC"))
    yield Rule("fcntl", "O_ASYNC on a terminal would send SIGIO to the operator's processes", setfl)
    for name, mode in _FALLOCATES.items():
        yield Rule("fallocate", "no room beyond the limit of a file's size", (_int(1, mode, name),))
    for name, mode in _NO_FALLOCATES.items():
        why = "room beyond the limit of a file's size"
        yield Rule("fallocate", why, (_int(1, mode, name),), action=Action.UNSUPPORTED)
    for name, option in _PRCTLS.items():
        yield Rule("prctl", "no change of what the sandbox has set", (_int(0, option, name),))
    yield from _process_rules()
    for name in ("chmod", "fchmod", "fchmodat", "fchmodat2", "utimensat"):
        yield Rule(name, "mode and times: where writing is granted", action=Action.ASK)
    for prefix in ("", "l", "f"):
        for name in (f"{prefix}getxattr", f"{prefix}listxattr"):
            yield Rule(name, "extended attributes", action=Action.UNSUPPORTED)
    for name in ("memfd_secret", "io_uring_setup", "pidfd_open", "pidfd_send_signal", "process_madvise", "map_shadow_stack",
                 "mseal", "clone3"):  # fmt: skip
        yield Rule(name, "there are older ways", action=Action.ABSENT)


def _network_rules() -> Iterator[Rule]:
    stream = Arg(1, _SOCK_TYPE_MASK, socket.SOCK_STREAM, "SOCK_STREAM")
    default = _int(2, 0, "protocol 0")
    for family in ("AF_INET", "AF_INET6"):
        for protocol in (default, _int(2, socket.IPPROTO_TCP, "IPPROTO_TCP")):
            yield Rule("socket", "TCP only", (_int(0, getattr(socket, family), family), stream, protocol))
    unix = (_int(0, socket.AF_UNIX, "AF_UNIX"), stream, default)
    yield Rule("socket", "Redis on a Unix socket", unix, when="unix_sockets")
    # Streams only: a datagram pair could send to any path with sendmsg(2), whose address no filter can see.
    yield Rule("socketpair", "event loops wake themselves with one", unix)
    for name in ("recvmsg", "recvmmsg"):  # where Redis is a Unix socket, its end could hand over any descriptor
        yield Rule(name, "nobody else is at the other end", when="no_unix_sockets")
    yield Rule("connect", "which address", action=Action.ASK)
    yield Rule(
        "sendto", "not to an address", (Arg(3, _MSG_FASTOPEN, 0, "no fast open"), Arg(4, _POINTER, 0, "no address"))
    )
    yield Rule("sendmsg", "TCP ignores an address", (Arg(2, _MSG_FASTOPEN, 0, "no fast open"),))
    yield Rule("sendmmsg", "TCP ignores an address", (Arg(3, _MSG_FASTOPEN, 0, "no fast open"),))
    for level, options in _SOCKOPTS.items():
        for name in options:
            option = getattr(socket, name, None) or _MORE_SOCKOPTS[name]
            args = (_int(1, getattr(socket, level), level), _int(2, option, name))
            yield Rule("setsockopt", "no fast open, ULP, REPAIR, source routes, binding to a device", args)
    # SO_PEERPIDFD (77) would give a handle on whoever is at the other end: a Redis on a Unix socket.
    old = Arg(2, _INT & ~0x3F, 0, "an option below 64")
    yield Rule("getsockopt", "no SO_PEERPIDFD", (_int(1, socket.SOL_SOCKET, "SOL_SOCKET"), old))
    for level in ("IPPROTO_TCP", "IPPROTO_IP", "IPPROTO_IPV6"):
        yield Rule("getsockopt", "no SO_PEERPIDFD", (_int(1, getattr(socket, level), level),))
    for name in ("bind", "listen"):
        yield Rule(name, "which address", action=Action.ASK, when="listen")
    for name in ("accept", "accept4"):
        yield Rule(name, "what listens was asked for", when="listen")


def _process_rules() -> Iterator[Rule]:
    thread = Arg(0, _THREAD | _NOT_A_THREAD, _THREAD, "a thread")
    yield Rule("clone", "how many", (thread,), action=Action.ASK)
    # Not asked about: a signal would end the call with EINTR while the supervisor decides, which shells take for a failure.
    forked = Arg(0, _NEVER_CLONED | 0x00010000, 0, "a process, in the same namespaces")
    why = "in the worker's process group, which is counted"
    yield Rule("clone", why, (forked,), when="run")
    for name in ("fork", "vfork"):
        yield Rule(name, why, when="run")
    yield Rule("execve", "Landlock decides", when="run")
    yield Rule("arch_prctl", "a program's start", (_int(0, 0x1002, "ARCH_SET_FS"),), when="run")
    itself = _int(0, PID_PLACEHOLDER, "itself")
    for name in ("kill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo"):
        yield Rule(name, "nobody else", (itself,))
        yield Rule(name, "Landlock keeps signals inside", when="signals")
    caller = _int(0, 0, "the caller")
    for name in ("prlimit64", "sched_getaffinity", "sched_setaffinity", "sched_getparam", "sched_getscheduler"):
        for who in (caller, itself):
            yield Rule(name, "nobody else", (who,))
    yield Rule("get_robust_list", "nobody else", (caller,))
    for name in ("getpriority", "setpriority"):
        for number, text in ((0, "the caller"), (PID_PLACEHOLDER, "itself")):
            process = (_int(0, os.PRIO_PROCESS, "PRIO_PROCESS"), _int(1, number, text))
            yield Rule(name, "nobody else", process)


def granted(grants: Grants) -> list[Rule]:
    """The rows of one policy."""
    return [rule for rule in rules() if not rule.when or getattr(grants, rule.when)]


def markdown() -> str:
    """The table as documents show it: rows with the same reason, action and grant together."""
    joined: dict[tuple[str, str, str], dict[str, list[str]]] = {}
    for rule in rules():
        conditions = joined.setdefault((rule.action.value, rule.reason, rule.when), {}).setdefault(rule.name, [])
        if rule.args:
            conditions.append(", ".join(arg.text for arg in rule.args))
    whens = {
        "": "",
        "unix_sockets": "Redis on a Unix socket",
        "no_unix_sockets": "no Unix socket",
        "listen": "listen",
        "run": "run",
        "signals": "run",
    }
    lines = ["| | why | grant | system calls |", "|---|---|---|---|"]
    for (action, reason, when), names in joined.items():
        calls = (f"`{name}`" + (f" ({'; '.join(found)})" if found else "") for name, found in names.items())
        lines.append(f"| {action} | {reason} | {whens[when]} | {', '.join(calls)} |")
    return "\n".join([*lines, "| fails with EPERM | default deny | | every other |"])


def compile_program(grants: Grants, *, machine: str | None = None) -> bytes:
    """The BPF program, with `PID_PLACEHOLDER` where the pid belongs. Raises SandboxError.

    `machine`: as in uname(2); another than this one's is for tests, and has no rows of `_LATER`.
    """
    try:
        import pyseccomp
    except (ImportError, RuntimeError, OSError) as error:
        raise SandboxError(f"libseccomp cannot be loaded ({error})", hint=library_hint()) from error
    try:
        filter_ = pyseccomp.SyscallFilter(pyseccomp.ERRNO(errno.EPERM))
        foreign = machine not in (None, os.uname().machine)
        if foreign:
            filter_.add_arch(pyseccomp.Arch.AARCH64 if machine == "aarch64" else pyseccomp.Arch.X86_64)
            filter_.remove_arch(pyseccomp.Arch.NATIVE)
        filter_.set_attr(pyseccomp.Attr.ACT_BADARCH, pyseccomp.KILL_PROCESS)
        filter_.set_attr(pyseccomp.Attr.CTL_OPTIMIZE, 2)  # a binary tree over the numbers, not a list
        for rule in granted(grants):
            if not (foreign and rule.name in _LATER):  # which libseccomp cannot translate
                _add(filter_, rule)
        fd = os.memfd_create("seccomp", os.MFD_CLOEXEC)
        with open(fd, "w+b") as file:
            filter_.export_bpf(file)
            file.seek(0)
            return file.read()
    except (OSError, ValueError) as error:
        raise SandboxError(f"libseccomp cannot build the filter: {error}; version 2.5 or newer is needed") from error


def library_hint() -> str:
    """The command of the machine's package manager."""
    import shutil

    if shutil.which("apt-get"):
        return "sudo apt-get install -y libseccomp2"
    return "sudo dnf install -y libseccomp" if shutil.which("dnf") else ""


def _add(filter_: pyseccomp.SyscallFilter, rule: Rule) -> None:
    from pyseccomp import ALLOW, ERRNO, MASKED_EQ, NOTIFY, Arch, Arg, resolve_syscall

    action = {
        Action.ALLOW: ALLOW,
        Action.ASK: NOTIFY,
        Action.ABSENT: ERRNO(errno.ENOSYS),
        Action.UNSUPPORTED: ERRNO(errno.ENOTSUP),
    }[rule.action]
    # A call that this architecture has under no name libseccomp leaves out by itself.
    number = _LATER.get(rule.name) or resolve_syscall(Arch.NATIVE, rule.name)
    if number == -1:
        raise ValueError(f"it does not know {rule.name}")
    filter_.add_rule(action, number, *(Arg(a.position, MASKED_EQ, a.mask, a.value) for a in rule.args))
