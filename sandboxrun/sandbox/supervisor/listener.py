"""seccomp user notifications: the supervisor's end of the listener (seccomp_unotify(2))."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from collections import namedtuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NamedTuple

    class _Fields(NamedTuple):
        id: int
        tid: int
        number: int
        args: tuple[int, ...]
else:
    _Fields = namedtuple("_Fields", "id tid number args")

# linux/seccomp.h: struct seccomp_notif is u64 id, u32 pid, u32 flags, then struct seccomp_data
# (s32 nr, u32 arch, u64 instruction pointer, u64 args[6]).
_NOTIF = struct.Struct("=QIIiIQ6Q")
_RESPONSE = struct.Struct("=QqiI")
_ID = struct.Struct("=Q")
_RECV = 0xC0000000 | _NOTIF.size << 16 | ord("!") << 8 | 0
_SEND = 0xC0000000 | _RESPONSE.size << 16 | ord("!") << 8 | 1
_ID_VALID = 0x40000000 | 8 << 16 | ord("!") << 8 | 2
_SET_FLAGS = 0x40000000 | 8 << 16 | ord("!") << 8 | 4
_SYNC_WAKE_UP = 1  # SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP
_CONTINUE = 1  # SECCOMP_USER_NOTIF_FLAG_CONTINUE


class Notification(_Fields):
    """One trapped system call of the target: its thread, the call's number and its registers as they were."""

    __slots__ = ()


class Listener:
    """The listener descriptor, non-blocking. Closing it makes every trapped call fail with ENOSYS."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        os.set_blocking(fd, False)
        self._buffer = bytearray(_NOTIF.size)
        # Linux 6.6: target and supervisor take turns on one CPU instead of waking each other across two.
        with contextlib.suppress(OSError):
            fcntl.ioctl(fd, _SET_FLAGS, _SYNC_WAKE_UP)

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        os.close(self._fd)

    def receive(self) -> Notification | None:
        """The next notification, or None if its target gave up meanwhile."""
        self._buffer[:] = bytes(_NOTIF.size)  # the kernel refuses a buffer that is not zeroed
        try:
            fcntl.ioctl(self._fd, _RECV, self._buffer)
        except OSError:
            return None  # ENOENT: its target was interrupted or died; nothing else concerns one notification
        fields = _NOTIF.unpack(self._buffer)
        return Notification(fields[0], fields[1], fields[3], fields[6:])

    def is_valid(self, id_: int) -> bool:
        """Whether the target still waits in the call; after it, what was read of the target is known to be its own."""
        try:
            fcntl.ioctl(self._fd, _ID_VALID, _ID.pack(id_))
        except OSError:
            return False
        return True

    def respond(self, id_: int, error: int) -> None:
        """End the call with 0 or with a positive errno. A target that is gone needs no answer."""
        try:
            fcntl.ioctl(self._fd, _SEND, _RESPONSE.pack(id_, 0, -error, 0))
        except OSError:
            pass

    def proceed(self, id_: int) -> None:
        """Let the kernel perform the call. Only for what does not hang on memory that the target could rewrite."""
        try:
            fcntl.ioctl(self._fd, _SEND, _RESPONSE.pack(id_, 0, 0, _CONTINUE))
        except OSError:
            pass
