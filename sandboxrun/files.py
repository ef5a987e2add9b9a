"""Files that are written whole or not at all, and those that only we can have written."""

from __future__ import annotations

import os

from sandboxrun.digests import sealed, unsealed
from sandboxrun.records import record

_SEAL_MAX_BYTES = 1024


def write_whole(path: str, data: bytes, *, mode: int = 0o600, sync: bool = True) -> None:
    """Write under a temporary name in the same folder, and move it into place. Raises OSError.

    `sync`: whether it must survive a power failure; for a decision, not for what can be made again.
    """
    temporary = os.path.join(os.path.dirname(path), f".tmp-{os.urandom(8).hex()}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            if sync:
                os.fsync(fd)
            os.fchmod(fd, mode)
        os.replace(temporary, path)
    except BaseException:
        try:
            os.unlink(temporary)
        except FileNotFoundError:
            pass
        raise


def read_at_most(path: str, max_bytes: int) -> bytes | None:
    """The first bytes of a file; None if it cannot be read. A FIFO does not block."""
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            return file.read(max_bytes)
    except OSError:
        return None


def read_or_make_key(path: str) -> bytes:
    """32 secret bytes of our own, the same in every run. Raises OSError, ValueError for a file that is none."""
    try:
        with open(path, "rb") as file:
            found = os.fstat(file.fileno())
            key = file.read(33)
        if len(key) != 32 or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise ValueError(f"{path} is no key: 32 bytes, of this user alone, with mode 0600")
        return key
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        key = os.urandom(32)
        write_whole(path, key)
        return key


@record
class Kept:
    """Data in a `folder` of the cache that can be made again, sealed with the `key` (a file). Data that was sealed with another
    key, or under another name, is not returned."""

    folder: str
    key: str

    def get(self, name: str, max_bytes: int) -> bytes | None:
        """At most `max_bytes`; None if there is no such data, or its seal is wrong."""
        try:
            key = read_or_make_key(self.key)
            with open(os.path.join(self.folder, name), "rb") as file:
                return unsealed(file.read(max_bytes + _SEAL_MAX_BYTES), key, name)
        except (OSError, ValueError):
            return None

    def put(self, name: str, data: bytes) -> None:
        """A full or read-only disk is no error: it is made again then."""
        try:
            os.makedirs(self.folder, mode=0o700, exist_ok=True)
            write_whole(os.path.join(self.folder, name), sealed(data, read_or_make_key(self.key), name), sync=False)
        except (OSError, ValueError):
            pass
