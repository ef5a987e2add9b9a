"""The walk through all of it that docs/walk.md shows, done once more at a real terminal."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
SECONDS = 240
TYPED = {"99999", "65535", "1024"}  # numbers that are the same everywhere


@pytest.fixture
def stable(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    monkeypatch.syspath_prepend(str(DOCS))
    import record_walk

    return record_walk.stable  # type: ignore[no-any-return]


@pytest.mark.timeout(300)
def test_the_walk_from_an_empty_folder_to_a_debugged_worker_goes_as_it_is_shown(
    tmp_path: Path, stable: Callable[[str], str]
) -> None:
    page = tmp_path / "walk.md"
    command = [sys.executable, str(DOCS / "record_walk.py"), str(page)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    assert stable(page.read_text()).splitlines() == stable((DOCS / "walk.md").read_text()).splitlines()


def test_what_is_compared_holds_nothing_of_the_machine_that_recorded_it(stable: Callable[[str], str]) -> None:
    shown = (DOCS / "walk.md").read_text()
    compared = stable(shown)
    assert set(re.findall(r"[0-9a-f-]*\d{4,}[0-9a-f-]*", compared)) <= TYPED
    host = re.search(r"pidName +(\S+)", shown)
    assert host is not None
    assert not re.search(rf"\b{re.escape(host[1])}\b", compared)


# How the same places of the page look on other machines, or when the machine is slow.
ELSEWHERE = {
    "another boot and namespace": ("24133c9d-c531-4569-a3d2-aad4b59d7b04/4026531836", "5181f52c-b440-4891-8cc3-e90e2ce8666a/4026532180"),
    "a boot id of digits alone": ("24133c9d-c531-4569-a3d2-aad4b59d7b04", "51815521-4440-4891-8113-390123486662"),
    "a host with a long name": ("pidName                vm", "pidName                Another-Machine.7f3a.example.internal"),
    "a host named like a number": ("pidName                vm", "pidName                1796086427"),
    "a large pid": ("10728", "4194303"),
    "just booted": ("8635557", "17"),
    "up for years": ("8635557", "86400123456"),
    "a low port": ("48741", "1024"),
    "a slow machine": ("1.7 ms", "2.1 s"),
    "a very slow machine": ("0.4 s", "61 s"),
    "a digest without letters": ("5b6e38fcefda", "516138213140"),
    "another entry of the same moment": ("1796086427908-0", "1796086427908-12"),
}  # fmt: skip


@pytest.mark.parametrize("how", ELSEWHERE)
def test_another_machine_is_no_difference(stable: Callable[[str], str], how: str) -> None:
    old, new = ELSEWHERE[how]
    shown = (DOCS / "walk.md").read_text()
    assert old in shown
    assert stable(shown.replace(old, new)) == stable(shown)


def test_what_the_commands_say_is_a_difference(stable: Callable[[str], str]) -> None:
    shown = (DOCS / "walk.md").read_text()
    for old, new in (("200 in", "500 in"), ("exit code 0", "exit code 1"), ("pidVersion             local", "pidVersion             main"),
                     ("memory 4G", "memory 8G"), ("api.example.com:443", "api.example.com:444"), ("pidHost", "pidMachine")):  # fmt: skip
        assert old in shown
        assert stable(shown.replace(old, new)) != stable(shown), new
