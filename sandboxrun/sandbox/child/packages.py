"""Runs in the worker's process: what a script with a block imports.

Python's own modules, the script's files, the packages of its lock, and sandboxrun. What is installed beside sandboxrun is not
for the script, so that it runs on every machine as on its author's; only what sandboxrun itself needs in a worker is found
there, and by the script too if its lock has no other version.
"""

from __future__ import annotations

import _frozen_importlib_external as _external
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


class _Needed:
    """The last entry of sys.meta_path: finds what sandboxrun needs in the folders that packages are installed in."""

    def __init__(self, names: frozenset[str], sites: Sequence[str]) -> None:
        self._names, self._sites = names, sites

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return _external.PathFinder.find_spec(name, self._sites) if path is None and name in self._names else None


def isolate(folders: Iterable[str], sites: Sequence[str], *, debug: bool) -> None:
    """Take `sites` from the import path and put `folders` at its end. `debug`: debugpy is needed too."""
    installed = frozenset(sites)
    sys.path[:] = [*(entry for entry in sys.path if entry not in installed), *folders]
    _forget_replaced(installed)
    sys.meta_path.append(_Needed(_NEEDED | {"debugpy"} if debug else _NEEDED, sites))


def _forget_replaced(sites: Iterable[str]) -> None:
    """Of what was imported from `sites` while this process waited, forget what the script finds in a version of its own.

    The modules of sandboxrun keep theirs: two versions beside each other are no trouble, because neither looks for itself.
    """
    prefixes = tuple(f"{site}/" for site in sites)
    replaced = set()
    for name, module in list(sys.modules.items()):
        origin = getattr(module.__spec__, "origin", None) if "." not in name else None
        if (
            isinstance(origin, str)
            and origin.startswith(prefixes)
            and name != "sandboxrun"
            and _external.PathFinder.find_spec(name) is not None
        ):
            replaced.add(name)
    for name in list(sys.modules):
        if name.partition(".")[0] in replaced:
            del sys.modules[name]
