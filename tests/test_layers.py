"""Imports go one way; heavy packages have one importer each. Read from the sources, so nothing can hide at run time."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "sandboxrun"

# What each part may import of ours. Siblings of one layer never import each other; run.py joins them.
BASE = {"errors", "records", "digests", "files"}
PURE = BASE | {"keys", "limits", "permissions", "config", "covers", "identity", "inspection"}
LAYERS: dict[str, set[str]] = {
    "errors": set(),
    "records": set(),
    "digests": set(),
    "files": {"digests", "records"},
    "log": set(),
    "trace": BASE,
    "connection": BASE | {"tls", "nonblocking"},
    "nonblocking": set(),
    "tls": BASE | {"connection"},  # its types
    "lease": BASE,
    "watch": BASE | {"connection", "lease"},
    "ending": set(),
    "keys": BASE,
    "limits": BASE,
    "permissions": BASE,
    "covers": BASE | {"permissions"},
    "settings": BASE | {"keys"},
    "inspection": BASE | {"permissions"},
    "config": BASE | {"keys", "limits", "permissions", "settings", "inspection"},
    "identity": BASE | {"keys", "permissions", "config"},
    "fetch": PURE | {"fetch", "__version__"},
    "sandbox": PURE | {"sandbox", "log", "trace", "ending"},
    "store": PURE | {"connection", "lease", "watch"},
    "configuration": PURE | {"connection", "store", "log", "trace"},
    "secrets": PURE,
    "ceiling": PURE,
    "policyfile": PURE | {"ceiling"},
    "approval": PURE | {"log"},
    "audit": BASE,
    "embedded": BASE,
    "client": BASE | {"keys", "connection", "tls", "client"},
    # The SDK reads the same fields and decrypts the same secrets as the supervisor; settings and secrets are the only
    # places that know how.
    "worker": BASE | {"keys", "settings", "secrets", "connection", "worker"},
    "folders": PURE | {"ceiling", "policyfile", "sandbox"},
    "login": PURE | {"lease", "store", "log", "ceiling"},
    "run": PURE
    | {"login", "configuration", "ending", "watch"}
    | {"connection", "lease", "fetch", "sandbox", "store", "secrets", "log", "folders", "ceiling", "approval", "audit"}
    | {"trace"},
    "dev": PURE | {"dev", "connection", "log"},
    "look": PURE
    | {"look", "log", "run", "fetch", "sandbox", "folders", "ceiling", "approval", "connection", "lease", "settings"},
    "usage": set(),
    "completion": {"config"},
    "doctor": PURE | {"doctor", "connection", "lease", "fleet", "folders", "policyfile", "sandbox", "__version__"},
    "runlogs": {"sandbox"},  # whose format it reads
    "fleet": PURE | {"connection", "lease"},
    "stopping": PURE | {"connection", "lease", "fleet", "sandbox"},  # what a dead worker's programs are
    "cli": PURE
    | {
        "look",
        "dev",
        "embedded",
        "cli",
        "run",
        "fetch",
        "sandbox",
        "store",
        "secrets",
        "log",
        "client",
        "connection",
        "folders",
        "approval",
        "audit",
        "lease",
        "fleet",
        "usage",
        "stopping",
        "runlogs",
        "completion",
        "doctor",
        "ending",
    }
    | {"__version__", "trace"},
    "__main__": {"cli"},
    "__init__": set(),
}
ONE_IMPORTER = {
    "httpx": {"fetch/download.py"},
    "pyseccomp": {"sandbox/seccomp.py"},
    "cryptography": {"secrets.py"},
    "redis": {"embedded.py", "worker/context.py", "client/redis_py.py"},
    "hiredis": {"connection.py"},
    "pydantic": {"worker/payload.py", "worker/results.py"},
    "watchfiles": {"dev/watch.py"},
    "debugpy": {"sandbox/debugger.py"},
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
    for path in files():
        part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        ours = {name.split(".")[1] for name in imports(path) if name.startswith("sandboxrun.")}
        assert ours <= LAYERS[part], f"{path.relative_to(PACKAGE)} imports {sorted(ours - LAYERS[part])}"


def test_heavy_packages_have_one_importer() -> None:
    for path in files():
        name = str(path.relative_to(PACKAGE))
        for package, importers in ONE_IMPORTER.items():
            if any(found.split(".")[0] == package for found in imports(path)):
                assert name in importers, f"{name} imports {package}"


def test_every_third_party_import_is_a_declared_dependency() -> None:
    import sys

    for path in files():
        for name in imports(path):
            top = name.split(".")[0]
            newer = top == "_sha2"  # of Python 3.12
            assert newer or top in sys.stdlib_module_names or top == "sandboxrun" or top in ONE_IMPORTER, (
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
