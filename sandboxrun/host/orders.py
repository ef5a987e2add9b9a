"""What an agent finds in the queues of one type: new ids, ids that are its own no more, and ids that nobody runs."""

from __future__ import annotations

import time

from sandboxrun.config import keys
from sandboxrun.errors import ConfigError
from sandboxrun.fleet import count, desired
from sandboxrun.fleet.agents import Agent as Entry
from sandboxrun.fleet.backlog import Backlog, backlog
from sandboxrun.fleet.desired import Taken
from sandboxrun.fleet.handback import hand_back
from sandboxrun.fleet.orphans import Orphans
from sandboxrun.fleet.status import TypeStatus, WorkerStatus
from sandboxrun.fleet.stopped import stopped_workers
from sandboxrun.host import restarts
from sandboxrun.host.saying import some
from sandboxrun.redis.connection import Connection
from sandboxrun.redis.replies import ReplyError, TooManyBytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from sandboxrun.host.runplan import RunPlan
    from sandboxrun.host.saying import Seldom
    from sandboxrun.host.slot import Slot
    from sandboxrun.log import Log

LOST_SECONDS = 0.5  # how soon a removed id is noticed, if Redis does not say what changes
TOLD_SECONDS = 5.0  # between two looks, if it does
ORPHANS_SECONDS = 1.0
COUNT_SECONDS = 2.0
TOGETHER = 8  # ids that are taken at once, so that several agents share


class Orders:
    """Faults of the queues are said once for each text."""

    def __init__(self, type_: str, token: str, log: Log, seldom: Seldom) -> None:
        self.type = type_
        self.count: int | None = None
        self.waiting = 0  # ids that nobody has taken
        self._token, self._log, self._seldom = token, log, seldom
        self._orphans = Orphans(type_)
        self._said: set[str] = set()
        self._backlog = Backlog()
        self._stopped: tuple[WorkerStatus, ...] = ()
        self._take_at = self._lost_at = self._orphans_at = self._count_at = 0.0
        self.are_told = False  # whether Redis says what changes

    @property
    def keys(self) -> list[str]:
        """Those that are to be watched."""
        queues = (keys.start_queue, keys.started_queue, keys.stopped_queue, keys.type_key)
        return [name(self.type) for name in queues]

    def look_again(self) -> None:
        """Something has changed: the next looks are due."""
        self._take_at = self._lost_at = self._count_at = 0.0

    @property
    def due(self) -> float:
        """When there is something to look at, by time.monotonic."""
        return min(self._take_at, self._lost_at, self._orphans_at, self._count_at)

    def take(self, connection: Connection, room: int) -> Taken:
        """New ids, at most as many as there is room for."""
        now = time.monotonic()
        if now < self._take_at and not (self.waiting and room > 0):
            return Taken(())
        self._take_at = now + (TOLD_SECONDS if self.are_told else 0.0)
        with self.saying(connection):
            self.waiting = int(connection.call("LLEN", keys.start_queue(self.type)))
            if self.waiting and room > 0:
                taken = desired.take(connection, self.type, self._token, min(room, TOGETHER))
                self.say(taken.fault)
                return taken
        return Taken(())

    def lost(self, connection: Connection, ids: Collection[str], idle: Sequence[str]) -> set[str]:
        """Those of the agent's ids that it has no more, if it is time to look. `idle`: those that do not run."""
        now = time.monotonic()
        if now < self._lost_at:
            return set()
        self._lost_at = now + (TOLD_SECONDS if self.are_told else LOST_SECONDS)
        if not ids:
            return set()
        with self.saying(connection):
            found = desired.lost(connection, self.type, list(ids), self._token, idle=idle)
            if found:
                text = f"{self.type}:started:q does not hold {some(tuple(sorted(found)))} any more"
                text += ": these workers end, and are not started again"
                self._seldom.warning("queue", text, subject=f"lost {self.type}")
            return found
        return set()

    def keep(
        self,
        connection: Connection,
        mine: Collection[str],
        known: dict[str, Entry],
        clock: int,
        *,
        streams: Collection[str],
    ) -> None:
        """Move orphans back, and keep to the count, if it is time for that. `streams`: those that the agent's workers read."""
        now = time.monotonic()
        with self.saying(connection):
            if now >= self._orphans_at:
                self._orphans_at = now + ORPHANS_SECONDS
                self._orphans.move(connection, mine=mine, known=known, clock=clock)
        with self.saying(connection):
            if now >= self._count_at:
                self._count_at = now + (TOLD_SECONDS if self.are_told else COUNT_SECONDS)
                self._backlog = backlog(connection, self.type, streams)
                self._stopped = stopped_workers(connection, self.type)
                found = count.reconcile(connection, self.type)
                self.count = found.count
                if found.removed:
                    text = f"the count of {self.type} is {found.count}: stopping the surplus ids {some(found.removed)}"
                    self._seldom.warning("count", text, subject=f"count {self.type}")

    def note(self, connection: Connection, slot: Slot, plan: RunPlan | None) -> bool:
        """How a run has ended, and that others may take its requests; whether it is to be started again. Raises ConfigError,
        StoreError, ReplyError."""
        assert slot.next is not None and slot.last_exit is not None
        if plan is not None:
            loop = plan.worker.loop
            if loop.consumer_id == slot.id and loop.request_stream.startswith(f"{slot.type}:"):
                hand_back(connection, slot.key, loop.request_stream, loop.consumer_group, loop.consumer_id)
        return desired.ended(
            connection,
            slot.type,
            slot.id,
            self._token,
            code=slot.last_exit,
            reason=slot.last_reason or restarts.in_words(slot.last_exit),
            counts=slot.next.counts,
        )

    def status(self, workers: Sequence[WorkerStatus]) -> TypeStatus:
        """From any thread. `workers`: those that the agent has."""
        found = self._backlog
        ids = {worker.id for worker in workers}
        stopped = (worker for worker in self._stopped if worker.id not in ids)
        return TypeStatus(
            self.type, self.count, (*workers, *stopped), self.waiting, found.lag, found.pending, found.oldest_waiting,
            found.oldest_handling, found.dead,
        )  # fmt: skip

    def saying(self, connection: Connection) -> _Said:
        """A block in which what is wrong with the keys of this type is said once, and ends nothing; `is_wrong` then."""
        return _Said(self, connection)

    def say(self, text: str, hint: tuple[str, ...] = ()) -> None:
        if text and text not in self._said and len(self._said) < 100:
            self._said.add(text)
            self._log.warning("queue", text, hint=hint)


class _Said:
    """In the block, what is wrong with a queue or a hash is said once, and ends nothing. What is too long to be read has
    closed the connection, which is opened again for the others."""

    def __init__(self, orders: Orders, connection: Connection) -> None:
        self._orders, self._connection = orders, connection
        self.is_wrong = False

    def __enter__(self) -> _Said:
        return self

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> bool:
        if isinstance(error, ConfigError | TooManyBytes):
            self._orders.say(str(error), error.hint)
        elif isinstance(error, ReplyError):
            self._orders.say(f"Redis refuses a command for the queues of {self._orders.type}: {str(error)[:200]}")
        else:
            return False
        self.is_wrong = True
        if not self._connection.is_open:
            self._connection.open()
        return True
