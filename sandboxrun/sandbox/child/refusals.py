"""Runs in the worker's process: the lines for an error of the operating system that the sandbox has caused.

A line names the grant that was missing, or says why there is none. Imported when the first such error is shown.
"""

from __future__ import annotations

import os

from sandboxrun.sandbox.child import programs
from sandboxrun.sandbox.child.calls import UNKNOWN, FailedCall
from sandboxrun.sandbox.child.denials import Grants, never

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_EPERM = 1
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_OPENS = frozenset({"open", "FileIO"})
_FILE_CHANGES = frozenset("chmod fchmod lchmod truncate utime".split())
# The kernel checks the right on the folder, because an entry of it is added or removed.
_ENTRY_CHANGES = frozenset("link mkdir remove rename replace rmdir symlink unlink".split())
_SHARED_MEMORY = "/dev/shm"  # noqa: S108  # where glibc has what shm_open(3) and sem_open(3) make
_SHARED = frozenset({"SemLock", "shm_open"})
_SOCKET_CALLS = frozenset({"bind", "listen", "connect", "connect_ex"})  # of patches.NamedSocket
_FORKS = frozenset({"fork", "fork1"})
_NEVER = {
    **dict.fromkeys(("chown", "fchown", "lchown"), "changing the owner of a file"),
    **dict.fromkeys(("setxattr", "removexattr"), "changing extended attributes of a file"),
    **dict.fromkeys(("mkfifo", "mknod"), "making a FIFO or a device node"),
    **dict.fromkeys(("kill", "killpg", "pidfd_send_signal"), "sending signals to processes outside of the sandbox"),
    **dict.fromkeys(("setsid", "setpgid", "setpgrp"), "a session or a process group of its own"),
    **dict.fromkeys(("openpty", "forkpty", "posix_openpt"), "a terminal of its own"),
    **dict.fromkeys(("setuid", "setgid", "seteuid", "setegid", "setreuid", "setregid", "setresuid", "setresgid",
                     "setgroups", "initgroups"), "becoming another user"),
    **dict.fromkeys(("sched_setscheduler", "sched_setparam", "setpriority"), "changing the scheduling of processes"),
    "chroot": "another root folder",
    "prlimit": "changing the limits of other processes",
    "setsockopt": "this option of a socket",
    "pidfd_open": "a handle on a process",
}  # fmt: skip


def lines(error: OSError, grants: Grants) -> list[str]:
    """One for each grant that is missing; none if nothing is known of the error."""
    call = FailedCall(error)
    if call.module == "pty":
        return [never(_NEVER["openpty"])]
    if error.errno is None:
        return []
    if call.name in _SHARED:
        missing = [kind for kind in ("read", "write") if not grants.allows(kind, _SHARED_MEMORY)]
        return [grants.denial(kind, _SHARED_MEMORY, _SHARED_MEMORY) for kind in missing]
    wanted = programs.of_call(call, error)
    if wanted:
        found = programs.lines(wanted, grants)
        in_session = call.module == "subprocess" and call.variables.get("start_new_session")
        return found or ([never(_NEVER["setsid"])] if in_session else [])
    if call.name in _FORKS:
        return programs.fork_lines(grants)
    if call.name in _NEVER:
        return [never(_NEVER[call.name])]
    if call.module == "socket" or call.caller in _SOCKET_CALLS:
        return _of_socket(call, grants) if error.errno == _EPERM else []  # the supervisor names what it refuses: EACCES
    # Of utime(2), Python gives no file's name.
    name = error.filename or (call.argument(0, "path") if call.name in _FILE_CHANGES else None)
    if isinstance(name, os.PathLike):
        name = os.fspath(name)
    return _of_file(call, error, name, grants) if isinstance(name, str | bytes) else []


def _of_socket(call: FailedCall, grants: Grants) -> list[str]:
    variables = call.variables
    if call.module == "socket" and call.caller == "__init__":
        import socket

        family, kind = variables.get("family"), variables.get("type")
        if family in (socket.AF_INET, socket.AF_INET6) and kind == socket.SOCK_DGRAM:
            return [never("a UDP socket", "names are resolved by socket.getaddrinfo() alone")]
        return [never(f"a socket of {getattr(family, 'name', family)} and {getattr(kind, 'name', kind)}")]
    address: Any = variables.get("address")
    if call.caller == "bind" and not isinstance(address, tuple):
        return [never("listening on a Unix socket")]
    if call.caller == "bind" and len(address) >= 2:
        host = str(address[0]) or ("::" if len(address) == 4 else "0.0.0.0")  # noqa: S104  # shown, not bound
        place = f"[{host}]:{address[1]}" if ":" in host else f"{host}:{address[1]}"
        return [grants.denial("listen", place, place)]
    return []


def _of_file(call: FailedCall, error: OSError, name: str | bytes, grants: Grants) -> list[str]:
    path = _absolute(name, call)
    if path is None:
        return []
    if call.name in _ENTRY_CHANGES:
        # Of a symlink, the second is what is made. Of others, both folders change.
        names = [error.filename2] if call.name == "symlink" else [name, error.filename2]
        paths = [changed for each in names if each is not None and (changed := _absolute(each, call)) is not None]
        missing = [changed for changed in paths if not grants.allows("write", os.path.dirname(changed))]
        return [grants.file("write", changed, in_folder=True) for changed in missing or [path]]
    if error.filename2 is not None:
        return [grants.file("write", path, in_folder=True)]
    kinds = ["write"] if call.name in _FILE_CHANGES else _opened_for(call) if call.name in _OPENS else []
    kinds = kinds or [_probed(path)]
    place = path if os.path.lexists(path) else os.path.dirname(path)
    missing = [kind for kind in kinds if not grants.allows(kind, place)]
    return [grants.file(kind, path) for kind in missing or kinds[-1:]]


def _absolute(name: Any, call: FailedCall) -> str | None:
    """None if the name is relative to a folder that nobody knows any more."""
    path = os.fsdecode(name)
    if os.path.isabs(path):
        return os.path.normpath(path)
    folder = call.argument(9, "dir_fd", "src_dir_fd", default=None)
    if folder is None or folder is UNKNOWN:
        return os.path.abspath(path)
    try:
        return os.path.join(os.readlink(f"/proc/self/fd/{int(folder)}"), path)
    except (TypeError, ValueError, OSError):  # it was closed while the error passed through
        return None


def _opened_for(call: FailedCall) -> list[str]:
    """The kinds that an open(2) wanted, the last one being what it was refused for; none if that is not known."""
    mode = call.argument(1, "mode", "flags", default="r")
    if isinstance(mode, str):
        writes = bool(set(mode) & set("wax+"))
        reads = "+" in mode or not writes
    elif isinstance(mode, int):
        writes = bool(mode & _WRITES)
        reads = mode & os.O_ACCMODE in (os.O_RDONLY, os.O_RDWR)
    else:
        return []
    return [kind for kind, wanted in (("read", reads), ("write", writes)) if wanted]


def _probed(path: str) -> str:
    """For a call that is unknown: one for reading would not be refused what is not there, nor what can be read now."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC))
    except PermissionError:
        return "read" if os.path.lexists(path) else "write"
    except OSError:
        pass
    return "write"
