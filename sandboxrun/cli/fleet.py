"""What the commands about running workers share: the workers of this host, and sizes for people."""

from __future__ import annotations

import os

from sandboxrun.config import keys
from sandboxrun.errors import ConfigError
from sandboxrun.host.folders import Folders


def known_here() -> list[tuple[str, str]]:
    """The workers that this user ever started on this host, from the records of their runs."""
    found = []
    try:
        names = os.listdir(Folders.of_user().runs)
    except (OSError, ConfigError):
        return []
    for name in names:
        try:
            found.append(keys.split_worker_key(f"{name.removesuffix('.json')}:h"))
        except ConfigError:
            continue
    return found


def size(count: float) -> str:
    """Bytes in a unit that is easy to read."""
    for unit, length in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= length:
            return f"{count / length:.1f} {unit}" if count < 10 * length else f"{count / length:.0f} {unit}"
    return f"{count:.0f} B"
