"""The checker of layers finds what it is for: each fault is planted into a copy of the package, and found by name."""

from __future__ import annotations

import contextlib
import functools
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from layers import LAYERS, faults, imports, layer_of

PACKAGE = Path(__file__).parents[2] / "sandboxrun"
LATE = "\n\ndef _planted():\n    import {}\n"
EARLY = "\nimport {}\n"
DYNAMIC = "\n\ndef _planted():\n    __import__({!r}, fromlist=['*'])\n"
FOR_TYPES = "\nTYPE_CHECKING = False\nif TYPE_CHECKING:\n    import {}\n"
NOT_FOR_TYPES = "\nTYPE_CHECKING = False\nif TYPE_CHECKING:\n    pass\nelse:\n    import {}\n"
CLOSING = {"late": LATE, "early": EARLY, "by a call": DYNAMIC, "else": NOT_FOR_TYPES}
WAYS = CLOSING | {"for types": FOR_TYPES}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return Path(shutil.copytree(PACKAGE, tmp_path / "sandboxrun", ignore=shutil.ignore_patterns("__pycache__")))


@functools.cache
def own_faults() -> frozenset[str]:
    return frozenset(faults(PACKAGE))


@contextlib.contextmanager
def planted(package: Path, plants: dict[str, str]) -> Iterator[list[str]]:
    """The faults that are found more once each text is appended to its file."""
    kept = {file: (package / file).read_text() for file in plants}
    for file, text in plants.items():
        (package / file).write_text(kept[file] + text)
    yield [fault for fault in faults(package) if fault not in own_faults()]
    for file, text in kept.items():
        (package / file).write_text(text)


def module(file: str) -> str:
    return ".".join(("sandboxrun", *file.removesuffix(".py").split("/"))).removesuffix(".__init__")


def files(package: Path) -> dict[str, str]:
    """Each file and its layer."""
    found = sorted(path.relative_to(package).as_posix() for path in package.rglob("*.py"))
    return {file: layer_of(file) or "" for file in found}


def top_of(file: str) -> str:
    """A file above this one, whichever it is."""
    return "cli/__init__.py" if layer_of(file) != "cli" else "__main__.py"


def pairs(package: Path) -> list[tuple[str, str]]:
    """Importer and imported, of one layer, that are in no circle yet."""
    found = {(each.file, each.imported) for each in imports(package) if not each.types}
    return sorted(pair for pair in found if layer_of(pair[0]) == layer_of(pair[1]) and pair[::-1] not in found)


@pytest.mark.parametrize("how", WAYS.values(), ids=WAYS)
def test_an_upward_import_is_found_in_every_file(package: Path, how: str) -> None:
    plants, expected = {}, set()
    for file, layer in files(package).items():
        if layer != "__main__":
            top = top_of(file)
            plants[file] = how.format(module(top))
            line = len(((package / file).read_text() + plants[file]).splitlines())
            expected.add(f"{file}:{line}: {layer} must not import {top}")
    assert len(expected) > 150
    with planted(package, plants) as found:
        assert {fault for fault in found if not fault.startswith("circle")} == expected


@pytest.mark.parametrize("layer", LAYERS)
def test_each_layer_imports_what_the_table_says_and_nothing_else(package: Path, layer: str) -> None:
    """Also sideways: of all layers, one file each is imported."""
    one_of_each = {other: file for file, other in files(package).items() if file != "__init__.py"}
    if layer not in one_of_each:
        pytest.skip(f"there is no {layer} yet")
    file = one_of_each[layer]
    plant = "\n".join(f"import {module(other)}" for other in one_of_each.values() if other != file)
    with planted(package, {file: f"\n{plant}\n"}) as found:
        refused = {fault.rpartition(" ")[2] for fault in found if fault.startswith(f"{file}:")}
    allowed = LAYERS[layer] | {layer}
    assert refused == {other for name, other in one_of_each.items() if name not in allowed}


def test_a_circle_of_two_files_is_found_in_every_file_that_imports_a_neighbour(package: Path) -> None:
    tried = dict(pairs(package))
    assert len(tried) > 60
    for file, imported in tried.items():
        first, second = sorted((file, imported))
        with planted(package, {imported: LATE.format(module(file))}) as found:
            assert f"circle: {first} -> {second} -> {first}" in found


@pytest.mark.parametrize("how", CLOSING.values(), ids=CLOSING)
@pytest.mark.parametrize("folder", ["config", "sandbox/supervisor", "sandbox/child", "worker", "cli"])
def test_a_circle_of_new_files_is_found(package: Path, folder: str, how: str) -> None:
    names = [f"{folder}/planted_{name}.py" for name in ("a", "b", "c")]
    for name in names:
        (package / name).write_text("")
    a, b, c = names
    with planted(package, {a: how.format(module(b)), b: how.format(module(a))}) as found:
        assert f"circle: {a} -> {b} -> {a}" in found
    with planted(package, {a: how.format(module(b)), b: how.format(module(c)), c: how.format(module(a))}) as found:
        assert f"circle: {a} -> {b} -> {c} -> {a}" in found


def test_a_circle_of_three_files_is_found(package: Path) -> None:
    direct = {(each.file, each.imported) for each in imports(package) if not each.types}
    known = pairs(package)
    chains = {(a, c) for a, b in known for other, c in known if other == b and not {(a, c), (c, a)} & direct}
    assert len(chains) > 20
    for a, c in dict(sorted(chains)).items():
        with planted(package, {c: LATE.format(module(a))}) as found:
            names = [fault.removeprefix("circle: ").split(" -> ")[:-1] for fault in found]
            assert any(len(circle) == 3 and {a, c} < set(circle) for circle in names), (a, c)


def test_what_is_imported_for_types_closes_no_circle(package: Path) -> None:
    file, imported = pairs(package)[0]
    with planted(package, {imported: FOR_TYPES.format(module(file))}) as found:
        assert found == []


def test_a_file_without_a_layer_is_found(package: Path) -> None:
    (package / "attic").mkdir()
    for name in ("utils.py", "attic/old.py"):
        (package / name).write_text("")
    assert {"utils.py: is in no layer", "attic/old.py: is in no layer"} <= set(faults(package))


def test_a_relative_import_is_refused(package: Path) -> None:
    (package / "config/planted.py").write_text("from . import keys\n")
    with pytest.raises(SyntaxError, match="relative"):
        faults(package)
