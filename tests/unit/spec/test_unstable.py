"""What a recorded test has instead of values that are never the same twice."""

from __future__ import annotations

import time
from typing import Any

import pytest

from sandboxrun.spec import match
from sandboxrun.testing.unstable import Known

NOW = time.time()
UNSTABLE: list[tuple[Any, Any]] = [
    ("2026-12-01T00:00:00.123Z", "2027-01-02T03:04:05Z"),
    ("at 2026-12-01 00:00:00+0100!", "at 2027-01-02 03:04:05+02:00!"),
    ("12345678-1234-1234-1234-123456789abc", "87654321-4321-4321-4321-cba987654321"),
    ("task:0123456789abcdef", "task:fedcba9876543210"),
    ("dbfd435c", "5997c78c"),
    ("A1B2C3D4E5F6", "0F0E0D0C0B0A"),
    (str(int(NOW)), str(int(NOW) + 5)),
    (f"{NOW:.3f}", f"{NOW + 5:.6f}"),
    (str(int(NOW * 1000)), str(int(NOW * 1000) + 5)),
    (NOW, NOW + 5),
    (int(NOW * 1000), int(NOW * 1000) + 5),
]
STABLE: list[Any] = ["defaced", "deadbeef", "12345678", "1234567890", "1000000000000", 1234567890, 7, True, "tea", None]


@pytest.mark.parametrize(("value", "other"), UNSTABLE, ids=range(len(UNSTABLE)))
def test_a_value_of_now_becomes_a_matcher_that_fits_the_next_one(value: Any, other: Any) -> None:
    expected = Known([]).loosened({"a": value})
    match.check(expected, "x")
    assert match.has_matcher(expected)
    for each in (value, other):
        assert list(match.differences(expected, {"a": each}, "x", is_open=False)) == []
    assert Known([value]).loosened(value) == value


@pytest.mark.parametrize("value", STABLE)
def test_what_may_be_the_same_each_time_stays(value: Any) -> None:
    assert Known([]).loosened(value) == value
