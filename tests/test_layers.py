"""Imports go one way, file by file; heavy packages have one importer each. Read from the sources, so nothing can hide at run time."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

from layers import LAYERS, faults

PACKAGE = Path(__file__).parent.parent / "sandboxrun"
ONE_IMPORTER = {
    "httpx": {"fetch/download.py"},
    "packaging": {"host/contents.py", "packages/resolve.py", "packages/lock.py", "packages/wheels.py"},
    "platformdirs": {"host/folders.py"},
    "pyseccomp": {"sandbox/compile/seccomp.py"},
    "cryptography": {"config/secrets.py"},
    "redis": {"redis/embedded.py", "worker/context.py", "worker/__init__.py", "client/redis_py.py"},
    "hiredis": {"redis/connection.py", "redis/replies.py"},
    "jsonschema_rs": {"spec/schemas.py"},
    "pydantic": {"worker/payload.py", "worker/results.py"},
    "time_machine": {"sandbox/child/fixed.py"},
    "watchfiles": {"dev/watch.py"},
    "psycopg": {"sync/libpq.py"},
    "uv": {"packages/resolve.py"},
    "debugpy": {"sandbox/child/debugger.py"},
}
LIGHT = {"_ctypes", "gc", "marshal", "os", "resource", "stat", "sys", "time"}


def imports(path: Path, *, top_level_only: bool = False) -> set[str]:
    """Dotted names that a file imports; `from a import b` gives a.b."""
    tree = ast.parse(path.read_text())
    found = set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def files() -> list[Path]:
    found = sorted(PACKAGE.rglob("*.py"))
    assert len(found) > 20
    return found


def test_imports_go_one_way() -> None:
    assert faults(PACKAGE) == []


def test_the_layers_themselves_go_one_way() -> None:
    lower: set[str] = set()
    for layer, allowed in LAYERS.items():
        assert allowed <= lower, f"{layer} may import {sorted(allowed - lower)}, above it"
        lower.add(layer)


def test_heavy_packages_have_one_importer() -> None:
    for path in files():
        name = str(path.relative_to(PACKAGE))
        imported = {found.split(".")[0] for found in imports(path)}
        for package, importers in ONE_IMPORTER.items():
            if package in imported:
                assert name in importers, f"{name} imports {package}"


def test_every_third_party_import_is_a_declared_dependency() -> None:
    for path in files():
        for name in imports(path):
            top = name.split(".")[0]
            apart = top in ("_sha2", "typing_extensions")  # of Python 3.12; of the type checker's own
            assert apart or top in sys.stdlib_module_names or top == "sandboxrun" or top in ONE_IMPORTER, (
                f"{path}: {name}"
            )


def test_the_bootstrap_imports_nothing_of_ours_and_only_light_modules() -> None:
    found = {name.split(".")[0] for name in imports(PACKAGE / "sandbox/child/bootstrap.py", top_level_only=True)}
    assert found == LIGHT


def test_redis_and_httpx_are_imported_where_they_are_used() -> None:
    """Not at the top of a file: an error before they are needed comes at once."""
    for path in files():
        if path.name != "download.py":  # itself imported only for a download
            heavy = {name.split(".")[0] for name in imports(path, top_level_only=True)} & {
                "redis",
                "httpx",
                "cryptography",
                "pyseccomp",
            }
            assert not heavy, f"{path}: {heavy}"
