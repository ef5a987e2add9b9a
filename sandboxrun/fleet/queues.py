"""The lists of a type's ids as they are: bounded reads, and what in them is no id. desired.py changes them.

Whoever can write to Redis can write anything there, and the size of an entry is known only once it was read.
"""

from __future__ import annotations

from sandboxrun.config import keys
from sandboxrun.errors import ConfigError, StoreError
from sandboxrun.records import record
from sandboxrun.redis.connection import Connection
from sandboxrun.redis.replies import is_wrong_type, raise_errors
from sandboxrun.redis.transaction import optimistic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any

    Commands = list[tuple[str | bytes | int, ...]]

PAGE = 200  # entries read at once
PAGE_MAX_BYTES = 256 * 1024  # as many ids at their longest have 28 KiB
STRICT_MAX_BYTES = 16 * 1024 * 1024  # of a page that must be read without a new connection
ENTRIES_MAX = 10_000  # of one queue
LONG_MAX = 16  # entries in a queue that are too long to be read, after which the rest is left alone
HASH_MAX_BYTES = 256 * 1024  # of the fields of one hash
HASHES = 100  # read at once


@record
class Queue:
    """What a list holds. `ids`: from left to right, each once. `fault`: why there may be more, or what is no id; or ""."""

    key: str
    ids: tuple[str, ...]
    fault: str = ""


def read_queue(connection: Connection, key: str, *, enough: int = ENTRIES_MAX) -> Queue:
    """The ids of a list, from its right end, until there are `enough`. The connection may be opened again."""
    found: list[str] = []
    foreign = long = at = 0
    while at < ENTRIES_MAX and len(found) < enough and long < LONG_MAX:
        page = _page(connection, key, -at - PAGE, -at - 1, LONG_MAX - long)
        if page is None:
            return Queue(key, (), not_a_list(key))
        at += PAGE
        long += sum(entry is None for entry in page)
        ids = [valid_id(entry) for entry in page]
        foreign += ids.count("")
        found += [id_ for id_ in reversed(ids) if id_]
        if len(page) < PAGE and long < LONG_MAX:
            break
    else:
        if len(found) < enough:
            fault = f"{key} has more than {ENTRIES_MAX} entries or some that are very long: the rest is left alone"
            return Queue(key, _once(found), fault)
    fault = f"{key} has {foreign} entries that are no id, which are left alone" if foreign else ""
    return Queue(key, _once(found), fault)


def _once(found: Iterable[str]) -> tuple[str, ...]:
    """From left to right; of an id that is there twice, the entry counts that is taken first."""
    return tuple(reversed(dict.fromkeys(found)))


def _page(connection: Connection, key: str, start: int, stop: int, long_most: int) -> list[bytes | None] | None:
    """The entries; None in place of those that are too long. None if the key is no list."""
    replies = connection.pipeline_within([("LRANGE", key, start, stop)], PAGE_MAX_BYTES, reopen=True)
    if replies is not None:
        if is_wrong_type(replies[0]):
            return None
        entries: list[bytes | None] = connection.checked(replies[0])
        return entries
    if start == stop:
        return [None]
    middle = (start + stop) // 2
    # The right half first, because its entries are taken first.
    right = _page(connection, key, middle + 1, stop, long_most) or []
    if right.count(None) >= long_most:
        return right
    left = _page(connection, key, start, middle, long_most - right.count(None)) or []
    return left + right


def read_strictly(connection: Connection, key: str) -> list[str]:
    """The ids of a list from left to right, over a connection that watches keys and so must not be opened again.

    Raises ConfigError if it is too long or no list, and TooManyBytes.
    """
    found: list[str] = []
    at = 0
    while True:
        replies = connection.pipeline_within([("LRANGE", key, at, at + PAGE - 1)], STRICT_MAX_BYTES)
        if replies is None:
            raise ConfigError(f"{key} has entries that are too long to be read")
        if is_wrong_type(replies[0]):
            raise ConfigError(not_a_list(key))
        page = connection.checked(replies[0])
        found += filter(None, map(valid_id, page))
        at += PAGE
        if len(page) < PAGE:
            return list(_once(reversed(found)))
        if at >= ENTRIES_MAX:
            raise ConfigError(f"{key} has more than {ENTRIES_MAX} entries")


def valid_id(entry: bytes | None) -> str:
    """The id that an entry is, or ""."""
    if entry is None or len(entry) > keys.ID_MAX_CHARS:
        return ""
    try:
        return keys.check_id(entry.decode("ascii", "replace"))
    except ConfigError:
        return ""


def not_a_list(key: str) -> str:
    return f"{key} is no list, so that no worker can be started by it"


def read_fields(
    connection: Connection, keys_: Sequence[str], fields: Sequence[str], *, reopen: bool = True
) -> list[list[bytes | None] | None]:
    """These fields of each hash; None for a key that is no hash or has too many bytes in them.

    Without `reopen` the connection is closed by such a hash, and then all of its page are None.
    """
    found: list[list[bytes | None] | None] = []
    for at in range(0, len(keys_), HASHES):
        page = keys_[at : at + HASHES]
        commands = [("HMGET", key, *fields) for key in page]
        replies = connection.pipeline_within(commands, HASH_MAX_BYTES, reopen=reopen)
        if replies is not None:
            found += [_values(connection, reply) for reply in replies]
        elif len(page) == 1 or not reopen:
            found += [None] * len(page)
        else:
            for key in page:
                found += read_fields(connection, [key], fields)
    return found


def _values(connection: Connection, reply: Any) -> list[bytes | None] | None:
    if is_wrong_type(reply):
        return None
    values: list[bytes | None] = connection.checked(reply)
    return values


class Queues:
    """The three lists of a type, for a transaction over some ids of it."""

    def __init__(self, type_: str) -> None:
        self.type = keys.check_type(type_)
        self.start, self.started = keys.start_queue(type_), keys.started_queue(type_)
        self.stopped = keys.stopped_queue(type_)

    def hash(self, id_: str) -> str:
        return keys.worker_key(self.type, id_)

    def watched(self, ids: Iterable[str]) -> list[str]:
        return [self.start, self.started, self.stopped, *map(self.hash, ids)]

    def check(self, connection: Connection) -> None:
        """Raise ConfigError unless each is a list: in a transaction one refused command undoes no other."""
        names = (self.start, self.started, self.stopped)
        for name, kind in zip(names, connection.pipeline([("TYPE", name) for name in names]), strict=True):
            if connection.checked(kind) not in (b"list", b"none"):
                raise ConfigError(not_a_list(name), hint=remove_hint(name))

    def having(self, connection: Connection, queue: str, ids: Sequence[str]) -> set[str]:
        """Those of the ids that a list has."""
        replies = raise_errors(connection.pipeline([("LPOS", queue, id_) for id_ in ids])) if ids else []
        return {id_ for id_, at in zip(ids, replies, strict=True) if at is not None}

    def hashes(self, connection: Connection, ids: Sequence[str]) -> set[str]:
        """Those of the ids that have a hash, or may have one."""
        kinds = raise_errors(connection.pipeline([("TYPE", self.hash(id_)) for id_ in ids])) if ids else []
        return {id_ for id_, kind in zip(ids, kinds, strict=True) if kind in (b"hash", b"none")}


def remove_hint(key: str) -> str:
    from shlex import quote

    return f'redis-cli -u "$REDIS_URL" DEL {quote(key)}'


def transact(
    connection: Connection, watched: Sequence[str], decide: Callable[[list[Any]], Commands], type_: str
) -> None:
    if not optimistic(connection, watched, decide, reopen=True):
        raise StoreError(f"the queues of {type_} change so often that they cannot be changed")
