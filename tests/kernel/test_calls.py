"""Calls that no worker needs, and places where it may make or open nothing: each is asked for once, in one process.

Unconfined the kernel does it, or finds fault with its arguments: they are such that nothing happens even to root. Confined
all are refused, with the exact errno. What the kernel itself refuses this user shows nothing, and is skipped.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from importlib.util import cache_from_source
from pathlib import Path

import pytest
from raw_calls import Act, Answers, make

import sandboxrun

FILES = {
    "mount": Act('raw("mount", b"none", b"/no/such", b"tmpfs", 0, 0)'),
    "umount2": Act('raw("umount2", b"/no/such", 0)'),
    "open_tree": Act('raw("open_tree", -100, b"/no/such", 0)'),
    "open_tree_attr": Act('raw("open_tree_attr", -100, b"/no/such", 0, 0, 0)'),
    "move_mount": Act('raw("move_mount", -1, b"x", -1, b"x", 0)'),
    "fsopen": Act('raw("fsopen", b"nosuchfs", 0)'),
    "fsconfig": Act('raw("fsconfig", -1, 0, 0, 0, 0)'),
    "fsmount": Act('raw("fsmount", -1, 0, 0)'),
    "fspick": Act('raw("fspick", -100, b"/no/such", 0)'),
    "mount_setattr": Act('raw("mount_setattr", -100, b"/no/such", 0, zeros(32), 32)'),
    "statmount": Act('raw("statmount", 0, 0, 0, 0)'),
    "listmount": Act('raw("listmount", 0, 0, 0, 0)'),
    "chroot": Act('raw("chroot", b".")'),
    "pivot_root": Act('raw("pivot_root", b"/no/such", b"/no/such")'),
    "quotactl": Act('raw("quotactl", 0x7FFFFF00, b"/no/such", 0, 0)'),
    "quotactl_fd": Act('raw("quotactl_fd", -1, 0, 0, 0)'),
    "swapon": Act('raw("swapon", b"/no/such", 0)'),
    "swapoff": Act('raw("swapoff", b"/no/such")'),
    "acct": Act('raw("acct", b"/no/such")'),
    "sysfs": Act('raw("sysfs", 3)'),
    "ustat": Act('raw("ustat", 0, 8)'),
    "syncfs": Act('raw("syncfs", 1)'),
    "name_to_handle_at": Act('raw("name_to_handle_at", -100, b".", ints(0, 0), ints(0), 0)'),
    "open_by_handle_at": Act('raw("open_by_handle_at", -1, ints(8, 1, 0, 0), 0)'),
    "inotify_init": Act('raw("inotify_init")'),
    "inotify_init1": Act('raw("inotify_init1", 0)'),
    "inotify_add_watch": Act('raw("inotify_add_watch", -1, b".", 2)'),
    "inotify_rm_watch": Act('raw("inotify_rm_watch", -1, 1)'),
    "fanotify_init": Act('raw("fanotify_init", 0x200, 0)'),
    "fanotify_mark": Act('raw("fanotify_mark", -1, 1, 2, -100, b".")'),
    "readahead": Act('raw("readahead", 0, 0, 4096)'),
    "cachestat": Act('raw("cachestat", 1, longs(0, 0), zeros(64), 0)'),
    "tee": Act('raw("tee", -1, -1, 0, 0)'),
    "splice": Act('raw("splice", -1, 0, -1, 0, 1, 0)'),
    "vmsplice": Act('raw("vmsplice", -1, 0, 0, 0)'),
    "io_setup": Act('raw("io_setup", 1, longs(0))'),
    "io_submit": Act('raw("io_submit", 0, 1, 0)'),
    "remap_file_pages": Act('raw("remap_file_pages", 0, 0, 0, 0, 0)'),
    "io_uring_setup": Act('raw("io_uring_setup", 1, zeros(120))', "ENOSYS"),
    "io_uring_enter": Act('raw("io_uring_enter", -1, 0, 0, 0, 0, 0)'),
    "io_uring_register": Act('raw("io_uring_register", -1, 0, 0, 0)'),
}  # fmt: skip
PROCESSES = {
    # Namespaces and identity
    "unshare of users": Act('raw("unshare", 0x10000000)'),
    "unshare of mounts": Act('raw("unshare", 0x10020000)'),
    "unshare of the network": Act('raw("unshare", 0x50000000)'),
    "unshare of processes": Act('raw("unshare", 0x30000000)'),
    "unshare of System V objects": Act('raw("unshare", 0x18000000)'),
    "unshare of the host name": Act('raw("unshare", 0x14000000)'),
    "unshare of control groups": Act('raw("unshare", 0x12000000)'),
    "unshare of time": Act('raw("unshare", 0x10000080)'),
    "unshare of files": Act('raw("unshare", 0x400)'),
    "unshare of nothing": Act('raw("unshare", 0)'),
    "unshare, high bits": Act('raw("unshare", 0x110000000)'),
    "setns": Act('raw("setns", 1, 0)'),
    "setuid": Act("os.setuid(os.getuid())"),
    "setgid": Act("os.setgid(os.getgid())"),
    "setreuid": Act("os.setreuid(-1, -1)"),
    "setregid": Act("os.setregid(-1, -1)"),
    "setresuid": Act("os.setresuid(-1, -1, -1)"),
    "setresgid": Act("os.setresgid(-1, -1, -1)"),
    "setfsuid": Act('raw("setfsuid", -1)'),
    "setfsgid": Act('raw("setfsgid", -1)'),
    "setgroups": Act("os.setgroups([])"),
    "capset": Act('raw("capset", ints(0x20080522, 0), longs(0, 0, 0))'),
    "setsid": Act("os.setsid()"),
    "setpgid": Act('raw("setpgid", 0, -5)'),
    "getpgid": Act('raw("getpgid", 0)'),
    "getsid": Act('raw("getsid", 0)'),
    "personality": Act('raw("personality", 0x0040000)'),
    "personality asked for": Act('raw("personality", 0xFFFFFFFF)'),
    # prctl(2): what the worker is to its parent, to tracers and to the kernel
    "PR_SET_PDEATHSIG": Act('raw("prctl", 1, 0, 0, 0, 0)'),
    "PR_SET_PDEATHSIG, high bits": Act('raw("prctl", 1 << 32 | 1, 0, 0, 0, 0)'),
    "PR_SET_DUMPABLE": Act('raw("prctl", 4, 0, 0, 0, 0)'),
    "PR_SET_KEEPCAPS": Act('raw("prctl", 8, 1, 0, 0, 0)'),
    "PR_SET_SECCOMP": Act('raw("prctl", 22, 2, 8, 0, 0)'),
    "PR_CAPBSET_DROP": Act('raw("prctl", 24, 63, 0, 0, 0)'),
    "PR_SET_TSC": Act('raw("prctl", 26, 1, 0, 0, 0)'),
    "PR_SET_SECUREBITS": Act('raw("prctl", 28, 0, 0, 0, 0)'),
    "PR_SET_TIMERSLACK": Act('raw("prctl", 29, 1, 0, 0, 0)'),
    "PR_TASK_PERF_EVENTS_DISABLE": Act('raw("prctl", 31, 0, 0, 0, 0)'),
    "PR_MCE_KILL": Act('raw("prctl", 33, 0, 0, 0, 0)'),
    "PR_SET_MM": Act('raw("prctl", 35, 99, 0, 0, 0)'),
    "PR_SET_CHILD_SUBREAPER": Act('raw("prctl", 36, 1, 0, 0, 0)'),
    "PR_SET_NO_NEW_PRIVS": Act('raw("prctl", 38, 1, 0, 0, 0)'),
    "PR_SET_THP_DISABLE": Act('raw("prctl", 41, 1, 0, 0, 0)'),
    "PR_CAP_AMBIENT": Act('raw("prctl", 47, 1, 0, 0, 0)'),
    "PR_SET_SPECULATION_CTRL": Act('raw("prctl", 53, 0, 99, 0, 0)'),
    "PR_SET_IO_FLUSHER": Act('raw("prctl", 57, 0, 0, 0, 0)'),
    "PR_SET_SYSCALL_USER_DISPATCH": Act('raw("prctl", 59, 0, 0, 0, 0)'),
    "PR_SCHED_CORE": Act('raw("prctl", 62, 99, 0, 0, 0)'),
    "PR_SET_MDWE": Act('raw("prctl", 65, 1, 0, 0, 0)'),
    "PR_SET_PTRACER": Act('raw("prctl", 0x59616D61, -1, 0, 0, 0)'),
    "arch_prctl": Act('raw("arch_prctl", 0x1003, longs(0))'),
    # Confinement within the confinement: a listener of the worker's own would answer before the supervisor
    "seccomp filter": Act('raw("seccomp", 1, 0, 0)'),
    "seccomp listener": Act('raw("seccomp", 1, 8, 8)'),
    "seccomp actions": Act('raw("seccomp", 2, 0, ints(0x7FFF0000))'),
    "landlock_create_ruleset": Act('raw("landlock_create_ruleset", 0, 0, 1)'),
    "landlock_add_rule": Act('raw("landlock_add_rule", -1, 1, 0, 0)'),
    "landlock_restrict_self": Act('raw("landlock_restrict_self", -1, 0)'),
    "lsm_get_self_attr": Act('raw("lsm_get_self_attr", 100, 0, ints(0), 0)'),
    "lsm_list_modules": Act('raw("lsm_list_modules", 0, ints(0), 0)'),
    # Tracing and the memory of others
    "ptrace, to be traced": Act('raw("ptrace", 0, 0, 0, 0)'),
    "ptrace, to attach": Act('raw("ptrace", 16, -1, 0, 0)'),
    "ptrace, to seize": Act('raw("ptrace", 0x4206, -1, 0, 0)'),
    "process_vm_readv": Act('raw("process_vm_readv", os.getpid(), 0, 0, 0, 0, 0)'),
    "process_vm_writev": Act('raw("process_vm_writev", os.getpid(), 0, 0, 0, 0, 0)'),
    "process_madvise": Act('raw("process_madvise", -1, 0, 0, 0, 0)', "ENOSYS"),
    "process_mrelease": Act('raw("process_mrelease", -1, 0)'),
    "kcmp": Act('raw("kcmp", os.getpid(), os.getpid(), 2, 0, 0)'),
    "pidfd_open": Act("os.pidfd_open(os.getppid())", "ENOSYS"),
    "pidfd_getfd": Act('raw("pidfd_getfd", -1, 0, 0)'),
    "pidfd_send_signal": Act('raw("pidfd_send_signal", -1, 0, 0, 0)', "ENOSYS"),
    "perf_event_open": Act('raw("perf_event_open", 0, 0, -1, -1, 0)'),
    "userfaultfd": Act('raw("userfaultfd", 1)'),
    "mbind": Act('raw("mbind", 0, 0, 0, 0, 0, 0)'),
    "set_mempolicy": Act('raw("set_mempolicy", 0, 0, 0)'),
    "get_mempolicy": Act('raw("get_mempolicy", 0, 0, 0, 0, 0)'),
    "migrate_pages": Act('raw("migrate_pages", 0, 0, 0, 0)'),
    "move_pages": Act('raw("move_pages", 0, 0, 0, 0, 0, 0)'),
    "pkey_alloc": Act('raw("pkey_alloc", 0, 0)'),
    "mlockall": Act('raw("mlockall", 99)'),
    # Programs and processes
    "execve": Act('raw("execve", b"/no/such", 0, 0)'),
    "execveat": Act('raw("execveat", -1, b"no", 0, 0, 0)'),
    "clone3": Act('raw("clone3", 0, 0)', "ENOSYS"),
    "memfd_create": Act('raw("memfd_create", b"x", 0)'),
    "memfd_secret": Act('raw("memfd_secret", 0)', "ENOSYS"),
    "uselib": Act('raw("uselib", b"/no/such")'),
    # The machine
    "init_module": Act('raw("init_module", 8, 1, b"")'),
    "finit_module": Act('raw("finit_module", -1, b"", 0)'),
    "delete_module": Act('raw("delete_module", b"no_such_module", 0)'),
    "kexec_load": Act('raw("kexec_load", 0, 99, 0, 0xFFFF)'),
    "kexec_file_load": Act('raw("kexec_file_load", -1, -1, 0, 0, 0)'),
    "bpf": Act('raw("bpf", 999, 0, 0)'),
    "reboot": Act('raw("reboot", 0, 0, 0, 0)'),
    "sethostname": Act('raw("sethostname", 8, -1)'),
    "setdomainname": Act('raw("setdomainname", 8, -1)'),
    "settimeofday": Act('raw("settimeofday", 8, 0)'),
    "clock_settime": Act('raw("clock_settime", 0, 8)'),
    "adjtimex": Act('raw("adjtimex", zeros(256))'),
    "clock_adjtime": Act('raw("clock_adjtime", 0, zeros(256))'),
    "ioperm": Act('raw("ioperm", 1 << 20, 1, 1)'),
    "iopl": Act('raw("iopl", 9)'),
    "modify_ldt": Act('raw("modify_ldt", 0, zeros(8), 8)'),
    "no such call": Act('raw("no_such_call")'),
    # Scheduling
    "sched_setscheduler": Act('raw("sched_setscheduler", 0, 3, ints(0))'),
    "sched_setparam": Act('raw("sched_setparam", 0, ints(0))'),
    "sched_setattr": Act('raw("sched_setattr", 0, 8, 0)'),
    "sched_getattr": Act('raw("sched_getattr", 0, zeros(64), 64, 0)'),
    "priority of a user": Act('raw("setpriority", 2, 4242, 0)'),
    "priority of a user asked for": Act('raw("getpriority", 2, 4242)'),
    "priority of the group": Act('raw("getpriority", 1, 0)'),
    "ioprio_set": Act('raw("ioprio_set", 1, 0, 3 << 13)'),
    "ioprio_get": Act('raw("ioprio_get", 1, 0)'),
    # Signals to many; signal 0 only asks
    "signal to all": Act('raw("kill", -1, 0)'),
    "signal to the own group": Act('raw("kill", 0, 0)'),
    "signal to a group": Act('raw("kill", -os.getpgid(os.getpid()), 0)'),
    "tkill": Act('raw("tkill", os.getpid(), 0)'),
    "tgkill of no process": Act('raw("tgkill", -1, os.getpid(), 0)'),
    "owner of a pipe": Act("fcntl.fcntl(os.pipe()[0], fcntl.F_SETOWN, os.getppid())"),
    "owner of a pipe, by thread": Act("fcntl.fcntl(os.pipe()[0], 15, bytes(ints(2, os.getppid())))"),
    "owner of a pipe, asked for": Act("fcntl.fcntl(os.pipe()[0], fcntl.F_GETOWN)"),
    "signal of a pipe": Act("fcntl.fcntl(os.pipe()[0], fcntl.F_SETSIG, 9)"),
    "owner of a socket, by ioctl": Act("fcntl.ioctl(socket.socketpair()[0], 0x8901, ints(os.getppid()))"),
    "owner of a socket, by another ioctl": Act("fcntl.ioctl(socket.socketpair()[0], 0x8902, ints(os.getppid()))"),
    "asynchronous pipe, by ioctl": Act("fcntl.ioctl(os.pipe()[0], 0x5452, ints(1))"),
    "asynchronous pipe": Act("fcntl.fcntl(os.pipe()[0], fcntl.F_SETFL, os.O_ASYNC)"),
    "asynchronous pipe, high bits": Act('raw("fcntl", os.pipe()[0], 1 << 32 | 4, os.O_ASYNC)'),
}  # fmt: skip
LEAKS = {
    "session keyring": Act('raw("keyctl", 0, -3, 0)'),
    "new session keyring": Act('raw("keyctl", 1, 0)'),
    "description of a keyring": Act('raw("keyctl", 6, -4, 0, 0)'),
    "keys of a keyring": Act('raw("keyctl", 11, -4, 0, 0)'),
    "search of a keyring": Act('raw("keyctl", 10, -4, b"user", b"no-such-key", 0)'),
    "add_key": Act('raw("add_key", b"user", 8, 0, 0, 0)'),
    "request_key": Act('raw("request_key", 8, b"no-such-key", 0, 0)'),
    "shmget": Act('raw("shmget", 0, 0, 0)'),
    "shmat": Act('raw("shmat", -1, 0, 0)'),
    "shmdt": Act('raw("shmdt", 1)'),
    "shmctl, all segments": Act('raw("shmctl", 0, 14, zeros(128))'),
    "semget": Act('raw("semget", 0, -1, 0)'),
    "semop": Act('raw("semop", -1, zeros(8), 1)'),
    "semtimedop": Act('raw("semtimedop", -1, zeros(8), 1, 0)'),
    "semctl, all": Act('raw("semctl", 0, 0, 19, zeros(128))'),
    "msgget": Act('raw("msgget", 0x5BD1E995, 0)'),
    "msgsnd": Act('raw("msgsnd", -1, longs(1), 0, 0)'),
    "msgrcv": Act('raw("msgrcv", -1, zeros(16), 0, 0, 0)'),
    "msgctl, all": Act('raw("msgctl", 0, 12, zeros(128))'),
    "mq_open": Act('raw("mq_open", b"no-such-queue", 0, 0, 0)'),
    "mq_unlink": Act('raw("mq_unlink", b"no-such-queue")'),
    "mq_timedsend": Act('raw("mq_timedsend", -1, b"x", 1, 0, 0)'),
    "mq_timedreceive": Act('raw("mq_timedreceive", -1, zeros(8), 8, 0, 0)'),
    "mq_notify": Act('raw("mq_notify", -1, 0)'),
    "mq_getsetattr": Act('raw("mq_getsetattr", -1, 0, 0)'),
    "syslog": Act('raw("syslog", 3, zeros(64), 64)'),
    "size of the kernel log": Act('raw("syslog", 10, 0, 0)'),
    "limits of the parent": Act('raw("prlimit64", os.getppid(), 7, 0, longs(0, 0))'),
    "processors of the parent": Act("os.sched_getaffinity(os.getppid())"),
    "scheduler of the parent": Act("os.sched_getscheduler(os.getppid())"),
    "parameters of the parent": Act("os.sched_getparam(os.getppid())"),
    "time slice of the parent": Act("os.sched_rr_get_interval(os.getppid())"),
    "priority of the parent": Act("os.getpriority(os.PRIO_PROCESS, os.getppid())"),
    "group of the parent": Act('raw("getpgid", os.getppid())'),
    "session of the parent": Act('raw("getsid", os.getppid())'),
    "threads of the parent": Act('raw("get_robust_list", os.getppid(), longs(0), longs(0))'),
    "a signal to see whether the parent is there": Act("os.kill(os.getppid(), 0)"),
    "a terminal's group": Act("os.tcgetpgrp(os.open('/dev/null', 0))"),
}  # fmt: skip
CALLS = FILES | PROCESSES | LEAKS

_PACKAGE, _PATHS = Path(sandboxrun.__file__).parent, sysconfig.get_paths()
FOLDERS = {
    "the package": _PACKAGE, "the sandbox package": _PACKAGE / "sandbox",
    "its compiled code": _PACKAGE / "__pycache__", "site packages": Path(_PATHS["purelib"]),
    "the standard library": Path(_PATHS["stdlib"]), "its dynamic modules": Path(_PATHS["stdlib"]) / "lib-dynload",
    "programs": Path(sys.executable).parent, "home": Path.home(), "/tmp": Path("/tmp"), "/var/tmp": Path("/var/tmp"),
    "shared memory": Path("/dev/shm"), "/etc": Path("/etc"), "/run": Path("/run"), "cron": Path("/etc/cron.d"),
    "/usr/local/lib": Path("/usr/local/lib"), "cgroups": Path("/sys/fs/cgroup"),
}  # fmt: skip


PLANTED = {what: folder / f"planted-{os.getpid()}" for what, folder in FOLDERS.items()}
# Opened to write, never written.
EXISTING = {
    "the script": "sys.argv[0]", "the bootstrap": repr(str(_PACKAGE / "sandbox" / "child" / "bootstrap.py")), "os.py": "os.__file__",
    "the compiled modules": repr(cache_from_source(str(_PACKAGE / "all-modules.py"))),
    "a site package": repr(pytest.__file__), "the program": repr(str(Path(sys.prefix) / "pyvenv.cfg")),
    "own memory": "'/proc/self/mem'", "own name": "'/proc/self/comm'", "own OOM score": "'/proc/self/oom_score_adj'",
    "own core filter": "'/proc/self/coredump_filter'", "own user map": "'/proc/self/uid_map'",
    "own attributes": "'/proc/self/clear_refs'", "memory of the parent": "f'/proc/{os.getppid()}/mem'",
    "OOM score of the parent": "f'/proc/{os.getppid()}/oom_score_adj'", "name of the parent": "f'/proc/{os.getppid()}/comm'",
    "host name": "'/proc/sys/kernel/hostname'", "core pattern": "'/proc/sys/kernel/core_pattern'",
    "module loader": "'/proc/sys/kernel/modprobe'", "SysRq": "'/proc/sysrq-trigger'", "block device": "'/sys/kernel/uevent_helper'",
    "processes of the group": "'/sys/fs/cgroup/memory/cgroup.procs'", "terminal": "'/dev/tty'", "new terminals": "'/dev/ptmx'",
    "kernel log": "'/dev/kmsg'", "memory device": "'/dev/mem'", "random": "'/dev/random'", "full": "'/dev/full'",
    "tunnel": "'/dev/net/tun'", "loop": "'/dev/loop-control'", "fuse": "'/dev/fuse'", "zero": "'/dev/zero'",
}  # fmt: skip
OPENED = {what: Act(f"os.close(os.open({path}, os.O_WRONLY))", "EACCES") for what, path in EXISTING.items()}
MADE = {
    what: Act(f"[os.close(os.open({str(path)!r}, os.O_WRONLY | os.O_CREAT)), os.unlink({str(path)!r})]", "EACCES")
    for what, path in PLANTED.items()
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    every = CALLS | OPENED | MADE
    assert len(every) == sum(map(len, (FILES, PROCESSES, LEAKS, OPENED, MADE))), "two have one name"
    return make(tmp_path_factory.mktemp("calls"), every)


@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_no_worker_needs_is_refused(answers: Answers, name: str) -> None:
    answers.check(name, CALLS[name].errno)


LACK = "ENOENT ENXIO ENODEV EPERM EACCES EROFS"


@pytest.mark.parametrize("what", OPENED)
def test_what_is_there_is_not_opened_to_write(answers: Answers, what: str) -> None:
    answers.check(what, "EACCES", LACK, works="done")


@pytest.mark.parametrize("what", MADE)
def test_nothing_is_planted_where_code_or_others_are(answers: Answers, what: str) -> None:
    answers.check(what, "EACCES", LACK, works="done")
    assert not PLANTED[what].exists()
