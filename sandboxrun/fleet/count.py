"""How many workers of a type shall run: `count` of `TYPE:h`, and the ids that come and go with it.

`workerCount`, as an earlier runtime called it, is read as the same.
"""

from __future__ import annotations

from sandboxrun.config import keys
from sandboxrun.errors import ConfigError
from sandboxrun.fleet.queues import Queues, read_fields, read_strictly, remove_hint, transact
from sandboxrun.records import record
from sandboxrun.redis.connection import Connection
from sandboxrun.redis.lease import AGENT_FIELDS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import Any

    Commands = list[tuple[str | bytes | int, ...]]

COUNT_MAX = 5000
COUNT_FIELDS = ("count", "workerCount")


@record
class Reconciled:
    """`count`: None if `TYPE:h` has none. `removed`: ids that shall run no more."""

    count: int | None
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()


def count_of(connection: Connection, type_: str) -> int | None:
    """How many workers `TYPE:h` asks for; None if it does not say. Raises ConfigError."""
    key = keys.type_key(type_)
    values = read_fields(connection, [key], COUNT_FIELDS, reopen=False)[0]
    if values is None:
        raise ConfigError(f"{key} is no hash, or has a field count that is too long", hint=remove_hint(key))
    given = {name: value for name, value in zip(COUNT_FIELDS, values, strict=True) if value}
    for name, value in given.items():
        if not (value.isdigit() and len(value) < 8 and int(value) <= COUNT_MAX):
            shown = value.decode("utf-8", "backslashreplace")[:40]
            raise ConfigError(
                f"field {name} of {key} is {shown!r}: expected a number from 0 to {COUNT_MAX}",
                hint=f"sandboxrun scale {type_} 1",
            )
    numbers = {int(value) for value in given.values()}
    if len(numbers) > 1:
        raise ConfigError(
            f"{key} has count {int(given['count'])} and workerCount {int(given['workerCount'])}, and they mean the same",
            hint=f"sandboxrun scale {type_} {int(given['count'])}",
        )
    return numbers.pop() if numbers else None


def set_count(connection: Connection, type_: str, count: int) -> tuple[str | bytes | int, ...]:
    key = keys.type_key(type_)
    also = ("workerCount", count) if connection.call("HEXISTS", key, "workerCount") else ()
    return ("HSET", key, "count", count, *also)


def scale(connection: Connection, type_: str, count: int) -> Reconciled:
    """Set how many workers shall run, and order or remove as many. Raises ConfigError, StoreError, ReplyError."""
    if not 0 <= count <= COUNT_MAX:
        raise ConfigError(f"{count} workers cannot be asked for: expected a number from 0 to {COUNT_MAX}")
    return _reconcile(connection, type_, count)


def reconcile(connection: Connection, type_: str) -> Reconciled:
    """Order or remove ids until there are as many as `TYPE:h` asks for. Raises ConfigError, StoreError, ReplyError.

    New ids are the lowest numbers that are free. Removed are first those that wait, then stopped ones, then those that run,
    the highest number first. An id that is removed while its worker runs is not started again, and its agent ends it.
    """
    return _reconcile(connection, type_, None)


def _reconcile(connection: Connection, type_: str, wanted: int | None) -> Reconciled:
    queues, found = Queues(type_), Reconciled(None)

    def decide(_: list[Any]) -> Commands:
        nonlocal found
        queues.check(connection)
        count = count_of(connection, type_) if wanted is None else wanted
        commands: Commands = [] if wanted is None else [set_count(connection, type_, wanted)]
        found = Reconciled(count)
        if count is None:
            return []
        waiting, started, stopped = (
            read_strictly(connection, queue) for queue in (queues.start, queues.started, queues.stopped)
        )
        ids = {*waiting, *started, *stopped}
        added = _lowest_free(ids, count - len(ids))
        order = [[i for i in waiting if i not in started], [i for i in stopped if i not in started], started]
        ranked = list(dict.fromkeys(id_ for part in order for id_ in sorted(part, key=_rank, reverse=True)))
        removed = ranked[: max(0, len(ids) - count)]
        found = Reconciled(count, tuple(added), tuple(removed))
        commands += [("LPUSH", queues.start, id_) for id_ in added]
        for id_ in removed:
            commands += [("LREM", queue, 0, id_) for queue in (queues.start, queues.started, queues.stopped)]
        gone = [id_ for id_ in removed if id_ not in started]
        writable = queues.hashes(connection, gone)
        commands += [("HDEL", queues.hash(id_), *AGENT_FIELDS) for id_ in gone if id_ in writable]
        return commands

    transact(connection, [*queues.watched(()), keys.type_key(type_)], decide, type_)
    return found


def _lowest_free(ids: Collection[str], count: int) -> list[str]:
    found: list[str] = []
    number = 1
    while len(found) < count:
        if str(number) not in ids:
            found.append(str(number))
        number += 1
    return found


def _rank(id_: str) -> tuple[bool, int, str]:
    """Sort key: names before numbers, numbers by value."""
    return (id_.isdigit(), int(id_) if id_.isdigit() else 0, id_)
