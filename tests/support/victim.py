"""The target of attacks: a process of the same user."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from raw_calls import Act

VICTIM = """
import ctypes, os, sys, time
secret = ctypes.create_string_buffer(b"private-c41d")
print(ctypes.addressof(secret), flush=True)
while time.sleep(0.02) is None and secret.value == b"private-c41d":
    pass
sys.exit(3)
"""


class Victim:
    """In a process group of its own. It exits with 3 if its memory was changed."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", VICTIM], stdout=subprocess.PIPE, start_new_session=True
        )
        assert self.process.stdout is not None
        self.where = (self.process.pid, int(self.process.stdout.readline()))
        self.before = self.state()

    def state(self) -> object:
        pid = self.process.pid
        if self.process.poll() is not None:
            return self.process.returncode
        status = Path(f"/proc/{pid}/status").read_text().splitlines()
        return (
            [line for line in status if line.startswith(("Name", "State:\tT", "TracerPid", "Uid", "Groups", "Cap", "SigCgt"))],
            [resource.prlimit(pid, limit) for limit in range(16)],
            (os.sched_getaffinity(pid), os.sched_getscheduler(pid), os.getpriority(os.PRIO_PROCESS, pid), os.getpgid(pid)),
            Path(f"/proc/{pid}/oom_score_adj").read_text(),
        )  # fmt: skip

    def changed(self) -> bool:
        return self.state() != self.before


@contextlib.contextmanager
def running() -> Iterator[Victim]:
    victim = Victim()
    with victim.process:  # closes the pipe and waits
        try:
            yield victim
        finally:
            victim.process.kill()


ACT = """
import resource
def vector(address, length):
    return longs(address, length)
def siginfo(number):
    return (ctypes.c_int * 32)(number, 0, -1)
def owned(command, argument):
    # An asynchronous socket sends SIGIO to its owner, which ends that process.
    ours, theirs = socket.socketpair()
    fcntl.fcntl(ours, command, argument)
    fcntl.fcntl(ours, fcntl.F_SETFL, os.O_ASYNC)
    theirs.send(b"x")
def ioctl_owned(request, pid):
    ours, theirs = socket.socketpair()
    fcntl.ioctl(ours, request, ints(pid))
    fcntl.ioctl(ours, 0x5452, ints(1))
    theirs.send(b"x")
"""


def on_victim(table: Mapping[str, str | tuple[str, str]]) -> dict[str, Act]:
    pairs = {way: body if isinstance(body, tuple) else (body, "EPERM") for way, body in table.items()}
    return {way: Act(f'P, A = OWN or V["spared"]\n{body}', errno) for way, (body, errno) in pairs.items()}
