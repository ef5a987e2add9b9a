"""When a worker that has ended is started again."""

from __future__ import annotations

import pytest

from sandboxrun import errors
from sandboxrun.host.restarts import (
    FAILING,
    HEALTHY_SECONDS,
    LEASE_CODE,
    MOST_SECONDS,
    OUTAGE_CODES,
    WAITING_CODES,
    History,
    Next,
    Until,
    after,
    in_words,
    label,
)


def ended(history: History, code: int = 1, seconds: float = 1, *, asked: bool = False, chance: float = 1) -> Next:
    return after(history, code, seconds, asked=asked, chance=chance)


def test_each_end_doubles_the_delay_and_the_fifth_fails() -> None:
    history, delays = History(), []
    for number in range(1, 8):
        found = ended(history)
        history = found.history
        delays.append(round(found.seconds, 3))
        assert history.is_failing == (number >= FAILING)
        assert found.counts
    assert delays == [0.1, 0.2, 0.4, 0.8, 30, 30, 30]


def test_a_healthy_run_forgets_the_ends_before_it() -> None:
    history = History(ends=9, tries=9)
    assert ended(history, seconds=HEALTHY_SECONDS - 1).history.ends == 10
    found = ended(history, seconds=HEALTHY_SECONDS)
    assert (found.history, found.seconds) == (History(1), 0.1)


@pytest.mark.parametrize("code", [0, 1, 66, 70, 134, 137, 139])
def test_any_end_of_its_own_starts_it_again(code: int) -> None:
    assert ended(History(), code).until is Until.TIME


def test_what_cannot_get_better_by_itself_waits_for_a_change() -> None:
    for code in WAITING_CODES:
        found = ended(History(), code)
        assert (found.until, found.counts, found.history.ends) == (Until.CHANGE, False, 0)
    assert {
        kind.exit_code
        for kind in (
            errors.UsageError,
            errors.IntegrityError,
            errors.ScriptError,
            errors.PolicyError,
            errors.ConfigError,
        )
    } == WAITING_CODES
    assert LEASE_CODE == errors.AlreadyRunningError.exit_code == errors.TakenOver.exit_code
    assert {kind.exit_code for kind in (errors.FetchError, errors.SandboxError, errors.StoreError)} == OUTAGE_CODES


def test_an_outage_is_no_end() -> None:
    history = History(ends=FAILING - 1)
    for _ in range(20):
        found = ended(history, 75)
        history = found.history
        assert (found.until, found.counts, history.is_failing) == (Until.OUTAGE, False, False)
    assert found.seconds == MOST_SECONDS
    assert ended(history, 73).until is Until.LEASE


def test_a_restart_that_is_asked_for_is_at_once_and_no_fault() -> None:
    history = History(ends=FAILING)
    assert ended(history, 143, asked=True) == Next(Until.TIME, 0.0, history, counts=True)
    assert after(history, 143, 0.25, asked=True, chance=0.5).seconds == 0.75  # a loop of HDEL takes no whole processor


def test_chance_keeps_many_from_starting_at_once() -> None:
    for history in (History(), History(ends=3), History(ends=9)):
        assert ended(history, chance=0).seconds < ended(history, chance=1).seconds <= MOST_SECONDS


def test_codes_in_words() -> None:
    assert [in_words(code) for code in (0, 3, 137, 192, 255)] == [
        "exit code 0",
        "exit code 3",
        "signal SIGKILL",
        "signal SIGRTMAX",
        "exit code 255",
    ]
    assert [label(code, asked=False) for code in (0, 1, 137, 78, 73, 75)] == [
        "ended",
        "failed",
        "signal",
        "change",
        "lease",
        "outage",
    ]
    assert (label(1, asked=True), label(1, asked=False, stuck=True)) == ("asked", "stuck")
