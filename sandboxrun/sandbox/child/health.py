"""Runs in the worker's process: maps the health page before the process is confined.

By hand, because the import of mmap takes longer than the call.
"""

from __future__ import annotations

import _ctypes
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_PROT_READ, _PROT_WRITE, _MAP_SHARED = 1, 2, 1
_BYTES = 4096


class _Long(_ctypes._SimpleCData):  # type: ignore[type-arg]  # as syscalls.py has it, and why
    _type_ = "l"


class _Byte(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "B"


class _Function(_ctypes.CFuncPtr):
    _flags_ = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_USE_ERRNO
    _restype_ = _Long


class _Page(_ctypes.Array):  # type: ignore[type-arg]
    _type_ = _Byte
    _length_ = _BYTES


def share(fd: int) -> None:
    """Map the page for sandboxrun.worker, which finds it in `sys`, and close the descriptor. Raises OSError."""
    mmap: Any = _Function(_ctypes.dlsym(_ctypes.dlopen(None, 0), "mmap"))  # type: ignore[arg-type]  # None: what is loaded
    numbers = (0, _BYTES, _PROT_READ | _PROT_WRITE, _MAP_SHARED, fd, 0)
    address = mmap(*map(_Long, numbers))
    if address == -1:
        errno = _ctypes.get_errno()
        raise OSError(errno, f"mmap: {os.strerror(errno)}")
    os.close(fd)
    sys._sandboxrun_health = memoryview(_Page.from_address(address)).cast("B")  # type: ignore[attr-defined]
