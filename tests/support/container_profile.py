"""Run a command as a container engine would: under its seccomp profile, without capabilities, and with a read-only root.

    python container_profile.py [--read-only [--tmpfs FOLDER]…] PROFILE COMMAND…

PROFILE is JSON as the OCI runtime specification has it (`linux.seccomp`). With --read-only every mount but /dev and /proc
is read-only, and each FOLDER is an empty tmpfs, as an emptyDir of Kubernetes is. Needs no root: an ordinary user gets a user namespace
for the mounts, as in a rootless container.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import json
import os
import struct
from typing import Any

import pyseccomp

CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000
MS_NOSUID, MS_NODEV, MS_REC, MS_PRIVATE = 2, 4, 16384, 1 << 18
AT_FDCWD, AT_RECURSIVE, MOUNT_ATTR_RDONLY = -100, 0x8000, 1
NR_MOUNT_SETATTR = 442  # x86-64 and aarch64 alike
PR_CAPBSET_DROP, PR_SET_SECUREBITS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 24, 28, 47, 4
SECURE_NOROOT_LOCKED = 0b11  # exec gives user 0 no capabilities, and that stays so
CAPABILITY_VERSION_3 = 0x20080522
ACTIONS = {"SCMP_ACT_ALLOW": pyseccomp.ALLOW, "SCMP_ACT_ERRNO": pyseccomp.ERRNO}
COMPARISONS = {
    "SCMP_CMP_NE": pyseccomp.NE,
    "SCMP_CMP_EQ": pyseccomp.EQ,
    "SCMP_CMP_LT": pyseccomp.LT,
    "SCMP_CMP_GT": pyseccomp.GT,
    "SCMP_CMP_MASKED_EQ": pyseccomp.MASKED_EQ,
}
ARCHITECTURES = {
    "SCMP_ARCH_X86_64": pyseccomp.Arch.X86_64,
    "SCMP_ARCH_X86": pyseccomp.Arch.X86,
    "SCMP_ARCH_X32": pyseccomp.Arch.X32,
}
libc = ctypes.CDLL(None, use_errno=True)


def checked(result: int, name: str) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")


def mount_read_only(writable: list[str]) -> None:
    """A mount namespace of our own in which only `writable`, /dev and /proc can be written."""
    uid, gid = os.geteuid(), os.getegid()
    checked(libc.unshare(CLONE_NEWNS | (CLONE_NEWUSER if uid else 0)), "unshare")
    if uid:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    checked(libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None), "mount /")
    _set_attributes("/", on=MOUNT_ATTR_RDONLY)
    for path in ("/dev", "/proc"):
        with contextlib.suppress(PermissionError):  # it was read-only before
            _set_attributes(path, off=MOUNT_ATTR_RDONLY)
    for path in writable:
        options = f"mode=700,uid={uid},gid={gid}".encode()
        checked(libc.mount(b"tmpfs", os.fsencode(path), b"tmpfs", MS_NOSUID | MS_NODEV, options), f"mount {path}")


def _set_attributes(path: str, *, on: int = 0, off: int = 0) -> None:
    attributes = struct.pack("=QQQQ", on, off, 0, 0)  # struct mount_attr
    checked(
        libc.syscall(
            ctypes.c_long(NR_MOUNT_SETATTR),
            ctypes.c_long(AT_FDCWD),
            ctypes.c_char_p(os.fsencode(path)),
            ctypes.c_long(AT_RECURSIVE),
            ctypes.c_char_p(attributes),
            ctypes.c_long(len(attributes)),
        ),
        f"mount_setattr {path}",
    )


def drop_capabilities() -> None:
    """All, from every set, so that no exec returns one. An ordinary user has none already."""
    if struct.unpack("=IIIIII", _capabilities())[:2] != (0, 0):
        with contextlib.suppress(OSError):
            checked(libc.prctl(PR_SET_SECUREBITS, SECURE_NOROOT_LOCKED, 0, 0, 0), "prctl")
        for number in range(64):
            if libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0) < 0 and ctypes.get_errno() == errno.EINVAL:
                break  # the kernel has no more
    libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    header = struct.pack("=Ii", CAPABILITY_VERSION_3, 0)
    checked(libc.capset(header, bytes(24)), "capset")


def _capabilities() -> bytes:
    data = ctypes.create_string_buffer(24)
    checked(libc.capget(struct.pack("=Ii", CAPABILITY_VERSION_3, 0), data), "capget")
    return data.raw


def apply_profile(profile: dict[str, Any]) -> None:
    """As runc(8) does: names that libseccomp does not know are left out; denied is EPERM unless a rule says otherwise."""
    denied = pyseccomp.ERRNO(profile.get("defaultErrnoRet", errno.EPERM))
    found = pyseccomp.SyscallFilter(defaction=denied)
    native = pyseccomp.system_arch()
    for name in profile["architectures"]:
        arch = ARCHITECTURES[name]
        if arch != native and native == pyseccomp.Arch.X86_64:
            found.add_arch(arch)
    for rule in profile["syscalls"]:
        action = ACTIONS[rule["action"]]
        if callable(action):
            action = action(rule.get("errnoRet", errno.EPERM))
        conditions = [_condition(each) for each in rule.get("args") or ()]
        if action == denied:
            continue
        for name in rule["names"]:
            with contextlib.suppress(ValueError, RuntimeError):
                if pyseccomp.resolve_syscall(native, name) != -1:
                    found.add_rule(action, name, *conditions)
    found.load()


def _condition(each: dict[str, Any]) -> Any:
    compare = COMPARISONS[each["op"]]
    if compare == pyseccomp.MASKED_EQ:
        return pyseccomp.Arg(each["index"], compare, each["value"], each.get("valueTwo", 0))
    return pyseccomp.Arg(each["index"], compare, each["value"])


def main() -> None:
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("profile")
    parser.add_argument("--read-only", action="store_true")
    parser.add_argument("--tmpfs", metavar="FOLDER", action="append", default=[])
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    with open(options.profile) as file:
        profile = json.load(file)
    if options.read_only:
        mount_read_only(options.tmpfs)
    drop_capabilities()
    apply_profile(profile)
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
