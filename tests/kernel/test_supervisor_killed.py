"""When the supervisor is killed, at whatever moment, everything of the sandbox dies with it."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from arena import CONFINE, Arena, Listener, full_backlog, in_every_child, wait_for
from flood import CALLS, flooding, trapped

from sandboxrun.sandbox.supervisor import group

# Ways to be at work; each says "ready" when it is.
BUSY = {
    "idle": ("", {}),
    "deaf": ("for number in set(signal.Signals) - {9, 19}: signal.signal(number, signal.SIG_IGN)", {}),
    "in connects that hang": ("hang(50)\ntime.sleep(0.1)", {}),
    "in a flood": ("for n in range(4): threading.Thread(target=flood, args=(n, 1 << 30), daemon=True).start()", {}),
    "with programs": ("import subprocess\nfor _ in range(5): subprocess.Popen(['sleep', '600'])", {"run": "sleep"}),
    "with deaf programs": (
        "import subprocess\nsubprocess.Popen(['sh', '-c', 'trap \"\" HUP TERM INT; sleep 600 & sleep 600; sleep 600'])\ntime.sleep(0.1)",
        {"run": "sh,sleep"},
    ),
    "with processes that make others": (
        """
for _ in range(3):
    if os.fork() == 0:
        while True:
            if os.fork() == 0:
                time.sleep(0.05)
                os._exit(0)
            with contextlib.suppress(OSError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass""",
        {"run": "true"},
    ),
    "with processes in connects that hang": ("for _ in range(3):\n    if os.fork() == 0: hang(10); time.sleep(600)", {"run": "true"}),
}  # fmt: skip


@contextlib.contextmanager
def all_end_with(supervisor: subprocess.Popen[str], pids: list[int]) -> Iterator[None]:
    """Nothing of `pids` may live ten seconds after the block."""
    pidfds = {}
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):  # one that had ended by itself
            pidfds[pid] = os.pidfd_open(pid)
    try:
        yield
        supervisor.wait()
        for pid, pidfd in pidfds.items():
            assert select.select([pidfd], [], [], 10)[0], f"process {pid} outlived its supervisor"
    finally:
        for pidfd in pidfds.values():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)


@pytest.mark.parametrize("work", BUSY)
def test_everything_of_the_sandbox_dies_with_a_killed_supervisor(arena: Arena, listener: Listener, work: str) -> None:
    body, grants = BUSY[work]
    code = flooding(f"{body}\nsay('ready')\ntime.sleep(600)")
    names = [name for name in trapped(grants) if name != "clone"]
    with full_backlog() as hanging:
        variables = {"port": listener.port, "hanging": hanging, "calls": CALLS, "names": names}
        limits = {"threads": 100}
        with arena.running(code, allow={"net": "127.0.0.1"} | grants, limits=limits, variables=variables) as running:
            assert running.line() == "ready"
            pids = running.descendants()
            assert len(pids) >= 1 + bool(grants)  # the worker, and who guards its programs
            with all_end_with(running.process, pids):
                running.process.kill()
            wait_for(lambda: not group.living(pids[0]))


# Before there is a worker: what is patched says the child's pid, and waits to be killed.
EARLY = {
    "before the plan": "launch.Child.check_supervision = here",
    "with the plan sent": "launch.Child._take_listener = here",
    "confined": "launch.Child.go = here",
}


@pytest.mark.parametrize("moment", EARLY)
@in_every_child
def test_a_child_that_waits_for_a_killed_supervisor_ends_and_runs_nothing(arena: Arena, moment: str) -> None:
    script = arena.scratch / "never.py"
    script.write_text("open('ran', 'w')\n")
    spec = {"script": str(script), "scratch": str(arena.scratch)}
    code = f"""
import sys, time
sys.path.insert(0, {str(CONFINE.parent)!r})
import confine
from sandboxrun.sandbox.supervisor import child as launch, supervisor
def here(child):
    print(child.pid, flush=True)
    time.sleep(600)
{EARLY[moment]}
confine.main({spec!r})
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=arena.env, text=True) as supervisor:
        assert supervisor.stdout is not None
        with all_end_with(supervisor, [int(supervisor.stdout.readline())]):
            supervisor.kill()
    assert not (arena.scratch / "ran").exists()
