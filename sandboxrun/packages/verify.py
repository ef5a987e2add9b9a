"""Reads every file of an environment, and compares its digest with that in the record.

Used when an environment is made, at its first start in a boot of the machine, and by `sandboxrun cache --verify`.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat

from sandboxrun.errors import IntegrityError
from sandboxrun.files import write_whole
from sandboxrun.packages import seal
from sandboxrun.packages.seal import FILE_MODE, FOLDER_MODE, Seal
from sandboxrun.records import record, replace

_LISTING_MAX_BYTES = 64 << 20
_DEPTH_MAX = 64
_PART_BYTES = 1 << 20


@record
class File:
    """A file of an environment. `path` is relative."""

    path: str
    size: int
    sha256: str

    @property
    def line(self) -> str:
        return f"{self.sha256} {self.size} {self.path}\n"

    @property
    def is_compiled(self) -> bool:
        return self.path.endswith(".pyc")


@record
class Tree:
    """All files and folders below a folder, sorted; the root is among the folders, as ""."""

    files: tuple[File, ...]
    folders: tuple[str, ...]

    @property
    def listing(self) -> bytes:
        return "".join(file.line for file in self.files).encode()

    @property
    def content(self) -> str:
        """A digest over all files but compiled modules."""
        lines = (file.line for file in self.files if not file.is_compiled)
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    @property
    def sources(self) -> list[File]:
        """All files but compiled modules."""
        return [file for file in self.files if not file.is_compiled]

    @property
    def bytes(self) -> int:
        return sum(file.size for file in self.files)


@record
class Environment:
    """An environment in the cache, as `sandboxrun cache` shows it. `seal` is None for a folder without a valid record."""

    path: str
    seal: Seal | None


def environments(cache: str, key: str) -> list[Environment]:
    """All environments of this cache, whole or not."""
    folder = seal.folder_of(cache)
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    return [find(cache, key, name) for name in names if re.fullmatch(r"[0-9a-f]{64}", name)]


def fault(environment: Environment) -> str:
    """What is wrong with an environment, to complete "PATH …"; empty if every file is what it was."""
    if environment.seal is None:
        return "has no valid record: sandboxrun did not finish it, or did not make it"
    try:
        tree = scan(environment.path)
    except IntegrityError as error:
        return str(error)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if hashlib.sha256(tree.listing).hexdigest() == environment.seal.listing:
        return ""
    return _difference(environment, tree)


def damaged_wheels(cache: str) -> list[str]:
    """The paths of downloaded wheels that do not have the digest of their name. They are fetched again when needed."""
    folder = os.path.join(cache, "wheels")
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    wheels = [name for name in names if re.fullmatch(r"[0-9a-f]{64}\.whl", name)]
    return [os.path.join(folder, name) for name in wheels if digest_of_file(os.path.join(folder, name)) != name[:64]]


def find(cache: str, key: str, name: str) -> Environment:
    """One environment by its name."""
    return Environment(os.path.join(seal.folder_of(cache), name), seal.read(cache, key, name))


def seal_again(cache: str, key: str, environment: Environment) -> None:
    """Record that an intact environment was verified in this boot."""
    if environment.seal is not None:
        stamp = seal.stamp_of(environment.path, environment.seal.folders)
        name = os.path.basename(environment.path)
        seal.write(cache, key, name, replace(environment.seal, boot=seal.boot_id(), stamp=stamp))


def keep_listing(path: str, tree: Tree) -> None:
    """Write the digest of each file beside the environment, so that `fault` can name a file that has changed."""
    write_whole(f"{path}.files", tree.listing, mode=0o400, sync=False)


def scan(path: str, *, finish: bool = False) -> Tree:
    """Read everything below a folder, without following a symlink. `finish`: make all but the root read-only.

    Raises OSError, and IntegrityError for what an environment must not have.
    """
    files: list[File] = []
    folders: list[str] = [""]
    root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _scan(root, "", files, folders, finish)
        if not finish:
            _check_mode("", os.fstat(root), FOLDER_MODE)
    finally:
        os.close(root)
    return Tree(tuple(sorted(files, key=lambda file: file.path)), tuple(sorted(folders)))


def _scan(folder: int, path: str, files: list[File], folders: list[str], finish: bool) -> None:
    if path.count("/") >= _DEPTH_MAX:
        raise IntegrityError(f"{path[:80]!r} lies too deep")
    for name in sorted(os.listdir(folder)):
        inner = f"{path}/{name}" if path else name
        if not name.isprintable() or not _is_text(name):
            raise IntegrityError(f"{inner[:80]!r} has a character that no file of a wheel needs")
        # O_NONBLOCK: a FIFO must not block the open. What is no file and no folder is refused unopened.
        kind = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
        if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
            raise IntegrityError(f"{inner[:80]!r} is neither a file nor a folder")
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        try:
            found = os.fstat(fd)
            if found.st_uid != os.geteuid() or found.st_mode & 0o7000:
                raise IntegrityError(f"{inner[:80]!r} has another owner, or special rights")
            if stat.S_ISDIR(found.st_mode):
                folders.append(inner)
                _scan(fd, inner, files, folders, finish)
                _set_mode(fd, inner, FOLDER_MODE, finish)
            elif stat.S_ISREG(found.st_mode) and found.st_nlink == 1:
                _set_mode(fd, inner, FILE_MODE, finish)
                files.append(File(inner, found.st_size, _digest_of(fd)))
            else:
                raise IntegrityError(f"{inner[:80]!r} has a second name, or is no file")
        finally:
            os.close(fd)


def _set_mode(fd: int, path: str, mode: int, finish: bool) -> None:
    if finish:
        os.fchmod(fd, mode)
    _check_mode(path, os.fstat(fd), mode)


def _check_mode(path: str, found: os.stat_result, mode: int) -> None:
    if stat.S_IMODE(found.st_mode) != mode:
        raise IntegrityError(f"{path[:80]!r} has the mode {stat.S_IMODE(found.st_mode):o}, and had {mode:o}")


def _is_text(name: str) -> bool:
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False


def _digest_of(fd: int) -> str:
    digest = hashlib.sha256()
    while part := os.read(fd, _PART_BYTES):
        digest.update(part)
    return digest.hexdigest()


def digest_of_file(path: str) -> str:
    """In hexadecimal; empty if the file cannot be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return _digest_of(fd)
    finally:
        os.close(fd)


def _difference(environment: Environment, tree: Tree) -> str:
    """The first file that is not what it was, if the listing is still there."""
    try:
        with open(f"{environment.path}.files", "rb") as file:
            listing = file.read(_LISTING_MAX_BYTES)
    except OSError:
        listing = b""
    if environment.seal is None or hashlib.sha256(listing).hexdigest() != environment.seal.listing:
        return "has changed since it was made"
    before, now = set(listing.decode().splitlines()), set(tree.listing.decode().splitlines())
    path = min(line.split(" ", 2)[2] for line in before ^ now)
    return f"has changed since it was made, as in {path[:80]!r}"
