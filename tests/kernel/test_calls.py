"""Calls that no worker needs, and places where it may make or open nothing: each is asked for once, in one process.

Unconfined the kernel does it, or finds fault with its arguments: they are such that nothing happens even to root. Confined
all are refused, with the exact errno. What the kernel itself refuses this user shows nothing, and is skipped.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path

import pytest
from raw_calls import Answers, Call, make

import sandboxrun

FILES = {
    "mount": Call('raw("mount", b"none", b"/no/such", b"tmpfs", 0, 0)'),
    "umount2": Call('raw("umount2", b"/no/such", 0)'),
    "open_tree": Call('raw("open_tree", -100, b"/no/such", 0)'),
    "open_tree_attr": Call('raw("open_tree_attr", -100, b"/no/such", 0, 0, 0)'),
    "move_mount": Call('raw("move_mount", -1, b"x", -1, b"x", 0)'),
    "fsopen": Call('raw("fsopen", b"nosuchfs", 0)'),
    "fsconfig": Call('raw("fsconfig", -1, 0, 0, 0, 0)'),
    "fsmount": Call('raw("fsmount", -1, 0, 0)'),
    "fspick": Call('raw("fspick", -100, b"/no/such", 0)'),
    "mount_setattr": Call('raw("mount_setattr", -100, b"/no/such", 0, zeros(32), 32)'),
    "statmount": Call('raw("statmount", 0, 0, 0, 0)'),
    "listmount": Call('raw("listmount", 0, 0, 0, 0)'),
    "chroot": Call('raw("chroot", b".")'),
    "pivot_root": Call('raw("pivot_root", b"/no/such", b"/no/such")'),
    "quotactl": Call('raw("quotactl", 0x7FFFFF00, b"/no/such", 0, 0)'),
    "quotactl_fd": Call('raw("quotactl_fd", -1, 0, 0, 0)'),
    "swapon": Call('raw("swapon", b"/no/such", 0)'),
    "swapoff": Call('raw("swapoff", b"/no/such")'),
    "acct": Call('raw("acct", b"/no/such")'),
    "sysfs": Call('raw("sysfs", 3)'),
    "ustat": Call('raw("ustat", 0, 8)'),
    "syncfs": Call('raw("syncfs", 1)'),
    "name_to_handle_at": Call('raw("name_to_handle_at", -100, b".", ints(0, 0), ints(0), 0)'),
    "open_by_handle_at": Call('raw("open_by_handle_at", -1, ints(8, 1, 0, 0), 0)'),
    "inotify_init": Call('raw("inotify_init")'),
    "inotify_init1": Call('raw("inotify_init1", 0)'),
    "inotify_add_watch": Call('raw("inotify_add_watch", -1, b".", 2)'),
    "inotify_rm_watch": Call('raw("inotify_rm_watch", -1, 1)'),
    "fanotify_init": Call('raw("fanotify_init", 0x200, 0)'),
    "fanotify_mark": Call('raw("fanotify_mark", -1, 1, 2, -100, b".")'),
    "readahead": Call('raw("readahead", 0, 0, 4096)'),
    "cachestat": Call('raw("cachestat", 1, longs(0, 0), zeros(64), 0)'),
    "tee": Call('raw("tee", -1, -1, 0, 0)'),
    "splice": Call('raw("splice", -1, 0, -1, 0, 1, 0)'),
    "vmsplice": Call('raw("vmsplice", -1, 0, 0, 0)'),
    "io_setup": Call('raw("io_setup", 1, longs(0))'),
    "io_submit": Call('raw("io_submit", 0, 1, 0)'),
    "remap_file_pages": Call('raw("remap_file_pages", 0, 0, 0, 0, 0)'),
    "io_uring_setup": Call('raw("io_uring_setup", 1, zeros(120))', "ENOSYS"),
    "io_uring_enter": Call('raw("io_uring_enter", -1, 0, 0, 0, 0, 0)'),
    "io_uring_register": Call('raw("io_uring_register", -1, 0, 0, 0)'),
}  # fmt: skip
PROCESSES = {
    # Namespaces and identity
    "unshare of users": Call('raw("unshare", 0x10000000)'),
    "unshare of mounts": Call('raw("unshare", 0x10020000)'),
    "unshare of the network": Call('raw("unshare", 0x50000000)'),
    "unshare of processes": Call('raw("unshare", 0x30000000)'),
    "unshare of System V objects": Call('raw("unshare", 0x18000000)'),
    "unshare of the host name": Call('raw("unshare", 0x14000000)'),
    "unshare of control groups": Call('raw("unshare", 0x12000000)'),
    "unshare of time": Call('raw("unshare", 0x10000080)'),
    "unshare of files": Call('raw("unshare", 0x400)'),
    "unshare of nothing": Call('raw("unshare", 0)'),
    "unshare, high bits": Call('raw("unshare", 0x110000000)'),
    "setns": Call('raw("setns", 1, 0)'),
    "setuid": Call("os.setuid(os.getuid())"),
    "setgid": Call("os.setgid(os.getgid())"),
    "setreuid": Call("os.setreuid(-1, -1)"),
    "setregid": Call("os.setregid(-1, -1)"),
    "setresuid": Call("os.setresuid(-1, -1, -1)"),
    "setresgid": Call("os.setresgid(-1, -1, -1)"),
    "setfsuid": Call('raw("setfsuid", -1)'),
    "setfsgid": Call('raw("setfsgid", -1)'),
    "setgroups": Call("os.setgroups([])"),
    "capset": Call('raw("capset", ints(0x20080522, 0), longs(0, 0, 0))'),
    "setsid": Call("os.setsid()"),
    "setpgid": Call('raw("setpgid", 0, -5)'),
    "getpgid": Call('raw("getpgid", 0)'),
    "getsid": Call('raw("getsid", 0)'),
    "personality": Call('raw("personality", 0x0040000)'),
    "personality asked for": Call('raw("personality", 0xFFFFFFFF)'),
    # prctl(2): what the worker is to its parent, to tracers and to the kernel
    "PR_SET_PDEATHSIG": Call('raw("prctl", 1, 0, 0, 0, 0)'),
    "PR_SET_PDEATHSIG, high bits": Call('raw("prctl", 1 << 32 | 1, 0, 0, 0, 0)'),
    "PR_SET_DUMPABLE": Call('raw("prctl", 4, 0, 0, 0, 0)'),
    "PR_SET_KEEPCAPS": Call('raw("prctl", 8, 1, 0, 0, 0)'),
    "PR_SET_SECCOMP": Call('raw("prctl", 22, 2, 8, 0, 0)'),
    "PR_CAPBSET_DROP": Call('raw("prctl", 24, 63, 0, 0, 0)'),
    "PR_SET_TSC": Call('raw("prctl", 26, 1, 0, 0, 0)'),
    "PR_SET_SECUREBITS": Call('raw("prctl", 28, 0, 0, 0, 0)'),
    "PR_SET_TIMERSLACK": Call('raw("prctl", 29, 1, 0, 0, 0)'),
    "PR_TASK_PERF_EVENTS_DISABLE": Call('raw("prctl", 31, 0, 0, 0, 0)'),
    "PR_MCE_KILL": Call('raw("prctl", 33, 0, 0, 0, 0)'),
    "PR_SET_MM": Call('raw("prctl", 35, 99, 0, 0, 0)'),
    "PR_SET_CHILD_SUBREAPER": Call('raw("prctl", 36, 1, 0, 0, 0)'),
    "PR_SET_NO_NEW_PRIVS": Call('raw("prctl", 38, 1, 0, 0, 0)'),
    "PR_SET_THP_DISABLE": Call('raw("prctl", 41, 1, 0, 0, 0)'),
    "PR_CAP_AMBIENT": Call('raw("prctl", 47, 1, 0, 0, 0)'),
    "PR_SET_SPECULATION_CTRL": Call('raw("prctl", 53, 0, 99, 0, 0)'),
    "PR_SET_IO_FLUSHER": Call('raw("prctl", 57, 0, 0, 0, 0)'),
    "PR_SET_SYSCALL_USER_DISPATCH": Call('raw("prctl", 59, 0, 0, 0, 0)'),
    "PR_SCHED_CORE": Call('raw("prctl", 62, 99, 0, 0, 0)'),
    "PR_SET_MDWE": Call('raw("prctl", 65, 1, 0, 0, 0)'),
    "PR_SET_PTRACER": Call('raw("prctl", 0x59616D61, -1, 0, 0, 0)'),
    "arch_prctl": Call('raw("arch_prctl", 0x1003, longs(0))'),
    # Confinement within the confinement: a listener of the worker's own would answer before the supervisor
    "seccomp filter": Call('raw("seccomp", 1, 0, 0)'),
    "seccomp listener": Call('raw("seccomp", 1, 8, 8)'),
    "seccomp actions": Call('raw("seccomp", 2, 0, ints(0x7FFF0000))'),
    "landlock_create_ruleset": Call('raw("landlock_create_ruleset", 0, 0, 1)'),
    "landlock_add_rule": Call('raw("landlock_add_rule", -1, 1, 0, 0)'),
    "landlock_restrict_self": Call('raw("landlock_restrict_self", -1, 0)'),
    "lsm_get_self_attr": Call('raw("lsm_get_self_attr", 100, 0, ints(0), 0)'),
    "lsm_list_modules": Call('raw("lsm_list_modules", 0, ints(0), 0)'),
    # Tracing and the memory of others
    "ptrace, to be traced": Call('raw("ptrace", 0, 0, 0, 0)'),
    "ptrace, to attach to init": Call('raw("ptrace", 16, -1, 0, 0)'),
    "ptrace, to seize": Call('raw("ptrace", 0x4206, -1, 0, 0)'),
    "process_vm_readv": Call('raw("process_vm_readv", os.getpid(), 0, 0, 0, 0, 0)'),
    "process_vm_writev": Call('raw("process_vm_writev", os.getpid(), 0, 0, 0, 0, 0)'),
    "process_madvise": Call('raw("process_madvise", -1, 0, 0, 0, 0)', "ENOSYS"),
    "process_mrelease": Call('raw("process_mrelease", -1, 0)'),
    "kcmp": Call('raw("kcmp", os.getpid(), os.getpid(), 2, 0, 0)'),
    "pidfd_open": Call("os.pidfd_open(os.getppid())", "ENOSYS"),
    "pidfd_getfd": Call('raw("pidfd_getfd", -1, 0, 0)'),
    "pidfd_send_signal": Call('raw("pidfd_send_signal", -1, 0, 0, 0)', "ENOSYS"),
    "perf_event_open": Call('raw("perf_event_open", 0, 0, -1, -1, 0)'),
    "userfaultfd": Call('raw("userfaultfd", 1)'),
    "mbind": Call('raw("mbind", 0, 0, 0, 0, 0, 0)'),
    "set_mempolicy": Call('raw("set_mempolicy", 0, 0, 0)'),
    "get_mempolicy": Call('raw("get_mempolicy", 0, 0, 0, 0, 0)'),
    "migrate_pages": Call('raw("migrate_pages", 0, 0, 0, 0)'),
    "move_pages": Call('raw("move_pages", 0, 0, 0, 0, 0, 0)'),
    "pkey_alloc": Call('raw("pkey_alloc", 0, 0)'),
    "mlockall": Call('raw("mlockall", 99)'),
    # Programs and processes
    "execve": Call('raw("execve", b"/no/such", 0, 0)'),
    "execveat": Call('raw("execveat", -1, b"no", 0, 0, 0)'),
    "clone3": Call('raw("clone3", 0, 0)', "ENOSYS"),
    "memfd_create": Call('raw("memfd_create", b"x", 0)'),
    "memfd_secret": Call('raw("memfd_secret", 0)', "ENOSYS"),
    "uselib": Call('raw("uselib", b"/no/such")'),
    # The machine
    "init_module": Call('raw("init_module", 8, 1, b"")'),
    "finit_module": Call('raw("finit_module", -1, b"", 0)'),
    "delete_module": Call('raw("delete_module", b"no_such_module", 0)'),
    "kexec_load": Call('raw("kexec_load", 0, 99, 0, 0xFFFF)'),
    "kexec_file_load": Call('raw("kexec_file_load", -1, -1, 0, 0, 0)'),
    "bpf": Call('raw("bpf", 999, 0, 0)'),
    "reboot": Call('raw("reboot", 0, 0, 0, 0)'),
    "sethostname": Call('raw("sethostname", 8, -1)'),
    "setdomainname": Call('raw("setdomainname", 8, -1)'),
    "settimeofday": Call('raw("settimeofday", 8, 0)'),
    "clock_settime": Call('raw("clock_settime", 0, 8)'),
    "adjtimex": Call('raw("adjtimex", zeros(256))'),
    "clock_adjtime": Call('raw("clock_adjtime", 0, zeros(256))'),
    "ioperm": Call('raw("ioperm", 1 << 20, 1, 1)'),
    "iopl": Call('raw("iopl", 9)'),
    "modify_ldt": Call('raw("modify_ldt", 0, zeros(8), 8)'),
    "no such call": Call('raw("no_such_call")'),
    # Scheduling
    "sched_setscheduler": Call('raw("sched_setscheduler", 0, 3, ints(0))'),
    "sched_setparam": Call('raw("sched_setparam", 0, ints(0))'),
    "sched_setattr": Call('raw("sched_setattr", 0, 8, 0)'),
    "sched_getattr": Call('raw("sched_getattr", 0, zeros(64), 64, 0)'),
    "priority of a user": Call('raw("setpriority", 2, 4242, 0)'),
    "priority of a user asked for": Call('raw("getpriority", 2, 4242)'),
    "priority of the group": Call('raw("getpriority", 1, 0)'),
    "ioprio_set": Call('raw("ioprio_set", 1, 0, 3 << 13)'),
    "ioprio_get": Call('raw("ioprio_get", 1, 0)'),
    # Signals to many; signal 0 only asks
    "signal to all": Call('raw("kill", -1, 0)'),
    "signal to the own group": Call('raw("kill", 0, 0)'),
    "signal to init's group": Call('raw("kill", -os.getpgid(os.getpid()), 0)'),
    "tkill": Call('raw("tkill", os.getpid(), 0)'),
    "tgkill of no group": Call('raw("tgkill", -1, os.getpid(), 0)'),
    "owner of a pipe": Call("fcntl.fcntl(os.pipe()[0], fcntl.F_SETOWN, os.getppid())"),
    "owner of a pipe, by thread": Call("fcntl.fcntl(os.pipe()[0], 15, bytes(ints(2, os.getppid())))"),
    "owner of a pipe, asked for": Call("fcntl.fcntl(os.pipe()[0], fcntl.F_GETOWN)"),
    "signal of a pipe": Call("fcntl.fcntl(os.pipe()[0], fcntl.F_SETSIG, 9)"),
    "owner of a socket, by ioctl": Call("fcntl.ioctl(socket.socketpair()[0], 0x8901, ints(os.getppid()))"),
    "owner of a socket, by another ioctl": Call("fcntl.ioctl(socket.socketpair()[0], 0x8902, ints(os.getppid()))"),
    "asynchronous pipe, by ioctl": Call("fcntl.ioctl(os.pipe()[0], 0x5452, ints(1))"),
    "asynchronous pipe": Call("fcntl.fcntl(os.pipe()[0], fcntl.F_SETFL, os.O_ASYNC)"),
    "asynchronous pipe, high bits": Call('raw("fcntl", os.pipe()[0], 1 << 32 | 4, os.O_ASYNC)'),
}  # fmt: skip
LEAKS = {
    "session keyring": Call('raw("keyctl", 0, -3, 0)'),
    "new session keyring": Call('raw("keyctl", 1, 0)'),
    "description of a keyring": Call('raw("keyctl", 6, -4, 0, 0)'),
    "keys of a keyring": Call('raw("keyctl", 11, -4, 0, 0)'),
    "search of a keyring": Call('raw("keyctl", 10, -4, b"user", b"no-such-key", 0)'),
    "add_key": Call('raw("add_key", b"user", 8, 0, 0, 0)'),
    "request_key": Call('raw("request_key", 8, b"no-such-key", 0, 0)'),
    "shmget": Call('raw("shmget", 0, 0, 0)'),
    "shmat": Call('raw("shmat", -1, 0, 0)'),
    "shmdt": Call('raw("shmdt", 1)'),
    "shmctl, all segments": Call('raw("shmctl", 0, 14, zeros(128))'),
    "semget": Call('raw("semget", 0, -1, 0)'),
    "semop": Call('raw("semop", -1, zeros(8), 1)'),
    "semtimedop": Call('raw("semtimedop", -1, zeros(8), 1, 0)'),
    "semctl, all": Call('raw("semctl", 0, 0, 19, zeros(128))'),
    "msgget": Call('raw("msgget", 0x5BD1E995, 0)'),
    "msgsnd": Call('raw("msgsnd", -1, longs(1), 0, 0)'),
    "msgrcv": Call('raw("msgrcv", -1, zeros(16), 0, 0, 0)'),
    "msgctl, all": Call('raw("msgctl", 0, 12, zeros(128))'),
    "mq_open": Call('raw("mq_open", b"no-such-queue", 0, 0, 0)'),
    "mq_unlink": Call('raw("mq_unlink", b"no-such-queue")'),
    "mq_timedsend": Call('raw("mq_timedsend", -1, b"x", 1, 0, 0)'),
    "mq_timedreceive": Call('raw("mq_timedreceive", -1, zeros(8), 8, 0, 0)'),
    "mq_notify": Call('raw("mq_notify", -1, 0)'),
    "mq_getsetattr": Call('raw("mq_getsetattr", -1, 0, 0)'),
    "syslog": Call('raw("syslog", 3, zeros(64), 64)'),
    "size of the kernel log": Call('raw("syslog", 10, 0, 0)'),
    "limits of the parent": Call('raw("prlimit64", os.getppid(), 7, 0, longs(0, 0))'),
    "processors of the parent": Call("os.sched_getaffinity(os.getppid())"),
    "scheduler of the parent": Call("os.sched_getscheduler(os.getppid())"),
    "parameters of the parent": Call("os.sched_getparam(os.getppid())"),
    "time slice of the parent": Call("os.sched_rr_get_interval(os.getppid())"),
    "priority of the parent": Call("os.getpriority(os.PRIO_PROCESS, os.getppid())"),
    "group of the parent": Call('raw("getpgid", os.getppid())'),
    "session of the parent": Call('raw("getsid", os.getppid())'),
    "threads of the parent": Call('raw("get_robust_list", os.getppid(), longs(0), longs(0))'),
    "a signal to see whether the parent is there": Call("os.kill(os.getppid(), 0)"),
    "a terminal's group": Call("os.tcgetpgrp(os.open('/dev/null', 0))"),
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
    "the script": "sys.argv[0]", "the bootstrap": repr(str(_PACKAGE / "sandbox" / "bootstrap.py")), "os.py": "os.__file__",
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
OPENED = {what: Call(f"os.close(os.open({path}, os.O_WRONLY))", "EACCES") for what, path in EXISTING.items()}
MADE = {
    what: Call(f"[os.close(os.open({str(path)!r}, os.O_WRONLY | os.O_CREAT)), os.unlink({str(path)!r})]", "EACCES")
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
