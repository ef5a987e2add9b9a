"""Runs in the agent: a process that forks children, for the types of workers whose policy has `share-memory`.

A forked child needs a third of a spawned one's memory and half of its processor time. It shares the zygote's address layout,
hash seed and stack canaries with all others, which is why the operator has to allow it.

The zygote is started like a child (spawn.py), with an empty environment and none of the agent's memory, so it holds no
secret, whenever that is. child/zygote.py has the protocol. No descriptor is sent: the child makes its own, and the agent
takes its ends, as it takes the listener.
"""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]  # signal makes enums of all numbers
import contextlib
import marshal
import os
import select
import threading
import time

from sandboxrun.sandbox.supervisor import cgroup, spawn
from sandboxrun.sandbox.supervisor.spawn import Spawned
from sandboxrun.sandbox.syscalls import pidfd_getfd, syscall

_PR_SET_CHILD_SUBREAPER = 36
_NR_PRCTL = {"x86_64": 157, "aarch64": 167}
_REPLY_BYTES = 4096  # PIPE_BUF
_REPLY_SECONDS = 20.0  # its imports come before the first one
_LEFT_SECONDS = 2.0
_ANSWERS = 4  # in spawn.pipes()
_ROOM = "-" * 256  # for the longest key of a worker


class _Ended(OSError):
    """The zygote's process has ended, so another one may do better."""


class _Process:
    """One zygote's process."""

    def __init__(self) -> None:
        theirs: list[int] = []
        ours: list[int] = []
        self.pid = 0
        try:
            for agent_reads in (False, True):
                read, write = os.pipe2(os.O_CLOEXEC | os.O_DIRECT)
                ours.append(read if agent_reads else write)
                theirs.append(write if agent_reads else read)
            words = [_ROOM, str(os.getpid()), *spawn.importable()]
            self.pid = spawn.start_python("zygote", words, [*theirs, theirs[1]])
            self.pidfd = os.pidfd_open(self.pid)
        except BaseException:
            for fd in ours:
                os.close(fd)
            if self.pid:
                _end(self.pid)
            raise
        finally:
            for fd in theirs:
                os.close(fd)
        self._commands, self._replies = ours
        self._unready: list[int] = []  # a child that is not ready, and its parent

    def fork(self, key: str) -> Spawned:
        """Raises OSError, and then the process must be ended."""
        try:
            os.write(self._commands, marshal.dumps((key, spawn.pipes(), spawn.memory())))
        except BrokenPipeError as error:
            raise _Ended(error.errno, error.strerror) from error
        self._unready = [*map(int, self._reply(b"forked", self.pidfd).split())]
        pid = self._unready[0]
        pidfd = os.pidfd_open(pid)  # nobody has waited for it, so the number is its own
        ours: list[int] = []
        try:
            number, *fds = map(int, self._reply(b"ready", pidfd).split())
            if number != pid:
                raise OSError(0, f"process {number} replied instead of {pid}")
            ours += (pidfd_getfd(pidfd, fd) for fd in fds)
            spawn.seal(ours[-1])
            os.write(ours[_ANSWERS], b"taken")
        except BaseException:
            for fd in (*ours, pidfd):
                os.close(fd)
            raise
        self._unready = []
        return Spawned.of(pid, pidfd, ours)

    def end(self) -> None:
        """Kill and reap it, and its descendants that the agent has not taken: they are the agent's children now."""
        os.close(self._commands)
        os.close(self.pidfd)
        _end(self.pid)
        deadline = time.monotonic() + _LEFT_SECONDS
        while True:
            for pid in self._unready:
                _end(pid)
            if not self._wait(self._replies, until=deadline) or not (reply := os.read(self._replies, _REPLY_BYTES)):
                break
            if reply.startswith(b"forked "):
                self._unready = [*map(int, reply.split()[1:])]
        os.close(self._replies)

    def _reply(self, word: bytes, sender: int) -> bytes:
        """The reply that begins with `word`, without that. `sender`: the pidfd of who writes it."""
        if not self._wait(self._replies, sender, until=time.monotonic() + _REPLY_SECONDS):
            raise TimeoutError(0, f"no child was forked within {_REPLY_SECONDS:.0f} s")
        reply = os.read(self._replies, _REPLY_BYTES) if self._wait(self._replies, until=0.0) else b""
        found, _, rest = reply.partition(b" ")
        if found == word:
            return rest
        if found == b"fail":
            raise OSError(0, rest.decode("utf-8", "replace"))
        while self._wait(self._replies, sender, until=time.monotonic() + _LEFT_SECONDS):
            more = os.read(self._replies, _REPLY_BYTES) if self._wait(self._replies, until=0.0) else b""
            if not more:
                break
            reply += more
        last = reply.decode("utf-8", "replace").strip().rpartition("\n")[2]  # of a traceback
        raise _Ended(0, f"the process that forks children has ended{': ' * bool(last)}{last[:200]}")

    @staticmethod
    def _wait(*fds: int, until: float) -> bool:
        poll = select.poll()  # descriptors of an agent may be above select's limit
        for fd in fds:
            poll.register(fd, select.POLLIN)
        return bool(poll.poll(max(0.0, until - time.monotonic()) * 1000))


class Zygote:
    """Forks children; a zygote that has ended is replaced. `fork` may be called from any thread.

    The agent becomes the parent of its descendants' orphans (PR_SET_CHILD_SUBREAPER), so it must wait for each child by its
    pid, never for any. It does not matter which thread calls, nor when that ends: after its parent's end a child belongs to
    the agent's first living thread (find_new_reaper in kernel/exit.c), and PDEATHSIG follows that one, the main thread.
    """

    def __init__(self) -> None:
        """Raises OSError."""
        syscall("prctl", _NR_PRCTL[os.uname().machine], _PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        cgroup.set_up()  # before it is there, like any other child
        self._lock = threading.Lock()
        self._process: _Process | None = _Process()
        self._is_closed = False

    @property
    def pid(self) -> int | None:
        process = self._process
        return None if process is None else process.pid

    def fork(self, key: str) -> Spawned:
        """A child that waits for its plan, with sandboxrun.worker imported; `key` is what ps(1) shows. Raises OSError."""
        with self._lock:
            if self._is_closed:
                raise OSError(0, "the zygote is closed")
            if self._process is not None:
                try:
                    return self._process.fork(key)
                except _Ended:
                    self._end()
                except OSError:
                    self._end()
                    raise
            self._process = _Process()
            try:
                return self._process.fork(key)
            except OSError:
                self._end()
                raise

    def close(self) -> None:
        """End the zygote, not its children."""
        with self._lock:
            self._is_closed = True
            self._end()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.end()


def _end(pid: int) -> None:
    """Kill and reap this process if it is a child of ours. Takes no descriptor, for they may all be in use."""
    with contextlib.suppress(ChildProcessError):
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
