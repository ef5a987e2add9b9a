"""What the kernel opens to execute a program: the program, its interpreter or dynamic loader (execve(2), elf(5))."""

from __future__ import annotations

import os
import struct

_PT_INTERP = 3
_INTERPRETERS_MAX = 5  # fs/exec.c: more gives ELOOP
_HEADERS_MAX = 128


def loaded_with(path: str) -> list[str]:
    """Their paths, as the files name them, the program first.

    Raises OSError, and ValueError if it is neither ELF nor a script.
    """
    found: list[str] = []
    while len(found) <= _INTERPRETERS_MAX:
        found.append(path)
        with open(path, "rb") as file:
            head = file.read(256)
            if head.startswith(b"#!"):
                words = head[2:].split(b"\n")[0].split()
                if not words:
                    raise ValueError(f"{path} has no interpreter after #!")
                path = os.fsdecode(words[0])
                continue
            if head[:5] != b"\x7fELF\x02":
                raise ValueError(f"{path} is neither a 64-bit ELF program nor a script")
            offset, size, count = struct.unpack_from("=Q", head, 32)[0], *struct.unpack_from("=HH", head, 54)
            for number in range(min(count, _HEADERS_MAX)):
                file.seek(offset + number * size)
                header = file.read(56)
                if len(header) == 56 and struct.unpack_from("=I", header)[0] == _PT_INTERP:
                    start, length = struct.unpack_from("=Q", header, 8)[0], struct.unpack_from("=Q", header, 32)[0]
                    file.seek(start)
                    found.append(os.fsdecode(file.read(min(length, 4096)).rstrip(b"\0")))
        break
    return found
