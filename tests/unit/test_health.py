"""The health page: what the worker writes is what the supervisor reads, and nothing in it can mislead the reader."""

from __future__ import annotations

import errno
import fcntl
import math
import os
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxrun import healthpage
from sandboxrun.sandbox.child import health as child
from sandboxrun.sandbox.supervisor import health as supervisor
from sandboxrun.sandbox.supervisor import spawn
from sandboxrun.sandbox.supervisor.health import BOUNDS, Health, Histogram, Page, stuck
from sandboxrun.worker.health import Health as Writer
from sandboxrun.worker.rendering import Entry

SPECIAL = (0.0, -1.0, math.nan, math.inf, -math.inf, 1e308, 5e-324)


@pytest.fixture
def page() -> Iterator[Page]:
    made = Page.create()
    yield made
    os.close(made.fd)


@pytest.fixture
def writer(page: Page, monkeypatch: pytest.MonkeyPatch) -> Writer:
    monkeypatch.setattr(sys, "_sandboxrun_health", None, raising=False)
    child.share(os.dup(page.fd))
    return Writer()


def entry(millis: int) -> Entry:
    return Entry(b"%d-0" % millis, {})


def check(health: Health, now: float) -> None:
    numbers = [health.handled, health.client_id, *health.handler.counts, *health.wait.counts]
    numbers += [number for pair in health.codes for number in pair]
    assert all(isinstance(number, int) and 0 <= number < 1 << 63 for number in numbers)
    for seconds, most in (
        (health.tick, now), (health.handling_since, now), (health.handler.sum, 1e12), (health.wait.sum, 1e12),
    ):  # fmt: skip
        assert isinstance(seconds, float) and 0 <= seconds <= most
    assert len(health.handler.counts) == len(health.wait.counts) == len(BOUNDS) + 1
    assert all(100 <= code <= 599 for code, _ in health.codes)
    assert health.ready in (True, False)
    for histogram in (health.handler, health.wait):
        for q in (0.0, 0.5, 0.99, 1.0):
            found = histogram.quantile(q)
            assert (found is None) == (histogram.count == 0)
            assert found is None or 0 <= found <= BOUNDS[-1]
    assert stuck(health, 5.0, now) in (True, False)


@given(st.binary(max_size=healthpage.BYTES), st.sampled_from(SPECIAL), st.integers(0, 7))
def test_any_bytes_are_finite_numbers_within_bounds(data: bytes, number: float, place: int) -> None:
    check(supervisor.parse(data, 1000.0), 1000.0)
    check(supervisor.parse(os.urandom(healthpage.BYTES), 1000.0), 1000.0)
    memory = bytearray(b"\xff" * healthpage.BYTES)
    memoryview(memory).cast("d")[place] = number
    check(supervisor.parse(bytes(memory), 1000.0), 1000.0)


def test_a_new_page_says_nothing(page: Page) -> None:
    assert page.read() == Health()


def test_the_supervisor_reads_what_the_worker_writes(page: Page, writer: Writer) -> None:
    writer.ready()
    writer.tick()
    writer.reads_as(17)
    writer.took(0.3)
    writer.handled(3, 2, 0.3001)
    for code in (200, 500, 400, 500):
        writer.replied(code)
    writer.times[healthpage.HANDLING_SINCE] = 12.5
    found = page.read()
    assert found.ready and found.tick > 0
    assert (found.client_id, found.handled, found.handling_since) == (17, 3, 12.5)
    assert found.codes == ((400, 1), (500, 2))
    assert found.handler.counts[0] == 2 and found.handler.count == 3
    assert found.handler.sum == pytest.approx(0.3001)
    writer.handled(1, 0, 0)
    assert page.read().codes == ((200, 1), (400, 1), (500, 2))


def test_more_codes_than_there_is_room_for_overwrite_nothing(page: Page, writer: Writer) -> None:
    for code in range(300, 300 + 2 * healthpage.CODES_MOST):
        writer.replied(code)
    assert [code for code, _ in page.read().codes] == [*range(300, 300 + healthpage.CODES_MOST)]


@pytest.mark.parametrize(
    ("millis", "first", "last", "expected"),
    [
        ((1000,), 1.0, 1.0, [0.0]),
        ((5000,), 1.0, 1.0, [0.0]),  # Redis's clock is ahead
        ((1000,), 3.0, 3.0, [2.0]),
        ((1000, 1000, 1000), 1.3, 1.3001, [0.3, 0.3, 0.3]),  # all of one bucket
        ((0, 9000, 9000), 10.0, 10.0, [10.0, 1.0, 1.0]),
        ((9000, 9000, 9000), 9.0, 11.0, [0.0, 1.0, 2.0]),  # each begins when the one before has ended
    ],
)
def test_a_wait_is_from_an_entrys_time_to_its_begin(
    page: Page, writer: Writer, millis: tuple[int, ...], first: float, last: float, expected: list[float]
) -> None:
    writer.waited([entry(each) for each in millis], first, last)
    counts = [0] * (len(BOUNDS) + 1)
    for seconds in expected:
        counts[sum(bound < seconds - 1e-6 for bound in BOUNDS)] += 1
    found = page.read().wait
    assert found.counts == tuple(counts)
    assert found.sum == pytest.approx(sum(expected), abs=0.001)


def test_a_worker_without_sandboxrun_writes_to_its_own_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(sys, "_sandboxrun_health", raising=False)
    writer = Writer()
    assert not writer.shared
    writer.ready()
    writer.handled(1, 1, 0.1)


def test_a_quantile_lies_in_its_bucket() -> None:
    counts = [0] * (len(BOUNDS) + 1)
    assert Histogram(tuple(counts)).quantile(0.5) is None
    counts[3], counts[6] = 90, 10
    found = Histogram(tuple(counts))
    half, most = found.quantile(0.5), found.quantile(0.99)
    assert half is not None and BOUNDS[2] <= half <= BOUNDS[3]
    assert most is not None and BOUNDS[5] <= most <= BOUNDS[6]
    counts[-1] = 1000
    assert Histogram(tuple(counts)).quantile(0.99) == BOUNDS[-1]


@pytest.mark.parametrize(
    ("since", "tick", "limit", "expected"),
    [
        (0.0, 0.0, 5, False),  # nothing is in hand
        (90.0, 89.0, 5, True),
        (90.0, 89.0, 0, False),  # no limit
        (90.0, 89.0, 15, False),  # not yet
        (90.0, 98.5, 1, False),  # a loop that says each second that it turns
        (10.0, 99.0, 5, False),  # a long handler, and a loop that turns
        (10.0, 90.0, 5, True),  # a long handler, and the loop has stopped since
    ],
)
def test_a_worker_is_stuck_if_its_loop_has_not_turned_during_a_long_handler(
    since: float, tick: float, limit: int, expected: bool
) -> None:
    assert stuck(Health(handling_since=since, tick=tick), limit, 100.0) is expected


@pytest.mark.parametrize("size", [0, 8192])
def test_nobody_can_change_the_size_of_a_page(page: Page, size: int) -> None:
    with pytest.raises(OSError) as caught:
        os.ftruncate(page.fd, size)
    assert caught.value.errno == errno.EPERM


def test_nobody_can_seal_a_page_against_writing(page: Page) -> None:
    with pytest.raises(OSError) as caught:
        fcntl.fcntl(
            page.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_FUTURE_WRITE if hasattr(fcntl, "F_SEAL_FUTURE_WRITE") else 0x10
        )
    assert caught.value.errno == errno.EPERM


def test_the_copies_of_the_size_are_equal() -> None:
    assert spawn.HEALTH_BYTES == child._BYTES == healthpage.BYTES
    assert healthpage.HANDLER + healthpage.BUCKETS <= healthpage.WAIT
    assert healthpage.WAIT + healthpage.BUCKETS <= healthpage.CODES
    assert 8 * (healthpage.CODES + 2 * healthpage.CODES_MOST) <= healthpage.BYTES
