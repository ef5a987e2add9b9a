"""A user's code is checked by mypy with the types of the SDK: tests/typed has what is right and what must be an error."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

import sandboxrun

TYPED = Path(__file__).parents[1] / "typed"
Found = dict[str, dict[int, list[str]]]  # file, line, codes of errors


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What `mypy --strict` says of both files, from another folder, as of a user's project."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "mypy.ini").write_text("[mypy]\n")
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=mypy.ini", "--no-error-summary"]
    files = [str(TYPED / name) for name in ("right.py", "wrong.py")]
    env = {name: value for name, value in os.environ.items() if name not in ("MYPYPATH", "PYTHONPATH")}
    done = subprocess.run([*command, *files], cwd=folder, env=env, capture_output=True, text=True, timeout=110)
    assert done.returncode == 1 and done.stderr == "", done
    errors: Found = {"right.py": defaultdict(list), "wrong.py": defaultdict(list)}
    for line in done.stdout.splitlines():
        if ": note: " not in line:
            match = re.fullmatch(r"(\S+):(\d+): error: .*\[([-a-z]+)\]", line)
            assert match is not None, line
            errors[Path(match[1]).name][int(match[2])].append(match[3])
    return errors


def test_the_package_says_that_it_is_typed() -> None:
    assert Path(sandboxrun.__file__).with_name("py.typed").read_bytes() == b""


def test_typical_code_has_no_error_and_good_types(found: Found) -> None:
    assert found["right.py"] == {}


def test_each_wrong_use_is_an_error(found: Found) -> None:
    lines = (TYPED / "wrong.py").read_text().splitlines()
    marks = {number: line.rpartition("  # ")[2] for number, line in enumerate(lines, 1) if "  # " in line}
    expected = {number: sorted(codes.split(",")) for number, codes in marks.items()}
    assert len(expected) > 20
    assert {number: sorted(codes) for number, codes in found["wrong.py"].items()} == expected
