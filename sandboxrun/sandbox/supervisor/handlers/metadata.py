"""chmod(2) and utimensat(2): mode and times of files, which Landlock does not cover, if writing is granted.

The supervisor does it on the file itself, found below an open folder of the policy (openat2(2), RESOLVE_BENEATH): a symlink
or `..` that leads out of it finds nothing. Owner and extended attributes are not changed for anyone.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterable

from sandboxrun.errors import SandboxError
from sandboxrun.sandbox.compile.grants import TRAPPED
from sandboxrun.sandbox.compile.landlock import open_real, words
from sandboxrun.sandbox.supervisor.dispatch import Answer, Calls
from sandboxrun.sandbox.supervisor.listener import Notification
from sandboxrun.sandbox.supervisor.target import Target
from sandboxrun.sandbox.syscalls import syscall

_AT_FDCWD = -100
_AT_SYMLINK_NOFOLLOW = 0x100
_AT_EMPTY_PATH = 0x1000
_NR_OPENAT2 = 437
_RESOLVE_NO_MAGICLINKS, _RESOLVE_BENEATH = 0x02, 0x08
_TIMES_BYTES = 32  # struct timespec [2]


class Metadata:
    """Answers `chmod`, `fchmod`, `fchmodat`, `fchmodat2` and `utimensat`."""

    def __init__(self, calls: Calls, writable: Iterable[str]) -> None:
        self._calls = calls
        self._roots: list[tuple[str, int]] = []
        try:
            for path in writable:
                with contextlib.suppress(FileNotFoundError):  # gone since its folder was granted entry by entry
                    self._roots.append((path, open_real(path)))
        except OSError as error:
            self.close()
            raise SandboxError(f"cannot open {path} to grant it: {error.strerror}") from error

    def close(self) -> None:
        for _, fd in self._roots:
            os.close(fd)

    def chmod(self, target: Target, notification: Notification) -> Answer:
        path, mode = notification.args[:2]
        return self._chmod(target, notification, _AT_FDCWD, target.read_path(path), mode, 0)

    def fchmod(self, target: Target, notification: Notification) -> Answer:
        fd, mode = notification.args[:2]
        return self._chmod(target, notification, _int(fd), None, mode, 0)

    def fchmodat(self, target: Target, notification: Notification) -> Answer:
        folder, path, mode = notification.args[:3]
        return self._chmod(target, notification, _int(folder), target.read_path(path), mode, 0)

    def fchmodat2(self, target: Target, notification: Notification) -> Answer:
        folder, path, mode, flags = notification.args[:4]
        return self._chmod(target, notification, _int(folder), target.read_path(path), mode, flags)

    def utimensat(self, target: Target, notification: Notification) -> Answer:
        folder, path, pointer, flags = notification.args[:4]
        times = target.read(pointer, _TIMES_BYTES) if pointer else None

        def change(file: int) -> None:
            number = TRAPPED[os.uname().machine]["utimensat"]
            syscall("utimensat", number, file, b"\0", times or 0, _AT_EMPTY_PATH)  # of a symlink, its own

        name = target.read_path(path) if path else None
        return self._change(target, notification, _int(folder), name, flags, change)

    def _chmod(
        self, target: Target, notification: Notification, folder: int, path: str | None, mode: int, flags: int
    ) -> Answer:
        def change(file: int) -> None:
            if mode & (stat.S_ISUID | stat.S_ISGID):
                raise OSError(errno.EPERM, "a program with its owner's rights")
            if stat.S_ISLNK(os.fstat(file).st_mode):
                raise OSError(errno.EOPNOTSUPP, "symlink")
            os.chmod(f"/proc/self/fd/{file}", mode & 0o7777)

        return self._change(target, notification, folder, path, flags, change)

    def _change(
        self,
        target: Target,
        notification: Notification,
        folder: int,
        path: str | None,
        flags: int,
        change: Callable[[int], None],
    ) -> Answer:
        """`path` None is the descriptor `folder` itself."""
        flags &= 0xFFFFFFFF
        if flags & ~(_AT_SYMLINK_NOFOLLOW | _AT_EMPTY_PATH):
            raise OSError(errno.EINVAL, "flags")
        if path is None or (path == "" and flags & _AT_EMPTY_PATH):
            file = self._open_descriptor(target, folder)
        elif path == "":
            raise OSError(errno.ENOENT, "empty path")
        else:
            base = os.readlink(f"/proc/{target.pid}/cwd" if folder == _AT_FDCWD else f"/proc/{target.pid}/fd/{folder}")
            follow = not flags & _AT_SYMLINK_NOFOLLOW
            file = self._open(os.path.join(base, path), follow)
        try:
            if not self._calls.listener.is_valid(notification.id):
                return None
            kind = os.fstat(file).st_mode
            if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind) or stat.S_ISLNK(kind)):
                raise OSError(errno.EPERM, "special file")
            change(file)
            return 0
        finally:
            os.close(file)

    def _open(self, path: str, follow: bool) -> int:
        """An O_PATH descriptor of a file that lies below one of the roots. Raises OSError EPERM for every other."""
        name = os.path.basename(path)
        real = os.path.realpath(path if name in ("", ".", "..") else os.path.dirname(path))
        if name not in ("", ".", ".."):
            real = os.path.join(real, name)
        if follow and os.path.islink(real):
            real = os.path.realpath(real)
        for root, fd in self._roots:
            if real == root:
                return os.open(f"/proc/self/fd/{fd}", os.O_PATH | os.O_CLOEXEC)
            if real.startswith(root + "/"):
                return _open_beneath(fd, real[len(root) + 1 :])
        raise OSError(errno.EPERM, "not granted for writing")

    def _open_descriptor(self, target: Target, fd: int) -> int:
        duplicate = target.duplicate(fd)
        try:
            found = os.fstat(duplicate)
            file = self._open(os.readlink(f"/proc/self/fd/{duplicate}"), follow=False)
            there = os.fstat(file)
            if (there.st_dev, there.st_ino) == (found.st_dev, found.st_ino):
                return file
            os.close(file)
            raise OSError(errno.EPERM, "not granted for writing")
        except FileNotFoundError as error:
            raise OSError(errno.EPERM, "removed meanwhile") from error
        finally:
            os.close(duplicate)


def _open_beneath(folder: int, path: str) -> int:
    how = words(os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW, 0, _RESOLVE_BENEATH | _RESOLVE_NO_MAGICLINKS)
    try:
        return syscall("openat2", _NR_OPENAT2, folder, os.fsencode(path) + b"\0", how, len(how))  # struct open_how
    except OSError as error:
        if error.errno in (errno.EXDEV, errno.ELOOP):
            raise OSError(errno.EPERM, "not granted for writing") from error
        raise


def _int(register: int) -> int:
    """A register as the int that the kernel takes it for."""
    low = register & 0xFFFFFFFF
    return low - (1 << 32) if low & 0x80000000 else low
