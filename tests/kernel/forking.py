"""A small agent: runs the Python that it reads, a JSON string a line, and writes what is in `result` then, as JSON.

What it runs finds `zygote`, and these functions.
"""

import contextlib
import json
import os
import sys
import threading

import confine

from sandboxrun.log import Log
from sandboxrun.sandbox.supervisor.child import Child
from sandboxrun.sandbox.supervisor.spawn import Spawned
from sandboxrun.sandbox.supervisor.zygote import Zygote


def end(*children: Spawned) -> None:
    for spawned in children:
        Child("test:1:h", None, spawned).close()


def start(spawned: Spawned, spec: dict) -> threading.Thread:
    """Let a child run a script, as confine.py does, in a thread of the agent; it says what ends it on standard error."""

    def run() -> None:
        kernel, wanted = confine.confinement(spec, Log())
        child = Child(confine.KEY, kernel, spawned)
        try:
            confine.serve(child, wanted, Log(), signals=False)
        finally:
            child.close()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def in_thread(function, *args):
    """What a function returns in a thread that has ended afterwards."""
    found = []
    thread = threading.Thread(target=lambda: found.append(function(*args)))
    thread.start()
    thread.join()
    return found[0]


def descriptors(pid: int | str = "self") -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def is_gone(pid: int) -> bool:
    """Whether there is no such child, not even one that has ended."""
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return True
    return False


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    scope = {**globals(), "zygote": Zygote()}
    for line in sys.stdin:
        scope["result"] = None
        exec(json.loads(line), scope)
        print(json.dumps(scope["result"]), file=answers, flush=True)
    with contextlib.suppress(OSError):
        scope["zygote"].close()


if __name__ == "__main__":
    main()
