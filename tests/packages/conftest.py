from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from index import Index, serving
from installer import Machine


@pytest.fixture(autouse=True)
def _pip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What the operator has configured: nothing, but two tries for each request."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "PIP_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_RETRIES", "1")
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    """The operator's own index."""
    with serving() as found:
        monkeypatch.setenv("PIP_INDEX_URL", found.url)
        yield found


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)
