"""The name of an environment, and its sealed record beside it: what makes a folder an environment that may be used.

`CACHE/env/HEX` is the folder, `HEX.seal` the record, `HEX.files` the digest of each file. Only a whole, verified environment is
sealed. Imports little, because each start of a worker with packages reads one.
"""

from __future__ import annotations

import json
import os
import stat
import sys

from sandboxrun.digests import hex_digest
from sandboxrun.files import Kept
from sandboxrun.records import asdict, record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sandboxrun.packages.lock import Lock

SEAL_MAX_BYTES = 4 << 20
FILE_MODE, FOLDER_MODE = 0o444, 0o555
_FORMAT = "1"  # of what is installed: another one makes all environments again


@record
class Seal:
    """The record of one environment. `folders` are relative, the root is ""; `stamp` is theirs, see `stamp_of`."""

    lock: str  # the lock's file name
    lock_sha256: str
    packages: tuple[tuple[str, str], ...]  # (name, version)
    files: int
    bytes: int
    source_files: int  # without compiled modules, which is what the policy bounds
    source_bytes: int
    packed_bytes: int  # of the wheels
    listing: str  # digest of HEX.files
    content: str  # the same without compiled modules: equal on every machine
    boot: str  # in which all files were verified last
    folders: tuple[str, ...]
    stamp: str


def platform_tag() -> str:
    """Python, machine and C library, which decide which wheel of a version fits."""
    try:
        libc = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (ValueError, OSError):  # musl has no such name
        libc = "musl"
    return f"{sys.implementation.cache_tag}{sys.abiflags} {os.uname().machine} {libc}"


def name_of(lock: Lock) -> str:
    """HEX, the folder's name. The whole version of Python belongs to it, because markers may ask for it."""
    version = ".".join(map(str, sys.version_info[:3]))
    return hex_digest(f"{_FORMAT}\n{lock.sha256}\n{platform_tag()}\n{version}".encode())


def folder_of(cache: str) -> str:
    return os.path.join(cache, "env")


def read(cache: str, key: str, name: str) -> Seal | None:
    """The record of an environment; None if there is none that this key has sealed."""
    data = Kept(folder_of(cache), key).get(f"{name}.seal", SEAL_MAX_BYTES)
    if data is None:
        return None
    try:
        values = json.loads(data)
        values["packages"] = tuple(map(tuple, values["packages"]))
        values["folders"] = tuple(values["folders"])
        return Seal(**values)
    except (ValueError, TypeError, KeyError):  # of another version of sandboxrun
        return None


def write(cache: str, key: str, name: str, seal: Seal) -> None:
    """Write the record, without which the environment is not used. A full disk raises nothing: the caller reads it again."""
    Kept(folder_of(cache), key).put(f"{name}.seal", json.dumps(asdict(seal)).encode())


def stamp_of(path: str, folders: tuple[str, ...]) -> str:
    """A digest of the state of each folder; empty if one is missing, not ours, writable, or no folder.

    What is added to, removed from or renamed in a folder changes its times. What is written into a file does not.
    """
    states = []
    user = os.geteuid()
    for folder in folders:
        try:
            found = os.lstat(f"{path}/{folder}" if folder else path)
        except OSError:
            return ""
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != user or stat.S_IMODE(found.st_mode) != FOLDER_MODE:
            return ""
        states.append((folder, found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns))
    return hex_digest(repr(states).encode())


def boot_id() -> str:
    """The kernel's ID of the current boot (random(4))."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read(64).strip()
