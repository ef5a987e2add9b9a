"""A time limit for each test. A test that exceeds it fails with the stacks of all its threads, and its processes are killed.

Hooks of pytest-timeout, which brings the option `--timeout`, the marker `timeout` and the setting. On its own it would show
one thread only under xdist, and kill no process. The limit counts from setup to teardown.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

GRACE_SECONDS = 20  # for the teardown of a test; then this process ends
TICK_SECONDS = 1 / os.sysconf("SC_CLK_TCK")
_since = pytest.StashKey[float]()  # older processes belong to fixtures
_stderr: list[int] = []


def pytest_configure(config: pytest.Config) -> None:
    capture = config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled() if capture else contextlib.nullcontext():
        _stderr.append(os.dup(2))


def pytest_unconfigure() -> None:
    os.close(_stderr.pop())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    item.stash[_since] = now()
    yield
    item.stash[_since] = now()


def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> bool:
    def over(*_: object) -> None:
        stuck = stacks()
        end_descendants(item.stash.get(_since, 0))
        pytest.fail(f"stuck: not done after {settings.timeout:g} s\n{stuck}", pytrace=False)

    signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, settings.timeout)
    # For a test that catches the failure, or that never returns to the interpreter.
    faulthandler.dump_traceback_later(settings.timeout + GRACE_SECONDS, exit=True, file=_stderr[-1])
    return True


def pytest_timeout_cancel_timer(item: pytest.Item) -> bool:
    faulthandler.cancel_dump_traceback_later()
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    return True


def stacks() -> str:
    """Of all threads; the main thread last, because a reader looks at the end of a terminal first."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    frames = sorted(sys._current_frames().items(), key=lambda found: found[0] == threading.main_thread().ident)
    return "\n".join(
        f"thread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}" for ident, frame in frames
    )


def now() -> float:
    """Seconds on the clock of /proc/PID/stat."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def end_descendants(since: float) -> None:
    """Kill the processes that this one has started after `since`, and their descendants."""
    children: dict[int, list[tuple[int, float]]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text(errors="replace").rpartition(")")[2].split()
            children.setdefault(int(fields[1]), []).append((int(path.parent.name), int(fields[19]) * TICK_SECONDS))
    found = [pid for pid, started in children.get(os.getpid(), ()) if started + TICK_SECONDS > since]
    for pid in found:
        found += [child for child, _ in children.get(pid, ())]
    for pid in found:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
