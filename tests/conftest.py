from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from arena import Arena, Listener, listening

from sandboxrun.sandbox import landlock


@pytest.fixture(scope="session", autouse=True)
def _kernel() -> None:
    """A kernel without Landlock skips locally and fails in CI."""
    if landlock.kernel_abi() < landlock.FLOOR:
        message = f"Landlock ABI {landlock.kernel_abi()} is below the floor {landlock.FLOOR:d}"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)


@pytest.fixture
def arena(tmp_path: Path) -> Arena:
    folder = tmp_path / "arena"
    folder.mkdir()
    return Arena(folder)


@pytest.fixture
def listener() -> Iterator[Listener]:
    with listening() as found:
        yield found
