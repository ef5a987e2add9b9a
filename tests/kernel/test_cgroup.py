"""A cgroup of the worker's own, on machines where one can be had: memory and threads of all its processes together."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from arena import Arena, wait_for

ENTER = ("/bin/sh", "-c", 'echo $$ >"$0/cgroup.procs" && exec "$@"')


@pytest.fixture
def delegated() -> Iterator[Path]:
    """A cgroup as a manager delegates it: empty, writable, with controllers to be had."""
    mount = re.search(r"^\S+ \S+ \S+ / (\S+) .* - cgroup2 ", Path("/proc/self/mountinfo").read_text(), re.MULTILINE)
    own = re.search("^0::(.*)$", Path("/proc/self/cgroup").read_text(), re.MULTILINE)
    if mount is None or own is None:
        pytest.skip("there is no cgroup v2 here")
    above = Path(mount[1] + os.path.dirname(own[1]).rstrip("/"))
    enabled = (above / "cgroup.subtree_control").read_text().split()
    if not os.access(above / "cgroup.procs", os.W_OK) or not {"memory", "pids"} <= set(enabled):
        pytest.skip(f"no cgroup with memory and pids can be made here ({enabled})")
    folder = above / f"sandboxrun-tests-{os.getpid()}"
    folder.mkdir()
    if os.geteuid() == 0:
        os.setxattr(folder, "user.delegate", b"1")
    try:
        yield folder
    finally:
        remove(folder)


def remove(folder: Path) -> None:
    for below in folder.iterdir():
        if below.is_dir():
            remove(below)

    def gone() -> bool:
        with contextlib.suppress(OSError):
            folder.rmdir()
        return not folder.exists()

    wait_for(gone)


def workers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith("sandboxrun-")]


def test_memory_of_all_processes_together_is_limited(arena: Arena, delegated: Path) -> None:
    code = """
    import subprocess
    def attempt():
        dd = ["/usr/bin/dd", "if=/dev/zero", "of=/dev/null", "bs=60M", "count=500", "status=none"]
        many = [subprocess.Popen(dd) for _ in range(6)]
        return [p.wait() for p in many]
    """
    limits = {"memory": 200 << 20, "time": 30}
    held = arena.confined(code, under=(*ENTER, str(delegated)), allow={"run": "/usr/bin/dd"}, limits=limits)
    assert held.code == 128 + signal.SIGKILL, held
    assert "has reached its limit of 200M; raise it with: --limit-memory=400M" in held.stderr
    assert workers(delegated) == []


def test_threads_are_limited_exactly(arena: Arena, delegated: Path) -> None:
    code = """
    import threading, time
    def attempt():
        most, over = [0], threading.Event()
        def more():
            try:
                while not over.is_set():
                    threading.Thread(target=over.wait, daemon=True).start()
            except RuntimeError:
                pass
        try:
            for _ in range(8):
                threading.Thread(target=more, daemon=True).start()
        except RuntimeError:
            pass
        for _ in range(200):
            most[0] = max(most[0], threading.active_count())
            time.sleep(0.002)
        over.set()
        return most[0]
    """
    held = arena.confined(code, under=(*ENTER, str(delegated)), limits={"threads": 24})
    assert held.value == 24, held
    assert "has reached its limit of 24" in held.stderr


def test_a_killed_supervisors_cgroup_is_swept_by_the_next(arena: Arena, delegated: Path) -> None:
    left = delegated / "sandboxrun-4194303"  # of a process that is no more: PID_MAX_LIMIT is 4194304
    left.mkdir()
    held = arena.confined("def attempt(): return 1", under=(*ENTER, str(delegated)))
    assert (held.value, held.code) == (1, 0), held
    assert workers(delegated) == []


def test_where_others_are_members_nothing_is_changed(arena: Arena, delegated: Path) -> None:
    stay = ("/bin/sh", "-c", 'echo $$ >"$0/cgroup.procs" && "$@"; exit $?')  # the shell stays a member
    held = arena.confined("def attempt(): return 1", under=(*stay, str(delegated)))
    assert (held.value, held.code) == (1, 0), held
    assert [path for path in delegated.iterdir() if path.is_dir()] == []


def test_a_second_start_of_one_supervisor_after_another_shares_the_place(arena: Arena, delegated: Path) -> None:
    twice = ("/bin/sh", "-c", 'echo $$ >"$0/cgroup.procs"; d=$0; "$@" >/dev/null 2>&1; exec "$@"')
    held = arena.confined("def attempt(): return 1", under=(*twice, str(delegated)))
    assert (held.value, held.code) == (1, 0), held
    assert workers(delegated) == []
