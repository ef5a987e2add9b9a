"""Issues random system calls; run in the sandbox by fuzz_syscalls.py, which says what and at what in params.json.

What happens is counted in a shared mapping of the file `counters`, which outlives whatever the calls do to this process.
Calls that block are interrupted by a second thread; a process that no signal frees ends itself.
"""

import ctypes
import errno
import json
import mmap
import os
import random
import signal
import socket
import struct
import threading
import time
import traceback

with open("params.json") as file:
    P = json.load(file)
R = random.Random(P["seed"])
NR = P["numbers"]  # name: number
NAME = {number: name for name, number in NR.items()}
STUCK = 77  # exit code: a call that no signal ended
BROKEN = 78  # exit code: this script itself failed; the traceback is at the end of `counters`
SLOTS = 1024

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
libc.syscall.argtypes = [ctypes.c_long] * 7
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

# Not Python's mmap, which would keep a descriptor of the file for the calls to find.
with open("counters", "r+b") as file:
    SIZE = os.fstat(file.fileno()).st_size
    SHARED = libc.mmap(None, SIZE, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, file.fileno(), 0)
C = (ctypes.c_uint64 * (32 + 3 * SLOTS)).from_address(SHARED)
CALLS, FINISHED, FORKED, NUMBER, ARGS = 0, 1, 2, 3, 4  # then, from 32 on: issued, not refused, succeeded; by number

PID, TID = os.getpid(), threading.get_native_id()


# Memory that the calls may read and write, with a page behind it that they may not; and memory that they may unmap.
def memory(size):
    return libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)


B, M = memory(17 * 4096), memory(1 << 20)
libc.mprotect(B + 16 * 4096, 4096, 0)


def sockaddrs():
    for host, port in P["tcp4"]:
        yield struct.pack("=H", socket.AF_INET) + port.to_bytes(2, "big") + socket.inet_aton(host) + bytes(8)
        mapped = bytes(10) + b"\xff\xff" + socket.inet_aton(host)
        yield struct.pack("=H", socket.AF_INET6) + port.to_bytes(2, "big") + bytes(4) + mapped + bytes(4)
    for port in P["tcp6"]:
        yield struct.pack("=H", socket.AF_INET6) + port.to_bytes(2, "big") + bytes(4) + bytes(15) + b"\1" + bytes(4)
    for path in P["unix"]:
        yield struct.pack("=H", socket.AF_UNIX) + path.encode("latin-1") + b"\0"
    yield bytes(16)  # AF_UNSPEC
    for family in (16, 17, 38, 40, 44):  # netlink, packet, alg, vsock, xdp
        yield struct.pack("=H", family) + bytes(22)


ADDRESSES = list(sockaddrs())
PATHS = [path.encode() for path in P["paths"]]


def fill():
    """Random bytes, and at known places the things that calls look for."""
    block = bytearray(R.randbytes(16 * 4096))
    places = {"address": [], "path": [], "struct": []}

    def put(kind, offset, data):
        block[offset : offset + len(data)] = data
        places[kind].append(B + offset)

    for i, address in enumerate(ADDRESSES):
        put("address", 0x1000 + 128 * i, address)
    for i, path in enumerate(PATHS):
        put("path", 0x3000 + 256 * i, path + b"\0")
    timespec = struct.pack("=qq", 0, 1_000_000)
    iovec = struct.pack("=QQQQ", B, 64, B + 0x8000, 4096)
    target = R.choice(places["address"])
    control = struct.pack("=QiiI", 20, socket.SOL_SOCKET, socket.SCM_RIGHTS, R.choice((0, 1, 3)))
    message = struct.pack("=QIIQQQQiI", target, 28, 0, B + 0x9000 + 512, 2, B + 0x9000 + 1024, 20, 0, 0)
    bpf = struct.pack("=HBBI", 6, 0, 0, 0x7FFF0000)
    structs = [
        timespec * 2, iovec, control, message + bytes(8), struct.pack("=H6xQ", 1, B + 0x9000 + 256 * 9),
        struct.pack("=QQQ", os.O_RDWR | os.O_CREAT, 0o600, 0),  # open_how
        struct.pack("=11Q", R.choice((0, 0x100, 0x10000000)), *[0] * 3, 17, *[0] * 6),  # clone_args
        struct.pack("=QQ", 1024, 1 << 40), bpf, struct.pack("=IhhIhh", 3, 1, 0, 4, 1, 0),  # rlimit; pollfds
        b"name 5 localhost", b"name 6 evil.example", struct.pack("=hhqqi", 1, 0, 0, 0, 0), bytes(256), b"\xff" * 256,
    ]  # fmt: skip
    for i, data in enumerate(structs):
        put("struct", 0x9000 + 256 * i, data)
    block[0x9000 + 512 : 0x9000 + 512 + len(iovec)] = iovec
    block[0x9000 + 1024 : 0x9000 + 1024 + len(control)] = control
    ctypes.memmove(B, bytes(block), len(block))
    places["struct"].append(B + R.randrange(16 * 4096))
    return places


FDS: list[int] = []


def open_descriptors():
    """A set of everything a worker can have, the pipes to the supervisor and standard streams besides."""
    for fd in FDS:
        libc.syscall(NR["close"], fd, 0, 0, 0, 0, 0)
    FDS.clear()

    def opened(function, *args):
        try:
            found = function(*args)
        except (OSError, ValueError):
            return
        for one in found if isinstance(found, tuple) else (found,):
            FDS.append(one if isinstance(one, int) else one.detach())

    for family in (socket.AF_INET, socket.AF_INET6):
        for flags in (0, socket.SOCK_NONBLOCK):
            opened(socket.socket, family, socket.SOCK_STREAM | flags)
    opened(socket.create_connection, tuple(P["tcp4"][0]), 1)
    opened(socket.socketpair)
    opened(os.pipe)
    opened(os.open, P["scratch"] + "/file", os.O_RDWR | os.O_CREAT)
    opened(os.open, P["scratch"], os.O_RDONLY | os.O_DIRECTORY)
    opened(os.open, P["scratch"], os.O_PATH)
    opened(os.open, "/dev/null", os.O_RDWR)
    opened(os.eventfd, 0)
    for name, args in (("epoll_create1", (0,)), ("timerfd_create", (1, 0))):
        fd = libc.syscall(NR[name], *args, *[0] * (6 - len(args)))
        if fd >= 0:
            FDS.append(fd)


SMALL = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 16, 24, 28, 64, 110, 128, 4096]
FLAGS = [1 << bit for bit in range(32)]
PIDS = [0, PID, TID, os.getppid(), P["victim"], -P["victim"], -1, 1, 2**31 - 1]
OPTIONS = {
    "family": [1, 2, 10, 16, 17, 38, 40, 44, 0], "type": [1, 2, 3, 5, 10, 1 | 0o4000, 2 | 0o2000000],
    "protocol": [0, 6, 17, 132, 256, 262, 1, 255], "oflags": [0, 1, 2, 0o101, 0o102, 0o1101, 0o200000, 0o10000000, 0o20200001, 0o2000],
    "mode": [0o600, 0o644, 0o700, 0o777, 0o4755, 0o20600, 0o60600, 0o140600, 0o10600],
    "msg": [0, 0, 0x40, 0x4000, 0x20000000, 1, 2], "level": [0, 1, 6, 17, 41, 58, 255],
    "cmd": [*range(17), 36, 37, 38, 1024, 1026, 1031, 1032, 1033],
    "request": [0x5401, 0x5412, 0x5413, 0x541B, 0x541C, 0x5421, 0x5450, 0x5452, 0x8901, 0x8902, 0x8914, 0x8933, 0x6601, 0x40086602],
    "clone": [17, 0x4111, 0x10000000 | 17, 0x7E020000, 0x3D0F00 & ~0x100, 0x1200011],
    "dirfd": [-100, -100, -100], "signal": [0, 9, 15, 23, 28, 64],
}  # fmt: skip
# What the arguments of a call are for; half of the calls follow it, the others do not.
SHAPES = {
    name: shape.split()
    for name, shape in {
        "connect": "fd address length", "bind": "fd address length", "sendto": "fd struct length msg address length",
        "sendmsg": "fd struct msg", "sendmmsg": "fd struct small msg", "recvmsg": "fd struct msg", "listen": "fd small",
        "accept": "fd struct struct", "accept4": "fd struct struct small", "socket": "family type protocol",
        "socketpair": "family type protocol struct", "setsockopt": "fd level any struct length",
        "open": "path oflags mode", "openat": "dirfd path oflags mode", "openat2": "dirfd path struct size24", "creat": "path mode",
        "truncate": "path small", "ftruncate": "fd small", "rename": "path path", "renameat": "dirfd path dirfd path",
        "renameat2": "dirfd path dirfd path small", "link": "path path", "linkat": "dirfd path dirfd path small",
        "symlink": "path path", "symlinkat": "path dirfd path", "unlink": "path", "unlinkat": "dirfd path small", "mkdir": "path mode",
        "mkdirat": "dirfd path mode", "rmdir": "path", "chmod": "path mode", "fchmod": "fd mode", "fchmodat": "dirfd path mode small",
        "fchmodat2": "dirfd path mode small", "chown": "path small small", "lchown": "path small small", "fchown": "fd small small",
        "fchownat": "dirfd path small small small", "utime": "path struct", "utimes": "path struct", "utimensat": "dirfd path struct small",
        "futimesat": "dirfd path struct", "setxattr": "path path struct small small", "removexattr": "path path", "mknod": "path mode small",
        "mknodat": "dirfd path mode small", "readlink": "path struct small", "stat": "path struct", "chdir": "path", "fchdir": "fd",
        "chroot": "path", "mount": "path path path flags struct", "umount2": "path small", "pivot_root": "path path",
        "fcntl": "fd cmd any", "ioctl": "fd request any", "dup2": "fd small", "sendfile": "fd fd small small", "splice": "fd small fd small small small",
        "tee": "fd fd small small", "vmsplice": "fd struct small small", "copy_file_range": "fd struct fd struct small small",
        "execve": "path zero zero", "execveat": "dirfd path zero zero small", "memfd_create": "path small", "inotify_add_watch": "fd path flags",
        "fanotify_mark": "fd small flags dirfd path", "name_to_handle_at": "dirfd path struct struct small", "open_by_handle_at": "fd struct oflags",
        "ptrace": "small pid any any", "process_vm_readv": "pid struct small struct small zero",
        "process_vm_writev": "pid struct small struct small zero", "prlimit64": "pid small struct struct", "setrlimit": "small struct",
        "setpriority": "small pid small", "sched_setaffinity": "pid small struct", "sched_setscheduler": "pid small struct",
        "sched_setattr": "pid struct small", "ioprio_set": "small pid any", "pidfd_open": "pid small", "pidfd_getfd": "fd small zero",
        "pidfd_send_signal": "fd signal zero zero", "kcmp": "pid pid small fd fd", "move_pages": "pid small struct struct struct small",
        "migrate_pages": "pid small struct struct", "kill": "pid signal", "tkill": "pid signal", "tgkill": "pid pid signal",
        "rt_sigqueueinfo": "pid signal struct", "rt_tgsigqueueinfo": "pid pid signal struct", "setpgid": "pid pid", "getpgid": "pid",
        "unshare": "clone", "setns": "fd clone", "clone": "clone zero zero zero zero", "clone3": "struct size88", "seccomp": "small small struct",
        "prctl": "small any any any any", "bpf": "small struct small", "io_uring_setup": "small struct", "keyctl": "small any any any any",
        "add_key": "path path struct small small", "shmget": "small small mode", "mq_open": "path oflags mode struct", "perf_event_open": "struct pid small small small",
        "landlock_create_ruleset": "struct small small", "landlock_restrict_self": "fd small", "userfaultfd": "small",
        "read": "fd struct small", "write": "fd struct small", "readv": "fd struct small", "writev": "fd struct small",
        "pread64": "fd struct small small", "pwrite64": "fd struct small small", "preadv2": "fd struct small small zero zero",
        "pwritev2": "fd struct small small zero zero", "recvfrom": "fd struct small msg struct struct", "recvmmsg": "fd struct small msg struct",
        "getdents64": "fd struct size1024", "fstat": "fd struct", "lstat": "path struct", "newfstatat": "dirfd path struct small",
        "statx": "dirfd path small flags struct", "access": "path small", "faccessat2": "dirfd path small zero", "readlinkat": "dirfd path struct small",
        "poll": "struct small small", "ppoll": "struct small struct zero", "epoll_ctl": "fd small fd struct", "epoll_wait": "fd struct small small",
        "getsockopt": "fd level any struct struct", "getsockname": "fd struct struct", "getpeername": "fd struct struct", "shutdown": "fd small",
        "fallocate": "fd small small small", "signalfd4": "fd struct size8 zero", "pipe2": "struct zero", "getrandom": "struct small zero",
        "timer_create": "small zero struct", "timer_settime": "small zero struct struct", "timerfd_settime": "fd zero struct struct",
        "setitimer": "small struct struct", "futex": "struct small small struct struct small", "nanosleep": "struct struct",
        "clock_nanosleep": "small zero struct struct", "rt_sigaction": "small struct struct size8", "rt_sigprocmask": "small struct struct size8",
        "rt_sigtimedwait": "struct struct struct size8", "getrlimit": "small struct", "sched_getaffinity": "zero size128 struct",
        "sched_getparam": "zero struct", "getpriority": "small zero", "flock": "fd small", "close": "fd", "dup": "fd", "dup3": "fd small zero",
        "mmap": "any small small flags fd zero", "capget": "struct struct", "wait4": "pid struct small struct", "waitid": "small pid struct small struct",
    }.items()
}  # fmt: skip
# Those that only end or hang this process; and those whose addresses must stay in the region kept for them.
SKIPPED = {NR[name] for name in ("exit", "exit_group", "pause", "rt_sigsuspend", "rt_sigreturn") if name in NR}
if os.uname().machine == "x86_64":
    SKIPPED.add(335)  # uretprobe(2): the kernel lets it past every filter, and ends who calls it outside a probe
MEMORY = {NR[name] for name in P["memory"] if name in NR}
SIGNALS = {NR[name]: position for name, position in P["signals"].items() if name in NR}
FORKS = {NR[name] for name in ("fork", "vfork", "clone", "clone3") if name in NR}


def value(kind, places):
    if kind == "fd":
        return R.choice(FDS) if FDS and R.random() < 0.8 else R.choice(SMALL)
    if kind == "length":
        return R.choice((16, 16, 24, 28, 28, 110, 20, 2, 0, 128, 129, 2**31 - 1, -1))
    if kind in places:
        return R.choice(places[kind])
    if kind == "pid":
        return R.choice(PIDS)
    if kind in ("small", "flags"):
        return R.choice(SMALL if kind == "small" else FLAGS)
    if kind == "zero" or kind.startswith("size"):
        return int(kind[4:] or 0) if kind != "zero" else 0
    if kind in OPTIONS:
        found = R.choice(OPTIONS[kind])
        if kind == "dirfd" and FDS and R.random() < 0.3:
            return R.choice(FDS)
        return found | R.choice(FLAGS) if R.random() < 0.1 else found
    return R.choice((lambda: 0, lambda: -1, lambda: R.choice(SMALL), lambda: R.choice(FDS or SMALL), lambda: R.choice(places["address"]),
                     lambda: R.choice(places["path"]), lambda: R.choice(places["struct"]), lambda: R.choice(FLAGS), lambda: R.getrandbits(32),
                     lambda: R.getrandbits(64), lambda: 2**63, lambda: 2**47 - 4096, lambda: R.choice(SMALL) | R.getrandbits(31) << 32))()  # fmt: skip


def draw(places):
    dice = R.random()
    if dice < 0.35:
        number = R.randrange(471)
    elif dice < 0.65:
        number = R.choice(P["allowed"])
    elif dice < 0.99:
        number = NR[R.choice(P["shaped"])]
    elif dice < 0.99995:
        number = R.choice((471, 480, 511, 547, 600, 1000, 4096, 0x0FFFFFFF))
    else:
        number = 0x40000000 | R.randrange(471)  # x32: ends the process
    shape = SHAPES.get(NAME.get(number, ""), []) if R.random() < 0.7 else []
    args = [value(shape[i] if i < len(shape) else "any", places) for i in range(6)]
    if R.random() < 0.08:
        i = R.randrange(6)
        args[i] ^= R.getrandbits(31) << 32  # the half that an int argument has no use for
    if number in MEMORY:
        start = M + 4096 * R.randrange(256)
        args[:2] = [
            R.choice((start, start + 1, 0) if NAME[number] == "mmap" else (start, start + 1)),
            R.randrange(M + (1 << 20) - start),
        ]
        if NAME[number] == "mremap":
            args[2], args[4] = min(args[1], 65536), start
        elif NAME[number] == "mmap" and args[0] == 0:
            args[3] &= ~0x100010  # no MAP_FIXED
    elif NAME.get(number) in ("setrlimit", "prlimit64") and R.random() < 0.95:
        # Not the limits that would only cripple the rest of the batch.
        args[NAME[number] == "prlimit64"] = R.choice((4, 5, 6, 12, 13, 16))
    elif NAME.get(number) == "brk":
        args[0] = R.choice((0, 1, 2**63))
    elif NAME.get(number) == "clone" and args[0] & 0x10F00 == 0x10F00:
        args[0] ^= 0x10000  # a thread on this very stack would only be the end
    elif number in SIGNALS:
        own = args[0] & 0xFFFFFFFF in (0, PID, TID)
        args[0] = args[0] if own else R.choice(PIDS)
        # Whatever is wrong with the sandbox: nobody but this process and the victim shall suffer for it.
        harmless = own or args[0] == P["victim"]
        args[SIGNALS[number]] = R.choice(
            (0, 10, 12, 23, 28, 64) if own else (0, 9, 15, 19) if harmless else (0, 23, 28)
        )
    return number, args


def watch():
    """Interrupt a call that takes too long; end the process where that does not help."""
    action = ctypes.create_string_buffer(32)
    libc.syscall(NR["rt_sigaction"], signal.SIGUSR1, 0, ctypes.addressof(action), 8, 0, 0)
    seen, since = -1, time.monotonic()
    while True:
        time.sleep(0.004)
        now = time.monotonic()
        if C[CALLS] != seen:
            seen, since = C[CALLS], now
        elif now - since > 5:
            os._exit(STUCK)
        elif now - since > 0.01:
            libc.syscall(NR["rt_sigaction"], signal.SIGUSR1, ctypes.addressof(action), 0, 8, 0, 0)
            libc.syscall(NR["tgkill"], PID, TID, signal.SIGUSR1, 0, 0, 0)


def main():
    os.dup2(os.open("/dev/null", os.O_WRONLY), 1)  # so that standard error is the supervisor's alone
    os.dup2(1, 2)
    for number in set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP, signal.SIGSEGV, signal.SIGBUS}:
        signal.signal(number, lambda *_: None)
    threading.Thread(target=watch, daemon=True).start()
    disabled = ctypes.create_string_buffer(struct.pack("=QiiQ", 0, 2, 0, 0))
    places = fill()
    refusals = {errno.EPERM, errno.EACCES, errno.ENOSYS}
    for i in range(P["calls"]):
        if i % 50 == 0:
            open_descriptors()
        if i % 20 == 0:
            places = fill()
        number, args = draw(places)
        if number in SKIPPED:
            continue
        C[NUMBER] = number
        C[ARGS : ARGS + 6] = [arg & 0xFFFFFFFFFFFFFFFF for arg in args]
        result = libc.syscall(number, *args)
        code = ctypes.get_errno() if result == -1 else 0
        if number in FORKS and libc.syscall(NR["getpid"], 0, 0, 0, 0, 0, 0) != PID:
            C[FORKED] += 1
            libc.syscall(NR["exit_group"], 0, 0, 0, 0, 0, 0)
        C[CALLS] += 1
        slot = 32 + min(number, SLOTS - 1)
        C[slot] += 1
        C[slot + SLOTS] += code not in refusals
        C[slot + 2 * SLOTS] += result >= 0
        if number == NR["rt_sigprocmask"]:
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
        elif number == NR["sigaltstack"]:
            libc.syscall(number, ctypes.addressof(disabled), 0, 0, 0, 0, 0)
    C[FINISHED] = 1
    os._exit(0)


try:
    main()
except BaseException:
    text = traceback.format_exc().encode()[-2000:]
    ctypes.memmove(SHARED + SIZE - 2048, text, len(text))
    os._exit(BROKEN)
