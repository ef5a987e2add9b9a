"""What an agent prints about its workers: one line for each start and each end, and none twice in a row."""

from __future__ import annotations

import time

from sandboxrun.host import restarts
from sandboxrun.host.restarts import Until

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sandboxrun.host.pool import Ended, Running
    from sandboxrun.host.slot import Slot
    from sandboxrun.log import Log


SELDOM_MOST, SELDOM_SECONDS = 3, 10.0
SUBJECTS_MAX = 100


class Seldom:
    """Warnings that whoever writes to Redis can cause again and again: a few of each subject in SELDOM_SECONDS, and the next one
    says how many were left out."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._said: dict[str, tuple[float, int]] = {}  # by subject: since when it is counted, and how many there were

    def warning(self, event: str, text: str, *, subject: str = "", hint: tuple[str, ...] = ()) -> None:
        """`subject`: the text itself, unless said otherwise."""
        subject, now = subject or text, time.monotonic()
        since, count = self._said.pop(subject, (now, 0))
        left_out = 0
        if now - since >= SELDOM_SECONDS:
            since, count, left_out = now, 0, max(0, count - SELDOM_MOST)
        while len(self._said) >= SUBJECTS_MAX:
            del self._said[next(iter(self._said))]
        self._said[subject] = since, count + 1
        if count < SELDOM_MOST:
            self._log.warning(event, text + (f" ({left_out} more such warnings before)" if left_out else ""), hint=hint)


def some(ids: tuple[str, ...]) -> str:
    return ", ".join(ids[:10]) + (f" and {len(ids) - 10} more" if len(ids) > 10 else "")


def said(log: Log, running: Running, level: str, event: str, message: str, fields: dict[str, object]) -> None:
    """A message of a run, of which not every one names its worker."""
    hint: Any = fields.pop("hint", ())
    text = message if running.key in message else f"{running.type} {running.id}: {message}"
    log.write(level, event, text, fields, tuple(hint))


def not_again(slot: Slot) -> str:
    return f"it is not started again, because {slot.type}:started:q does not hold its id any more"


def say_end(log: Log, slot: Slot, ended: Ended, asked: bool, *, is_gone: bool = False) -> None:
    """One line, and none that says what the line before has said of this worker. `is_gone`: no queue has its id any more."""
    assert slot.next is not None
    what = f" has ended with {restarts.in_words(ended.code)}"  # why, the run has said
    hint: tuple[str, ...] = ()
    if ended.error is not None:
        what, hint = f": {ended.error}", ended.error.hint
    match slot.next.until:
        case _ if is_gone:
            then = not_again(slot)
        case Until.TIME | Until.OUTAGE if not slot.noted:
            then = f"it is started again if {slot.type}:started:q holds its id once Redis is back"
        case Until.TIME if asked:
            then = "it is started again"
        case Until.TIME if slot.history.is_failing:
            then = f"it fails, and is tried every {restarts.MOST_SECONDS:g} s"
        case Until.TIME | Until.OUTAGE:
            then = "it is started again"
        case Until.CHANGE:
            then = "it waits for a change of its hash, its approval or the policy"
        case Until.LEASE:
            then = "it waits until that run is over"
    text = f"{slot.name}{what}; {then}"
    if slot.said == text:
        return
    slot.said = text
    if asked:
        log.info("restart", text, exit_code=ended.code)
    else:
        log.warning("restart", text, hint=hint, exit_code=ended.code)
