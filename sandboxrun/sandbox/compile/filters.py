"""Compiled filters: which of them a policy needs, kept from an earlier run, and made ready for one child.

A start that finds its filter kept imports neither the table (seccomp.py) nor libseccomp.
"""

from __future__ import annotations

import os
import struct

from sandboxrun.digests import hex_digest
from sandboxrun.files import Kept
from sandboxrun.records import asdict
from sandboxrun.sandbox.compile.grants import PID_PLACEHOLDER, Grants

_TABLE = os.path.join(os.path.dirname(__file__), "seccomp.py")
PROGRAM_MAX_BYTES = 4096 * 8  # BPF_MAXINSNS of struct sock_filter


def program(grants: Grants, kept: Kept | None = None) -> bytes:
    """The BPF program for this machine, with PID_PLACEHOLDER where the pid belongs. Raises SandboxError.

    Compiling takes longer than everything else about a start: libseccomp and its Python binding are loaded for it.
    """
    if kept is None:
        return _compile(grants)
    with open(_TABLE, "rb") as file:
        table = hex_digest(file.read())
    name = f"filter-{hex_digest(repr((table, asdict(grants), os.uname().machine)).encode())[:32]}.bpf"
    found = kept.get(name, PROGRAM_MAX_BYTES)
    if not found:
        found = _compile(grants)
        kept.put(name, found)
    return found


def _compile(grants: Grants) -> bytes:
    from sandboxrun.sandbox.compile import seccomp

    return seccomp.compile_program(grants)


def for_pid(compiled: bytes, pid: int) -> bytes:
    """`compiled` with the child's pid in place of the placeholder (struct sock_filter: u16 u8 u8 u32)."""
    instructions = struct.iter_unpack("=HBBI", compiled)
    return b"".join(
        struct.pack("=HBBI", code, jt, jf, pid if k == PID_PLACEHOLDER else k) for code, jt, jf, k in instructions
    )
