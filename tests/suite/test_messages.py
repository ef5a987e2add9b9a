"""The list of messages is complete, and two versions are compared message by message."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tests/tools/messages.py"
OLD = '''\
class Base(Exception):
    pass
class FetchError(Base):
    pass
_EPILOG = """\\
examples:
  first
  second"""
def fetch(url, log):
    if not url:
        raise FetchError(f"{url!r} is no URL", hint=("line one", f"line {url}"))
    message = "took long" if url else "took no time"
    log.warning("slow", message)
    raise FetchError("gone: " + url)
class Parser: ...
def main():
    Parser(prog="x", description="Fetch it.", epilog=_EPILOG).add_argument("a", help="the first")
'''
NEW = (
    OLD.replace("is no URL", "is not a valid URL")
    .replace('raise FetchError("gone: " + url)', 'log.error("done", "all is done")')
    .replace("  second", "  third")
)


@pytest.fixture
def trees(tmp_path: Path) -> tuple[str, str]:
    for name, file, text in (("old", "a.py", OLD), ("new", "b/c.py", NEW)):
        path = tmp_path / name / "sandboxrun" / file
        path.parent.mkdir(parents=True)
        path.write_text(text)
    return str(tmp_path / "old"), str(tmp_path / "new")


def messages(*args: str, cwd: Path = ROOT) -> str:
    command = [sys.executable, str(TOOL), *args]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=True, timeout=60).stdout


def test_each_kind_is_found_with_its_file_function_and_hint(trees: tuple[str, str]) -> None:
    assert (
        messages(trees[0])
        == """
sandboxrun/a.py fetch
  error: {url!r} is no URL
  hint: line one
  hint: line {url}
  warning: took long
  warning: took no time
  error: gone: {url}

sandboxrun/a.py main
  usage: Fetch it.
  usage: examples:
    first
    second
  usage: the first

7 messages
"""
    )


def test_what_changed_is_paired_and_a_moved_file_is_no_change(trees: tuple[str, str]) -> None:
    assert (
        messages(*trees)
        == """
sandboxrun/a.py fetch
- error: gone: {url}

sandboxrun/b/c.py fetch
- error: {url!r} is no URL
+ error: {url!r} is not a valid URL

sandboxrun/b/c.py fetch
+ error: all is done

sandboxrun/b/c.py main
-   second
+   third

2 reworded, 1 removed, 1 added; 7 before, 7 now
"""
    )
    assert messages(trees[0], trees[0]) == "\n0 reworded, 0 removed, 0 added; 7 before, 7 now\n"


def test_commits_are_compared(trees: tuple[str, str], tmp_path: Path) -> None:
    if shutil.which("git") is None:
        pytest.skip("no git is installed")
    repository = Path(trees[0])
    for command in ("init -q", "add .", "-c user.name=a -c user.email=a@example.com commit -q -m first"):
        subprocess.run(["git", *command.split()], cwd=repository, check=True)
    assert messages("HEAD", trees[1], cwd=repository) == messages(*trees)


def test_the_source_of_the_project_has_its_errors_in_the_list() -> None:
    shown = messages(str(ROOT))
    assert "sandboxrun/config/worker.py parse_worker\n" in shown
    assert int(shown.split()[-2]) > 400
