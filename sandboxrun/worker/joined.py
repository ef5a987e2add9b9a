"""Effects on their way to Redis: replies that depend on state, and what Redis refuses of an effect.

A reply that depends on state is written only if each hash is still what the handler has read:

    WATCH key · HGETALL key …                                      the values are compared
    MULTI · the replies · the changes · XACK · EXEC · WATCH F · HEXISTS F c

The watch begins before the second reading, so EXEC does nothing if a key changes after it. The first reading needs no
watch, and happens on another connection: values decide, not their history. If they differ, nothing is written, and the
handler runs again. The second reading is given up if it is far larger than what was read, and counts as another value:
whoever can write the key must not fill our memory. No other transaction is sent in between, because EXEC ends every
watch. Replies without state are in none of these transactions, so no change of a key delays or repeats them. If EXEC
does nothing, a key has changed or the fence is broken. Claims.verify finds out which entries are still ours, and writes
them again, by way of this module.

refusals.py says which effects were refused, and what follows. Imported by the first handler that has an effect.
"""

from __future__ import annotations

from sandboxrun.redis.connection import pack
from sandboxrun.redis.replies import ReplyError, is_wrong_type
from sandboxrun.worker.claims import Claims
from sandboxrun.worker.refusals import errors, of_effects

# That a second reading may have more than what was read; parts of other replies that come with it count too.
GROWTH_MAX_BYTES = 2 * 1024 * 1024

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Protocol

    from sandboxrun.worker.effects import Emit
    from sandboxrun.worker.rendering import Entry
    from sandboxrun.worker.states import State

    class Owner(Protocol):
        """The worker. Each method is called under the lock of the claims, in any thread."""

        def changed(self, entry: Entry, again: Entry) -> None:
            """The reply was not written, because a state had changed: the request is to be handled again, as `again`."""

        def refused(self, entry: Entry, error: Exception) -> None:
            """Redis refuses the effects: the reply is to be replaced by one without them. It is sent by `verify`."""

        def refused_state(self, entry: Entry, error: ReplyError) -> None:
            """As `refused`, for a reply that was not sent."""

        def undelivered(self, entry: Entry, emit: Emit, error: ReplyError) -> bytes:
            """The reply was written, and the emit was not: the commands of its dead letter."""

        def committed(self, entry: Entry) -> None:
            """The reply is written, and its changes of state with it."""


class Joined:
    """Part of the claims, and under their lock, as soon as one reply has had effects."""

    def __init__(self, claims: Claims, owner: Owner) -> None:
        self._claims, self._owner = claims, owner
        self._waiting: list[Entry] = []  # replies that depend on state; they count as sent
        self._reading: list[Entry] = []  # those whose second reading is in flight
        self._watches: list[Any] = []  # the replies to its WATCHes
        self._letters: list[bytes] = []  # dead letters, until Redis has them

    def clear(self) -> None:
        """Nothing is on its way any more. What was counts as sent, so `verify` writes it again."""
        self._waiting.clear()
        connection = self._claims.connection
        if 0 < connection.receive_most < connection.received:
            for entry in self._reading:
                if entry.effects is not None:
                    entry.effects.outgrown = True
        self._read_all()

    def _read_all(self) -> None:
        self._claims.connection.receive_most = 0
        self._reading = []

    # --- replies that depend on state

    def take(self, entries: list[Entry]) -> list[Entry]:
        """Keep the entries that depend on state for `begin`, and return the others."""
        others = []
        for entry in entries:
            if entry.effects is None or not entry.effects.states:
                others.append(entry)
            else:
                entry.sent = True
                self._waiting.append(entry)
        return others

    def begin(self) -> None:
        """Queue the second reading for all that waits, if no transaction is in flight."""
        claims = self._claims
        if not self._waiting or not claims._armed or claims._verifying:
            return
        waiting, self._waiting = self._waiting, []
        entries = []
        for entry in waiting:
            if entry.effects is None or not entry.effects.outgrown:
                entries.append(entry)
            elif claims.has(entry):
                self._not_written(entry, None)
        if not entries:
            return
        keys = [key for entry in entries for key in _states(entry)]
        claims._armed = False  # until the transaction is confirmed
        claims.expect([pack("WATCH", key) for key in keys], len(keys), self._bound, entries)
        claims.expect([pack("HGETALL", key) for key in keys], len(keys), self._compare, entries)

    def _bound(self, replies: list[Any], entries: list[Entry]) -> None:
        """The values come next: bound them."""
        self._watches, self._reading = replies, entries
        connection = self._claims.connection
        before = sum([state.size_read for entry in entries for state in _states(entry).values()])
        connection.receive_most = connection.received + before + GROWTH_MAX_BYTES

    def _compare(self, replies: list[Any], entries: list[Entry]) -> None:
        self._read_all()
        claims, at = self._claims, 0
        unchanged: list[Entry] = []
        others: list[tuple[Entry, ReplyError | None]] = []
        written: set[str] = set()  # keys that an earlier one of these entries changes
        for entry in entries:
            states = _states(entry)
            part = slice(at, at + len(states))
            own, at = replies[part], part.stop
            if not claims.has(entry):
                continue
            error = claims.lasting_error([*self._watches[part], *own])
            if error is None and written.isdisjoint(states) and _all_still(states, own):
                unchanged.append(entry)
                written.update(key for key, state in states.items() if state.changed)
            else:
                others.append((entry, error))
        if unchanged:
            claims._execute(claims._replies(unchanged), claims._count(unchanged), self._written, unchanged)
        else:
            claims.expect((pack("UNWATCH"), claims._watch), 3, self._watched)
        for entry, error in others:
            self._not_written(entry, error)

    def _not_written(self, entry: Entry, error: ReplyError | None) -> None:
        if error is None or is_wrong_type(error):
            # Another object, so that whoever still holds the first one cannot write its reply.
            self._claims.hand[entry.xid] = again = entry.again()
            self._owner.changed(entry, again)
        else:
            entry.sent = False
            self._owner.refused_state(entry, error)

    def _watched(self, replies: list[Any], _: Any) -> None:
        claims = self._claims
        claims._armed = replies[1] == b"OK" and replies[2] == 1
        claims.broken = not claims._armed
        self.begin()

    def _written(self, results: list[Any] | None, entries: list[Entry]) -> None:
        self._claims._written(results, entries)
        if results is not None:
            for entry in entries:
                self._owner.committed(entry)

    # --- what Redis refuses

    def refused(self, entries: list[Entry], queued: list[Any]) -> bool:
        """Whether a transaction was refused for its effects, and for good: then the replies are made without them."""
        found = of_effects(entries, queued)
        for entry, error in (found or {}).items():
            self._owner.refused(entry, error)
        return found is not None

    def report(self, entries: list[Entry], results: Sequence[Any]) -> None:
        """What a transaction has left undone: an emit becomes a dead letter, and for everything else there is a warning."""
        for entry, index, error in errors(entries, results):
            emit = entry.effects.emit_at(index) if entry is not None and entry.effects is not None else None
            if entry is not None and emit is not None:
                self._letters.append(self._owner.undelivered(entry, emit, error))
                self._send(self._letters[-1:])
            else:
                self._claims.warn_part(error)

    def send_again(self) -> None:
        """Send the dead letters that were on their way over a connection that is lost."""
        self._send([*self._letters])

    def _send(self, letters: list[bytes]) -> None:
        if letters:
            self._claims.expect(letters, len(letters), self._sent, letters)

    def _sent(self, replies: list[Any], letters: list[bytes]) -> None:
        error = self._claims.lasting_error(replies)
        if error is not None:
            self._claims.warn(f"a dead letter was refused by Redis: {str(error)[:200]}")
        for letter in letters:
            self._letters.remove(letter)


def _states(entry: Entry) -> dict[str, State]:
    return entry.effects.states if entry.effects is not None else {}


def _all_still(states: dict[str, State], replies: list[Any]) -> bool:
    return all(state.is_still(reply) for state, reply in zip(states.values(), replies, strict=True))
