"""What an agent prints about its workers: one line for each start and each end, and none twice in a row."""

from __future__ import annotations

from sandboxrun.host import restarts
from sandboxrun.host.restarts import Until

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sandboxrun.host.pool import Ended, Running
    from sandboxrun.host.slot import Slot
    from sandboxrun.log import Log


def said(log: Log, running: Running, level: str, event: str, message: str, fields: dict[str, object]) -> None:
    """A message of a run, of which not every one names its worker."""
    hint: Any = fields.pop("hint", ())
    text = message if running.key in message else f"{running.type} {running.id}: {message}"
    log.write(level, event, text, fields, tuple(hint))


def say_end(log: Log, slot: Slot, ended: Ended, asked: bool) -> None:
    """One line, and none that says what the line before has said of this worker."""
    assert slot.next is not None
    what = f" has ended with {restarts.in_words(ended.code)}"  # why, the run has said
    hint: tuple[str, ...] = ()
    if ended.error is not None:
        what, hint = f": {ended.error}", ended.error.hint
    match slot.next.until:
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
