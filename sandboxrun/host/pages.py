"""The health page of a worker that runs on this host under a supervisor of the same user, found by the worker's pid."""

from __future__ import annotations

import os

from sandboxrun.sandbox.supervisor.health import Health, Page


def health_of(pid: int) -> Health | None:
    """None if it cannot be told: the worker has ended, is another user's, or its supervisor has several workers."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            parent = int(file.read(4096).rpartition(b")")[2].split()[1])  # proc_pid_stat(5)
        folder = f"/proc/{parent}/fd"
        pages = [fd for fd in os.listdir(folder) if os.readlink(f"{folder}/{fd}").startswith("/memfd:health ")]
        if len(pages) != 1:
            return None
        fd = os.open(f"{folder}/{pages[0]}", os.O_RDONLY | os.O_CLOEXEC)
    except (OSError, ValueError, IndexError):
        return None
    try:
        return Page(fd).read()
    finally:
        os.close(fd)
