"""The log of what a worker prints, for `sandboxrun logs`.

It is opened before anything is known of the worker, so it imports little.
"""

from __future__ import annotations

import _thread
import errno
import os
import stat
import time
from collections.abc import Callable

LOG_MAX_BYTES = 1024 * 1024  # of a log's file; there are two
LOG_MARK = b"\x1e"  # RECORD SEPARATOR: begins each entry of a log, and is in none
_MARK_SHOWN = "␞".encode()
LOG_SECONDS = 0.1  # between two times that something printed is written to it
_LOCK_SECONDS = 1.0  # a disk that hangs keeps one thread, not all


class OutputLog:
    """The last of what a worker printed, and of our messages about it: `path`, and before it `path`.1.

    An entry is LOG_MARK, Unix time in milliseconds, a space, what it is (out, err, end, or the level of a message of ours),
    a newline, and the bytes. What is written never holds LOG_MARK, so that a worker can forge no entry. Nothing here
    raises: what cannot be written is missing, and said once.

    Entries that come fast are held back for a moment, at most as many bytes as the log keeps: of a flood only the end is
    written.
    """

    def __init__(self, path: str, warn: Callable[[str], None]) -> None:
        """Without a `path`, nothing is kept. The file is opened when there is something to write."""
        self._path, self._warn = path, warn
        self._lock = _thread.allocate_lock()
        self._fd, self._file, self._failed = -1, (0, 0), False
        self._held: list[tuple[int, bytes, bytes]] = []
        self._held_bytes, self._written_at = 0, 0.0

    def add(self, kind: bytes, data: bytes) -> bool:
        """Add an entry, from any thread. True if it is held back: the caller has to call `flush` later."""
        if data and self._path and self._lock.acquire(timeout=_LOCK_SECONDS):
            self._held.append((time.time_ns() // 1_000_000, kind, data))
            self._held_bytes += len(data)
            while self._held_bytes > 2 * LOG_MAX_BYTES and len(self._held) > 1:
                self._held_bytes -= len(self._held.pop(0)[2])
            self._lock.release()
            if time.monotonic() >= self._written_at + LOG_SECONDS:
                self.flush()
        return bool(self._held)

    def write(self, kind: bytes, data: bytes) -> None:
        """Add an entry and write it at once, after all that came before."""
        if self.add(kind, data):
            self.flush()

    def flush(self) -> None:
        """Write what was held back."""
        if not self._held or not self._lock.acquire(timeout=_LOCK_SECONDS):
            return
        problem = None
        try:
            held, self._held, self._held_bytes = self._held, [], 0
            self._append([_entry(*each) for each in held])
        except OSError as error:
            problem, self._failed = None if self._failed else error, True
        finally:
            self._written_at = time.monotonic()
            self._lock.release()
        if problem is not None:
            self._warn(
                f"the log {self._path} cannot be written ({problem.strerror}): the worker's output is not logged; "
                f"make room, or run with --no-log"
            )

    def close(self) -> None:
        """Write what was held back, and close the file."""
        self.flush()
        if self._lock.acquire(timeout=_LOCK_SECONDS):
            fd, self._fd, self._file = self._fd, -1, (0, 0)
            if fd >= 0:
                os.close(fd)
            self._lock.release()

    def _append(self, entries: list[bytes]) -> None:
        while entries:
            size = self._open()
            if size and size + len(entries[0]) > LOG_MAX_BYTES:
                os.replace(self._path, f"{self._path}.1")
                continue
            count, total = 1, len(entries[0])
            while count < len(entries) and size + total + len(entries[count]) <= LOG_MAX_BYTES:
                total += len(entries[count])
                count += 1
            if os.write(self._fd, b"".join(entries[:count])) < total:
                os.ftruncate(self._fd, size)  # no half entries
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # what else takes a part of it
            entries = entries[count:]

    def _open(self) -> int:
        """The size of what `path` is now: somebody else may have moved or removed it, a start beside ours for instance."""
        try:
            found = os.stat(self._path, follow_symlinks=False)
            if (found.st_dev, found.st_ino) == self._file:
                return found.st_size
        except FileNotFoundError:
            pass
        if self._fd >= 0:
            os.close(self._fd)
            self._fd, self._file = -1, (0, 0)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            self._fd = os.open(self._path, flags, 0o600)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(self._path), mode=0o700, exist_ok=True)
            self._fd = os.open(self._path, flags, 0o600)
        found = os.fstat(self._fd)
        if not stat.S_ISREG(found.st_mode) or stat.S_IMODE(found.st_mode) & 0o077:
            os.close(self._fd)
            self._fd = -1
            raise OSError(errno.EPERM, "it is no file that this user alone may read")
        self._file = (found.st_dev, found.st_ino)
        return found.st_size


def _entry(at: int, kind: bytes, data: bytes) -> bytes:
    return b"%b%d %b\n%b" % (LOG_MARK, at, kind, data.replace(LOG_MARK, _MARK_SHOWN))
