"""However a run of the suite ends, its temporary folder and its processes are gone."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from arena import wait_for

ROOT = Path(__file__).parents[2]
CONTAINED = ROOT / "tests/tools/contained.py"
SECONDS = 60
# Like tests: children, orphans, processes in a session of their own or deaf to signals, and a folder without permissions.
BUSY = """\
mkdir "$TMPDIR/closed" && touch "$TMPDIR/closed/file" && chmod 0 "$TMPDIR/closed"
sleep 600 & echo $! >>"$PIDS"
setsid sh -c 'trap "" INT TERM HUP; echo $$ >>"$PIDS"; while :; do sleep 600; done' &
(setsid sleep 600 & echo $! >>"$PIDS")
while [ "$(wc -l <"$PIDS")" -lt 3 ]; do sleep 0.01; done
echo "$TMPDIR"
"""
WAITS = 'trap "" INT TERM HUP; exec sleep 600'


def start(tmp_path: Path, end: str, *, group: int | None = None) -> subprocess.Popen[str]:
    env = {"PATH": os.environ["PATH"], "PIDS": str(tmp_path / "pids"), "TMPDIR": tempfile.gettempdir()}
    command = [sys.executable, "-I", str(CONTAINED), "--keep", "PIDS", "sh", "-c", BUSY + end]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True, process_group=group)


def folder_of(process: subprocess.Popen[str]) -> Path:
    assert process.stdout is not None
    folder = Path(process.stdout.readline().strip())
    assert folder.is_dir() and "sandboxrun-tests-" in str(folder)
    return folder


def nothing_left(tmp_path: Path, folder: Path) -> None:
    assert not os.path.lexists(folder)
    pids = (tmp_path / "pids").read_text().split()
    assert len(pids) == 3
    assert [pid for pid in pids if os.path.exists(f"/proc/{pid}")] == []


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGQUIT"])
def test_a_signal_leaves_nothing(tmp_path: Path, name: str) -> None:
    number = signal.Signals[name]
    with start(tmp_path, WAITS) as process:
        try:
            folder = folder_of(process)
            process.send_signal(number)
            assert process.wait(SECONDS) == 128 + number
        finally:
            process.kill()
    nothing_left(tmp_path, folder)


def test_an_interrupt_lets_the_command_say_how_far_it_came_and_leaves_nothing(tmp_path: Path) -> None:
    with start(tmp_path, "trap 'echo so far; exit 2' INT; echo; while :; do sleep 0.02; done", group=0) as process:
        try:
            folder = folder_of(process)
            assert process.stdout is not None and process.stdout.readline() == "\n"
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to the foreground process group
            assert process.stdout.readline() == "so far\n"
            assert process.wait(SECONDS) == 128 + signal.SIGINT
        finally:
            process.kill()
    nothing_left(tmp_path, folder)


def test_a_second_interrupt_ends_what_does_not_end_by_itself(tmp_path: Path) -> None:
    with start(tmp_path, WAITS) as process:
        try:
            folder = folder_of(process)
            process.send_signal(signal.SIGINT)
            wait_for(lambda: not pending(process.pid))  # a pending one would swallow the next
            process.send_signal(signal.SIGINT)
            assert process.wait(SECONDS) == 128 + signal.SIGINT
        finally:
            process.kill()
    nothing_left(tmp_path, folder)


def pending(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    return bool(int(status.partition("ShdPnd:")[2].split()[0], 16) & 1 << signal.SIGINT - 1)


@pytest.mark.parametrize(
    ("end", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 128 + 9), ("kill $$", 128 + 15)]
)
def test_an_end_by_itself_leaves_nothing_and_keeps_the_exit_code(tmp_path: Path, end: str, code: int) -> None:
    with start(tmp_path, f"while [ ! -e '{tmp_path}/go' ]; do sleep 0.01; done; {end}") as process:
        try:
            folder = folder_of(process)
            (tmp_path / "go").touch()
            assert process.wait(SECONDS) == code
        finally:
            process.kill()
    nothing_left(tmp_path, folder)


def test_the_suites_command_leaves_nothing_when_it_is_ended(tmp_path: Path) -> None:
    """tests/run.sh itself, with an existing environment and a suite that waits."""
    for name in ("tests/run.sh", "tests/support/machine.py", "tests/tools/contained.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    python = f'[ "$1" = -I ] && exec {sys.executable} "$@"\necho "$TMPDIR"; exec sleep 600'
    for name, text in {"demo/setup.sh": "", "bin/ruff": "", "bin/mypy": "", "bin/python": python}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    env = {"PATH": os.environ["PATH"], "TMPDIR": tempfile.gettempdir(), "VENV": str(tmp_path)}
    with subprocess.Popen(["tests/run.sh"], cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True) as process:
        try:
            folder = folder_of(process)
            process.send_signal(signal.SIGTERM)
            assert process.wait(SECONDS) == 128 + signal.SIGTERM
        finally:
            process.kill()
    assert not folder.parent.exists()
