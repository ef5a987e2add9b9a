"""When a worker that has ended is started again. Pure.

A worker that ends is started again whatever its exit code is, also 0, because an id in the queue means that it shall run. It
waits twice as long each time, and not at all if somebody has removed its `pid`, which is how a restart is asked for. What
cannot get better by itself is not tried again until something has changed.
"""

from __future__ import annotations

import enum
import signal

from sandboxrun.records import never, record, replace

FIRST_SECONDS, MOST_SECONDS = 0.1, 30.0
ASKED_SECONDS = 1.0  # between two starts that are asked for, so that a loop of HDEL takes no whole processor
HEALTHY_SECONDS = 60.0  # a run that lasted for so long forgets the ends before it
FAILING = 5  # ends without such a run
# Exit codes (errors.py).
WAITING_CODES = frozenset({64, 65, 77, 78})  # until the hash, the policy or an approval has changed
LEASE_CODE = 73  # until the other run's lease is over
OUTAGE_CODES = frozenset({69, 71, 75})  # of something else, which counts as no end


class Until(enum.StrEnum):
    """What the next start waits for."""

    TIME = "time"
    CHANGE = "change"  # of what the worker is started from
    LEASE = "lease"  # of another run, until it is over
    OUTAGE = "outage"  # time, but no longer than until Redis is back


@record
class History:
    """`ends`: since the last healthy run; `tries`: in a row that an outage or a fault of the configuration has ended."""

    ends: int = 0
    tries: int = 0

    @property
    def is_failing(self) -> bool:
        return self.ends >= FAILING


@record
class Next:
    """`seconds`: from now on until the next start, or the next look at what it waits for. `counts`: as a restart."""

    until: Until
    seconds: float
    history: History
    counts: bool


def after(history: History, code: int, seconds: float, *, asked: bool, chance: float) -> Next:
    """What follows a run that has ended with this code after so many seconds.

    `asked`: somebody has removed its `pid`, so that it is started again. `chance`: from 0 to 1, against herds.
    """
    if asked:
        return Next(Until.TIME, max(0.0, ASKED_SECONDS - seconds), history, counts=True)
    if seconds >= HEALTHY_SECONDS:
        history = History()
    until = until_of(code)
    match until:
        case Until.TIME:
            history = History(history.ends + 1)
            most = MOST_SECONDS if not history.is_failing else 0.0
            delay = _delay(history.ends, chance) if most else MOST_SECONDS * (0.9 + chance / 10)
            return Next(until, delay, history, counts=True)
        case Until.CHANGE | Until.OUTAGE:
            history = replace(history, tries=history.tries + 1)
            return Next(until, _delay(history.tries, chance), history, counts=False)
        case Until.LEASE:
            return Next(until, FIRST_SECONDS, history, counts=False)
        case _:
            raise never(until)


def until_of(code: int) -> Until:
    if code in WAITING_CODES:
        return Until.CHANGE
    if code in OUTAGE_CODES:
        return Until.OUTAGE
    return Until.LEASE if code == LEASE_CODE else Until.TIME


def _delay(number: int, chance: float) -> float:
    """Before the start after the `number`th end, from 1 on."""
    return min(FIRST_SECONDS * 2.0 ** min(number - 1, 20), MOST_SECONDS) * (0.5 + chance / 2)


def in_words(code: int) -> str:
    """An exit code for people."""
    if 128 < code < 128 + 65:
        try:
            return f"signal {signal.Signals(code - 128).name}"
        except ValueError:
            pass
    return f"exit code {code}"


def label(code: int, *, asked: bool, stuck: bool = False) -> str:
    """The reason of a restart as one of few words, for metrics."""
    if stuck:
        return "stuck"
    if asked:
        return "asked"
    if until_of(code) is not Until.TIME:
        return until_of(code).value
    return "ended" if code == 0 else "signal" if code > 128 else "failed"
