"""syscall(2), for calls that Python has no function for.

It does what `ctypes` does, without importing that: the import takes longer than all the calls of a start.
"""

from __future__ import annotations

import _ctypes
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_NR_PIDFD_GETFD = 438


class _Long(_ctypes._SimpleCData):  # type: ignore[type-arg]  # generic for a type checker only
    """An argument as wide as a register; Python's ints are passed as C's int otherwise."""

    _type_ = "l"


class _Char(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "c"


class _Function(_ctypes.CFuncPtr):
    _flags_ = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_USE_ERRNO
    _restype_ = _Long


class _IntFunction(_ctypes.CFuncPtr):
    """Of the number and three ints, converted in C: for what is called often."""

    _flags_ = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_USE_ERRNO
    _argtypes_ = (_Long, _Long, _Long, _Long)
    _restype_ = _Long


_address = _ctypes.dlsym(_ctypes.dlopen(None, 0), "syscall")  # type: ignore[arg-type]  # None: what is loaded already
_function: Any = _Function(_address)
_int_function: Any = _IntFunction(_address)


def syscall(name: str, number: int, *args: int | bytes | bytearray) -> int:
    """The result of the call. Bytes are passed by address, and so is a bytearray, which the kernel may write to.

    Raises OSError with the call's errno.
    """
    words = [_Long(arg) if isinstance(arg, int) else arg if isinstance(arg, bytes) else _buffer(arg) for arg in args]
    result = int(_function(_Long(number), *words))
    if result < 0:
        code = _ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return result


def syscall3(name: str, number: int, one: int, two: int, three: int) -> int:
    """As `syscall`, of three ints, in half the time."""
    result: int = _int_function(number, one, two, three)
    if result < 0:
        code = _ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return result


def pidfd_getfd(pidfd: int, target_fd: int) -> int:
    """A duplicate (close-on-exec) of another process's descriptor (pidfd_getfd(2)). Raises OSError."""
    return syscall3("pidfd_getfd", _NR_PIDFD_GETFD, pidfd, target_fd, 0)


def _buffer(data: bytearray) -> Any:
    made: Any = type("_Buffer", (_ctypes.Array,), {"_type_": _Char, "_length_": len(data)})
    return made.from_buffer(data)
