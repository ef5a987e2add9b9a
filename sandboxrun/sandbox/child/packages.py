"""Runs in the worker's process: limits what a script with a block can import.

Python's own modules, the script's files, the packages of its lock, and sandboxrun. What is installed beside sandboxrun is not
for the script, so that it runs on every machine as on its author's; only what sandboxrun itself needs in a worker is found
there, and by the script too if its lock has no other version.
"""

from __future__ import annotations

import _frozen_importlib_external as _external
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

# redis-py takes async_timeout before Python 3.11.3; cryptography takes cffi.
_NEEDED = frozenset(
    ("async_timeout", "cffi", "_cffi_backend", "cryptography", "hiredis", "jsonschema_rs", "jwt", "pycparser", "redis")
)


class _SdkFinder:
    """The last entry of sys.meta_path: finds what sandboxrun needs in the folders that packages are installed in."""

    def __init__(self, names: frozenset[str], sites: Sequence[str]) -> None:
        self._names, self._sites = names, sites

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return _external.PathFinder.find_spec(name, self._sites) if path is None and name in self._names else None


def isolate(script_path: Sequence[str], folders: Sequence[str], sites: Sequence[str], *, debug: bool) -> None:
    """Take `sites` from the import path and put `folders` at its end. `script_path` stands at its beginning. `debug`: debugpy
    is needed too."""
    installed = frozenset(sites)
    sys.path[:] = [*(entry for entry in sys.path if entry not in installed), *folders]
    _forget_replaced(installed, (*script_path, *folders))
    sys.meta_path.append(_SdkFinder(_NEEDED | {"debugpy"} if debug else _NEEDED, sites))


def _forget_replaced(sites: Iterable[str], folders: Sequence[str]) -> None:
    """Of what was imported from `sites` while this process waited, forget what the script finds in `folders`, its own.

    The modules of sandboxrun keep their version: two can coexist, because neither looks itself up in sys.modules.
    """
    prefixes = tuple(f"{site}/" for site in sites)
    replaced = set()
    for name, module in sys.modules.items():
        origin = getattr(module.__spec__, "origin", None) if "." not in name else None
        if isinstance(origin, str) and origin.startswith(prefixes) and name != "sandboxrun" and _is_in(name, folders):
            replaced.add(name)
    for name in [name for name in sys.modules if name.partition(".")[0] in replaced]:
        del sys.modules[name]


def _is_in(name: str, folders: Sequence[str]) -> bool:
    """Whether one has a package or module of this name; no search by Python's finders, which read whole folders."""
    return any(os.path.exists(f"{folder}/{name}{suffix}") for folder in folders for suffix in ("", ".py"))
