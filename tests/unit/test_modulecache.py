"""The module cache: what is imported through it is what Python would import, and nothing that is wrong with it stops a start."""

from __future__ import annotations

import json
import marshal
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import cache_from_source
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tests/tools/imported.py"
MODULES = ("sandboxrun.config.permissions", "sandboxrun.sandbox.compile.grants")
NOBODY = 65534
_NAMES = ("python3.14", "python3.13", "python3.12", "python3.11")
PUBLIC_PYTHON = next((found for name in _NAMES if (found := shutil.which(name, path="/usr/bin:/usr/local/bin"))), None)
SECONDS = 60


class Result(NamedTuple):
    """See tests/tools/imported.py."""

    taken: list[str]
    modules: dict[str, dict[str, Any]]
    value: Any
    finders: int


class Tree:
    """A copy of the package in a folder of its own, as an installation."""

    def __init__(self, folder: Path, python: str = sys.executable) -> None:
        self.folder, self._python = folder, python
        self._tool = shutil.copy(TOOL, folder)
        self.package = folder / "sandboxrun"
        shutil.copytree(ROOT / "sandboxrun", self.package, ignore=shutil.ignore_patterns("__pycache__"))

    @property
    def cache(self) -> Path:
        """The file, with the tag of the Python that has written it."""
        return next(self.package.glob("__pycache__/all-modules.*"), self.package / "__pycache__/all-modules")

    def start(self, expression: str = "0", *, path: str = "", user: int | None = None, **env: str) -> Result:
        """Import MODULES through the cache. `path`: in front of the package on Python's path."""
        path = os.pathsep.join(filter(None, (path, str(self.folder))))
        command = [self._python, "-S", self._tool, *MODULES, expression]
        environment = {"PYTHONPATH": path, **env}
        groups = None if user is None else []
        done = subprocess.run(
            command,
            env=environment,
            user=user,
            group=user,
            extra_groups=groups,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        assert done.returncode == 0, done.stderr
        assert not done.stderr
        return Result(**json.loads(done.stdout))


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


@pytest.fixture
def warm(tree: Tree) -> Tree:
    """One that has been started once."""
    assert tree.start().taken == []
    assert tree.cache.exists()
    return tree


@pytest.fixture
def public() -> Iterator[Tree]:
    """One of root's that every user may read, wherever TMPDIR is."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        Path(folder).chmod(0o755)
        assert PUBLIC_PYTHON is not None
        tree = Tree(Path(folder), PUBLIC_PYTHON)
        for path in (tree.package, *tree.package.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        yield tree


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_the_second_start_takes_every_module_from_the_cache(warm: Tree) -> None:
    again = warm.start()
    assert {"sandboxrun.config.permissions", "sandboxrun.config.targets", "ipaddress"} <= set(again.taken)
    apart = {"sandboxrun.modulecache"}  # which has to be there before
    assert set(again.modules) - apart <= set(again.taken)


def test_a_module_is_what_it_is_without_the_cache(warm: Tree) -> None:
    targets = "sys.modules['sandboxrun.config.targets']"
    expression = f"({targets}.endpoint.__code__.co_filename, __import__('inspect').getsource({targets}.endpoint))"
    cached = warm.start(expression)
    warm.cache.unlink()
    usual = warm.start(expression, PYTHONDONTWRITEBYTECODE="1")
    assert (cached.modules, cached.value, cached.finders) == (usual.modules, usual.value, usual.finders)
    assert cached.taken
    assert not usual.taken


def test_a_tree_that_was_moved_takes_nothing_of_the_old_one(warm: Tree, tmp_path: Path) -> None:
    (tmp_path / "moved").mkdir()
    moved = Tree(tmp_path / "moved")
    shutil.copytree(warm.package, moved.package, dirs_exist_ok=True)
    shutil.copystat(warm.package / "config/targets.py", moved.package / "config/targets.py")
    for _ in range(2):
        result = moved.start()
        assert all(module["file"].startswith(str(moved.package)) for module in result.modules.values())
    assert "sandboxrun.config.targets" in result.taken


@pytest.mark.parametrize("new", ["65535", "7"], ids=["of the same size", "of another size"])
def test_a_source_that_was_just_edited_is_seen(warm: Tree, new: str) -> None:
    source = warm.package / "config/permissions.py"
    edit(source, "TARGETS_MAX = 256 ", "TARGETS_MAX = 512 ")
    for _ in range(2):
        assert warm.start("sys.modules['sandboxrun.config.permissions'].TARGETS_MAX").value == 512
    edit(source, "TARGETS_MAX = 512", f"TARGETS_MAX = {new}")
    # With the old time, only the size tells.
    if new == "7":
        os.utime(source, ns=(0, 0))
    for taken in (False, True):
        result = warm.start("sys.modules['sandboxrun.config.permissions'].TARGETS_MAX")
        assert result.value == int(new)
        assert ("sandboxrun.config.permissions" in result.taken) is taken


def test_a_time_that_only_its_fraction_tells_apart_is_another(warm: Tree) -> None:
    source = warm.package / "config/permissions.py"
    found = source.stat()
    edit(source, "TARGETS_MAX = 256", "TARGETS_MAX = 512")
    os.utime(source, ns=(found.st_atime_ns, found.st_mtime_ns + 1))
    shutil.rmtree(source.parent / "__pycache__")  # which Python itself would take
    assert warm.start("sys.modules['sandboxrun.config.permissions'].TARGETS_MAX").value == 512


def test_a_module_earlier_on_the_path_comes_first(warm: Tree, tmp_path: Path) -> None:
    (tmp_path / "front").mkdir()
    text = Path(__import__("keyword").__file__).read_text()
    (tmp_path / "front/keyword.py").write_text(text + "\nPLANTED = True\n")
    result = warm.start("sys.modules['keyword'].PLANTED", path=str(tmp_path / "front"))
    assert result.value is True


def test_a_source_that_is_gone_is_not_imported(warm: Tree) -> None:
    (warm.package / "sandbox/compile/grants.py").unlink()
    with pytest.raises(AssertionError, match="ModuleNotFoundError"):
        warm.start()


def _other_python(data: bytes) -> bytes:
    return data[:13] + bytes(4) + data[17:]


def _index(change: Callable[[dict[str, Any]], Any]) -> Callable[[bytes], bytes]:
    """What a file is whose index is another."""

    def changed(data: bytes) -> bytes:
        length = int.from_bytes(data[17:21], "little")
        index = marshal.dumps(change(marshal.loads(data[21:])))
        return data[:17] + len(index).to_bytes(4, "little") + index + data[21 + length :]

    return changed


DAMAGED: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "within the prefix": lambda data: data[:15],
    "within the index": lambda data: data[:300],
    "within the codes": lambda data: data[: len(data) // 2],
    "of another Python": _other_python,
    "text": lambda data: b"#!/bin/sh\n" * 1000,
    "zeros": lambda data: bytes(len(data)),
    "codes of zeros": lambda data: data[: len(data) // 2] + bytes(len(data) - len(data) // 2),
    "an index without a form": _index(lambda index: [1, 2]),
    "an index of numbers": _index(lambda index: dict.fromkeys(index, 1)),
    "an index of other places": _index(lambda index: {name: (entry[0], -5, 1 << 40) for name, entry in index.items()}),
    "swapped codes": _index(
        lambda index: {name: (entry[0], 1, 1) for name, entry in index.items()},
    ),
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_as_good_as_none_and_written_anew(warm: Tree, damage: Callable[[bytes], bytes]) -> None:
    whole = warm.start().taken
    warm.cache.write_bytes(damage(warm.cache.read_bytes()))
    assert set(warm.start().taken) < set(whole)
    assert warm.start().taken == whole


def test_a_folder_in_its_place_is_left_alone(tree: Tree) -> None:
    place = Path(cache_from_source(str(tree.package / "all-modules.py")))
    place.mkdir(parents=True)
    for _ in range(2):
        assert tree.start().taken == []
    assert place.is_dir()


@pytest.mark.parametrize("env", [{"PYTHONDONTWRITEBYTECODE": "1"}, {"PYTHONPYCACHEPREFIX": "/tmp/none"}], ids=str)
def test_it_is_not_written_where_python_keeps_nothing_there(tree: Tree, env: dict[str, str], tmp_path: Path) -> None:
    if "PYTHONPYCACHEPREFIX" in env:
        env = {"PYTHONPYCACHEPREFIX": str(tmp_path / "prefix")}
    for _ in range(2):
        assert tree.start(**env).taken == []
    assert not list(tmp_path.rglob("all-modules*"))


def test_it_is_not_read_with_another_folder_for_compiled_code(warm: Tree, tmp_path: Path) -> None:
    """Neither the one beside the .pyc files nor one that was put there."""
    prefix = tmp_path / "prefix"
    planted = prefix / warm.cache.parent.parent.relative_to("/") / warm.cache.name
    planted.parent.mkdir(parents=True)
    shutil.copy(warm.cache, planted)
    assert warm.start(PYTHONPYCACHEPREFIX=str(prefix)).taken == []


def test_an_optimized_python_has_its_own(warm: Tree) -> None:
    assert warm.start(PYTHONOPTIMIZE="1").taken == []
    assert warm.start(PYTHONOPTIMIZE="1").taken != []
    assert len(list(warm.cache.parent.glob("all-modules*"))) == 2


def test_nothing_is_written_if_nothing_has_changed(warm: Tree) -> None:
    before = warm.cache.stat()
    warm.start()
    assert warm.cache.stat().st_ino == before.st_ino


def test_modules_without_compiled_code_do_not_make_it_written_again_and_again(warm: Tree) -> None:
    """As where one folder's compiled code cannot be kept."""
    shutil.rmtree(warm.package / "config/__pycache__")
    (warm.package / "config/__pycache__").touch()
    edit(warm.package / "config/permissions.py", "TARGETS_MAX = 256", "TARGETS_MAX = 512")
    warm.start()
    before = warm.cache.stat()
    result = warm.start("sys.modules['sandboxrun.config.permissions'].TARGETS_MAX")
    assert result.value == 512
    assert warm.cache.stat().st_ino == before.st_ino


def test_several_first_starts_at_once_all_import(tree: Tree) -> None:
    command = [sys.executable, "-S", str(TOOL), *MODULES, "0"]
    env = {"PYTHONPATH": str(tree.folder)}
    running = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(6)]
    assert [(each.wait(SECONDS), each.communicate()[1]) for each in running] == [(0, b"")] * 6
    assert set(tree.start().modules) - {"sandboxrun.modulecache"} <= set(tree.start().taken)
    assert not list(tree.package.rglob(".tmp-*"))


@pytest.mark.skipif(os.geteuid() != 0 or PUBLIC_PYTHON is None, reason="takes root, and a Python for other users")
def test_another_users_installation_is_used_and_not_written(public: Tree) -> None:
    def as_nobody() -> Result:
        return public.start("sys.modules['sandboxrun.config.permissions'].TARGETS_MAX", user=NOBODY)

    for _ in range(2):
        assert as_nobody().taken == []
    assert not public.cache.exists()
    public.start()
    before = public.cache.stat()
    assert (before.st_uid, before.st_mode & 0o777) == (0, 0o644)
    assert "sandboxrun.config.permissions" in as_nobody().taken
    # A stale one stays too.
    edit(public.package / "config/permissions.py", "TARGETS_MAX = 256", "TARGETS_MAX = 512")
    assert as_nobody().value == 512
    assert public.cache.stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_installation_is_used_and_not_written(warm: Tree) -> None:
    edit(warm.package / "config/permissions.py", "TARGETS_MAX = 256", "TARGETS_MAX = 512")
    before = warm.cache.stat()
    warm.cache.parent.chmod(0o555)
    result = warm.start("sys.modules['sandboxrun.config.permissions'].TARGETS_MAX")
    assert (result.value, "sandboxrun.config.targets" in result.taken) == (512, True)
    assert warm.cache.stat().st_mtime_ns == before.st_mtime_ns
