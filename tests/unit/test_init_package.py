"""`sandboxrun init --package` makes a folder with a lock that is current, and says what to do where there is no index."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from machine import installing
from runner import Runner
from small_index import Index, serving

from sandboxrun.config.block import read_block


@pytest.fixture
def index() -> Iterator[Index]:
    with serving() as found:
        yield found


@pytest.fixture
def run(tmp_path: Path, index: Index) -> Runner:
    run = Runner("redis://127.0.0.1:1", tmp_path, policy=None)
    run.env |= {"PIP_CONFIG_FILE": "/dev/null", "PIP_INDEX_URL": index.url, "UV_HTTP_RETRIES": "0"}
    return run


def test_the_folder_is_made_with_its_lock(run: Runner, index: Index) -> None:
    index.add("humanize", "4.9.0")
    done = run("init", "--package", "my sizes")
    names = (
        *("worker.py", "spec.json", "test_worker.py", "README.md", ".vscode/launch.json", "words.py"),
        "requirements.lock",
    )
    last = "next: sandboxrun test 'my sizes' && sandboxrun dev 'my sizes'\n"
    assert done.out == "".join(f"my sizes/{name}\n" for name in names) + last
    assert "humanize==4.9.0 " in (run.home / "my sizes/requirements.lock").read_text()
    assert run("lock", "my sizes", "--check").out == "worker.py is current\n"


def test_without_an_answer_of_the_index_it_says_what_to_do_later(run: Runner, index: Index) -> None:
    done = run("init", "--package", "my sizes")
    assert done.code == 0
    assert "its package is not locked, because the dependencies have no solution: " in done.out
    assert done.out.endswith("later: sandboxrun lock 'my sizes'\nnext: sandboxrun dev 'my sizes'\n")
    block = read_block((run.home / "my sizes/worker.py").read_bytes(), "")
    assert block is not None
    assert ([path for path, _ in block.files], block.lock) == (["words.py"], None)
    index.add("humanize", "4.9.0")
    assert run("lock", "my sizes").out == "+ humanize 4.9.0\nwrote requirements.lock\nwrote worker.py\n"


def test_with_the_machine_s_own_index_its_test_passes(tmp_path: Path) -> None:
    """As on the machine of a developer: pip is configured, and nothing else."""
    run = Runner("redis://127.0.0.1:1", tmp_path, policy=None)
    theirs = installing()
    file = Path(theirs.get("HOME", "/nonexistent")) / ".config/pip/pip.conf"
    run.env |= {**({"PIP_CONFIG_FILE": str(file)} if file.exists() else {}), **theirs, "HOME": str(tmp_path)}
    del run.env["REDIS_URL"]
    made = run("init", "--package", "sizes")
    assert made.out.endswith("sizes/requirements.lock\nnext: sandboxrun test sizes && sandboxrun dev sizes\n"), made
    tested = run("test", "sizes", "--generate", "-v")
    assert tested.code == 0, tested
    for name in ("says a size", "says a few bytes", "refuses what is no whole number"):
        assert f"\n  ok    {name}  " in tested.out, tested
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=tmp_path / "sizes", env=run.env, capture_output=True, text=True, timeout=100)
    assert "2 passed" in done.stdout, done.stdout + done.stderr
