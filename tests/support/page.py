"""The health page of a worker, read from outside as its supervisor reads it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from sandboxrun.sandbox.supervisor.health import Health, Page


@contextlib.contextmanager
def page_of(supervisor: int) -> Iterator[Page]:
    """The page that the process `supervisor` shares with its worker."""
    folder = f"/proc/{supervisor}/fd"
    (number,) = [fd for fd in os.listdir(folder) if _is_page(f"{folder}/{fd}")]
    fd = os.open(f"{folder}/{number}", os.O_RDWR | os.O_CLOEXEC)
    try:
        yield Page(fd)
    finally:
        os.close(fd)


def _is_page(path: str) -> bool:
    try:
        return os.readlink(path).startswith("/memfd:health")
    except FileNotFoundError:
        return False


def health_of(supervisor: int) -> Health:
    with page_of(supervisor) as page:
        return page.read()
