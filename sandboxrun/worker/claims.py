"""Claims and the fence: who may answer a request, takeover, renewal, handing back.

For each delivered entry Redis keeps which consumer has it, since when, and how often it was delivered. Another consumer may
take a claim that was not renewed for `takeoverMillis`. The old owner may only be frozen, and could send its reply once it
wakes. So every transaction of replies is fenced:

    DEL F · HSET F c 1 · WATCH F · HEXISTS F c          once for each connection
    MULTI · the replies · XACK · EXEC · WATCH F · HEXISTS F c

F is one hash for each consumer, and its only field is a random name that this process has chosen. Whoever takes a claim
deletes the owner's F in the same transaction; a new process of the same consumer writes a name of its own. Either changes a
watched key, so EXEC does nothing, however late it arrives. EXEC also ends the watch. It is followed by a new WATCH, and by
HEXISTS, because F may have been deleted in between. The next transaction is sent after that answer has come. So a reply is
written if and only if nobody took a claim from this consumer since it was last known to hold them. It costs no further round
trip, because the answer comes while the next requests are handled. If a server that is full or read-only refuses one of
these commands, the fence does not count as intact. After a break the consumer makes a new fence, asks which claims it still
has, and writes again the replies that are still its own.
"""

from __future__ import annotations

import os
import time

from sandboxrun.config import keys
from sandboxrun.errors import ConnectionLost, LoginRefused, TakenOver
from sandboxrun.protocol import HANDED_BACK_MILLIS
from sandboxrun.redis.connection import Connection, pack
from sandboxrun.redis.replies import ReplyError, translated
from sandboxrun.worker.rendering import EXEC, MULTI, Entry, acknowledge
from sandboxrun.worker.session import Session
from sandboxrun.worker.streams import order, pairs, read_command, read_entries

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any

    from sandboxrun.config.fields import Loop
    from sandboxrun.worker.joined import Joined
else:
    from _collections import deque  # collections is Python, and imports more of it

CLAIM_MOST = 1000  # claims in one command, because a longer one would block the server
TOGETHER_TRIES = 2  # connections lost over a reply, after which it is sent alone
UNSENDABLE_TRIES = (7, 12)  # connections lost in all, after which a smaller reply takes its place
ALONE_MILLIS, SUPERVISED_MILLIS = 1000, 2000  # that a read waits at most
ALONE_SECONDS = 1.0  # between two tries to send a reply alone
SETTLE_PART = 3  # takeoverMillis / 3, twice the time between renewals


class Claims(Session):
    """The entries in hand, and the one connection on which they are read and answered.

    Every method may raise ConnectionLost. Then `open` connects again and asks which claims are still ours.
    """

    def __init__(
        self, connection: Connection, loop: Loop, key: str, pid: str, *, sees_pid: bool = True, token: str = ""
    ) -> None:
        """`sees_pid`: whether this login can read the hash; if not, only sandboxrun looks at `pid`. `token`: the run's, compared
        together with `pid`; "" if the worker was started without sandboxrun."""
        super().__init__(connection)
        self.loop = loop
        self.key, self.pid = key, pid.encode()
        self._sees_pid = sees_pid
        self.look_at_pid: Sequence[str] = ("HGET", key, "pid") if sees_pid else ("ECHO", pid)
        self._held: bytes | list[bytes] = self.pid  # the reply to `look_at_pid` while `pid` is ours
        if sees_pid and token:
            self.look_at_pid, self._held = ("HMGET", key, "pid", "pidToken"), [self.pid, token.encode()]
        names = (loop.request_stream, loop.consumer_id)
        self._fence, self._old_fence = loop.fence_key(loop.consumer_id), keys.old_fence_key(*names)
        self._watch = b""  # WATCH F · HEXISTS F c
        # A write that changes nothing, and that a full server refuses.
        self.keep_fence: Sequence[str | bytes | int] = ()
        self._armed = False  # the fence is known to be intact and watched, so a transaction may be sent
        self._verifying = False  # replies to earlier commands may arrive meanwhile, and must begin nothing
        self._reads: dict[tuple[int, bool], bytes] = {}
        self.opened = 0
        self._opened_at = 0.0
        self._own_pid = False
        self.hand: dict[bytes, Entry] = {}
        self.suspects: dict[bytes, int] = {}  # claims of ours that may have been begun before: entry ID, deliveries
        self._returning: dict[bytes, int] = {}  # handed back, and not confirmed yet: entry ID, deliveries
        self.arrived: deque[tuple[list[Entry], int]] = deque()  # entries of each read, and how many it asked for
        self.reads = 0  # reads in flight
        self.broken = False  # the fence was deleted or changed: somebody took a claim, or the hash was removed
        self.answered = 0  # replies confirmed by Redis, and so added to the response stream
        self._writing: list[Entry] = []  # entries of the transaction in flight
        self._alone: list[Entry] = []  # entries whose replies are sent one by one, after lost connections
        self._alone_at = 0.0
        self.last_record = b""  # ID of the last reply in the response stream, for trimming
        self.lost_pid = False
        self._admitted = self._opening = False  # the login has worked before; `open` is in progress
        self.taken = False  # `pid` is that of another run, which may read for the same consumer
        self.alone = True  # no other connection reads for this consumer
        # Changes whenever an entry may have become another's, or may be in hand already. Entries of a read that began on
        # another connection before such a change are ours only if Redis confirms it: `still_ours`.
        self.generation = 0
        self.expire_nx = True
        self.warn: Callable[[str], None] = lambda message: None
        self.supervised = False  # sandboxrun looks at `pid` too, and ends a read that waits
        # Called with the connection's number at Redis.
        self.identified: Callable[[object], None] | None = None
        self.unsendable: Callable[[Entry], None] = lambda entry: None  # replaces the entry's reply by a small one
        self.unread_lost = 0  # entries that are reported as removed before the group has read them
        self.joined: Joined | None = None  # once a reply has had effects

    # --- the connection

    def open(self) -> None:
        """Connect, make stream, group and fence, and drop the entries in hand that are no longer ours.

        On any error the connection is closed, so that nobody uses it half set up.
        """
        fresh = not self.opened and self.connection.is_open
        self._opening = True
        try:
            if not fresh:
                self.close()
                self.connection.open()
            self.connection.set_wait(self.block_millis / 1000)
            self.opened += 1
            self._opened_at = time.monotonic()
            if self.identified is not None:  # by itself: a login without the right to ask may still work
                self.expect((pack("CLIENT", "ID"),), 1, lambda replies, told: told(replies[0]), self.identified)
            _, expire = self.exchange(
                ("XGROUP", "CREATE", self.loop.request_stream, self.loop.consumer_group, "0", "MKSTREAM"),
                ("EXPIRE", keys.trace_key("-"), 1, "NX"),
            )
            self.expire_nx = not isinstance(expire, ReplyError)
            if self._sees_pid:
                self._set_pid()
            self.verify()
            if self.joined is not None:
                self.joined.send_again()
        except BaseException:
            self.close()
            raise
        finally:
            self._opening = False
        self._admitted = True

    @property
    def is_open(self) -> bool:
        """Whether `open` has completed, and the connection was not closed since."""
        return self.opened > 0 and self.connection.is_open

    def close(self) -> None:
        super().close()
        self.reads = 0
        self._armed = False
        for entry in self._writing:
            entry.losses += 1
        self._writing = []
        self.suspects.update(self._returning)
        self._returning.clear()
        if self.joined is not None:
            self.joined.clear()

    def looked(self, found: Any) -> None:
        """Process the reply to `look_at_pid`."""
        if isinstance(found, ReplyError):
            self._raise_passing(found)
        if found != self._held:
            self.lost_pid = True
            values, own = (found, self._held) if isinstance(found, list) else ([found], [self.pid])
            self.taken = any(
                value.__class__ is bytes and value != mine for value, mine in zip(values, own, strict=True)
            )

    def _stop_if_taken(self) -> None:
        """Raise TakenOver if another run has `pid`. It may have our consumer name, so that the entries in hand are its own,
        and a fence of ours would break its fence."""
        self.looked(self.exchange(self.look_at_pid)[0])
        if self.taken:
            raise TakenOver(f"{self.key} was taken over by another run: this one ends")

    def _set_pid(self) -> None:
        """Set `pid` if the worker was started without sandboxrun, say in a debugger; `leave` removes it. If there is a
        pidHost, sandboxrun had set `pid`, and somebody has removed it to end this worker."""
        (pid, host), there = self.exchange(("HMGET", self.key, "pid", "pidHost"), ("EXISTS", self.key))
        if pid is None and host is None and there:
            made = self.exchange(("HSETNX", self.key, "pid", self.pid))[0]
            self._own_pid = self._own_pid or made == 1

    @property
    def block_millis(self) -> int:
        """How long a read waits: bounded, because `pid` is looked at with each read, and the end is noticed after it.

        With a supervisor at most two seconds, because it looks at `pid` too, and ends a read that waits.
        """
        return min(self.loop.block_millis, SUPERVISED_MILLIS if self.supervised else ALONE_MILLIS)

    @property
    def settled(self) -> bool:
        """Whether other workers have had time to renew their claims after Redis was away or full."""
        return self.opened == 1 or time.monotonic() - self._opened_at > self.loop.takeover_millis / 1000 / SETTLE_PART

    def _raise_passing(self, error: ReplyError) -> None:
        super()._raise_passing(error)
        if self._admitted and str(error).startswith("NOPERM"):
            # Somebody has changed this worker's user; sandboxrun makes it again. While opening, retries are bounded.
            kind = LoginRefused if self._opening else ConnectionLost
            raise kind(f"Redis at {self.connection.address.shown} refuses what it allowed before ({str(error)[:160]})")

    # --- reading and answering

    def ask(self, count: int, *, block: bool) -> None:
        """Queue a read of new entries, and a look at `pid`."""
        command = self._reads.get((count, block))
        if command is None:
            command = read_command(self.look_at_pid, self.loop, count, self.block_millis if block else 0)
            self._reads[count, block] = command
        self._out.append(command)  # `expect` without the call
        self.waiting.append((self._read, 2, count))
        self.reads += 1

    def ask_within(self, count: int, millis: int) -> None:
        """As `ask`, for a read that waits at most so long."""
        block = max(1, min(millis, self.block_millis))
        self._out.append(read_command(self.look_at_pid, self.loop, count, block))
        self.waiting.append((self._read, 2, count))
        self.reads += 1

    def _read(self, replies: list[Any], count: int) -> None:
        self.reads -= 1
        pid, found = replies
        if isinstance(found, ReplyError):
            self._read_failed(found)
            found = None
        if pid != self._held:
            self.looked(pid)
        entries = read_entries(found)
        for entry in entries:
            self.hand[entry.xid] = entry
        # Without `pid` nothing more is begun, and these entries are handed back at the end.
        self.arrived.append(([] if self.lost_pid else entries, count))
        if self.away:
            self._succeeded()

    def _read_failed(self, error: ReplyError) -> None:
        text = str(error)
        if text.startswith("UNBLOCKED"):  # from Redis before 7.2, if the stream is removed during a read
            return
        if not text.startswith("NOGROUP"):
            self._raise_passing(error)
            raise translated(error, self.connection.address.shown)
        self.exchange(("XGROUP", "CREATE", self.loop.request_stream, self.loop.consumer_group, "0", "MKSTREAM"))

    def has(self, entry: Entry) -> bool:
        """Whether this delivery of the entry is still in hand; another Entry with the same ID is another delivery."""
        return self.hand.get(entry.xid) is entry

    def write(self, entries: Iterable[Entry]) -> None:
        """Queue the replies of the entries that are still in hand, with their acknowledgement, as one transaction.

        A reply over which the connection was lost repeatedly is left to `write_alone`: together with others it would take
        their transaction with it again, until they seem to be what cannot be sent.
        """
        get = self.hand.get
        # In one pass, because this runs for each request.
        self._write(
            [entry for entry in entries if get(entry.xid) is entry and not entry.sent and entry.losses < TOGETHER_TRIES]
        )

    def _write(self, entries: list[Entry]) -> None:
        """Queue the replies of these entries, which are in hand and not sent."""
        if self.joined is None:
            if entries:
                self._write_plain(entries)
            return
        entries = self.joined.take(entries)
        if entries:
            self._write_plain(entries)
        self.joined.begin()

    def _write_plain(self, entries: list[Entry]) -> None:
        data = self._replies(entries)  # before the wait: Redis is at work on the last transaction meanwhile
        if not self._armed:
            while self.busy:
                self.receive()
            still = self._unsent(entries)
            if len(still) < len(entries):
                if not still:
                    return
                entries, data = still, self._replies(still)
        self._transaction(data, self._count(entries), self._written, entries)

    def _count(self, entries: list[Entry]) -> int:
        """Note that these replies are sent now; the number of their commands."""
        count = 1
        for entry in entries:
            entry.sent = True
            count += entry.count
        self._writing = entries
        return count

    def _unsent(self, entries: Iterable[Entry]) -> list[Entry]:
        get = self.hand.get
        return [entry for entry in entries if get(entry.xid) is entry and not entry.sent]

    def _replies(self, entries: list[Entry]) -> bytes:
        """The commands of these replies, and their acknowledgement."""
        commands = [entry.commands for entry in entries]
        commands.append(acknowledge(self.loop, [entry.xid for entry in entries]))
        return b"".join(commands)

    @property
    def busy(self) -> bool:
        """Whether the next transaction must wait for the confirmation of the last one."""
        return not self._armed and not self.broken

    def transact(self, *commands: Sequence[str | bytes | int]) -> list[Any] | None:
        """The replies to these commands as one fenced transaction, or None if the fence was broken."""
        box: list[list[Any] | None] = []
        data = b"".join([pack(*command) for command in commands])
        self._transaction(data, len(commands), lambda results, _: box.append(results), None)
        self.flush()
        while not box:
            self.receive()
        return box[0]

    def _transaction(
        self, commands: bytes, count: int, take: Callable[[list[Any] | None, Any], None], detail: Any
    ) -> None:
        """Queue a fenced transaction; `take` gets the replies to the `count` commands, or None if nothing was done."""
        while not self._armed and not self.broken:
            self.receive()
        if self.broken:
            take(None, detail)
            return
        self._execute(commands, count, take, detail)

    def _execute(self, commands: bytes, count: int, take: Callable[[list[Any] | None, Any], None], detail: Any) -> None:
        self._armed = False
        self.expect((MULTI, commands, EXEC, self._watch), count + 4, self._executed, (take, detail))

    def _executed(self, replies: list[Any], then: tuple[Callable[[list[Any] | None, Any], None], Any]) -> None:
        take, detail = then
        results, watched, whole = replies[-3:]
        if isinstance(results, ReplyError):  # EXECABORT: the refused command has the reason
            self._writing = []  # they were refused, and did not end the connection
            self.broken = True  # `verify` writes the replies again, and everything else waits for it
            if self.joined is not None and detail.__class__ is list and self.joined.refused(detail, replies[1:-3]):
                return
            reason = next((reply for reply in replies if isinstance(reply, ReplyError)), results)
            self._raise_passing(reason)
            raise translated(reason, self.connection.address.shown)
        self._armed = watched == b"OK" and whole == 1
        self.broken = not self._armed or results is None
        take(results, detail)
        if self.joined is not None and not self.broken:
            self.joined.begin()

    def _written(self, results: list[Any] | None, entries: list[Entry]) -> None:
        self._writing = []
        if results is None:
            return
        if self.away:
            self._succeeded()
        for entry in entries:
            self.hand.pop(entry.xid, None)
        self.answered += len(entries)
        last = entries[-1]
        if not last.silent:
            record = results[-1 - last.count + (2 if last.ref else 0)]
            if record.__class__ is bytes:
                self.last_record = record
        if ReplyError in set(map(type, results)):  # faster than a look at each of them
            if self.joined is not None:
                self.joined.report(entries, results)
                return
            for result in results:
                if result.__class__ is ReplyError:
                    self.warn_part(result)

    def warn_part(self, error: ReplyError) -> None:
        self.warn(f"a part of a reply was refused by Redis: {str(error)[:200]}")

    def lasting_error(self, replies: Iterable[Any]) -> ReplyError | None:
        """The first error among them. Raises ConnectionLost for one that passes."""
        for reply in replies:
            if isinstance(reply, ReplyError):
                super()._raise_passing(reply)
                return reply
        return None

    def verify(self) -> None:
        """Make a new fence, drop the entries that are no longer ours, and send again the replies that were not written."""
        self._verifying = True
        try:
            self._verify()
        finally:
            self._verifying = False
        if self.joined is not None:
            self.joined.clear()
        self._write_again([entry for entry in self.hand.values() if entry.sent])
        self.renew()  # at once, because nobody could while Redis was full or away

    def _verify(self) -> None:
        self._stop_if_taken()
        self.generation += 1
        mine = {*self.hand, *self.suspects}
        name = os.urandom(8).hex()
        self.keep_fence = ("HSET", self._fence, name, 1)
        self._watch = pack("WATCH", self._fence) + pack("HEXISTS", self._fence, name)
        commands: list[Sequence[str | bytes | int]] = [
            self.look_at_pid,
            ("UNWATCH",),
            ("DEL", self._fence),
            self.keep_fence,
            ("WATCH", self._fence),
            ("HEXISTS", self._fence, name),
            ("DEL", self._old_fence),  # so that a process of the same name and an older version cannot answer either
        ]
        pid, _, _, made, watched, whole, _ = self.exchange(*commands)
        if isinstance(made, ReplyError):
            raise made
        self._armed = watched == b"OK" and whole == 1
        self.broken = not self._armed
        self.looked(pid)
        if mine:
            lost = mine - self._pending_of(mine)
            self.hand = {xid: entry for xid, entry in self.hand.items() if xid not in lost}
            self.suspects = {xid: count for xid, count in self.suspects.items() if xid not in lost}

    def _write_again(self, entries: list[Entry]) -> None:
        """Send the replies again, but keep apart those over which the connection was lost repeatedly."""
        self._alone = [entry for entry in self.hand.values() if entry.answered and entry.losses >= TOGETHER_TRIES]
        for entry in entries:
            entry.sent = False
            if entry.losses in UNSENDABLE_TRIES:
                self.unsendable(entry)
        self.write(entries)

    def write_alone(self, at: float, *, now: bool = False) -> bool:
        """Queue the next reply that was kept apart, if one is due; whether there was one.

        A reply that was not sent alone yet is due at once, any other ALONE_SECONDS after the last try, or `now`.
        """
        if not self._alone:
            return False
        entry = min(self._alone, key=lambda one: one.losses)
        if entry.losses > TOGETHER_TRIES:
            if at < self._alone_at and not now:
                return False
            self._alone_at = at + ALONE_SECONDS
        self._alone.remove(entry)
        self._write(self._unsent([entry]))
        return True

    def _pending_of(self, xids: Iterable[bytes]) -> set[bytes]:
        """The entries that are pending with this consumer.

        Usually one list from the first ID to the last has the answer. If many other claims of this consumer lie in between,
        as a predecessor's may, the IDs beyond the end of the list are asked for one by one.
        """
        wanted = sorted(xids, key=order)
        limit = len(wanted) + 1000
        query = ("XPENDING", self.loop.request_stream, self.loop.consumer_group)
        (rows,) = self.exchange((*query, wanted[0], wanted[-1], limit, self.loop.consumer_id))
        if isinstance(rows, ReplyError):  # NOGROUP: nothing is anybody's
            return set()
        found = {row[0] for row in rows}
        if len(rows) == limit:
            last = order(rows[-1][0])
            rest = [xid for xid in wanted if order(xid) > last]
            for part in _parts(rest):
                for answer in self.exchange(*[(*query, xid, xid, 1, self.loop.consumer_id) for xid in part]):
                    found |= set() if isinstance(answer, ReplyError) else {row[0] for row in answer}
        return found.intersection(wanted)

    def still_ours(self, entries: Sequence[Entry]) -> list[Entry]:
        """Of entries that were read on another connection, those that nobody has taken or answered since."""
        fresh = [entry for entry in entries if entry.xid not in self.hand]
        if not fresh:
            return []
        mine = self._pending_of([entry.xid for entry in fresh])
        return [entry for entry in fresh if entry.xid in mine and entry.xid not in self.hand]

    # --- claims

    def renew(self) -> None:
        """Queue a renewal of all claims in hand."""
        xids = [*self.hand, *self.suspects]
        if xids:
            self._claim(xids, "JUSTID")

    def hand_back(self, entries: Iterable[Entry]) -> None:
        """Queue handing these back, free for every worker at once. Entries that were never begun count as never delivered.

        What is not confirmed is a suspect again, to be begun or handed back later.
        """
        fresh: dict[bytes, int] = {}
        again: dict[bytes, int] = {}
        for entry in entries:
            if self.hand.pop(entry.xid, None) is not None:
                (again if entry.begun or entry.deliveries > 1 else fresh)[entry.xid] = entry.deliveries
        if fresh:
            self._return(fresh, "IDLE", HANDED_BACK_MILLIS, "RETRYCOUNT", 0, "JUSTID")
        again |= self.suspects
        self.suspects.clear()
        if again:
            self._return(again, "IDLE", HANDED_BACK_MILLIS, "JUSTID")

    def _return(self, entries: dict[bytes, int], *options: str | int) -> None:
        self._returning |= entries
        self._claim([*entries], *options, take=self._returned)

    def _returned(self, results: list[Any] | None, xids: Sequence[bytes]) -> None:
        for xid in xids:
            count = self._returning.pop(xid, None)
            if results is None and count is not None:
                self.suspects[xid] = count

    def _claim(
        self,
        xids: Sequence[bytes],
        *options: str | int,
        take: Callable[[list[Any] | None, Any], None] = lambda results, xids: None,
    ) -> None:
        for part in _parts(xids):
            command = pack(
                "XCLAIM", self.loop.request_stream, self.loop.consumer_group, self.loop.consumer_id, 0, *part, *options
            )
            self._transaction(command, 1, take, tuple(part))  # a list would be one of entries: `_executed`

    def begin(self, xid: bytes) -> Entry | None:
        """Count one more delivery of a suspect, and take it in hand. None if it is gone.

        It may be the request that ended its worker before, so its delivery is counted when it is begun.
        """
        return next(iter(self.begin_many([xid])), None)

    def begin_many(self, xids: Sequence[bytes]) -> list[Entry]:
        """As `begin`, for suspects that were delivered equally often, in one command."""
        self.generation += 1
        count = self.suspects.get(xids[0], 0)
        xids = [xid for xid in xids if self.suspects.pop(xid, None) is not None and xid not in self.hand]
        if not xids:
            return []
        last = count >= self.loop.max_deliveries
        options = ("RETRYCOUNT", count) if last else ()
        stream, group = self.loop.request_stream, self.loop.consumer_group
        results = self.transact(("XCLAIM", stream, group, self.loop.consumer_id, 0, *xids, *options))
        if results is None:
            self.suspects.update(dict.fromkeys(xids, count))  # `verify` finds out which are still ours
            return []
        rows = [row for row in results[0] if row and row[1]] if isinstance(results[0], list) else []
        if len(rows) < len(xids):
            self._forget({*xids} - {row[0] for row in rows})
        entries = [Entry(xid, pairs(raw), count if last else count + 1) for xid, raw in rows]
        for entry in entries:
            entry.spent = last
            self.hand[entry.xid] = entry
        return entries

    def _forget(self, xids: Iterable[bytes]) -> None:
        """Acknowledge entries that were deleted from the stream while they were pending: nobody can handle them."""
        gone = sorted(xids, key=order)
        self.exchange(("XACK", self.loop.request_stream, self.loop.consumer_group, *gone))
        self.say_gone(gone)

    def say_gone(self, xids: Sequence[bytes]) -> None:
        """Warn of entries that were delivered, and deleted before they were handled."""
        self.warn(
            f"{len(xids)} of the entries that were delivered are gone from {self.loop.request_stream}, such as "
            f"{xids[0].decode()}: they were trimmed or deleted before they were handled"
        )

    def leave(self) -> None:
        """Remove the fence, and `pid` if this process has set it."""
        if self.taken:
            return
        if self._own_pid and self.exchange(("HGET", self.key, "pid"))[0] == self.pid:
            self.exchange(("HDEL", self.key, "pid"))
        self.exchange(("DEL", self._fence))


def _parts(xids: Sequence[bytes]) -> list[Sequence[bytes]]:
    return [xids[at : at + CLAIM_MOST] for at in range(0, len(xids), CLAIM_MOST)]
