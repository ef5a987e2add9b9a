"""For the tests that draw their input, and for those of `sandboxrun lock`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import certificates
import pytest
from hypothesis.configuration import set_hypothesis_home_dir
from lock_command import Lock, git, index_variables
from small_index import Index, serving

from sandboxrun.protocol.calling import current


@pytest.fixture(autouse=True)
def _nothing_on_disk(tmp_path: Any) -> None:
    set_hypothesis_home_dir(tmp_path)  # it caches tables of characters


@pytest.fixture(autouse=True)
def _no_request_is_handled() -> Iterator[None]:
    """A worker's loop resets `current`, and a test that calls Answers itself has none."""
    yield
    current.set(None)


@pytest.fixture
def index() -> Iterator[Index]:
    with serving() as found:
        yield found


@pytest.fixture
def lock(tmp_path: Path, index: Index) -> Lock:
    return Lock(tmp_path / "home", index)


@pytest.fixture
def secure(tmp_path: Path, lock: Lock) -> Iterator[Index]:
    """An index over https, which `lock` uses: a lock of the second form has no other URLs."""
    made = certificates.make(tmp_path)
    with serving(made) as found:
        lock.run.env |= {**index_variables(found), "PIP_CERT": str(made.authority)}
        yield found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """greeter in the home of the command."""
    made = tmp_path / "home/greeter"
    files = {
        "worker.py": '"""Doc."""\nimport helpers\n',
        "helpers.py": "x = 1\n",
        "pkg/__init__.py": "",
        "pkg/page.html": "<p>\n",
    }
    for path, text in files.items():
        (made / path).parent.mkdir(parents=True, exist_ok=True)
        (made / path).write_text(text)
    return made


@pytest.fixture
def repository(lock: Lock, folder: Path) -> Path:
    for path in ("README.md", ".gitignore", "tests/test_a.py", "test_b.py", "pyproject.toml", "requirements.lock"):
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).touch()
    git(folder.parent, "init", "-q")
    git(folder.parent, "add", "-A")
    (folder / "untracked.py").touch()
    return folder
