"""Ids that were taken and that nobody runs any more: any agent moves them back to where they are taken next."""

from __future__ import annotations

import contextlib
import time

from sandboxrun.config import keys
from sandboxrun.fleet import agents
from sandboxrun.fleet.handback import hand_back
from sandboxrun.fleet.queues import Queues, read_fields, read_queue, transact
from sandboxrun.redis.connection import Connection
from sandboxrun.redis.lease import LEASE_SECONDS, PID_FIELDS, holder, is_alive, this_host
from sandboxrun.redis.replies import ReplyError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from typing import Any

    Commands = list[tuple[str | bytes | int, ...]]
    Values = Sequence[bytes | None] | None

_FIELDS = (*PID_FIELDS, "pidAgent")
LOOP = ("requestStream", "consumerGroup", "consumerId")
OWNER_SECONDS = 30.0  # for so long an id counts as that of the living agent that had it


class Orphans:
    """One type's, with a memory from look to look.

    An id is moved at once if the agent that had it is gone. If no agent had it, after LEASE_SECONDS, because a loop of shell
    commands may just be starting it. A `pid` that was set without sandboxrun is that of a worker on any host: it is left alone.
    """

    def __init__(self, type_: str) -> None:
        self._queues = Queues(type_)
        self._since: dict[str, float] = {}  # when an id without any agent was first seen
        self._owners: dict[str, tuple[str, float]] = {}  # the living agent that has an id, and when that was read

    def move(
        self, connection: Connection, *, mine: Collection[str], known: dict[str, agents.Agent], clock: int
    ) -> tuple[str, ...]:
        """Move them, and return them. `mine`: ids of the agent that looks. `known`, `clock`: as agents.read returns them."""
        living = {token for token, agent in known.items() if agent.lives(clock)}
        now = time.monotonic()
        taken = read_queue(connection, self._queues.started).ids
        self._forget(taken)
        ids = [id_ for id_ in taken if id_ not in mine and not self._has_owner(id_, living, now)]
        keys_ = list(map(self._queues.hash, ids))
        found = [
            id_
            for id_, key, values in zip(ids, keys_, read_fields(connection, keys_, _FIELDS), strict=True)
            if self._judge(id_, key, values, living, clock, now)
        ]
        if not found:
            return ()
        # Read again: an agent is known before it takes its first id.
        known, clock = agents.read(connection)
        if not known:  # not even this agent: the entries cannot be read, or are about to be written again
            return ()
        self._hand_back(connection, found)
        return self._move(connection, found, {token for token, each in known.items() if each.lives(clock)}, clock)

    def _forget(self, taken: Sequence[str]) -> None:
        for memory in (self._since, self._owners):
            for id_ in memory.keys() - set(taken):
                del memory[id_]

    def _has_owner(self, id_: str, living: set[str], now: float) -> bool:
        owner, at = self._owners.get(id_, ("", 0.0))
        return owner in living and now - at < OWNER_SECONDS

    def _judge(self, id_: str, key: str, values: Values, living: set[str], clock: int, now: float) -> bool:
        """Whether it is to be moved now."""
        agent = _agent(values)
        if agent in living:
            self._owners[id_] = agent, now
        if not _is_orphan(key, values, living, clock):
            self._since.pop(id_, None)
            return False
        return bool(agent) or now - self._since.setdefault(id_, now) >= LEASE_SECONDS

    def _hand_back(self, connection: Connection, ids: list[str]) -> None:
        """Let others take the requests of those whose process was one of this host, because only of these it is certain that
        they are dead. One of another host that is not seen may still handle its request, so takeoverMillis decides."""
        keys_ = list(map(self._queues.hash, ids))
        held = read_fields(connection, keys_, PID_FIELDS)
        here = this_host()
        dead = [
            (id_, key)
            for id_, key, values in zip(ids, keys_, held, strict=True)
            if values is not None and holder(values)["pid"] is not None and holder(values)["pidHost"] == here
        ]
        if not dead:
            return
        shared, *own = read_fields(connection, [keys.type_key(self._queues.type), *(key for _, key in dead)], LOOP)
        for (id_, key), values in zip(dead, own, strict=True):
            stream, group, consumer = (
                (mine or common or b"").decode("utf-8", "replace")
                for mine, common in zip(values or [None] * len(LOOP), shared or [None] * len(LOOP), strict=True)
            )
            stream = stream or keys.request_stream(self._queues.type)
            if consumer in ("", id_) and stream.startswith(f"{self._queues.type}:"):
                with contextlib.suppress(ReplyError):  # takeoverMillis does it, and the id is moved in any case
                    hand_back(connection, key, stream, group or keys.GROUP, id_)

    def _move(self, connection: Connection, ids: list[str], living: set[str], clock: int) -> tuple[str, ...]:
        queues, moved = self._queues, list[str]()
        keys_ = list(map(queues.hash, ids))

        def decide(_: list[Any]) -> Commands:
            moved.clear()
            queues.check(connection)
            still = queues.having(connection, queues.started, ids)
            waiting = queues.having(connection, queues.start, ids)
            commands: Commands = []
            for id_, key, values in zip(ids, keys_, read_fields(connection, keys_, _FIELDS, reopen=False), strict=True):
                if id_ in still and _is_orphan(key, values, living, clock):
                    moved.append(id_)
                    commands.append(("LREM", queues.started, 0, id_))
                    commands += [("RPUSH", queues.start, id_)] * (id_ not in waiting)
                    commands.append(("HDEL", key, "pidAgent"))
            return commands

        transact(connection, queues.watched(ids), decide, queues.type)
        for id_ in moved:
            self._since.pop(id_, None)
        return tuple(moved)


def _agent(values: Values) -> str:
    return (values[-1] or b"").decode("ascii", "replace") if values is not None else ""


def _is_orphan(key: str, values: Values, living: set[str], clock: int) -> bool:
    if values is None:  # not to be read, so not to be judged
        return False
    held, agent = holder(values[:-1]), _agent(values)
    if is_alive(held, key, clock) or agent in living:
        return False
    return bool(agent) or held["pid"] is None or held["pidHost"] is not None
