"""The hints about packages. What is missing is installed by the command of installation.py, which has tests of its own."""

from __future__ import annotations

from hints import templates


def test_no_hint_about_packages_is_forgotten() -> None:
    elsewhere = templates("packages/locking.py").keys() | templates("packages/resolve.py").keys()  # test_lock.py
    assert templates("packages").keys() - elsewhere == set()
