"""Runs in the worker's process: the text of a denial, and what the rules of Landlock grant already.

Nothing here decides anything: the kernel has.
"""

from __future__ import annotations

import os
import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

# LANDLOCK_ACCESS_FS_*, linux/landlock.h: reading files and folders, writing files, executing.
_RIGHTS = {"read": 1 << 2 | 1 << 3, "write": 1 << 1, "run": 1 << 0}
_PLAIN = re.compile(r"[A-Za-z0-9_@%+=:,./~*?\[\]{}#-]+")  # runs nothing in a shell, where the grant is pasted
# What no allowWrite may name, nor a folder that contains it; what else is refused depends on the operator's account.
_SYSTEM = ("/bin", "/boot", "/etc", "/lib", "/lib64", "/proc", "/sbin", "/sys", "/usr")


class Grants:
    """The files that a worker is granted, and the denial of one that it is not. `key`: the worker's hash."""

    def __init__(self, key: str, rules: Iterable[tuple[bytes, int]]) -> None:
        """`rules`: real paths with the rights below them."""
        self.key = key
        self._rules = [(path.rstrip(b"/"), rights) for path, rights in rules]

    def allows(self, kind: str, path: str) -> bool:
        """Whether a rule covers this file or folder, wherever its symlinks lead."""
        real = os.fsencode(os.path.realpath(path))
        rights = 0
        for folder, granted in self._rules:
            if real == folder or real.startswith(folder + b"/"):
                rights |= granted
        return bool(rights & _RIGHTS[kind])

    @property
    def runs_programs(self) -> bool:
        return any(rights & _RIGHTS["run"] for _, rights in self._rules)

    def denial(self, kind: str, resource: str, grant: str) -> str:
        """The line for a resource that `grant` would allow; the same text as config.permissions.Denial has."""
        field = f"allow{kind.title()}"
        if _PLAIN.fullmatch(grant) is None:
            import shlex

            grant = shlex.quote(grant)  # a request may have chosen the file's name
        return f"{requirement(kind, resource)}; grant it with: --allow-{kind}={grant} (field {field} of {self.key})"

    def file(self, kind: str, path: str, *, in_folder: bool = False) -> str:
        """The line for a file. `in_folder`: the folder has to be granted, because its entries change.

        So it has to be if the file is not there, because a grant names what exists.
        """
        grant = os.path.dirname(path) if in_folder or not os.path.lexists(path) else path
        if self.allows(kind, grant):
            return f"{requirement(kind, path)}, which is granted: the file's own owner, mode or kind refuses it"
        if kind == "write":
            system = next((place for place in _SYSTEM if _within(grant, place)), "/" if grant == "/" else "")
            if system:
                return (
                    f"{requirement(kind, path)}, which no grant gives: {system} has programs or settings of the machine"
                )
        if "," in grant:
            return f"{requirement(kind, path)}, which no grant can name because of its comma: grant a folder above it"
        return self.denial(kind, printable(path), printable(grant))


def requirement(kind: str, resource: str) -> str:
    return f'Requires {kind} access to "{printable(resource)}"'


def never(what: str, why: str = "") -> str:
    """The line for what no worker is given."""
    return f"Requires {what}, which no grant gives" + (f": {why}" if why else "")


def printable(text: str) -> str:
    return text if text.isprintable() else ascii(text)[1:-1]


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder + "/")
