"""Whether what lies in the cache is what was put there. A start verifies what it uses; this reads everything."""

from __future__ import annotations

import os
from collections.abc import Iterator

from sandboxrun.digests import hex_digest
from sandboxrun.fetch import bundle
from sandboxrun.fetch.cache import Cache
from sandboxrun.host.folders import Folders
from sandboxrun.host.inventory import Holding, Kind, holdings

_BLOB_MAX_BYTES = 16 << 20


def faults(folders: Folders) -> list[tuple[Holding, str]]:
    """Each damaged entry, and what is wrong with it."""
    entries = holdings(folders)
    found = [(entry, _blob_fault(entry.path)) for entry in entries if entry.kind is Kind.SCRIPT]
    cache = Cache(folders.cache, folders.state)
    trees = [entry for entry in entries if entry.kind is Kind.FILES]
    found += [(entry, "is not as it was made") for entry in trees if not bundle.is_intact(entry.name, cache)]
    packaged = [entry for entry in entries if entry.kind in (Kind.ENVIRONMENT, Kind.WHEEL)]
    found += _package_faults(folders, packaged) if packaged else ()
    return [(entry, fault) for entry, fault in found if fault]


def _blob_fault(path: str) -> str:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as file:
            data = file.read(_BLOB_MAX_BYTES)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    digest = hex_digest(data)
    return "" if digest == os.path.basename(path) else f"has sha256 {digest}"


def _package_faults(folders: Folders, entries: list[Holding]) -> Iterator[tuple[Holding, str]]:
    from sandboxrun.packages import verify  # late, because it hashes by OpenSSL

    known = {environment.path: environment for environment in verify.environments(folders.cache, folders.key)}
    wheels = set(verify.damaged_wheels(folders.cache))
    for entry in entries:
        if entry.kind is Kind.ENVIRONMENT:
            yield entry, verify.fault(known[entry.path])
        elif entry.path in wheels:
            yield entry, "does not have the digest of its name"
