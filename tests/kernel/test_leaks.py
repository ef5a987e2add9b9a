"""Attacks on what must not leak: environments, arguments, descriptors, memory that is shared, keys, the terminal."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import pty
import signal
import socket
import sys
from collections.abc import Iterator
from multiprocessing import shared_memory
from pathlib import Path

import pytest
from arena import Arena, in_every_child, wait_for
from raw_calls import RAW, Act, Answers, make, number, numbers
from victim import ACT, Victim, on_victim, running

CANARY = "CANARY-7f3a"
BETWEEN = ["sh", "-c", '"$@"; exit $?', "sh"]  # a parent with the attempt's environment and arguments

# ---- what the kernel tells of processes and of itself

PARENT = "environ cmdline maps smaps auxv status stat statm io limits mountinfo mounts cgroup comm fdinfo/0 task sched wchan oom_score personality stack syscall net/tcp timers"
SELF = "environ cmdline maps auxv status stat io limits mountinfo mounts mountstats cgroup fdinfo/0 fd ns net/tcp net/unix net/dev uid_map loginuid"
SYSTEM = """\
/proc/1/environ /proc/1/cmdline /proc/1/maps /proc/1/status /proc/1/mountinfo /proc/net/tcp /proc/net/route /proc/net/arp
/proc/mounts /proc/cmdline /proc/cpuinfo /proc/meminfo /proc/uptime /proc/loadavg /proc/stat /proc/version /proc/keys
/proc/key-users /proc/sysvipc/shm /proc/locks /proc/kallsyms /proc/modules /proc/interrupts /proc/partitions /proc/swaps
/proc/diskstats /proc/vmstat /proc/kmsg /proc/config.gz /proc/timer_list /proc/sys/kernel/hostname /proc/sys/kernel/osrelease
/proc/sys/kernel/random/boot_id /proc/sys/kernel/ns_last_pid /proc/sys/vm/overcommit_memory /proc/sys/net/ipv4/ip_forward
/proc/pressure/cpu /sys/class/net /sys/devices/system/cpu/online /sys/kernel/security /sys/fs/cgroup /sys/class/dmi/id/product_uuid
/etc/passwd /etc/group /etc/shadow /etc/hostname /etc/hosts /etc/resolv.conf /etc/machine-id /etc/fstab /etc/environment
/etc/ssh /etc/sudoers /var/log /var/run /run /run/secrets /var/lib /var/spool /root /home /boot /dev/kmsg /dev/shm /dev/pts /dev/mem
/opt /srv /mnt /usr/bin /usr/share /var/lib/dpkg/status"""
PATHS = {
    **{f"the parent's {name}": f'f"/proc/{{os.getppid()}}/{name}"' for name in PARENT.split()},
    **{f"the worker's {name}": repr(f"/proc/self/{name}") for name in SELF.split()},
    **{path: repr(path) for path in SYSTEM.split()},
    "home": repr(str(Path.home())),
}
TOLD = {
    what: Act(
        f"path = {path}\nos.listdir(path) if os.path.isdir(path) else os.read(os.open(path, os.O_NONBLOCK), 1)",
        "EACCES",
    )
    for what, path in PATHS.items()
}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    return make(tmp_path_factory.mktemp("told"), TOLD)


@pytest.mark.parametrize("what", TOLD)
def test_nothing_is_told_of_the_machine_and_its_processes(told: Answers, what: str) -> None:
    told.check(what, "EACCES", "ENOENT EPERM EACCES ENXIO EINVAL EIO ESRCH EAGAIN EPIPE", works="done")


# On the process P, which has a secret at A, and which is left as it is.
LEARNS = {
    "raw process_vm_readv": 'b = zeros(12)\nraw("process_vm_readv", P, vector(ctypes.addressof(b), 12), 1, vector(A, 12), 1, 0)\nreturn b.raw == b"private-c41d"',
    "raw process_vm_readv, high bits": 'b = zeros(12)\nraw("process_vm_readv", 1 << 32 | P, vector(ctypes.addressof(b), 12), 1, vector(A, 12), 1, 0)\nreturn b.raw == b"private-c41d"',
    "/proc/PID/mem": ("return os.pread(os.open(f'/proc/{P}/mem', 0), 12, A) == b'private-c41d'", "EACCES"),
    "O_PATH of /proc/PID/mem": ("fd = os.open(f'/proc/{P}/mem', os.O_PATH)\nreturn os.pread(os.open(f'/proc/self/fd/{fd}', 0), 12, A) == b'private-c41d'", "EACCES"),
    "/proc/PID/task/TID/mem": ("return os.pread(os.open(f'/proc/{P}/task/{P}/mem', 0), 12, A) == b'private-c41d'", "EACCES"),
    "raw ptrace, to attach": 'raw("ptrace", 16, P, 0, 0)\nos.waitpid(P, 0x40000000)\nraw("ptrace", 17, P, 0, 0)\nreturn True',
    "raw ptrace, to seize": 'return raw("ptrace", 0x4206, P, 0, 0) == 0',
    "raw kcmp": 'return raw("kcmp", os.getpid(), P, 1, 0, 0) > 0',
    "pidfd_open": ("return os.pidfd_open(P) > 0", "ENOSYS"),
    "raw pidfd_getfd": ('return raw("pidfd_getfd", os.pidfd_open(P), 1, 0) > 0', "ENOSYS"),
    "its descriptors": ("return len(os.listdir(f'/proc/{P}/fd')) > 1", "EACCES"),
    "its output, by descriptor": ("return os.open(f'/proc/{P}/fd/1', os.O_WRONLY) > 0", "EACCES"),
    "where its output goes": ("return os.readlink(f'/proc/{P}/fd/1').startswith('pipe:')", "EACCES"),
    "its descriptor asked for": ("return os.stat(f'/proc/{P}/fd/1').st_ino > 0", "EACCES"),
    "its program": ("return 'python' in os.readlink(f'/proc/{P}/exe')", "EACCES"),
    "its folder": ("os.chdir(f'/proc/{P}/cwd')\nreturn True", "EACCES"),
    "its root": ("return os.open(f'/proc/{P}/root', os.O_PATH) > 0", "EACCES"),
    "its namespaces": ("return os.open(f'/proc/{P}/ns/net', 0) > 0", "EACCES"),
    "raw perf_event_open": 'return raw("perf_event_open", longs(112 << 32 | 1, 0, *[0] * 12), P, -1, -1, 0) > 0',
    "raw sched_getattr": 'return raw("sched_getattr", P, zeros(48), 48, 0) == 0',
    "raw ioprio_get": 'return raw("ioprio_get", 1, P) >= 0',
    "raw move_pages": 'return raw("move_pages", P, 1, longs(A & ~4095), 0, ints(0), 0) == 0',
    "raw get_robust_list": 'return raw("get_robust_list", P, longs(0), longs(0)) == 0',
    "limits": "return resource.prlimit(P, resource.RLIMIT_NOFILE)[1] > 0",
    "limits, by high bits": 'return raw("prlimit64", 1 << 32 | P, 7, 0, longs(0, 0)) == 0',
    "raw capget": 'return raw("capget", ints(0x20080522, P), longs(0, 0, 0)) == 0',
    "processor time": "import time\nreturn time.clock_gettime(~P << 3 | 2) > 0",
    "processor time by a timer": 'return raw("timer_create", ~P << 3 | 2, 0, ints(0)) == 0',
}  # fmt: skip


LEARNT = on_victim(LEARNS)


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Answers, Victim]]:
    with running() as victim:
        folder = tmp_path_factory.mktemp("learnt")
        yield make(folder, LEARNT, prelude=ACT, spared=victim.where), victim


@pytest.mark.parametrize("way", LEARNT)
def test_nothing_is_learnt_of_another_process(learnt: tuple[Answers, Victim], way: str) -> None:
    answers, victim = learnt
    lack = "EPERM EACCES ENOENT ENOSYS" if way in ("raw perf_event_open", "raw kcmp", "raw move_pages") else ""
    answers.check(way, LEARNT[way].errno, lack, works=True)
    assert not victim.changed()


# ---- the operator's own


@pytest.mark.parametrize("what", ["environ", "cmdline"])
def test_the_supervisors_environment_and_arguments_cannot_be_read(arena: Arena, what: str) -> None:
    code = "def attempt():\n    return V['canary'] in open(f'/proc/{os.getppid()}/' + V['what']).read()"
    arena.env["OPERATORS_TOKEN"] = CANARY
    between = [*BETWEEN[:3], CANARY]  # its $0
    assert arena.unconfined(code, under=between, what=what, canary=CANARY).value is True
    assert arena.confined(code, what=what, canary=CANARY).errno == "EACCES"


@in_every_child
def test_the_worker_has_nothing_of_the_operators_environment(arena: Arena) -> None:
    code = """
    def attempt():
        import ctypes
        at, found = ctypes.POINTER(ctypes.c_char_p).in_dll(ctypes.CDLL(None), "environ"), []
        while at[len(found)]:
            found.append(at[len(found)].decode().partition("=")[0])
        return [sorted(os.environ), sorted(found), [a for a in (*sys.argv, *sys.orig_argv) if V["canary"] in a]]
    """
    arena.env["OPERATORS_TOKEN"] = CANARY
    names = ["HOME", "LANG", "PATH", "TMPDIR"]
    assert "OPERATORS_TOKEN" in arena.unconfined(code, canary=CANARY).value[0]
    assert arena.confined(code, canary=CANARY).value == [names, names, []]


@in_every_child
def test_memory_above_the_stack_has_nothing_of_the_operators_environment(arena: Arena) -> None:
    # The kernel puts a new program's arguments and environment at the top of its stack.
    code = """
    def attempt():
        import ctypes
        libc = ctypes.CDLL(None)
        text, at = b"", ctypes.c_void_p.in_dll(libc, "program_invocation_name").value
        while (at + len(text)) % 4096:
            text += ctypes.string_at(at + len(text), 1)
        return [any(name in text for name in (b"bootstrap", b"zygote", b"attempt")), V["canary"].encode() in text]
    """
    arena.env["OPERATORS_TOKEN"] = CANARY
    assert arena.unconfined(code, canary=CANARY).value == [True, True]
    assert arena.confined(code, canary=CANARY).value == [True, False]


@in_every_child
def test_standard_input_is_not_the_operators(arena: Arena) -> None:
    code = "def attempt():\n    return os.read(0, 99).decode()"
    reader, writer = os.pipe()
    with open(writer, "w") as file:
        file.write(CANARY)
    with open(reader) as file:
        arena.stdin = file
        assert arena.confined(code).value == ""
        assert arena.unconfined(code).value == CANARY


USES = {
    "file": "return os.pread(FD, 99, 0).decode()",
    "file to write": "os.pwrite(FD, b'written', 0)\nreturn V['canary']",
    "folder": "return os.read(os.open('secret', 0, dir_fd=FD), 99).decode()",
    "folder to enter": "os.fchdir(FD)\nreturn open('secret').read()",
    "pipe": "return os.read(FD, 99).decode()",
    "socket": "return socket.socket(fileno=FD).recv(99).decode()",
    "terminal": "return os.read(FD, 99).decode().strip()",
    "memory file": "return os.pread(FD, 99, 0).decode()",
    "pidfd": "signal.pidfd_send_signal(FD, 0)\nreturn V['canary']",
}


@contextlib.contextmanager
def inherited(kind: str, folder: Path) -> Iterator[int]:
    (folder / "secret").write_text(CANARY)
    with contextlib.ExitStack() as stack:
        other = -1
        if kind == "socket":
            ours, theirs = socket.socketpair()
            fd, other = ours.detach(), theirs.detach()
        elif kind == "pipe":
            fd, other = os.pipe()
        elif kind == "terminal":
            other, fd = pty.openpty()
        elif kind == "memory file":
            fd = os.memfd_create("x")
            os.pwrite(fd, CANARY.encode(), 0)
        elif kind == "pidfd":
            fd = os.pidfd_open(os.getpid())
        else:
            fd = os.open(
                folder if "folder" in kind else folder / "secret", os.O_RDWR if "write" in kind else os.O_RDONLY
            )
        stack.callback(os.close, fd)
        if other >= 0:
            stack.callback(os.close, other)
            os.write(other, CANARY.encode() + b"\n" * (kind == "terminal"))
        yield fd


@pytest.mark.parametrize("kind", USES)
@pytest.mark.parametrize("fd", [200, 1000])  # far from those that either process opens by itself
def test_an_inherited_descriptor_is_closed(arena: Arena, tmp_path: Path, kind: str, fd: int) -> None:
    body = USES[kind].replace("FD", str(fd)).replace("\n", "\n    ")
    code = f"import signal\ndef attempt():\n    {body}"
    with inherited(kind, tmp_path) as theirs:
        os.dup2(theirs, fd, inheritable=True)
        try:
            arena.pass_fds = (fd,)
            held = arena.confined(code, canary=CANARY)  # first: unconfined the pipe is read empty
            assert held.errno == ("ENOSYS" if kind == "pidfd" else "EBADF"), held
            assert (tmp_path / "secret").read_text() == CANARY
            assert arena.unconfined(code, canary=CANARY).value == CANARY
        finally:
            os.close(fd)


@in_every_child
def test_the_worker_has_five_descriptors_and_none_that_could_carry_another(arena: Arena, tmp_path: Path) -> None:
    code = """
    def attempt():
        import fcntl, stat
        found = []
        for fd in range(4096):
            try:
                os.fstat(fd)
                found.append(fd)
            except OSError as error:
                assert error.errno == errno.EBADF
        pipes = [stat.S_ISFIFO(os.fstat(fd).st_mode) for fd in found]
        ways = [fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE for fd in found[3:]]
        return [found[:3], pipes, ways]
    """
    with (tmp_path / "secret").open("w") as file:
        arena.pass_fds = tuple(fcntl.fcntl(file, fcntl.F_DUPFD, start) for start in range(100, 110))
        for fd in arena.pass_fds:
            os.set_inheritable(fd, True)
        try:
            found = arena.confined(code).value
        finally:
            for fd in arena.pass_fds:
                os.close(fd)
    assert found == [[0, 1, 2], [True] * 5, [os.O_WRONLY, os.O_RDONLY]]


# ---- memory and keys that others share


def test_system_v_shared_memory_is_not_read(arena: Arena) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.shmat.restype = ctypes.c_void_p
    segment = libc.shmget(0, 4096, 0o1600)  # IPC_PRIVATE | IPC_CREAT
    assert segment >= 0
    try:
        address = libc.shmat(segment, None, 0)
        ctypes.memmove(address, CANARY.encode(), len(CANARY))
        libc.shmdt(ctypes.c_void_p(address))
        code = RAW + 'def attempt():\n    return ctypes.string_at(raw("shmat", V["id"], 0, 0)).decode()'
        arena.refused(code, "EPERM", works=CANARY, id=segment, numbers=numbers(code))
    finally:
        libc.shmctl(segment, 0, None)  # IPC_RMID


def test_posix_shared_memory_is_not_read_or_made(arena: Arena) -> None:
    read = "def attempt():\n    return open('/dev/shm/' + V['name']).read(12)"
    create = """
    def attempt():
        libc = __import__("ctypes").CDLL(None, use_errno=True)
        fd = libc.shm_open(V["name"].encode(), os.O_CREAT | os.O_RDWR, 0o600)
        if fd < 0:
            raise OSError(__import__("ctypes").get_errno(), "shm_open")
        libc.shm_unlink(V["name"].encode())
        return "made"
    """
    memory = shared_memory.SharedMemory(create=True, size=64)
    try:
        memory.buf[: len(CANARY)] = CANARY.encode()
        arena.refused(read, "EACCES", works=CANARY[:12] + "\0" * (12 - len(CANARY)), name=memory.name)
        arena.refused(create, "EACCES", works="made", name=f"sandboxrun-test-{os.getpid()}")
    finally:
        memory.close()
        memory.unlink()


def test_a_message_queue_is_not_opened(arena: Arena) -> None:
    libc, name = ctypes.CDLL(None, use_errno=True), f"sandboxrun-test-{os.getpid()}".encode()
    queue = libc.syscall(ctypes.c_long(number("mq_open")), name, os.O_CREAT | os.O_RDWR, 0o600, None)
    if queue < 0:
        pytest.skip(f"the kernel itself refuses a queue: {os.strerror(ctypes.get_errno())}")
    try:
        code = RAW + 'def attempt():\n    return raw("mq_open", V["name"].encode(), 0, 0, 0) > 0'
        arena.refused(code, "EPERM", works=True, name=name.decode(), numbers=numbers(code))
    finally:
        libc.syscall(ctypes.c_long(number("mq_unlink")), name)
        os.close(queue)


def test_a_key_of_the_operators_session_is_not_read(arena: Arena) -> None:
    code = """
def attempt():
    found, text = raw("keyctl", 10, -3, b"user", b"sandboxrun-test", 0), zeros(64)
    length = raw("keyctl", 11, found, text, 64)
    return text.raw[:length].decode()
"""
    # A session keyring of its own for whoever starts either run: the key ends with it.
    session = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
if libc.syscall(ctypes.c_long(int(sys.argv[1])), 1, None) < 0:
    sys.exit(99)
if libc.syscall(ctypes.c_long(int(sys.argv[2])), b"user", b"sandboxrun-test", b"CANARY-7f3a", 11, -3) < 0:
    sys.exit(99)
os.execvp(sys.argv[3], sys.argv[3:])
"""
    arena.under = [sys.executable, "-I", "-c", session, str(number("keyctl")), str(number("add_key"))]
    free = arena.unconfined(RAW + code, numbers=numbers(code))
    if free.code == 99:
        pytest.skip("the kernel itself refuses this user keys")
    assert free.value == CANARY, free
    assert arena.confined(RAW + code, numbers=numbers(code)).errno == "EPERM"


# ---- what the worker leaves and what it is


def test_what_the_worker_makes_is_for_its_user_alone(arena: Arena) -> None:
    code = "def attempt():\n    os.mkdir('d')\n    os.close(os.open('f', os.O_CREAT, 0o666))\n    return os.umask(0)"
    assert arena.confined(code).value == 0o077
    assert [(arena.scratch / name).stat().st_mode & 0o777 for name in "df"] == [0o700, 0o600]


def test_a_worker_that_crashes_leaves_no_core(arena: Arena) -> None:
    code = (
        "def attempt():\n    import ctypes, resource\n    resource.setrlimit(resource.RLIMIT_CORE, (1 << 20, 1 << 20))"
    )
    found = arena.confined(code)
    assert found.errno == "NO OUTCOME"
    assert "not allowed to raise maximum limit" in found.stderr
    crash = arena.confined("def attempt():\n    import ctypes\n    ctypes.string_at(8)")
    assert (crash.errno, crash.code) == ("NO OUTCOME", 128 + signal.SIGSEGV)
    assert list(arena.scratch.iterdir()) == []


@in_every_child
def test_a_worker_has_no_capability_also_where_it_is_roots(arena: Arena) -> None:
    code = RAW + """
def attempt():
    bounding = [n for n in range(64) if libc.prctl(23, ctypes.c_ulong(n), 0, 0, 0) == 1]
    open("ready", "w").write(str(os.getpid()))
    while not os.path.exists("seen"):
        __import__("time").sleep(0.01)
    return [bounding, libc.prctl(39, 0, 0, 0, 0)]
"""  # fmt: skip
    spec_numbers, seen = numbers(code), {}
    import threading

    def look() -> None:
        ready = arena.scratch / "ready"
        wait_for(lambda: ready.exists() and ready.read_text())
        for line in Path(f"/proc/{ready.read_text()}/status").read_text().splitlines():
            name, _, value = line.partition(":")
            seen[name] = value.strip()
        (arena.scratch / "seen").touch()

    thread = threading.Thread(target=look)
    thread.start()
    found = arena.confined(code, numbers=spec_numbers)
    thread.join()
    root = os.geteuid() == 0
    assert found.value[1] == 1
    assert {seen[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0" * 16}
    assert (seen["NoNewPrivs"], seen["Seccomp"]) == ("1", "2")
    if root:  # without root the bounding set cannot be emptied, and with no_new_privs gives nothing
        assert (found.value[0], seen["CapBnd"]) == ([], "0" * 16)
