"""Landlock's access rights, and which of them this kernel knows (landlock(7)).

The child makes its own ruleset, before anything untrusted is in it, from the real paths of the policy: a path that has become
a symlink since is not opened.
"""

from __future__ import annotations

import os
import sys

from sandboxrun.sandbox.syscalls import syscall

# Numbers of the generic table, the same on every architecture.
_NR_CREATE_RULESET = 444
_NR_OPENAT2 = 437
_AT_FDCWD, _RESOLVE_NO_SYMLINKS = -100, 0x04


class Access:
    """LANDLOCK_ACCESS_FS_*, linux/landlock.h. Plain numbers: an IntFlag of them takes a quarter of a millisecond."""

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
ON_FILES = Access.EXECUTE | Access.WRITE_FILE | Access.READ_FILE | Access.TRUNCATE | Access.IOCTL_DEV


def handles(*, fs: int = 0, net: int = 0, scoped: int = 0) -> bool:
    """Whether this kernel's Landlock can deny these: it refuses a ruleset with a bit that it does not know."""
    size = 24 if scoped else 16 if net else 8  # an older kernel refuses a longer structure unless the rest is zero
    try:
        os.close(syscall("landlock_create_ruleset", _NR_CREATE_RULESET, words(fs, net, scoped), size, 0))
    except OSError:
        return False
    return True


def open_real(path: str) -> int:
    """Open a real path: a symlink that was put there meanwhile is not followed (openat2(2)). Raises OSError."""
    how = words(os.O_PATH | os.O_CLOEXEC, 0, _RESOLVE_NO_SYMLINKS)  # struct open_how
    return syscall("openat2", _NR_OPENAT2, _AT_FDCWD, os.fsencode(path) + b"\0", how, len(how))


def words(*values: int) -> bytes:
    """A structure of 64-bit words, as the newer calls take them."""
    return b"".join(value.to_bytes(8, sys.byteorder) for value in values)
