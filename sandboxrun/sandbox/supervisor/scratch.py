"""The one folder that every worker may write in: made for a run, locked while it lasts, removed whatever is in it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import stat
from collections.abc import Iterator

from sandboxrun.errors import ConfigError


@contextlib.contextmanager
def scratch_folder(parent: str) -> Iterator[str]:
    """A folder of this run's own, locked as long as we live; those whose supervisor was killed are removed first."""
    try:
        os.makedirs(parent, mode=0o700, exist_ok=True)
        for name in os.listdir(parent):
            _remove_if_left(os.path.join(parent, name))
        folder, lock = _make_locked(parent)
    except OSError as error:
        raise ConfigError(f"no scratch folder can be made in {parent}: {error.strerror}") from error
    try:
        yield folder
    finally:
        remove(folder)
        os.close(lock)


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
    """To be read and written in, whatever rights the worker has left to it. No symlink is followed, and nothing that is
    mounted there entered. Raises OSError."""
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
