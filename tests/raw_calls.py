"""Raw system calls for attacks: numbers by name, and many calls made by one process."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from arena import Arena
from pyseccomp import Arch, resolve_syscall

# Younger than the libseccomp of a stable distribution; the same on every architecture.
_YOUNG = {
    "statmount": 457, "listmount": 458, "lsm_get_self_attr": 459, "lsm_set_self_attr": 460, "lsm_list_modules": 461,
    "setxattrat": 463, "getxattrat": 464, "listxattrat": 465, "removexattrat": 466, "open_tree_attr": 467,
    "file_getattr": 468, "file_setattr": 469, "no_such_call": 9999,
}  # fmt: skip

# `raw(name, …)` is the system call; the names of a program are found in its text, so they are written in double quotes.
RAW = """\
import ctypes, fcntl, signal, stat
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def raw(name, *args):
    args = [ctypes.c_long(a) if isinstance(a, int) else a for a in args]
    result = libc.syscall(ctypes.c_long(V["numbers"][name]), *args)
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return result
def zeros(n):
    return ctypes.create_string_buffer(n)
def ints(*values):
    return (ctypes.c_int * len(values))(*values)
def longs(*values):
    return (ctypes.c_int64 * len(values))(*values)
"""

_EACH = """
def one(expression):
    try:
        eval(expression)
        return "done"
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error.errno))
def forked(expression):
    # What one call changes must not be what the next one finds; a call that hangs or kills is the child's affair.
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(5)
        os.write(writer, one(expression).encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(pid, 0)
    return os.read(reader, 64).decode() or "ended"
def attempt():
    return {name: (forked if V["fork"] else one)(expression) for name, expression in V["calls"].items()}
"""


class Call(NamedTuple):
    """`expression` is evaluated after RAW; confined it must fail with `errno`."""

    expression: str
    errno: str = "EPERM"


class Answers(NamedTuple):
    """What each call of a table came to: "done" or the name of an errno. None where this architecture lacks it."""

    free: dict[str, str]
    held: dict[str, str]

    def check(self, name: str, wanted: str, lack: str = "EPERM EACCES", works: str | None = None) -> None:
        """Skips where the kernel itself answers one of `lack`, or as the sandbox does: then nothing would be shown.

        A kernel that lacks a call (ENOSYS) shows as much as one that has it, for the filter refuses before either.
        """
        if name not in self.free:
            pytest.skip("this architecture has no such call")
        free = self.free[name]
        if free in (*lack.split(), wanted):
            pytest.skip(f"the kernel itself answers {free}")
        assert works in (None, free)
        assert self.held[name] == wanted, f"unconfined: {free}"


def numbers(code: str) -> dict[str, int]:
    """The numbers of the system calls that `code` names. Skips where this architecture lacks one."""
    found = {name: number(name) for name in re.findall(r'raw\("(\w+)"', code)}
    for name, value in found.items():
        if value < 0:
            pytest.skip(f"this architecture has no {name}")
    return found


def number(name: str) -> int:
    """Negative where this architecture has no such call."""
    return _YOUNG.get(name) or int(resolve_syscall(Arch.NATIVE, name))


def make(folder: Path, table: dict[str, Call], **variables: Any) -> Answers:
    """Every call of the table, unconfined each in a process of its own, confined all in one, by the same user."""
    named = {name: re.findall(r'raw\("(\w+)"', call.expression) for name, call in table.items()}
    here = {name: table[name].expression for name, used in named.items() if all(number(n) >= 0 for n in used)}
    variables |= {"calls": here, "numbers": {n: number(n) for name in here for n in named[name]}}
    arena = Arena(folder)
    free = arena.unconfined(RAW + _EACH, fork=True, **variables)
    held = arena.confined(RAW + _EACH, fork=False, **variables)
    assert (free.errno, held.errno) == (None, None), (free, held)
    return Answers(free.value, held.value)
