"""The contents of a script: its files and packages, as they are approved, recorded and shown. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from sandboxrun.digests import hex_digest
from sandboxrun.records import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sandboxrun.config.script import Block

_SHA256 = r"[0-9a-f]{64}"


@record
class Package:
    """A package that this host installs. `wheels`: SHA-256 over the digests of all its wheels, because a lock by URL may name
    another wheel under the same name and version."""

    name: str  # canonical
    version: str
    wheels: str = ""

    @classmethod
    def of(cls, name: str, version: str, digests: Iterable[str]) -> Package:
        return cls(name, version, hex_digest("\n".join(sorted(set(digests))).encode()))

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


@record
class Contents:
    """Of a script with a block of metadata; one without has none."""

    files: tuple[tuple[str, str], ...] = ()  # relative path, sha256 in hexadecimal
    packages: tuple[Package, ...] = ()
    lock: str | None = None  # sha256 in hexadecimal
    requires_python: str = ""
    dependencies: tuple[str, ...] = ()

    @classmethod
    def of(cls, block: Block, packages: Iterable[Package] = ()) -> Contents:
        """`packages`: of its lock, those that this host installs."""
        ordered = tuple(sorted(packages, key=lambda package: (package.name, package.version)))
        return cls(block.files, ordered, block.lock, block.requires_python, block.dependencies)


NOTHING = Contents()


def canonical(name: str) -> str:
    """A package's name as PEP 503 normalises it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def grown(before: Contents | None, now: Contents | None) -> Iterator[str]:
    """A line for each package that is new or another than before. What was removed is no growth.

    Another version counts, an older one too: it is other code, of people who are neither the operator nor the worker's author,
    and both a hijacked release and a return to a vulnerable one are only a change of version. Files do not count, because they
    are the author's own code, which the pin of the script covers as it covers the script.
    """
    before, now = before or NOTHING, now or NOTHING
    for package in now.packages:
        change = changed(before, package)
        if change is not None:
            yield f"package {package}{change}"
    if now.lock is None:
        unlocked = before.dependencies if before.lock is None else ()
        for dependency in now.dependencies:
            if dependency not in unlocked:
                yield f"dependency {dependency}, without a lock"


def changed(before: Contents | None, package: Package) -> str | None:
    """What is new about a package: "" for one that was not there; None if nothing is."""
    known = [each for each in (before or NOTHING).packages if each.name == package.name]
    if package in known:
        return None
    if any(each.version == package.version for each in known):
        return " (other wheels than before)"
    return f" (was {', '.join(each.version for each in known)})" if known else ""


def changed_file(before: Contents | None, path: str, digest: str) -> bool:
    """Whether a file is new or another than before."""
    return (path, digest) not in (before or NOTHING).files


def to_plain(contents: Contents) -> dict[str, Any]:
    """As values of JSON."""
    return {
        "files": dict(contents.files),
        "packages": [[package.name, package.version, package.wheels] for package in contents.packages],
        "lock": contents.lock,
        "requires-python": contents.requires_python,
        "dependencies": list(contents.dependencies),
    }


def from_plain(value: Any) -> Contents:
    """Raises ValueError, KeyError or TypeError for what `to_plain` does not make."""
    if value.keys() != to_plain(NOTHING).keys():
        raise ValueError("not the contents of a script")
    files, lock = value["files"], value["lock"]
    if not isinstance(files, Mapping) or not isinstance(value["packages"], list):
        raise TypeError("not the files and packages of a script")
    packages = tuple(Package(*map(_text, _triple(each))) for each in value["packages"])
    for digest in (*files.values(), *(package.wheels for package in packages), *([] if lock is None else [lock])):
        if not re.fullmatch(_SHA256, _text(digest)):
            raise ValueError("not a sha256")
    if not isinstance(value["dependencies"], list):
        raise TypeError("not a list")
    return Contents(
        tuple((_text(path), digest) for path, digest in files.items()),
        packages,
        lock,
        _text(value["requires-python"]),
        tuple(map(_text, value["dependencies"])),
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("not a text")
    return value


def _triple(value: Any) -> list[Any]:
    if not isinstance(value, list) or len(value) != 3:
        raise ValueError("not a package")
    return value
