"""Warnings of an agent that others can cause again and again."""

from __future__ import annotations

import io

import pytest

from sandboxrun.host import saying
from sandboxrun.host.saying import Seldom
from sandboxrun.log import Log


def test_a_repeated_warning_is_said_once_and_then_with_a_count(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    seldom = Seldom(Log(stream=stream))
    for number in range(1000):
        seldom.warning("count", f"t has count {number}", subject="count t")
    seldom.warning("count", "u has count 1", subject="count u")
    monkeypatch.setattr(saying, "SELDOM_SECONDS", 0)
    seldom.warning("count", "t has count 5", subject="count t")
    seldom.warning("count", "t has count 6", subject="count t")
    assert stream.getvalue().splitlines() == [
        "warning: t has count 0",
        "warning: t has count 1",
        "warning: t has count 2",
        "warning: u has count 1",
        "warning: t has count 5 (997 more such warnings before)",
        "warning: t has count 6",
    ]


def test_subjects_fill_no_memory() -> None:
    seldom = Seldom(Log(stream=io.StringIO()))
    for number in range(10_000):
        seldom.warning("queue", str(number))
    assert len(seldom._said) == saying.SUBJECTS_MAX
