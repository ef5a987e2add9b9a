"""The workers of this host."""

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
