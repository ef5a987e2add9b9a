"""Symlinks on the way to a file, and the removal of whatever a worker leaves."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sandboxrun.sandbox.compile.paths import Ground, follow, without
from sandboxrun.sandbox.supervisor.scratch import remove


def test_a_path_is_followed_as_the_kernel_does(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/file").touch()
    for name, target in {
        "up": "a/b/../file",
        "a/b/back": "../../up",
        "whole": str(tmp_path / "a"),
        "chain": "whole/b",
        "nowhere": "missing/x",
        "loop": "loop",
        "dots": "./a/./b/..",
    }.items():
        (tmp_path / name).symlink_to(target)
    for path, links in {
        "a/file": [],
        "up": ["up"],
        "a/b/back": ["a/b/back", "up"],
        "chain/back": ["chain", "whole", "a/b/back", "up"],
        "chain/../file": ["chain", "whole"],
        "dots/file": ["dots"],
        "nowhere/y": ["nowhere"],
        "missing/../a": [],
    }.items():
        found = follow(f"{tmp_path}/{path}")
        assert found == (os.path.realpath(tmp_path / path), [str(tmp_path / link) for link in links]), path
    real, links = follow(str(tmp_path / "loop/x"))
    assert (real, set(links)) == (str(tmp_path / "loop/x"), {str(tmp_path / "loop")})
    assert not os.path.exists(real)


def test_a_symlink_is_safe_where_no_worker_writes(tmp_path: Path) -> None:
    link = str(tmp_path / "in" / "link")
    (tmp_path / "in").mkdir()
    assert Ground(()).planted([link]) == link
    assert Ground((str(tmp_path / "in" / "code"),)).planted([link]) is None
    assert Ground((str(tmp_path),)).planted([link]) is None
    assert Ground((str(tmp_path / "in2"), str(tmp_path / "other"))).planted([link]) == link
    # A folder of another user's in which this one cannot write. Root can write in each.
    assert Ground(()).planted(["/etc/link"]) == ("/etc/link" if os.geteuid() == 0 else None)


@pytest.mark.parametrize(
    ("denied", "fixed", "left"),
    [
        ([], [], ["."]),
        ([], ["."], ["."]),
        ([], ["b/c"], ["a", "b/c", "b/d"]),
        ([], ["b"], ["a", "b"]),
        (["a"], ["b/c"], ["b/c", "b/d"]),
        (["b"], ["b/c"], ["a"]),
        (["b/c"], ["b/c"], ["a", "b/d"]),
        ([], ["b/later"], ["a", "b/c", "b/d"]),
        (["."], [], []),
    ],
)
def test_what_is_fixed_is_granted_and_no_folder_above_it(
    tmp_path: Path, denied: list[str], fixed: list[str], left: list[str]
) -> None:
    for name in ("a", "b/c", "b/d"):
        (tmp_path / name).mkdir(parents=True)

    def paths(names: list[str]) -> list[str]:
        return [os.path.normpath(tmp_path / name) for name in names]

    assert list(without(str(tmp_path), paths(denied), paths(fixed))) == paths(left)


def test_a_folder_is_removed_whatever_it_holds(tmp_path: Path) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "scratch"
    (outside / "in").mkdir(parents=True)
    (outside / "in" / "file").touch(mode=0o400)
    outside.chmod(0o500)
    (folder / "wide").mkdir(parents=True)
    for number in range(300):
        (folder / "wide" / f"{number}").mkdir()
        (folder / "wide" / f"{number}" / "same").mkdir()
    (folder / "file").touch(mode=0)
    os.mkfifo(folder / "fifo")
    (folder / "link").symlink_to(outside)
    (folder / "wide" / "link").symlink_to(outside / "in")
    os.link(outside / "in" / "file", folder / "hard")
    at = os.open(folder, os.O_RDONLY)
    for depth in range(5000):
        os.mkdir("d", dir_fd=at)
        os.close(os.open("f", os.O_CREAT, dir_fd=at))
        below = os.open("d", os.O_RDONLY, dir_fd=at)
        if depth % 7 == 0:
            os.fchmod(at, 0)
        os.close(at)
        at = below
    os.fchmod(at, 0)
    os.close(at)
    folder.chmod(0)
    remove(str(folder))
    assert not folder.exists()
    assert (outside / "in" / "file").stat().st_mode & 0o777 == 0o400
    assert outside.stat().st_mode & 0o777 == 0o500
    outside.chmod(0o700)


def test_what_cannot_be_removed_ends_no_run(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    remove(str(tmp_path / "missing"))
    remove(str(tmp_path / "file"))
    (tmp_path / "link").symlink_to(tmp_path)
    remove(str(tmp_path / "link"))
    assert sorted(os.listdir(tmp_path)) == ["file", "link"]
