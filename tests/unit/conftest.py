"""For the tests that draw their input."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis.configuration import set_hypothesis_home_dir


@pytest.fixture(autouse=True)
def _nothing_on_disk(tmp_path: Any) -> None:
    set_hypothesis_home_dir(tmp_path)  # it caches tables of characters
