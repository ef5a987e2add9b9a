"""An agent: takes ids from the queues of its types, runs their workers in one process, and keeps them running.

The main thread decides everything here. Runs report to it by events (pool.py), and it alone speaks with Redis about the queues.
An outage of Redis ends no worker: what has to be written is written once Redis is back.
"""

from __future__ import annotations

import os
import signal
import time

from sandboxrun.errors import ConfigError, ConnectionLost, SandboxrunError, StoreError
from sandboxrun.fleet import agents, desired
from sandboxrun.fleet.status import AgentStatus
from sandboxrun.host import restarts
from sandboxrun.host.changes import Changes
from sandboxrun.host.footing import footing, is_held
from sandboxrun.host.orders import Orders
from sandboxrun.host.pool import Ended, Pool, PoolEvents, Running
from sandboxrun.host.restarts import Until
from sandboxrun.host.runplan import RunOptions
from sandboxrun.host.saying import Seldom, not_again, said, say_end
from sandboxrun.host.slot import Slot
from sandboxrun.redis.connection import Connection, delays
from sandboxrun.redis.lease import new_token, start_time, this_host
from sandboxrun.redis.replies import ReplyError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from sandboxrun.host.agentfile import AgentOptions
    from sandboxrun.host.folders import Folders
    from sandboxrun.log import Log
    from sandboxrun.sandbox.supervisor.zygote import Zygote

POLL_SECONDS = 0.05  # between two looks at the queues, if Redis does not say what changes
TURN_SECONDS = 1.0  # the loop turns at least so often
KNOWN_SECONDS = 2.0  # between two looks at the other agents
BEAT_SECONDS = 5.0
LOOK_SECONDS = 0.25  # at what a worker waits for: another run's lease
CHANGE_SECONDS = 1.0  # or a change of its hash or the policy
REST_SECONDS = 0.015  # after new orders: about as long as a start takes
STARTING_MAX = 16  # workers at once, so that other agents take some
END_SECONDS = 15.0  # for workers to end, before all are killed
EVENTS_AT_ONCE = 200


class Agent(PoolEvents):
    """Runs until it has drained: `run` returns the exit code."""

    def __init__(
        self,
        options: AgentOptions,
        folders: Folders,
        log: Log,
        *,
        zygote: Zygote | None = None,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        """`tell`: is called now and then with a line about its workers, first when it serves its types."""
        self.options, self._folders, self._log = options, folders, log
        self._tell, self.turned = tell, time.monotonic()
        self.token, self.name, self.since = new_token(), os.uname().nodename, time.time()
        self.pool = Pool(log, spares=options.spares, redis_url=options.redis_url, zygote=zygote)
        self._redis = Connection(options.redis_url, name="sandboxrun-agent", protocol=2)
        self._changes = Changes(options.redis_url)
        self._look_at = 0.0  # time.monotonic: when the next look at Redis is due
        self._slots: dict[str, Slot] = {}
        self._seldom = Seldom(log)
        self._orders = {type_: Orders(type_, self.token, log, self._seldom) for type_ in options.types}
        self._known: dict[str, agents.Agent] = {}
        self._clock, self._beat_at, self._known_at, self._registered = 0, 0.0, 0.0, 0
        self._is_away, self._has_taken, self._retry_at = False, False, 0.0
        self._delays = delays()
        self._signals, self._draining, self._end_at = 0, False, 0.0

    # --- life

    def run(self) -> int:
        """Returns once a signal or an order to drain has come, and no worker is left."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda number, _: self._changes.put(("signal", number)))
        try:
            while not (self._draining and not self._slots):
                self._wait()
                self._with_redis()
                if self._has_taken:
                    self._has_taken = False
                    time.sleep(REST_SECONDS)  # somebody waits for the worker, and its thread needs the interpreter
                if self._draining and time.monotonic() >= self._end_at:
                    self._kill()
            self._ask_redis(lambda: agents.leave(self._redis, self.token))
        finally:
            self.pool.close(0.0 if self._draining else END_SECONDS)
            self._redis.close()
            self._changes.close()
        return 0

    def drain(self, why: str) -> None:
        """Take nothing more, hand the ids back, end the workers."""
        if self._draining:
            return
        self._log.info("drain", f"draining: {why}; {len(self._slots)} workers end, and others may take them")
        self._draining, self._beat_at, self._end_at = True, 0.0, time.monotonic() + END_SECONDS
        self._ask_redis(self._give_back)
        for slot in list(self._slots.values()):
            self._let_go(slot, "the agent drains: ending the worker")

    def _give_back(self) -> None:
        for type_ in self.options.types:
            ids = [slot.id for slot in self._slots.values() if slot.type == type_ and slot.is_wanted]
            desired.give_back(self._redis, type_, ids, self.token)

    def _kill(self) -> None:
        self._end_at = time.monotonic() + END_SECONDS
        for slot in self._slots.values():
            if slot.running is not None:
                slot.running.stop("killed", kill=True)

    # --- events

    def said(self, running: Running, level: str, event: str, message: str, fields: dict[str, object]) -> None:
        self._changes.put(("said", running, level, event, message, fields))

    def started(self, running: Running) -> None:
        self._changes.put(("started", running))

    def ended(self, running: Running, ended: Ended) -> None:
        self._changes.put(("ended", running, ended))

    def _wait(self) -> None:
        """Handle the events that there are, and wait for one if nothing else is due."""
        self.turned = time.monotonic()
        """When the loop turned last."""
        seconds = self._look_at - self.turned if self._changes.are_told and not self._is_away else POLL_SECONDS
        if self._changes.wait(min(max(0.0, seconds), TURN_SECONDS)):
            self._look_at = 0.0
            for orders in self._orders.values():
                orders.look_again()
        for event in self._changes.events(EVENTS_AT_ONCE):
            self._look_at = 0.0
            self._handle(event)

    def _handle(self, event: tuple[Any, ...]) -> None:
        if event[0] == "signal":
            self._signals += 1
            if self._signals > 1:
                self._kill()
            self.drain(f"signal {signal.Signals(event[1]).name}")
            return
        running: Running = event[1]
        slot = self._slots.get(running.key)
        if event[0] == "said":
            if slot is None or slot.is_wanted or event[3] != "stop":  # of those that it lets go it has said so together
                said(self._log, running, *event[2:])
        elif slot is None or slot.running is not running:
            return
        elif event[0] == "started":
            slot.begin(running.plan)
        else:
            self._ended(slot, event[2])

    # --- the end of a run

    def _ended(self, slot: Slot, ended: Ended) -> None:
        running = slot.running
        slot.count_denials()
        slot.running, slot.begun = None, False
        if not slot.is_wanted:
            self._forget(slot)
            return
        asked = ended.loss is not None and ended.loss.exit_code is None
        slot.next = restarts.after(slot.history, ended.code, ended.seconds, asked=asked, chance=os.urandom(1)[0] / 255)
        slot.history = slot.next.history
        slot.due = time.monotonic() + slot.next.seconds
        slot.last_exit, slot.last_reason = ended.code, ended.reason.partition(";")[0]
        slot.noted = False
        if slot.next.counts:
            name = restarts.label(ended.code, asked=asked, stuck=ended.was_stuck)
            slot.restarts += 1
            slot.restarts_by[name] = slot.restarts_by.get(name, 0) + 1
        self._ask_redis(lambda: self._note(slot, running))
        say_end(self._log, slot, ended, asked, is_gone=slot.key not in self._slots)

    def _note(self, slot: Slot, running: Running | None) -> None:
        """In Redis: how the run ended, and that others may take its requests."""
        again = self._orders[slot.type].note(self._redis, slot, running.plan if running is not None else None)
        slot.noted = True
        if not again:
            self._forget(slot)

    def _let_go(self, slot: Slot, why: str) -> None:
        """It is this agent's no more."""
        slot.is_wanted = False
        if slot.running is None:
            self._forget(slot)
        else:
            slot.running.stop(why)

    def _forget(self, slot: Slot) -> None:
        self._slots.pop(slot.key, None)
        self._ask_redis(lambda: desired.done(self._redis, slot.type, slot.id, self.token))

    # --- Redis

    def _ask_redis(self, act: Any) -> None:
        """Carry it out if Redis is there. What it would have done is found out later by this agent or another one."""
        if self._is_away and time.monotonic() < self._retry_at:
            return
        try:
            if not self._redis.is_open:
                self._redis.open()
            act()
        except ReplyError as error:
            self._seldom.warning("redis", f"Redis refuses a command: {str(error)[:200]}")
        except ConfigError as error:
            self._seldom.warning("queue", str(error), hint=error.hint)
        except StoreError as error:
            self._lose_redis(error)

    def _lose_redis(self, error: StoreError) -> None:
        self._redis.close()
        if not self._is_away:
            self._log.warning("redis", f"{error}; the workers go on, and this waits for Redis", hint=error.hint)
            self._delays = delays()
        self._is_away = True
        self._retry_at = time.monotonic() + next(self._delays)

    def _with_redis(self) -> None:
        now = time.monotonic()
        if now < self._look_at or (self._is_away and now < self._retry_at):
            return
        try:
            if not self._redis.is_open:
                self._redis.open()
            self._work()
            self._plan()
        except ReplyError as error:
            self._lose_redis(ConnectionLost(f"Redis at {self._redis.address.shown} refuses: {str(error)[:200]}"))
        except StoreError as error:
            self._lose_redis(error)

    def _work(self) -> None:
        """All that is due at Redis. Raises StoreError, ReplyError."""
        now = time.monotonic()
        if now >= self._beat_at:
            self._beat(now)
        elif now >= self._known_at:
            self._know(now)
        if self._is_away:
            self._log.info("redis", f"Redis at {self._redis.address.shown} is back")
            self._is_away = False
            for slot in self._slots.values():
                if slot.waits_for is Until.OUTAGE:
                    slot.due = now
        is_there, drains = True, False
        with next(iter(self._orders.values())).saying(self._redis):
            is_there, drains = agents.look(self._redis, self.token)
        if not is_there:
            self._beat(now)
        if drains:
            self.drain("it was asked to")
        if self._draining:
            return
        for orders in self._orders.values():
            self._follow(orders)
        for slot in list(self._slots.values()):
            if slot.running is None and now >= slot.wrong_until:
                with self._orders[slot.type].saying(self._redis) as block:
                    self._attend(slot, now)
                slot.wrong_until = now + CHANGE_SECONDS if block.is_wrong else 0.0

    def _plan(self) -> None:
        """When Redis is looked at next, and which keys it shall tell of."""
        waiting = [slot for slot in self._slots.values() if slot.running is None]
        self._changes.follow([agents.DRAIN, *(key for orders in self._orders.values() for key in orders.keys)])
        for orders in self._orders.values():
            orders.are_told = self._changes.are_told
        dues = [orders.due for orders in self._orders.values()] if not self._draining else []
        self._look_at = min(self._beat_at, self._known_at, *dues, *(slot.look_at for slot in waiting))

    def _beat(self, now: float) -> None:
        """Renew this agent's entry, and read the others'."""
        self._know(now)
        if self.token not in self._known:  # at first, after FLUSHALL, and if they are too many to be read
            with next(iter(self._orders.values())).saying(self._redis):
                if removed := agents.clean(self._redis):
                    self._log.info("agents", f"removed {removed} entries of agents that are gone from {agents.AGENTS}")
                self._know(now)
        agents.remove_dead(self._redis, self._known, self._clock)
        self._registered = self._registered or self._clock
        entry = agents.Agent(
            self.token, self.name, this_host(), os.getpid(), start_time(os.getpid()) or 0, self._registered, self._clock,
            self.options.types, len(self._slots), self.options.most, self._draining,
        )  # fmt: skip
        agents.write(self._redis, entry)
        self._known[self.token] = entry
        self._beat_at = now + BEAT_SECONDS
        states = [slot.state for slot in self._slots.values()]
        self._tell(f"{states.count('running')} of {len(states)} workers run")

    def _know(self, now: float) -> None:
        self._known, self._clock = agents.read(self._redis)
        self._known_at = now + KNOWN_SECONDS

    def _follow(self, orders: Orders) -> None:
        """What the queues of one type say; new orders first, because somebody waits for them."""
        mine = {slot.id: slot for slot in self._slots.values() if slot.type == orders.type and slot.is_wanted}
        taken = orders.take(self._redis, self._room())
        for id_ in taken.ids:
            self._take(orders.type, id_)
        for id_ in taken.again:
            if id_ in mine:
                mine[id_].due = 0.0
        if taken.ids:
            self._has_taken = True
            return  # what else is due comes in the next turn
        for id_ in orders.lost(self._redis, mine, [id_ for id_, slot in mine.items() if slot.running is None]):
            self._let_go(mine.pop(id_), "its id was removed from the queue: ending the worker")
        streams = {slot.stream for slot in mine.values() if slot.stream}
        orders.keep(self._redis, mine, self._known, self._clock, streams=streams)

    def _room(self) -> int:
        starting = sum(slot.state == "starting" for slot in self._slots.values())
        room = min(self.options.most - len(self._slots), STARTING_MAX - starting)
        if room > 0 and self.options.memory:
            used = sum(slot.status().memory or 0 for slot in self._slots.values())
            room = room if used < self.options.memory else 0
        return room

    def _take(self, type_: str, id_: str) -> None:
        slot = Slot(type_, id_)
        before = self._slots.get(slot.key)
        if before is not None:  # it ends, and is wanted again
            before.is_wanted, before.due = True, 0.0
            return
        self._slots[slot.key] = slot
        self._start(slot)

    def _attend(self, slot: Slot, now: float) -> None:
        """Start a worker that has waited for what has come."""
        if not slot.noted:
            self._note(slot, None)
            if slot.key not in self._slots:
                self._log.warning("restart", f"{slot.name}: {not_again(slot)}")
        if not slot.noted or slot.key not in self._slots or now < slot.due:
            return
        match slot.waits_for:
            case Until.CHANGE:
                found = footing(self._redis, slot.type, slot.id, self._folders, self.options.policy)
                if found == slot.seen and slot.due:
                    slot.due = now + CHANGE_SECONDS
                    return
                slot.seen = found
            case Until.LEASE:
                if is_held(self._redis, slot.key):
                    slot.due = now + LOOK_SECONDS
                    return
        self._start(slot)

    def _start(self, slot: Slot) -> None:
        options = RunOptions(
            type=slot.type,
            id=slot.id,
            redis_url=self.options.redis_url,
            policy=self.options.policy,
            audit=self.options.audit,
        )
        try:
            slot.running = self.pool.start(options, key_line=self.options.key_line(slot.type), on=self)
        except SandboxrunError as error:
            slot.running = None
            self._ended(slot, Ended(error.exit_code, str(error), error, 0.0, None))

    # --- what others see

    def status(self) -> AgentStatus:
        """From any thread."""
        from sandboxrun import __version__

        slots = list(self._slots.values())
        types = (
            orders.status([slot.status() for slot in slots if slot.type == orders.type])
            for orders in self._orders.values()
        )
        return AgentStatus(
            name=self.name,
            host=this_host(),
            version=__version__,
            redis=self._redis.address.shown,
            redis_up=not self._is_away,
            since=self.since,
            draining=self._draining,
            most=self.options.most,
            types=tuple(types),
        )
