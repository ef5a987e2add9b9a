"""Runs in the zygote's process, and forks children that have imported everything already.

Run as `python -I -S zygote.py ROOM AGENT_PID PACKAGE SITE…`; PACKAGE and SITE are as bootstrap.py has them, and ROOM is what
ps(1) needs for the name of a child. It has three descriptors. Standard input brings commands, one a packet (pipe(2),
O_DIRECT): marshalled (key, pipes, memory), as spawn.py has the last two. Standard output and error carry replies, and they
are one pipe of packets: "forked PID PARENT", then "ready PID FD…" with the agent's ends, which the agent takes by
pidfd_getfd(2); or "fail TEXT". The agent then writes "taken" to the child's answers, and the child goes on as a spawned one:
bootstrap.run.

This process runs nothing but this file and imports, holds no secret, and learns nothing of a child but its key. It has one
thread. It ends when its standard input does: its end is no concern of the children, whose parent is the agent.
"""

import _frozen_importlib as importlib
import _frozen_importlib_external as external
import _signal  # type: ignore[import-not-found]  # signal makes enums of all numbers
import gc
import marshal
import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_COMMAND_BYTES = 4096  # PIPE_BUF
_TAKEN = b"taken"
_TAKEN_SECONDS = 20  # the agent reads the replies of one child at a time, so it waits for this one


def _bootstrap() -> "Any":
    """Beside this file; sandboxrun can be imported only after bootstrap.py has seen to that."""
    folder = os.path.dirname(os.path.abspath(sys.argv[0])).removesuffix("/__pycache__")
    spec = external.spec_from_file_location("bootstrap", f"{folder}/bootstrap.py")
    importlib._load(spec)  # type: ignore[attr-defined]
    return sys.modules.pop("bootstrap")  # a script may have a module of this name


def _reply(text: bytes) -> None:
    os.write(1, text)


def _fail(error: OSError) -> None:
    _reply(b"fail " + str(error.strerror).encode())


def _fork() -> bool:
    """Fork a child whose parent is the agent; True in the child. Raises OSError in the zygote.

    The child's parent forks it and ends, so that the kernel gives it to the nearest subreaper, the agent. The child goes on
    once its parent was waited for, because it has another parent by then: only for that one can PDEATHSIG be armed.
    """
    gate, opened = os.pipe2(os.O_CLOEXEC)
    first = os.fork()
    if not first:
        os.close(opened)
        _fork_and_end()
        os.read(gate, 1)
        os.close(gate)
        return True
    os.close(gate)
    code = os.waitstatus_to_exitcode(os.waitpid(first, 0)[1])
    os.close(opened)
    if code:
        raise OSError(code, os.strerror(code) if code > 0 else f"signal {-code} ended the process between")
    return False


def _fork_and_end() -> None:
    """Returns in the child alone."""
    try:
        pid = os.fork()
    except OSError as error:
        os._exit(error.errno or 1)
    if pid:
        try:
            _reply(b"forked %d %d" % (pid, os.getpid()))
        finally:
            os._exit(0)


def _give_channels(pipes: "list[tuple[int, bool]]", memory: "list[tuple[str, int, int]]") -> list[int]:
    """Make the child's descriptors, and wait until the agent has taken its ends; the child's, from the questions on."""
    ours, theirs, made = [], [], []
    try:
        for flags, child_reads in pipes:
            read, write = os.pipe2(os.O_CLOEXEC | flags)
            ours.append(read if child_reads else write)
            theirs.append(write if child_reads else read)
        for name, flags, size in memory:
            made.append(os.memfd_create(name, os.MFD_CLOEXEC | flags))
            os.ftruncate(made[-1], size)
    except OSError as error:
        _fail(error)
        os._exit(1)
    _reply(b" ".join((b"ready", *(b"%d" % number for number in (os.getpid(), *theirs, *made)))))
    for number, fd in enumerate(ours[:3]):
        os.dup2(fd, number)  # the zygote's own are closed by this
    if os.read(ours[4], len(_TAKEN)) != _TAKEN:
        os._exit(0)
    return [*ours[3:], *made]


def _serve(bootstrap: "Any", agent: int) -> "tuple[str, list[int], list[int]]":
    """Fork a child for each command; returns in the children alone: key, descriptors, and when the child began."""
    while command := os.read(0, _COMMAND_BYTES):
        key, pipes, memory = marshal.loads(command)
        try:
            is_child = _fork()
        except OSError as error:
            _fail(error)
            continue
        if is_child:
            times = [time.monotonic_ns()]
            bootstrap.end_with(agent)
            os.setsid()
            _signal.alarm(_TAKEN_SECONDS)
            channels = _give_channels(pipes, memory)
            _signal.alarm(0)
            return key, channels, times
    os._exit(0)


def main() -> None:
    agent, packages = int(sys.argv[2]), sys.argv[3:]
    program = sys.orig_argv[: -len(sys.argv)] + sys.argv[:1]
    bootstrap = _bootstrap()
    os.chdir("/")
    gc.disable()  # what is imported now stays
    bootstrap.close_others()
    runtime = bootstrap.import_runtime(1, *packages)
    runtime.show_arguments([*program, "zygote"])
    gc.freeze()
    key, channels, times = _serve(bootstrap, agent)
    runtime.show_arguments([*program, key])
    bootstrap.run(runtime, *channels, times)


if __name__ == "__main__":
    main()
