"""The one folder that every worker may write in: made for a run, locked while it lasts, removed whatever is in it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import stat
from collections.abc import Iterable, Iterator

from sandboxrun.errors import ConfigError

_ENTRIES_MAX = 20_000
_living: set[str] = set()  # names of the folders of this process's runs, which are locked: no start has to try


@contextlib.contextmanager
def scratch_folder(parent: str) -> Iterator[str]:
    """A folder of this run's own, locked as long as we live; those whose supervisor was killed are removed first."""
    try:
        os.makedirs(parent, mode=0o700, exist_ok=True)
        for name in os.listdir(parent):
            if name not in _living:
                _remove_if_left(os.path.join(parent, name))
        folder, lock = _make_locked(parent)
    except OSError as error:
        raise ConfigError(f"no scratch folder can be made in {parent}: {error.strerror}") from error
    _living.add(os.path.basename(folder))
    try:
        yield folder
    finally:
        remove(folder)
        os.close(lock)
        _living.discard(os.path.basename(folder))


def _make_locked(parent: str) -> tuple[str, int]:
    while True:
        folder = os.path.join(parent, os.urandom(8).hex())
        os.mkdir(folder, 0o700)
        lock = _lock(folder)
        if lock is not None and os.path.exists(folder):
            return folder, lock
        if lock is not None:
            os.close(lock)  # another start took it for a left-over one before it was locked


def _remove_if_left(folder: str) -> None:
    lock = _lock(folder)
    if lock is not None:
        remove(folder)
        os.close(lock)


def _lock(folder: str) -> int | None:
    """An exclusive lock on the folder itself, which the kernel takes back however we end; None if another has it."""
    try:
        fd = _open_folder(folder)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return None
    return fd


def remove(folder: str) -> None:
    """Remove a folder that a hostile worker has filled; what cannot be removed stays. Nothing is executed for it, and
    nothing is found by a path that the worker made.

    Folders may be nested deeper than recursion goes or descriptors last, so each is emptied into the uppermost one: what
    is a folder itself is moved there, and is emptied in its turn.
    """
    with contextlib.suppress(OSError):
        top = _open_folder(folder)
        try:
            _empty(top)
        finally:
            os.close(top)
        os.rmdir(folder)


def _empty(top: int) -> None:
    names = (
        f"{os.urandom(16).hex()}-{number}" for number in itertools.count()
    )  # which the worker could not take before
    device = os.fstat(top).st_dev
    found, goes_on = os.listdir(top), True
    while found and goes_on:
        moved = [_remove_entry(top, name, device, names) for name in found]
        left = os.listdir(top)
        goes_on = any(moved) or len(left) < len(found)
        found = left


def _remove_entry(top: int, name: str, device: int, names: Iterator[str]) -> int:
    """Remove a file, or a folder once the folders in it are moved up; how many were, under new `names`."""
    moved = 0
    with contextlib.suppress(OSError):
        if _unlinked(name, top):
            return moved
        inner = _open_folder(name, top, device)
        try:
            for entry in os.listdir(inner):
                with contextlib.suppress(OSError):
                    if not _unlinked(entry, inner):
                        os.close(_open_folder(entry, inner, device))  # moving it takes rights to itself, too
                        os.rename(entry, next(names), src_dir_fd=inner, dst_dir_fd=top)
                        moved += 1
        finally:
            os.close(inner)
        os.rmdir(name, dir_fd=top)
    return moved


def _unlinked(name: str, folder: int) -> bool:
    try:
        os.unlink(name, dir_fd=folder)
    except IsADirectoryError:
        return False
    return True


def _open_folder(name: str, parent: int | None = None, device: int | None = None) -> int:
    """Open it for reading and writing, whatever its mode is. No symlink is followed, and no mount entered.

    Raises OSError.
    """
    path = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        found = os.fstat(path)
        if device is not None and found.st_dev != device:
            raise OSError(errno.EXDEV, "another file system", name)
        if found.st_mode & stat.S_IRWXU != stat.S_IRWXU:
            os.chmod(f"/proc/self/fd/{path}", stat.S_IRWXU)
        return os.open(f"/proc/self/fd/{path}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    finally:
        os.close(path)


def folder_size(folder: str, enough: int, entries_max: int = _ENTRIES_MAX) -> int:
    """Bytes on disk below `folder`; stops counting past `enough`. Too many entries count as too many bytes.

    Approximate: a worker can write past the limit between two looks, by at most what the disk takes in that time.
    """
    total = entries = 0
    folders = [folder]
    while folders:
        try:
            with os.scandir(folders.pop()) as found:
                for entry in found:
                    entries += 1
                    with contextlib.suppress(FileNotFoundError):  # of this one only: the others still count
                        total += entry.stat(follow_symlinks=False).st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    if total > enough or entries > entries_max:
                        return enough + 1
        except FileNotFoundError:
            continue  # removed meanwhile
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                return total  # this process or the machine has no descriptor left: the next look tells
            return enough + 1  # the worker made a folder unreadable, or too deep to look into
    return total


def deleted_size(pids: Iterable[int]) -> int:
    """Bytes on disk of files that are removed, and held open by these processes still; each file counts once."""
    sizes: dict[tuple[int, int], int] = {}
    for pid in pids:
        with contextlib.suppress(OSError):  # it has ended
            for tid in os.listdir(f"/proc/{pid}/task"):
                if _add_deleted(f"/proc/{pid}/task/{tid}/fd", sizes):
                    break  # threads share one table of descriptors, because the filter lets none have its own
    return sum(sizes.values())


def _add_deleted(folder: str, sizes: dict[tuple[int, int], int]) -> bool:
    """False if it shows no descriptors: the thread has ended, as the first one may."""
    try:
        names = os.listdir(folder)
    except OSError:
        return False
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            found = os.stat(f"{folder}/{name}")
            if found.st_nlink == 0 and stat.S_ISREG(found.st_mode):
                sizes[found.st_dev, found.st_ino] = found.st_blocks * 512
    return bool(names)
