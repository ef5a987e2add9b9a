"""Landlock rulesets, made in the supervisor and applied by the child (landlock(7)).

The supervisor opens every path itself, so symlinks are resolved once, when the policy is made; the child only calls
landlock_restrict_self(2) with the descriptor that it was born with: rules that are added to ours are its own too.
"""

from __future__ import annotations

import ctypes
import enum
import os
import stat
from collections.abc import Iterable

from sandboxrun.errors import SandboxError

# Numbers of the generic table, the same on every architecture.
_NR_CREATE_RULESET = 444
_NR_ADD_RULE = 445
_NR_OPENAT2 = 437
_RULE_PATH_BENEATH = 1
_AT_FDCWD, _RESOLVE_NO_SYMLINKS = -100, 0x04


class Access(enum.IntFlag):
    """LANDLOCK_ACCESS_FS_*, linux/landlock.h."""

    EXECUTE = 1 << 0
    WRITE_FILE = 1 << 1
    READ_FILE = 1 << 2
    READ_DIR = 1 << 3
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_CHAR = 1 << 6
    MAKE_DIR = 1 << 7
    MAKE_REG = 1 << 8
    MAKE_SOCK = 1 << 9
    MAKE_FIFO = 1 << 10
    MAKE_BLOCK = 1 << 11
    MAKE_SYM = 1 << 12
    REFER = 1 << 13
    TRUNCATE = 1 << 14
    IOCTL_DEV = 1 << 15


BASIC = Access.REFER - 1  # of the first Landlock, Linux 5.13
TCP = 1 << 0 | 1 << 1  # LANDLOCK_ACCESS_NET_BIND_TCP, CONNECT_TCP
SCOPES = 1 << 0 | 1 << 1  # LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET, SIGNAL

READ = Access.READ_FILE | Access.READ_DIR
# No device nodes, sockets or FIFOs, and no EXECUTE: nothing that a worker wrote is ever a program.
WRITE = (
    Access.WRITE_FILE
    | Access.TRUNCATE
    | Access.REMOVE_DIR
    | Access.REMOVE_FILE
    | Access.MAKE_DIR
    | Access.MAKE_REG
    | Access.MAKE_SYM
    | Access.REFER
)
RUN = Access.READ_FILE | Access.EXECUTE
_ON_FILES = Access.EXECUTE | Access.WRITE_FILE | Access.READ_FILE | Access.TRUNCATE | Access.IOCTL_DEV


class _RulesetAttr(ctypes.Structure):
    _fields_ = [("fs", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64)]


class _PathBeneathAttr(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32)]


_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _syscall(nr: int, *args: object) -> int:
    result = int(_libc.syscall(ctypes.c_long(nr), *args))
    if result < 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno))
    return result


def handles(*, fs: int = 0, net: int = 0, scoped: int = 0) -> bool:
    """Whether this kernel's Landlock can deny these: it refuses a ruleset with a bit that it does not know."""
    try:
        os.close(_create(fs, net, scoped))
    except OSError:
        return False
    return True


def create_ruleset(*, fs: int, net: int, scoped: int) -> int:
    """A ruleset descriptor (close-on-exec) that denies what `fs`, `net` and `scoped` name. Raises SandboxError."""
    try:
        return _create(fs, net, scoped)
    except OSError as error:
        raise SandboxError(f"landlock_create_ruleset: {error.strerror}") from error


def add_rules(ruleset: int, rules: Iterable[tuple[str, Access]], *, fs: int) -> None:
    """Allow `rules`, which are (real path, access), of what the ruleset denies: `fs`.

    Raises SandboxError naming the path where one cannot be opened.
    """
    for path, access in rules:
        _add_rule(ruleset, path, Access(access & fs))


def _create(fs: int, net: int, scoped: int) -> int:
    attr = _RulesetAttr(fs=fs, net=net, scoped=scoped)
    size = 24 if scoped else 16 if net else 8  # an older kernel refuses a longer structure only where it is not zero
    return _syscall(_NR_CREATE_RULESET, ctypes.byref(attr), ctypes.c_size_t(size), ctypes.c_uint32(0))


def _add_rule(ruleset: int, path: str, access: Access) -> None:
    try:
        fd = open_real(path)
    except OSError as error:
        raise SandboxError(f"cannot open {path} to grant it: {error.strerror}") from error
    try:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            access &= _ON_FILES
        rule = _PathBeneathAttr(allowed_access=access, parent_fd=fd)
        _syscall(
            _NR_ADD_RULE,
            ctypes.c_int(ruleset),
            ctypes.c_int(_RULE_PATH_BENEATH),
            ctypes.byref(rule),
            ctypes.c_uint32(0),
        )
    except OSError as error:
        raise SandboxError(f"landlock_add_rule {path}: {error.strerror}") from error
    finally:
        os.close(fd)


def open_real(path: str) -> int:
    """A real path, which has no symlinks: one that was put there meanwhile is not followed (openat2(2))."""
    how = (ctypes.c_uint64 * 3)(os.O_PATH | os.O_CLOEXEC, 0, _RESOLVE_NO_SYMLINKS)  # struct open_how
    size = ctypes.c_size_t(ctypes.sizeof(how))
    return _syscall(_NR_OPENAT2, ctypes.c_int(_AT_FDCWD), os.fsencode(path), ctypes.byref(how), size)
