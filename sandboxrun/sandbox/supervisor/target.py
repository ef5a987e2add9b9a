"""The process whose call is being answered: its memory and its descriptors."""

from __future__ import annotations

import errno
import os

from sandboxrun.sandbox.syscalls import pidfd_getfd

_PATH_MAX = 4096  # linux/limits.h, with the NUL
_PAGE = 4096


class Target:
    """What is read of it is its own only once the notification has been found valid after the reading."""

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid, self._pidfd = pid, pidfd
        self._memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)

    @classmethod
    def of_thread(cls, tid: int) -> Target:
        """Another process of the sandbox, by one of its threads. Close it. Raises OSError if it is gone."""
        with open(f"/proc/{tid}/status", "rb") as file:
            pid = next(int(line.split()[1]) for line in file if line.startswith(b"Tgid:"))
        pidfd = os.pidfd_open(pid)
        try:
            return cls(pid, pidfd)
        except OSError:
            os.close(pidfd)
            raise

    def close(self) -> None:
        os.close(self._memory)
        os.close(self._pidfd)

    def read(self, pointer: int, length: int) -> bytes:
        """Exactly `length` bytes of its memory. Raises OSError EFAULT."""
        if length == 0:
            return b""
        try:
            data = os.pread(self._memory, length, pointer)
        except (OSError, OverflowError) as error:
            raise OSError(errno.EFAULT, "memory not readable") from error
        if len(data) != length:
            raise OSError(errno.EFAULT, "memory not readable")
        return data

    def read_path(self, pointer: int) -> str:
        """A NUL-terminated path. Raises OSError EFAULT, ENAMETOOLONG."""
        data = b""
        while len(data) < _PATH_MAX:
            at = pointer + len(data)
            data += self.read(at, min(_PAGE - at % _PAGE, _PATH_MAX - len(data)))  # never past the page it must be on
            end = data.find(b"\0")
            if end >= 0:
                return os.fsdecode(data[:end])
        raise OSError(errno.ENAMETOOLONG, "path too long")

    def duplicate(self, fd: int) -> int:
        """A duplicate (close-on-exec) of its descriptor (pidfd_getfd(2)). Raises OSError."""
        return pidfd_getfd(self._pidfd, fd)
