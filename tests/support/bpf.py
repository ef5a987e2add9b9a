"""Classic BPF as seccomp(2) runs it: the instructions that libseccomp emits, over struct seccomp_data."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

# linux/bpf_common.h and linux/filter.h
_LOAD, _AND, _JUMP, _RETURN = 0x20, 0x54, 0x05, 0x06  # LD|W|ABS, ALU|AND|K, JMP|JA, RET|K
_EQUAL, _GREATER, _GREATER_EQUAL, _ANY_BIT = 0x15, 0x25, 0x35, 0x45  # JMP|JEQ|K, JGT, JGE, JSET
_DATA = struct.Struct("=iIQ6Q")  # struct seccomp_data: number, architecture, instruction pointer, arguments


class Ran(NamedTuple):
    """`returned`: SECCOMP_RET_*; `steps`: instructions; `looked`: whether the program read an argument of the call."""

    returned: int
    steps: int
    looked: bool


class Program:
    """A compiled filter (struct sock_filter: u16 u8 u8 u32)."""

    def __init__(self, compiled: bytes) -> None:
        self.instructions = list(struct.iter_unpack("=HBBI", compiled))

    def run(self, arch: int, number: int, args: Sequence[int]) -> Ran:
        """`number`: 32 bits, unsigned. Raises ValueError for an instruction that the kernel would not load."""
        signed = number - (1 << 32) if number >= 1 << 31 else number
        data = _DATA.pack(signed, arch, 0, *args)
        accumulator = at = steps = 0
        looked = False
        while True:
            code, jt, jf, k = self.instructions[at]
            at, steps = at + 1, steps + 1
            if code == _LOAD:
                (accumulator,) = struct.unpack_from("=I", data, k)
                looked |= k >= 8  # past number and architecture
            elif code == _EQUAL:
                at += jt if accumulator == k else jf
            elif code == _GREATER:
                at += jt if accumulator > k else jf
            elif code == _GREATER_EQUAL:
                at += jt if accumulator >= k else jf
            elif code == _ANY_BIT:
                at += jt if accumulator & k else jf
            elif code == _AND:
                accumulator &= k
            elif code == _JUMP:
                at += k
            elif code == _RETURN:
                return Ran(k, steps, looked)
            else:
                raise ValueError(f"instruction {at - 1}: code {code:#x}")
