"""Which workers of a type shall run: the queues of ids and the count of `TYPE:h`, changed in transactions.

`TYPE:start:q` holds the ids that wait, `TYPE:started:q` those that somebody has taken, as with the loop of shell commands that
this replaces: LMOVE start started RIGHT LEFT, run the worker, LREM started 1 ID, LPUSH start ID. Such loops, tools that push an
id, and several agents work on the same queues. An id stays in `started` while its worker runs or waits for its restart, and
field pidAgent of its hash says which agent has it. `TYPE:stopped:q` holds the ids that `sandboxrun stop` has stopped.

In a transaction only what has a bound is read: whether a queue has an id, and few fields of a hash.
"""

from __future__ import annotations

import time

from sandboxrun.config import keys
from sandboxrun.fleet.count import COUNT_MAX, count_of, set_count
from sandboxrun.fleet.queues import Queues, read_fields, read_queue, transact
from sandboxrun.records import record
from sandboxrun.redis.connection import Connection
from sandboxrun.redis.lease import AGENT_FIELDS, PID_FIELDS, holder, is_alive

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    Commands = list[tuple[str | bytes | int, ...]]

REASON_MAX_CHARS = 300


@record
class Taken:
    """`ids`: taken now; `again`: ordered, but taken before, perhaps by the same agent. `fault`: what in the queue is no id."""

    ids: tuple[str, ...]
    again: tuple[str, ...] = ()
    fault: str = ""


@record
class Ordered:
    """What `start` did: `running` needed no order."""

    ordered: tuple[str, ...]
    running: tuple[str, ...]


def start(connection: Connection, type_: str, ids: Sequence[str]) -> Ordered:
    """Order that these run: also one that is stopped, or waits for its restart.

    If `TYPE:h` has a count, it grows by those that were not known before. Raises ConfigError, StoreError, ReplyError.
    """
    queues, ids = Queues(type_), list(dict.fromkeys(map(keys.check_id, ids)))
    done = Ordered((), ())

    def decide(_: list[Any]) -> Commands:
        nonlocal done
        queues.check(connection)
        waiting, started = (queues.having(connection, queue, ids) for queue in (queues.start, queues.started))
        stopped = queues.having(connection, queues.stopped, ids)
        writable = queues.hashes(connection, ids)
        running = {id_ for id_ in ids if id_ in started and _lives(connection, queues.hash(id_))}
        commands: Commands = []
        for id_ in ids:
            if id_ in running:
                continue
            if id_ not in waiting:
                commands.append(("LPUSH", queues.start, id_))
            commands += [("LREM", queues.started, 0, id_)] * (id_ in started)
            commands += _forget_stop(queues, id_, writable) if id_ in stopped else []
        fresh = [id_ for id_ in ids if id_ not in waiting | started | stopped]
        count = count_of(connection, type_)
        if count is not None and fresh:
            commands.append(set_count(connection, type_, min(count + len(fresh), COUNT_MAX)))
        done = Ordered(tuple(id_ for id_ in ids if id_ not in running), tuple(id_ for id_ in ids if id_ in running))
        return commands

    transact(connection, [*queues.watched(ids), keys.type_key(type_)], decide, type_)
    return done


def _forget_stop(queues: Queues, id_: str, writable: set[str]) -> Commands:
    forget = ("HDEL", queues.hash(id_), "pidStopped", "pidRestarts")
    return [("LREM", queues.stopped, 0, id_), *([forget] if id_ in writable else [])]


def take(connection: Connection, type_: str, agent: str, most: int) -> Taken:
    """Take at most `most` ids that wait, the one at the right end first, for the agent with this token.

    Raises ConfigError, StoreError, ReplyError.
    """
    queues = Queues(type_)
    found = read_queue(connection, queues.start, enough=most)
    ids = found.ids[::-1][:most]
    if not ids:
        return Taken((), fault=found.fault)
    taken = Taken(())

    def decide(_: list[Any]) -> Commands:
        nonlocal taken
        queues.check(connection)
        waiting, started = (queues.having(connection, queue, ids) for queue in (queues.start, queues.started))
        stopped = queues.having(connection, queues.stopped, ids)
        writable = queues.hashes(connection, ids)
        commands: Commands = []
        for id_ in ids:
            if id_ not in waiting:  # another agent was faster
                continue
            commands.append(("LREM", queues.start, 0, id_))  # all of them, if it was pushed twice
            if id_ not in started:
                commands.append(("LPUSH", queues.started, id_))
                commands += [("HSET", queues.hash(id_), "pidAgent", agent)] * (id_ in writable)
            if id_ in stopped:
                commands += _forget_stop(queues, id_, writable)
        taken = Taken(
            tuple(id_ for id_ in ids if id_ in waiting - started),
            tuple(id_ for id_ in ids if id_ in waiting & started),
            found.fault,
        )
        return commands

    transact(connection, queues.watched(ids), decide, type_)
    return taken


def give_back(connection: Connection, type_: str, ids: Sequence[str], agent: str) -> tuple[str, ...]:
    """Put ids that the agent has taken back to where they are taken next, in this order. Returns those that it still had."""
    queues = Queues(type_)
    back: tuple[str, ...] = ()

    def decide(_: list[Any]) -> Commands:
        nonlocal back
        queues.check(connection)
        mine = _held_by(connection, queues, ids, agent)
        waiting = queues.having(connection, queues.start, mine)
        back = tuple(mine)
        commands: Commands = []
        for id_ in reversed(mine):
            commands.append(("LREM", queues.started, 0, id_))
            commands += [("RPUSH", queues.start, id_)] * (id_ not in waiting)
            commands.append(("HDEL", queues.hash(id_), "pidAgent"))
        return commands

    if ids:
        transact(connection, queues.watched(ids), decide, type_)
    return back


def _held_by(connection: Connection, queues: Queues, ids: Sequence[str], agent: str) -> list[str]:
    """Those of the ids that are in `started` and are this agent's."""
    started = queues.having(connection, queues.started, ids)
    owners = read_fields(connection, [queues.hash(id_) for id_ in ids], ["pidAgent"], reopen=False)
    return [
        id_
        for id_, values in zip(ids, owners, strict=True)
        if id_ in started and values is not None and values[0] == agent.encode()
    ]


def lost(connection: Connection, type_: str, ids: Sequence[str], agent: str, *, idle: Sequence[str] = ()) -> set[str]:
    """Those of the ids that the agent has no more: they were stopped, removed, or another agent has them.

    `idle`: those that do not run. If another has one that runs, its own lease ends it.
    """
    queues = Queues(type_)
    found = read_queue(connection, queues.started)
    away = set(ids) - set(found.ids)
    if away:  # the queue may be longer than is read
        away -= queues.having(connection, queues.started, list(away))
    owners = read_fields(connection, [queues.hash(id_) for id_ in idle], ["pidAgent"])
    for id_, values in zip(idle, owners, strict=True):
        if values is not None and values[0] not in (None, agent.encode()):
            away.add(id_)
    return away


def ended(connection: Connection, type_: str, id_: str, agent: str, *, code: int, reason: str, counts: bool) -> bool:
    """Note how a run has ended; whether the agent shall start it again.

    `counts`: as a restart. Not to be started again: it is in `started` no more, or another agent has it.
    """
    queues, again = Queues(type_), False
    key = queues.hash(id_)

    def decide(_: list[Any]) -> Commands:
        nonlocal again
        again = id_ in queues.having(connection, queues.started, [id_])
        values = read_fields(connection, [key], ["pidAgent", "pidRestarts"], reopen=False)[0]
        if values is None:
            return []
        again = again and values[0] in (None, agent.encode())
        if not again:
            return []
        number = values[1] or b"0"
        restarts = int(number) if number.isdigit() and len(number) < 16 else 0
        words = ("pidExit", code, "pidReason", reason[:REASON_MAX_CHARS], "pidRestarts", restarts + counts)
        return [("HSET", key, "pidAgent", agent, *words)]

    transact(connection, [queues.started, key], decide, type_)
    return again


def done(connection: Connection, type_: str, id_: str, agent: str) -> None:
    """Remove what an agent has noted of a worker that it has no more. Of a stopped one it stays how it ended."""
    queues = Queues(type_)
    key = queues.hash(id_)

    def decide(_: list[Any]) -> Commands:
        known = any(queues.having(connection, queue, [id_]) for queue in (queues.start, queues.started, queues.stopped))
        values = read_fields(connection, [key], ["pidAgent"], reopen=False)[0]
        if values is None or values[0] not in (None, agent.encode()):
            return []
        return [("HDEL", key, *(("pidAgent",) if known else AGENT_FIELDS))]

    transact(connection, queues.watched([id_]), decide, type_)


def keep_stopped(connection: Connection, type_: str, id_: str) -> bool:
    """End a worker of the queues and keep it stopped until `start`; False if no queue has it, and then nothing is done.

    Its run ends because its `pid` is gone.
    """
    queues, known = Queues(type_), False
    key = queues.hash(keys.check_id(id_))

    def decide(_: list[Any]) -> Commands:
        nonlocal known
        queues.check(connection)
        queued = any(queues.having(connection, queue, [id_]) for queue in (queues.start, queues.started))
        stopped = bool(queues.having(connection, queues.stopped, [id_]))
        known = queued or stopped
        if not known:
            return []
        commands: Commands = [("LREM", queue, 0, id_) for queue in (queues.start, queues.started)]
        if not stopped:
            commands.append(("LPUSH", queues.stopped, id_))
        if queues.hashes(connection, [id_]):
            commands += [("HSET", key, "pidStopped", int(time.time())), ("HDEL", key, "pid", "pidAgent")]
        return commands

    transact(connection, queues.watched([id_]), decide, type_)
    return known


def ordered(connection: Connection, type_: str) -> tuple[str, ...]:
    """The ids that run, or shall."""
    queues = Queues(type_)
    return (*read_queue(connection, queues.started).ids, *read_queue(connection, queues.start).ids)


def stopped(connection: Connection, type_: str) -> tuple[str, ...]:
    """The ids that are kept stopped."""
    return read_queue(connection, keys.stopped_queue(type_)).ids


def _lives(connection: Connection, key: str) -> bool:
    values = read_fields(connection, [key], PID_FIELDS, reopen=False)[0]
    return values is not None and is_alive(holder(values), key, int(connection.call("TIME")[0]))
