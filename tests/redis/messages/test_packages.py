"""The hints about packages: each is what somebody without pip has to paste."""

from __future__ import annotations

from pathlib import Path

from hints import paste, templates

HINT = "pip install 'sandboxrun[packages]'"  # tests/packages/test_environment.py has the situation


def test_each_hint_about_packages_is_listed() -> None:
    elsewhere = templates("packages/locking.py").keys() | templates("packages/resolve.py").keys()  # test_lock.py
    assert templates("packages").keys() - elsewhere == {HINT}


def test_the_hint_names_an_extra_that_exists(tmp_path: Path) -> None:
    pip = tmp_path / "pip"
    pip.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    pip.chmod(0o755)
    pasted = paste(f"PATH={tmp_path}:$PATH; {HINT}", {"PATH": "/usr/bin:/bin"}, tmp_path)
    assert pasted.stdout == "install\nsandboxrun[packages]\n"
    assert '\npackages = ["pip' in (Path(__file__).parents[3] / "pyproject.toml").read_text()
