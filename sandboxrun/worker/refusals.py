"""What Redis refuses of a transaction with effects. Pure.

While commands are queued, one refusal takes the whole transaction with it, as after a change of the worker's ACL. Then the
request whose effect was refused is answered 500, without its effects, and the other replies are written again. EXEC itself
takes nothing back: if the stream of an emitted request turns out to be no stream, the reply was written and the request was
not. It becomes a dead letter.
"""

from __future__ import annotations

from sandboxrun.redis.replies import ReplyError, translated

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

    from sandboxrun.worker.rendering import Entry


def of_effects(entries: Iterable[Entry], queued: Sequence[Any]) -> dict[Entry, Exception] | None:
    """The entries whose effects were refused while they were queued, with the reasons.

    None if the transaction failed for another reason, or for one that passes.
    """
    found: dict[Entry, Exception] = {}
    for entry, index, error in errors(entries, queued):
        if entry is None or entry.effects is None or not entry.effects.has(index) or translated(error, "") is not error:
            return None
        found.setdefault(entry, entry.effects.refusal(index, error))
    return found or None


def errors(entries: Iterable[Entry], replies: Sequence[Any]) -> list[tuple[Entry | None, int, ReplyError]]:
    """Each error, with the entry of its command and the index among that entry's commands; None: the common XACK."""
    found: list[tuple[Entry | None, int, ReplyError]] = []
    at = 0
    for entry in entries:
        own = replies[at : at + entry.count]
        found += [(entry, index, reply) for index, reply in enumerate(own) if isinstance(reply, ReplyError)]
        at += entry.count
    return found + [(None, 0, reply) for reply in replies[at:] if isinstance(reply, ReplyError)]
