"""Attacks on processes: none is started, none other is read, changed, signalled or ended; above all not the supervisor."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import select
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from arena import CONFINE, Arena, Listener, wait_for
from raw_calls import RAW, Act, Answers, make, number, numbers
from victim import ACT, Victim, on_victim, running

# ---- programs

EXEC = """
SH = ["sh", "-c", "echo ran > canary"]
LOADER = {"x86_64": "/lib64/ld-linux-x86-64.so.2", "aarch64": "/lib/ld-linux-aarch64.so.1"}[os.uname().machine]
def array(words):
    return (ctypes.c_char_p * (len(words) + 1))(*[word.encode() for word in words], None)
def script(fd):
    os.write(fd, b"#!/bin/sh\\necho ran > canary\\n")
    return fd
def child():
    open("canary", "w").write("ran\\n")
    os._exit(0)
def failed(result):
    if result == -1:
        raise OSError(ctypes.get_errno(), "libc")
"""
EXECS = {
    "execv": "os.execv('/bin/sh', SH)",
    "execvp": "os.execvp('sh', SH)",
    "raw execve": 'raw("execve", b"/bin/sh", array(SH), array([]))',
    "raw execveat": 'raw("execveat", -100, b"/bin/sh", array(SH), array([]), 0)',
    "raw execveat of a descriptor": 'raw("execveat", os.open("/bin/sh", os.O_PATH), b"", array(SH), array([]), 0x1000)',
    "raw execveat by a folder descriptor": 'raw("execveat", os.open("/bin", os.O_PATH), b"sh", array(SH), array([]), 0)',
    "fexecve": "os.execve(os.open('/bin/sh', os.O_PATH), SH, {})",
    "/proc/self/fd": "os.execv(f\"/proc/self/fd/{os.open('/bin/sh', os.O_PATH)}\", SH)",
    "/dev/fd": "os.execv(f\"/dev/fd/{os.open('/bin/sh', os.O_PATH)}\", SH)",
    "ld.so": "os.execv(LOADER, ['ld.so', '/bin/sh', *SH[1:]])",
    "this program again": "os.execv(sys.executable, ['python', '-I', '-c', \"open('canary', 'w').write('ran\\\\n')\"])",
    "/proc/self/exe": "os.execv('/proc/self/exe', ['python', '-I', '-c', \"open('canary', 'w').write('ran\\\\n')\"])",
    "program of one's own": "os.close(script(os.open('program', os.O_WRONLY | os.O_CREAT, 0o700)))\nos.execv('./program', ['program'])",
    "program of one's own by a symlink": "os.close(script(os.open('program', os.O_WRONLY | os.O_CREAT, 0o700)))\nos.symlink('program', 'link')\nos.execv('./link', ['program'])",
    "memory file": "os.execv(f\"/proc/self/fd/{script(os.memfd_create('x', 0))}\", ['x'])",
    "raw memory file": 'os.execv(f\'/proc/self/fd/{script(raw("memfd_create", b"x", 0))}\', ["x"])',
    "unnamed file": "fd = os.open('.', os.O_RDWR | os.O_TMPFILE, 0o700)\nscript(fd)\nfd2 = os.open(f'/proc/self/fd/{fd}', 0)\nos.set_inheritable(fd2, True)\nos.close(fd)\nos.execve(f'/proc/self/fd/{fd2}', ['x'], {})",
    "in a thread": "import threading\ndef run():\n    try:\n        os.execv('/bin/sh', SH)\n    except OSError as error:\n        found.append(error)\nfound = []\nt = threading.Thread(target=run)\nt.start()\nt.join()\nraise found[0]",
    "fork": "pid = os.fork()\nif pid == 0:\n    child()\nos.waitpid(pid, 0)",
    "fork in a thread": "import threading\ndef run():\n    try:\n        pid = os.fork()\n        if pid == 0:\n            child()\n        os.waitpid(pid, 0)\n    except OSError as error:\n        found.append(error)\nfound = []\nt = threading.Thread(target=run)\nt.start()\nt.join()\nif found:\n    raise found[0]",
    "raw fork": 'pid = raw("fork")\nif pid == 0:\n    child()\nos.waitpid(pid, 0)',
    "raw clone3": ('pid = raw("clone3", longs(0, 0, 0, 0, 17, 0, 0, 0), 64)\nif pid == 0:\n    child()\nos.waitpid(pid, 0)', "ENOSYS"),
    "fork of libc": "pid = libc.fork()\nif pid == 0:\n    child()\nfailed(pid)\nos.waitpid(pid, 0)",
    "system of libc": "if libc.system(SH[2].encode()):\n    raise OSError(ctypes.get_errno(), 'system')",
    "posix_spawn": "os.waitpid(os.posix_spawn('/bin/sh', SH, {}), 0)",
    "posix_spawnp in a new session": "os.waitpid(os.posix_spawnp('sh', SH, {}, setsid=True), 0)",
    "spawnv": "os.spawnv(os.P_WAIT, '/bin/sh', SH)",
    "os.popen": "os.popen(SH[2]).close()",
    "subprocess": "import subprocess\nsubprocess.run(SH)",
    "subprocess with a shell": "import subprocess\nsubprocess.check_output(SH[2], shell=True)",
    "subprocess by fork": "import subprocess\nsubprocess.run(SH, preexec_fn=lambda: None)",
    "subprocess by posix_spawn": "import subprocess\nsubprocess.run(['/bin/sh', *SH[1:]], close_fds=False)",
    "asyncio": "import asyncio\nasync def main():\n    await (await asyncio.create_subprocess_exec(*SH)).wait()\nasyncio.run(main())",
    "multiprocessing": "import multiprocessing\np = multiprocessing.get_context('fork').Process(target=child)\np.start()\np.join()",
    "terminal": ("pid, fd = os.forkpty()\nif pid == 0:\n    child()\nos.waitpid(pid, 0)", "EACCES"),
    "pool": ("import concurrent.futures as f\nwith f.ProcessPoolExecutor(1) as pool:\n    pool.submit(os.write, os.open('canary', os.O_WRONLY | os.O_CREAT), b'ran\\n').result()", "EACCES"),
}  # fmt: skip


STARTED = {way: Act(*(body if isinstance(body, tuple) else (body,))) for way, body in EXECS.items()}


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    return make(tmp_path_factory.mktemp("started"), STARTED, prelude=EXEC)


@pytest.mark.parametrize("way", STARTED)
def test_no_program_and_no_process_is_started(started: Answers, way: str) -> None:
    started.check(way, STARTED[way].errno, lack="")
    assert "canary" in started.free_made[way], started.free[way]
    assert "canary" not in started.held_made[way]


# A system call whose child ends at once with code 7, touching neither stack nor memory: so it may share both with us.
SPAWN = """
import mmap, time
PAGE = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
PAGE.write(bytes.fromhex(
    "4889f8" "4889f7" "4889d6" "4889ca" "4d89c2" "4d89c8"  # as syscall(3): number and five arguments into place
    "0f05" "85c0" "750c"  # syscall; test eax, eax; jnz +12
    "b83c000000" "bf07000000" "0f05" "c3"  # exit(7); ret
))
def call(number, flags, stack):
    page = ctypes.addressof(ctypes.c_char.from_buffer(PAGE))
    pid = ctypes.CFUNCTYPE(ctypes.c_long, *[ctypes.c_long] * 6)(page)(number, flags, stack, 0, 0, 0)
    if pid < 0:
        raise OSError(-pid, "clone")
    return pid
def spawn(number, flags):
    stack = mmap.mmap(-1, 1 << 16)
    top = ctypes.addressof(ctypes.c_char.from_buffer(stack)) + (1 << 16) if flags & 0x100 else 0
    pid = call(number, flags, top)
    if flags & 0x18000:  # a thread, or a child of our parent
        time.sleep(0.05)
        return 7
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0x40000000)[1])
"""
THREAD = 0x10F00  # VM, FS, FILES, SIGHAND, THREAD: what the sandbox allows, and here lacks something or has more
CLONES = {
    "child": 17, "child, high bits": 1 << 32 | 17, "child, all high bits": -1 << 32 | 17, "child without a signal": 0,
    "child with another signal": 23, "child of the parent": 0x8000 | 17, "as posix_spawn does": 0x4100 | 17,
    "as vfork does": 0x4000 | 17, "with the same memory": 0x100 | 17, "with the same files": 0x400 | 17,
    "with the same memory, high bits": 1 << 40 | 0x100 | 17, "with all but the thread group": 0xF00 | 17,
    "thread with files of its own": THREAD & ~0x400, "thread with a folder of its own": THREAD & ~0x200,
    "thread with a signal": THREAD | 17, "thread that stops us": THREAD | 0x4000, "thread never traced": THREAD | 0x800000,
    "traced": 0x2000 | 17, "never traced": 0x800000 | 17, "with the same I/O context": -0x80000000 & 0xFFFFFFFF | 17,
    "in new users": 0x10000000 | 17, "in new processes": 0x30000000 | 17, "in a new network": 0x50000000 | 17,
    "in new mounts": 0x10020000 | 17, "with a new host name": 0x14000000 | 17, "with new System V objects": 0x18000000 | 17,
    "in new control groups": 0x12000000 | 17,
}  # fmt: skip


CLONED = {what: Act(f"return spawn(56, {flags})") for what, flags in CLONES.items()}
CLONED["as vfork(2)"] = Act("return spawn(58, 0)")


@pytest.fixture(scope="module")
def cloned(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    if os.uname().machine != "x86_64":
        pytest.skip("machine code of x86-64")
    return make(tmp_path_factory.mktemp("cloned"), CLONED, prelude=SPAWN)


@pytest.mark.parametrize("what", CLONED)
def test_clone_makes_threads_only(cloned: Answers, what: str) -> None:
    cloned.check(what, "EPERM", works=7)


# ---- other processes

# On the process P, which has a secret at A. These acts change it, or end it.
CHANGES = {
    "kill": "os.kill(P, 15)",
    "SIGKILL": "os.kill(P, 9)",
    "SIGSTOP and SIGTERM": "os.kill(P, 19)\nos.kill(P, 15)\nos.kill(P, 18)",
    "raw kill, high bits": 'raw("kill", 1 << 32 | P, 15)',
    "raw kill, all high bits": 'raw("kill", -1 << 32 | P, 15)',
    "killpg": "os.killpg(P, 15)",
    "raw tgkill": 'raw("tgkill", P, P, 15)',
    "raw tkill": 'raw("tkill", P, 15)',
    "raw rt_sigqueueinfo": 'raw("rt_sigqueueinfo", P, 15, siginfo(15))',
    "raw rt_tgsigqueueinfo": 'raw("rt_tgsigqueueinfo", P, P, 15, siginfo(15))',
    "pidfd_send_signal": ("signal.pidfd_send_signal(os.pidfd_open(P), 15)", "ENOSYS"),
    "raw pidfd_send_signal by /proc": ('raw("pidfd_send_signal", os.open(f"/proc/{P}", os.O_DIRECTORY), 15, 0, 0)', "EACCES"),
    "F_SETOWN": "owned(fcntl.F_SETOWN, P)",
    "F_SETOWN of a group": "owned(fcntl.F_SETOWN, -P)",
    "F_SETOWN_EX": "owned(15, bytes(ints(1, P)))",
    "F_SETOWN, high bits": 'ours, theirs = socket.socketpair()\nraw("fcntl", ours.fileno(), 1 << 32 | 8, P)\nraw("fcntl", ours.fileno(), 4, os.O_ASYNC)\ntheirs.send(b"x")',
    "FIOSETOWN": "ioctl_owned(0x8901, P)",
    "SIOCSPGRP": "ioctl_owned(0x8902, P)",
    "raw process_vm_writev": 'b = zeros(8)\nraw("process_vm_writev", P, vector(ctypes.addressof(b), 8), 1, vector(A, 8), 1, 0)',
    "/proc/PID/mem": ("os.pwrite(os.open(f'/proc/{P}/mem', os.O_WRONLY), bytes(8), A)", "EACCES"),
    "O_PATH of /proc/PID/mem": ("os.pwrite(os.open(f\"/proc/self/fd/{os.open(f'/proc/{P}/mem', os.O_PATH)}\", os.O_WRONLY), bytes(8), A)", "EACCES"),
    "raw ptrace, to write": 'raw("ptrace", 16, P, 0, 0)\nos.waitpid(P, 0x40000000)\nraw("ptrace", 4, P, A, 0)\nraw("ptrace", 17, P, 0, 0)',
    "raw ptrace, to seize and kill": 'raw("ptrace", 0x4206, P, 0, 0x100000)',
    "prlimit": "resource.prlimit(P, resource.RLIMIT_NOFILE, (9, 9))",
    "raw prlimit64": 'raw("prlimit64", P, 7, longs(9, 9), 0)',
    "raw prlimit64, high bits": 'raw("prlimit64", 1 << 32 | P, 7, longs(9, 9), 0)',
    "prlimit of the processor time": "resource.prlimit(P, resource.RLIMIT_CPU, (0, 0))",
    "sched_setaffinity": "os.sched_setaffinity(P, {max(os.sched_getaffinity(0))})",
    "sched_setscheduler": "os.sched_setscheduler(P, os.SCHED_IDLE, os.sched_param(0))",
    "raw sched_setattr": 'raw("sched_setattr", P, ints(48, 3, *[0] * 10), 0)',
    "setpriority": "os.setpriority(os.PRIO_PROCESS, P, 15)",
    "setpriority of the group": "os.setpriority(os.PRIO_PGRP, P, 15)",
    "OOM score": ("open(f'/proc/{P}/oom_score_adj', 'w').write('900')", "EACCES"),
}  # fmt: skip


CHANGED = on_victim(CHANGES)


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Answers, dict[str, Victim], Victim]]:
    """Unconfined every act has a victim of its own; confined all are on one, since nothing happens to it."""
    with contextlib.ExitStack() as stack:
        victims = {way: stack.enter_context(running()) for way in CHANGED}
        spared = stack.enter_context(running())
        own = {way: victim.where for way, victim in victims.items()}
        folder = tmp_path_factory.mktemp("changed")
        yield make(folder, CHANGED, prelude=ACT, own=own, spared=spared.where), victims, spared


@pytest.mark.parametrize("way", CHANGED)
def test_another_process_is_not_changed_or_ended(changed: tuple[Answers, dict[str, Victim], Victim], way: str) -> None:
    answers, victims, spared = changed
    answers.check(way, CHANGED[way].errno, lack="", works="done")
    wait_for(victims[way].changed)
    assert not spared.changed()


# ---- the supervisor

SUPERVISOR = {
    way: Act(act.body.replace('OWN or V["spared"]', "os.getppid(), id(b'x')"), act.errno)
    for way, act in CHANGED.items()
}


def test_the_supervisor_survives_every_attack_and_goes_on_serving(arena: Arena, listener: Listener) -> None:
    """The acts are those that end or change a victim unconfined, see above."""
    code = """
    def attempt():
        found = {}
        for way, body in V["acts"].items():
            scope = dict(globals())
            exec("def act():\\n" + body, scope)
            try:
                found[way] = scope["act"]()
            except OSError as error:
                found[way] = errno.errorcode[error.errno]
        with socket.create_connection(("localhost", V["port"])) as s:
            return [found, s.recv(5).decode()]
    """
    acts = {way: textwrap.indent(act.body, " ") for way, act in SUPERVISOR.items() if way in _known()}
    held = arena.confined(
        RAW + ACT + textwrap.dedent(code),
        allow={"net": f"localhost:{listener.port}"},
        acts=acts,
        numbers=numbers("".join(acts.values())),
        port=listener.port,
    )
    assert held.value == [{way: SUPERVISOR[way].errno for way in acts}, "hello"], held
    assert held.code == 0


def _known() -> list[str]:
    """Those whose system calls this architecture has."""
    return [way for way, act in CHANGED.items() if all(number(n) >= 0 for n in re.findall(r'raw\("(\w+)"', act.body))]


def test_a_worker_that_tries_to_outlive_a_killed_supervisor_does_not(arena: Arena, tmp_path: Path) -> None:
    script = tmp_path / "stay.py"
    script.write_text(
        "import ctypes, os, signal, time\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "refused = [libc.prctl(1, 0, 0, 0, 0), ctypes.get_errno(), libc.setsid(), ctypes.get_errno(), libc.fork()]\n"
        "for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:\n"
        "    signal.signal(number, signal.SIG_IGN)\n"
        "print(os.getpid(), *refused, flush=True)\n"
        "time.sleep(600)\n"
    )
    spec = json.dumps({"script": str(script), "scratch": str(arena.scratch)})
    with subprocess.Popen([sys.executable, str(CONFINE), spec], stdout=subprocess.PIPE, env=arena.env) as supervisor:
        assert supervisor.stdout is not None
        pid, *refused = map(int, supervisor.stdout.readline().split())
        pidfd = os.pidfd_open(pid)
        supervisor.send_signal(signal.SIGKILL)
    try:
        assert refused == [-1, errno.EPERM, -1, errno.EPERM, -1]
        assert select.select([pidfd], [], [], 10)[0], "the worker outlived its supervisor"
    finally:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)


def test_no_socket_gives_a_pidfd_of_who_made_it(arena: Arena) -> None:
    # Since Linux 6.5 SO_PEERPIDFD (77) makes one of whoever made the pair.
    code = """
    def attempt():
        mine = socket.socketpair()
        found = []
        for fd in range(3, 64):
            try:
                sock = socket.socket(fileno=fd)
            except OSError:
                continue
            if sock.family == socket.AF_UNIX:
                try:
                    os.close(int.from_bytes(sock.getsockopt(1, 77, 4), "little"))
                    found.append("pidfd")
                except OSError as error:
                    found.append(errno.errorcode[error.errno])
            sock.detach()
        return found
    """
    free = arena.unconfined(code).value
    if free == ["ENOPROTOOPT"] * 2:
        pytest.skip("this kernel has no SO_PEERPIDFD")
    assert free == ["pidfd"] * 2
    assert arena.confined(code).value == ["EPERM"] * 2


@pytest.mark.parametrize("missing", [[], ["landlock-scope"]], ids=["this kernel", "Landlock without scopes"])
def test_signals_are_refused_with_and_without_scopes(arena: Arena, missing: list[str]) -> None:
    code = "def attempt():\n    os.kill(V['pid'], 15)\n    return 'sent'"
    with running() as shown, running() as spared:
        assert arena.unconfined(code, pid=shown.where[0]).value == "sent"
        wait_for(shown.changed)
        assert arena.confined(code, missing=missing, pid=spared.where[0]).errno == "EPERM"
        assert not spared.changed()
