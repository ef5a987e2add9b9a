"""The module cache in a whole run: both processes use it, the worker's only until it is confined. More is in tests/unit."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from runner import Done, Runner

from sandboxrun.modulecache import ModuleCache

PACKAGE = Path(__file__).parents[2] / "sandboxrun"
Local = Callable[..., Path]
SCRIPT = """\
import os, stat, sys
print(*(type(finder).__name__ for finder in sys.meta_path if not isinstance(finder, type)))
print(type(sys.modules["sandboxrun.worker.app"].__spec__.loader).__name__)
for fd in range(64):
    try:
        assert not stat.S_ISREG(os.fstat(fd).st_mode), fd
    except OSError:
        pass
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy, which nothing else starts."""
    ignore = shutil.ignore_patterns("__pycache__")
    return Path(shutil.copytree(PACKAGE, tmp_path / "installed/sandboxrun", ignore=ignore))


@pytest.fixture
def start(run: Runner, package: Path, local: Local) -> Callable[..., Done]:
    local(SCRIPT)

    def start(**env: str) -> Done:
        command = [sys.executable, "-P", "-m", "sandboxrun", "t", "1"]
        environment = {**run.env, "PYTHONPATH": str(package.parent), **env}
        done = subprocess.run(command, env=environment, cwd=run.home, capture_output=True, text=True, timeout=60)
        return Done(done.returncode, done.stdout, done.stderr)

    return start


def _names(package: Path) -> set[str]:
    (file,) = package.glob("__pycache__/all-modules.*")
    cache = ModuleCache(str(file))
    cache.close()
    return set(cache.index)


def test_both_processes_of_a_run_keep_what_they_import_and_take_it_from_there(
    start: Callable[..., Done], package: Path
) -> None:
    for loader in ("SourceFileLoader", "_Loader"):
        for _ in range(2):  # both processes may write at once, and then one of them at the next start
            done = start()
            assert done.code == 0, done.err
        assert done.out.split()[-1] == loader or loader == "SourceFileLoader"
    names = _names(package)
    assert {"sandboxrun.worker.app", "sandboxrun.worker.serial", "sandboxrun.host.run", "ipaddress"} <= names
    # The script finds Python as it is.
    assert "ModuleCache" not in done.out


def test_a_run_without_compiled_code_writes_none(start: Callable[..., Done], package: Path) -> None:
    done = start(PYTHONDONTWRITEBYTECODE="1")
    assert done.code == 0, done.err
    assert not list(package.rglob("all-modules.*"))
    assert not list(package.rglob("worker/__pycache__"))


def test_a_damaged_file_is_no_fault_of_a_run(start: Callable[..., Done], package: Path) -> None:
    for _ in range(2):
        assert start().code == 0
    (file,) = package.glob("__pycache__/all-modules.*")
    data = file.read_bytes()
    for bad in (b"", data[:100], data[: len(data) // 2], data[:5000] + bytes(len(data))):
        file.write_bytes(bad)
        done = start()
        assert (done.code, "error" in done.err) == (0, False), done.err
