"""If a worker may run programs: a process beside the supervisor that limits their number, and that ends them all if the
supervisor is killed.

PDEATHSIG ends the worker itself then, but the programs that it has started do not inherit it. The limit is watched here,
because a fork bomb leaves little time, and the supervisor's threads wait for each other.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys

import sandboxrun
from sandboxrun.errors import SandboxError
from sandboxrun.sandbox.supervisor import group

_GONE_SECONDS = 5.0


class Guard:
    """The supervisor's handle on that process, and on the group that it guards; `close` it when nothing of it is left."""

    ENDED = group.ENDED

    def __init__(self, leader: int, pidfd: int, *, limit: int) -> None:
        """`leader`: the worker, of which `pidfd` is. `limit`: threads and processes, 0 for none. Raises SandboxError."""
        self._leader, self._pidfd = leader, pidfd
        read, self._write = os.pipe2(os.O_CLOEXEC)
        package = os.path.dirname(os.path.dirname(os.path.abspath(sandboxrun.__file__)))
        code = (
            f"import sys; sys.path.append({package!r}); from sandboxrun.sandbox.supervisor import guard; guard.main()"
        )
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-c", code, str(leader), str(pidfd), str(limit)],
                stdin=read,
                stdout=subprocess.PIPE,
                env={},
                cwd="/",
                start_new_session=True,
                pass_fds=(pidfd,),
                bufsize=0,
            )
        finally:
            os.close(read)
        assert self._process.stdout is not None
        self.words = self._process.stdout
        """What it says: group.REACHED, group.ENDED. Readable when there is something."""
        if not self.words.read(1):
            raise SandboxError("the process that guards the worker's programs did not start")

    def kill(self) -> None:
        group.kill(self._leader, self._pidfd)

    def living(self) -> list[int]:
        return group.living(self._leader)

    def wait_until_gone(self, seconds: float) -> list[int]:
        return group.wait_until_gone(self._leader, seconds=seconds)

    def reap_orphans(self) -> None:
        group.reap_orphans(self._leader)

    def close(self) -> None:
        os.close(self._write)
        self._process.wait()
        self.words.close()


def main() -> None:
    """Of that process: its standard input is a pipe whose other end the supervisor alone holds open."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    leader, pidfd, limit = map(int, sys.argv[1:])
    watch = group.Watch(leader, pidfd, limit=limit, say=_say)
    with contextlib.suppress(OSError):  # for root; others have their share of the processor
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    poll = select.poll()
    poll.register(0, select.POLLIN)
    _say(b".")
    while not poll.poll(group.LOOK_SECONDS * 1000 if limit else None):
        with contextlib.suppress(OSError):  # the machine has no descriptor left for now
            watch.look()
    group.kill(leader, pidfd)
    left = group.wait_until_gone(leader, seconds=_GONE_SECONDS)
    if left:
        with contextlib.suppress(OSError):
            os.write(2, f"warning: killed, but not ended yet: processes {' '.join(map(str, left))}\n".encode())


def _say(word: bytes) -> None:
    with contextlib.suppress(OSError):  # nobody reads any more
        os.write(1, word)
