"""Each hint of `lock`: the error appears, the hint is pasted there, and the trouble is over."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hints import hint_of, is_of, paste, templates
from runner import Runner

ELSEWHERE = {
    "{}": "of a warning: tests/unit/test_lock_command.py pastes what it says",
    "sandboxrun lock {} --pylock": "tests/unit/test_lock_packages.py, with an index",
}
PACKAGES = (
    "cli/lock.py",
    "packages/edit.py",
    "packages/uv_settings.py",
    "packages/listing.py",
    "packages/locking.py",
    "packages/resolve.py",
)


class Author:
    """Who has a folder with two scripts."""

    def __init__(self, home: Path, template: str) -> None:
        self.run = Runner("redis://127.0.0.1:1", home, policy=None)
        self.template = template
        self.folder = home / "it's"
        self.folder.mkdir()
        for name in ("worker.py", "helpers.py"):
            (self.folder / name).write_text("x = 1\n")

    def mended(self, *args: str, code: int = 64, message: str) -> None:
        """The command fails with the message; its hint is pasted, and that ends well."""
        done = self.run("lock", *args)
        assert (done.code, done.err.count("\n")) == (code, 2), done
        assert message in done.err
        hint = hint_of(done.err)
        assert is_of(self.template, hint), hint
        pasted = paste(hint, self.run.env, self.run.home)
        assert pasted.returncode == 0, pasted


def near_name(a: Author) -> None:
    a.mended("its", message="its is neither a folder nor a file")
    a.mended("it's/workr.py", message="it's/workr.py is neither a folder nor a file")


def other_script(a: Author) -> None:
    (a.folder / "worker.py").rename(a.folder / "bot.py")
    a.mended("it's", message="it's has no worker.py")


def date(a: Author) -> None:
    a.mended("it's", "--exclude-newer", "soon", message="--exclude-newer soon is no date")


def stale(a: Author) -> None:
    a.run("lock", "it's", "helpers.py")
    (a.folder / "helpers.py").write_text("x = 2\n")
    a.mended("it's", "--check", code=65, message="worker.py is not current: 1 thing is stale, as listed above")
    assert a.run("lock", "it's", "--check").code == 0


def check_alone(a: Author) -> None:
    a.mended("it's", "--check", "--upgrade", message="--check changes nothing, so it goes with no other option")


SITUATIONS: dict[str, Callable[[Author], None]] = {
    "sandboxrun lock {}": near_name,
    "sandboxrun lock {} --exclude-newer {}": date,
}
FURTHER = {
    "another script": ("sandboxrun lock {}", other_script),
    "again": ("sandboxrun lock {}", stale),
    "--check alone": ("sandboxrun lock {} --check", check_alone),
}


def test_each_hint_has_its_situation() -> None:
    found = {template for package in PACKAGES for template in templates(package)}
    assert found == {*SITUATIONS, *ELSEWHERE}


@pytest.mark.parametrize(("template", "situation"), [*SITUATIONS.items(), *FURTHER.values()])
def test_a_hint_ends_the_trouble(tmp_path: Path, template: str, situation: Callable[[Author], None]) -> None:
    situation(Author(tmp_path, template))
