"""What the documents name is there, and each command that they show is listed."""

from __future__ import annotations

import re
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest
from documented import BY_HAND
from documented import COMMANDS as DOCUMENTED

from sandboxrun import errors
from sandboxrun.cli.commands import COMMANDS
from sandboxrun.config.limits import LIMITS
from sandboxrun.config.permissions import KINDS
from sandboxrun.config.worker import READ_FIELDS
from sandboxrun.sandbox.selftest import check

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
README, SECURITY = ((ROOT / name).read_text() for name in ("README.md", "SECURITY.md"))
DOCUMENTS = ["README.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md"]
DOCUMENTS += sorted(str(path.relative_to(ROOT)) for path in DOCS.rglob("*.md"))
TESTS = sorted(set(re.findall(r"tests/[\w/]+\.py(?:::\w+)?", README + SECURITY)) | set(DOCUMENTED.values()) - {BY_HAND})
GENERATED = {"docs/commands.md", "docs/first-minutes.md", "docs/walk.md"}  # compared as a whole by tests of their own
README_WORDS_MAX = 900
COLUMNS_MAX = 120
WIDE_TABLES = {"docs/troubleshooting.md", "docs/protocol.md"}  # whole messages, and fields with what they mean
PAGES = {name: (DOCS / name).read_text() for name in ("README.md", "permissions.md", "hash.md", "production.md")}


@pytest.mark.parametrize("test", TESTS)
def test_a_test_that_is_named_exists(test: str) -> None:
    path, _, name = test.partition("::")
    assert (ROOT / path).exists()
    assert not name or f"\ndef {name}(" in (ROOT / path).read_text()


def test_every_test_of_the_boundary_stands_for_a_promise() -> None:
    about_tests = {"test_allowed.py", "test_table.py"}
    named = {Path(test.partition("::")[0]).name for test in TESTS}
    assert {path.name for path in (ROOT / "tests/kernel").glob("test_*.py")} <= named | about_tests


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_and_paths_lead_somewhere(document: str) -> None:
    """Paths of Python files are from the root, from sandboxrun/ or from the document's folder; NAME.py stands for any."""
    text, folder = (ROOT / document).read_text(), (ROOT / document).parent
    links = re.findall(r"\]\(([^)\s]+)|^\[[^\]]+\]:\s+(\S+)", text, re.MULTILINE)
    for link in map("".join, links):
        path, _, anchor = link.partition("#")
        if "://" not in link:
            target = folder / path if path else ROOT / document
            assert target.exists(), link
            assert not anchor or anchor in anchors(target.read_text()), link
    for path in re.findall(r"`((?:[\w.-]+/)+[\w.-]+\.py)(?:::\w+)?`", text):
        bases = (ROOT, ROOT / "sandboxrun", folder)
        assert Path(path).stem.isupper() or any((base / path).is_file() for base in bases), path
    for name in re.findall(r"\[([a-z-]+)\](?![(:\w])", re.sub(r"`[^`]*`|```.*?```", "", text, flags=re.DOTALL)):
        assert re.search(rf"^\[{name}\]: ", text, re.MULTILINE), name


def anchors(text: str) -> set[str]:
    """Those of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    "document", ["docs/architecture.md", *(d for d in DOCUMENTS if d.startswith("docs/decisions"))]
)
def test_a_name_that_is_said_to_be_in_a_file_is_there(document: str) -> None:
    """`NAME` in `FILE`; of a dotted name each part."""
    text = " ".join((ROOT / document).read_text().split())
    for name, path in re.findall(r"`([\w.]+)` in `((?:[\w-]+/)*[\w-]+\.py)`", text):
        files = [base / path for base in (ROOT, ROOT / "sandboxrun") if (base / path).is_file()]
        assert files, path
        for part in name.split("."):
            assert re.search(rf"\b{part}\b", files[0].read_text()), f"{name} in {path}"


def test_every_kind_field_limit_and_exit_code_is_documented() -> None:
    for kind in KINDS:
        assert re.search(rf"^## .*\b{kind}\b", PAGES["permissions.md"], re.MULTILINE)
    for limit in LIMITS.values():
        assert f"| `{limit.field}` | `{limit.flag}=" in PAGES["hash.md"]
    permissions = {f"{verb}{kind.capitalize()}" for verb in ("allow", "deny") for kind in KINDS}
    for field in READ_FIELDS:
        assert f"`{field}`" in PAGES["hash.md"] or field in permissions, field
    codes = {
        error.exit_code for error in vars(errors).values() if isinstance(error, type) and hasattr(error, "exit_code")
    }
    for code in codes:
        assert f"| {code} | " in PAGES["production.md"]


def test_what_check_prints_is_shown() -> None:
    count = sum(map(len, check.PROTECTIONS.values()))
    assert f"The sandbox holds: {count} of {count}, in " in PAGES["production.md"]


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="argparse of another Python lays out help differently")
def test_the_reference_of_the_command_line_is_up_to_date() -> None:
    command = [sys.executable, str(DOCS / "generate.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_help_of_each_command_has_an_example_and_the_index_names_it() -> None:
    for command, page in zip(COMMANDS, reference().values(), strict=True):
        assert re.search(r"^examples?:$", page, re.MULTILINE), command
        assert f"sandboxrun {command}" in PAGES["README.md"] or f"`{command}`" in PAGES["README.md"], command


def reference() -> dict[str, str]:
    """Each command's page of docs/commands.md, in the order of COMMANDS."""
    pages = (DOCS / "commands.md").read_text().split("\n## ")[1:]
    titles = [page.split("\n")[0].removeprefix("sandboxrun ") for page in pages]
    assert titles == ["TYPE ID", *COMMANDS[1:]]
    return dict(zip(COMMANDS, pages, strict=True))


def test_readme_is_short() -> None:
    assert len(README.split()) <= README_WORDS_MAX


@pytest.mark.parametrize("document", [name for name in DOCUMENTS if name not in {"SECURITY.md", *GENERATED}])
def test_lines_are_short(document: str) -> None:
    for number, line in enumerate((ROOT / document).read_text().splitlines(), 1):
        wide = document in WIDE_TABLES and line.startswith("|")
        assert len(line) <= COLUMNS_MAX or wide, f"{document}:{number}"


def shown(document: str) -> list[str]:
    """The commands of its console blocks, without comments."""
    blocks = re.findall(r"^ *```console\n(.*?)^ *```", (ROOT / document).read_text(), re.DOTALL | re.MULTILINE)
    lines = chain.from_iterable(block.splitlines() for block in blocks)
    return [re.sub(r" {2,}#.*", "", line.strip().removeprefix("$ ")) for line in lines if line.strip().startswith("$ ")]


def test_every_command_that_is_shown_is_listed() -> None:
    """tests/support/documented.py says which test runs it, or that no test does; it lists no other command."""
    commands = {command for document in DOCUMENTS if document not in GENERATED for command in shown(document)}
    assert commands - DOCUMENTED.keys() == set(), "list these in tests/support/documented.py"
    assert DOCUMENTED.keys() - commands == set(), "these are not shown any more"


@pytest.mark.parametrize("document", [name for name in DOCUMENTS if name not in {"CHANGELOG.md", *GENERATED}])
def test_options_that_are_named_exist(document: str) -> None:
    """Of `sandboxrun …`, in a block or in a sentence."""
    pages = reference()
    text = (ROOT / document).read_text()
    for words in re.findall(r"sandboxrun((?: +[^\s`|&<>;)]+)+)", text):
        first, *_ = words.split()
        page = pages[first if first in COMMANDS else "run"]
        if first == "dev":
            page += pages["run"]  # dev passes them on
        for option in re.findall(r"(?<= )--[a-z][a-z-]+", words):
            assert option in page, f"sandboxrun{words}"
