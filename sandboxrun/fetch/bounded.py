"""A program that works on hostile input: at most so many bytes of output, and so many seconds of any clock."""

from __future__ import annotations

import os
import select
import subprocess
import time
from collections.abc import Sequence

_PART_BYTES = 1 << 16


def output_of(command: Sequence[str], data: bytes, *, max_bytes: int, seconds: float) -> tuple[bytes, int]:
    """The first `max_bytes` of the output, and the exit status: negative if the program was killed, as beyond a bound.

    The input is a file in memory: a pipe would have to be fed while the output is read.
    """
    deadline = time.monotonic() + seconds
    output = bytearray()
    with open(os.memfd_create("input", os.MFD_CLOEXEC), "w+b") as file:
        file.write(data)
        file.seek(0)
        process = subprocess.Popen(command, stdin=file, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={})
    with process:
        assert process.stdout is not None
        poll = select.poll()
        poll.register(process.stdout, select.POLLIN)
        try:
            while len(output) <= max_bytes and poll.poll(_left(deadline) * 1000):
                part = os.read(process.stdout.fileno(), _PART_BYTES)
                if not part:
                    process.wait(_left(deadline))
                    break
                output += part
        except subprocess.TimeoutExpired:
            pass
        finally:
            process.kill()  # nothing happens if it has ended
    return bytes(memoryview(output)[:max_bytes]), process.returncode


def _left(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())
