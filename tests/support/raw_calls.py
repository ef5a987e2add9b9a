"""Raw system calls for attacks: numbers by name, and many acts in one process."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from arena import Arena
from pyseccomp import Arch, resolve_syscall

# Newer than the libseccomp of a stable distribution; the same number on every architecture.
_YOUNG = {
    "statmount": 457, "listmount": 458, "lsm_get_self_attr": 459, "lsm_set_self_attr": 460, "lsm_list_modules": 461,
    "setxattrat": 463, "getxattrat": 464, "listxattrat": 465, "removexattrat": 466, "open_tree_attr": 467,
    "file_getattr": 468, "file_setattr": 469, "no_such_call": 9999,
}  # fmt: skip

# `raw(name, …)` makes a system call. `numbers` searches the text of a program for these names, in double quotes.
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
import textwrap
SCRATCH = os.getcwd()
def one(name):
    folder, body = V["folders"][name], V["acts"][name]
    os.mkdir(f"{SCRATCH}/{folder}")
    os.chdir(f"{SCRATCH}/{folder}")
    scope = dict(globals(), OWN=V["own"].get(name))
    exec("def act():\\n" + textwrap.indent(body, "    "), scope)
    try:
        value = scope["act"]()
        return "done" if value is None else value
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error.errno))
    except Exception as error:  # termios.error, which is no OSError, has the number too
        return errno.errorcode.get(error.args[0] if error.args else None, repr(error))
def forked(name):
    # In a child of its own, so that an act does not change what the next one finds, and may hang or kill its process.
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(5)
        try:
            os.write(writer, json.dumps(one(name)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(pid, 0)
    return json.loads(os.read(reader, 4096) or '"ended"')
def attempt():
    return {name: (forked if V["fork"] else one)(name) for name in V["acts"]}
"""


class Act(NamedTuple):
    """`body` runs after RAW, in a folder of its own; confined it must fail with `errno`."""

    body: str
    errno: str = "EPERM"


class Answers(NamedTuple):
    """The outcome of each act: "done", the value that it returned, the name of an errno, or "ended" if its process died.

    Acts whose calls this architecture lacks are left out. `…_made`: the names of the files in the folder of each act.
    """

    free: dict[str, Any]
    held: dict[str, Any]
    free_made: dict[str, list[str]]
    held_made: dict[str, list[str]]

    def check(self, name: str, wanted: str, lack: str = "EPERM EACCES", works: Any = None) -> None:
        """Skip if the kernel itself answers one of `lack`, or what the sandbox answers: then the test would show nothing.

        A kernel without the call (ENOSYS) shows as much as one with it, because the filter refuses before both.
        """
        if name not in self.free:
            pytest.skip("this architecture has no such call")
        free = self.free[name]
        if free in (*lack.split(), wanted):
            pytest.skip(f"the kernel itself answers {free}")
        assert works in (None, free), f"unconfined: {free}"
        assert self.held[name] == wanted, f"unconfined: {free}"


def numbers(code: str) -> dict[str, int]:
    """The numbers of the system calls that `code` names. Skips if this architecture lacks one."""
    found = {name: number(name) for name in re.findall(r'raw\("(\w+)"', code)}
    for name, value in found.items():
        if value < 0:
            pytest.skip(f"this architecture has no {name}")
    return found


def number(name: str) -> int:
    """Negative if this architecture has no such call."""
    return _YOUNG.get(name) or int(resolve_syscall(Arch.NATIVE, name))


def make(
    where: Path | Arena,
    table: Mapping[str, Act],
    *,
    prelude: str = "",
    own: Mapping[str, Any] | None = None,
    **variables: Any,
) -> Answers:
    """Do every act of the table as the same user: unconfined each in a process of its own, confined all in one process.

    `own`: the value of OWN for each unconfined act. `variables`: the values in V for all acts.
    """
    named = {name: re.findall(r'raw\("(\w+)"', act.body) for name, act in table.items()}
    here = {name: table[name].body for name, used in named.items() if all(number(n) >= 0 for n in used)}
    folders = {name: str(index) for index, name in enumerate(here)}
    known = {n: number(n) for name in here for n in named[name]}
    variables |= {"acts": here, "folders": folders, "numbers": known}
    arena = where if isinstance(where, Arena) else Arena(where)

    def made() -> dict[str, list[str]]:
        return {name: sorted(path.name for path in (arena.scratch / folders[name]).iterdir()) for name in here}

    free = arena.unconfined(RAW + prelude + _EACH, **{**variables, "fork": True, "own": own or {}})
    assert free.errno is None, free
    free_made = made()
    arena.empty_scratch()
    held = arena.confined(RAW + prelude + _EACH, **{**variables, "fork": False, "own": {}})
    assert held.errno is None, held
    return Answers(free.value, held.value, free_made, made())
