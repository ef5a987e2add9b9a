"""Landlock rulesets, made in the supervisor and applied by the child (landlock(7)).

The supervisor opens every path itself, so symlinks are resolved once, when the policy is made; the child only calls
landlock_restrict_self(2) with the descriptor it is given.
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
_CREATE_RULESET_VERSION = 1
_RULE_PATH_BENEATH = 1


class Abi(enum.IntEnum):
    """Landlock ABI levels and what each adds."""

    V1 = 1  # Linux 5.13: files
    V2 = 2  # 5.19: REFER
    V3 = 3  # 6.2: TRUNCATE. Below it a read-only grant would let a worker empty a file: our floor.
    V4 = 4  # 6.7: TCP bind and connect
    V5 = 5  # 6.10: ioctl on devices
    V6 = 6  # 6.12: scopes: abstract Unix sockets and signals


FLOOR = Abi.V3


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


_NET_BIND_TCP, _NET_CONNECT_TCP = 1 << 0, 1 << 1
_SCOPE_ABSTRACT_UNIX, _SCOPE_SIGNAL = 1 << 0, 1 << 1

READ = Access.READ_FILE | Access.READ_DIR
# No device nodes, sockets or FIFOs, and no EXECUTE: the child never executes anything.
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


def kernel_abi() -> int:
    """The running kernel's Landlock ABI; 0 where Landlock is missing or not enabled."""
    try:
        return _syscall(_NR_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_CREATE_RULESET_VERSION))
    except OSError:
        return 0


def require(abi: int) -> None:
    """Raise SandboxError, with what to do, where `abi` is below the floor."""
    if abi == 0:
        raise SandboxError(
            "this kernel has no Landlock: sandboxrun needs Linux 6.2 or newer, with landlock among the modules of the "
            "lsm= boot parameter (cat /sys/kernel/security/lsm)"
        )
    if abi < FLOOR:
        raise SandboxError(
            f"this kernel's Landlock has ABI {abi}: sandboxrun needs ABI {FLOOR:d} (Linux 6.2), which covers truncation"
        )


def create_ruleset(rules: Iterable[tuple[str, Access]], *, abi: int) -> int:
    """A ruleset descriptor (close-on-exec) that denies all files, TCP and scopes `abi` can, but for `rules`.

    `rules` are (real path, access). Raises SandboxError naming the path where one cannot be opened.
    """
    require(abi)
    handled = Access((1 << 16) - 1)
    if abi < Abi.V5:
        handled &= ~Access.IOCTL_DEV
    attr = _RulesetAttr(fs=handled)
    size = 8
    if abi >= Abi.V4:
        attr.net, size = _NET_BIND_TCP | _NET_CONNECT_TCP, 16
    if abi >= Abi.V6:
        attr.scoped, size = _SCOPE_ABSTRACT_UNIX | _SCOPE_SIGNAL, 24
    try:
        ruleset = _syscall(_NR_CREATE_RULESET, ctypes.byref(attr), ctypes.c_size_t(size), ctypes.c_uint32(0))
    except OSError as error:
        raise SandboxError(f"landlock_create_ruleset: {error.strerror}") from error
    try:
        for path, access in rules:
            _add_rule(ruleset, path, access & handled)
    except BaseException:
        os.close(ruleset)
        raise
    return ruleset


def _add_rule(ruleset: int, path: str, access: Access) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
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
