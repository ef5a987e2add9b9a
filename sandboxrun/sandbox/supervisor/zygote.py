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
            raise
        finally:
            for fd in theirs:
                os.close(fd)
        self._commands, self._replies = ours

    def fork(self, key: str) -> Spawned:
        """Raises OSError, and then the process must be ended."""
        try:
            os.write(self._commands, marshal.dumps((key, spawn.pipes(), spawn.memory())))
        except BrokenPipeError as error:
            raise _Ended(error.errno, error.strerror) from error
        pid = int(self._reply(b"forked", self.pidfd))
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
            for fd in ours:
                os.close(fd)
            _end(pid, pidfd)
            raise
        return Spawned.of(pid, pidfd, ours)

    def end(self) -> None:
        """Kill and reap it, and a child of it that the agent has not taken."""
        os.close(self._commands)
        _end(self.pid, self.pidfd)
        deadline = time.monotonic() + _LEFT_SECONDS
        while self._wait(self._replies, until=deadline) and (reply := os.read(self._replies, _REPLY_BYTES)):
            word, *numbers = reply.split()
            if word in (b"forked", b"ready"):
                with contextlib.suppress(OSError):
                    _end(int(numbers[0]), os.pidfd_open(int(numbers[0])))
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


def _end(pid: int, pidfd: int) -> None:
    """Kill and reap a child. Closes `pidfd`."""
    try:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)
    finally:
        os.close(pidfd)
