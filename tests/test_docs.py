"""What the documents name is there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from sandboxrun import errors
from sandboxrun.cli.commands import COMMANDS
from sandboxrun.config.limits import LIMITS
from sandboxrun.config.permissions import KINDS
from sandboxrun.sandbox.selftest import check

ROOT = Path(__file__).parent.parent
README, SECURITY = ((ROOT / name).read_text() for name in ("README.md", "SECURITY.md"))
DOCUMENTS = ["README.md", "SECURITY.md", "CONTRIBUTING.md"]
DOCUMENTS += sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))
TESTS = sorted(set(re.findall(r"tests/[\w/]+\.py(?:::\w+)?", README + SECURITY)))


@pytest.mark.parametrize("test", TESTS)
def test_a_test_that_is_named_exists(test: str) -> None:
    path, _, name = test.partition("::")
    assert (ROOT / path).is_file()
    assert not name or f"\ndef {name}(" in (ROOT / path).read_text()


def test_every_test_of_the_boundary_stands_for_a_promise() -> None:
    about_tests = {"test_allowed.py", "test_table.py"}
    named = {Path(test.partition("::")[0]).name for test in TESTS}
    assert {path.name for path in (ROOT / "tests/kernel").glob("test_*.py")} <= named | about_tests


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_and_paths_lead_somewhere(document: str) -> None:
    """Paths of Python files are from the root, from sandboxrun/ or from the document's folder; NAME.py stands for any."""
    text, folder = (ROOT / document).read_text(), (ROOT / document).parent
    links = re.findall(r"\]\(([^)#\s]+)|^\[[^\]]+\]:\s+([^#\s]+)", text, re.MULTILINE)
    for link in map("".join, links):
        assert "://" in link or (folder / link).exists(), link
    for path in re.findall(r"`((?:[\w.-]+/)+[\w.-]+\.py)(?:::\w+)?`", text):
        bases = (ROOT, ROOT / "sandboxrun", folder)
        assert Path(path).stem.isupper() or any((base / path).is_file() for base in bases), path


def test_every_kind_limit_and_exit_code_is_in_the_readme() -> None:
    for kind in KINDS:
        assert kind in README.partition("### Permissions")[2].partition("### Limits")[0]
    for limit in LIMITS.values():
        assert f"| `{limit.field}` | `{limit.flag}=" in README
    found = {
        error.exit_code for error in vars(errors).values() if isinstance(error, type) and hasattr(error, "exit_code")
    }
    for code in found:
        assert f"| {code} | " in README


def test_the_readme_shows_what_check_prints() -> None:
    count = sum(map(len, check.PROTECTIONS.values()))
    assert f"The sandbox holds: {count} of {count}, in " in README


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="argparse of another Python lays out help differently")
def test_the_reference_of_the_command_line_is_up_to_date() -> None:
    command = [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_help_of_each_command_has_an_example_and_the_readme_names_it() -> None:
    pages = (ROOT / "docs" / "commands.md").read_text().split("\n## ")[1:]
    assert [page.split("\n")[0].removeprefix("sandboxrun ") for page in pages] == ["TYPE ID", *COMMANDS[1:]]
    for command, page in zip(COMMANDS, pages, strict=True):
        assert re.search(r"^examples?:$", page, re.MULTILINE), command
        assert f"sandboxrun {command}" in README or f"`{command}`" in README, command
