"""A worker's two hashes as they are, also where they are wrong: bounded reads, and the one write."""

from __future__ import annotations

from collections.abc import Mapping

from sandboxrun.config import keys
from sandboxrun.config.worker import FIELDS_MAX, READ_FIELDS, not_a_hash, too_long, too_many, value_limit, wanted_fields
from sandboxrun.errors import ConfigError, StoreError
from sandboxrun.records import field, record
from sandboxrun.redis.bounded import bounded
from sandboxrun.redis.connection import Connection
from sandboxrun.redis.lease import PID_FIELDS, holder
from sandboxrun.redis.replies import ReplyError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

READ_MAX_BYTES = 32 * 1024 * 1024  # of both hashes
WRITE_TRIES = 100  # against the supervisor, which renews pidSeen


@record
class Stored:
    """One hash. `fields` are those that were read; `long` the sizes in bytes of those that are too long for that."""

    key: str
    kind: str  # as TYPE says
    count: int
    fields: Mapping[bytes, bytes] = field(default_factory=dict)
    long: Mapping[bytes, int] = field(default_factory=dict)

    def check(self) -> None:
        """Raise ConfigError for what a run would not read at all."""
        if self.kind not in ("hash", "none"):
            raise ConfigError(not_a_hash(self.key, self.kind))
        if self.count > FIELDS_MAX:
            raise ConfigError(too_many(self.key, self.count))
        for raw, size in self.long.items():
            name = raw.decode("utf-8", "replace")
            if wanted_fields([name]):
                raise ConfigError(too_long(name, self.key, size))

    @property
    def names(self) -> list[bytes]:
        return sorted([*self.fields, *self.long])


@record
class Hashes:
    """What is stored for a worker, and Redis's clock in seconds."""

    shared: Stored
    own: Stored
    now: int

    @property
    def holder(self) -> dict[str, str | None]:
        """Of `pid`."""
        return holder([self.own.fields.get(name.encode()) for name in PID_FIELDS])

    def place(self, where: str) -> str:
        """`field NAME of KEY`, which errors say of both hashes, with the key of the one that has it."""
        name = where.removesuffix(f" of {self.own.key}").rpartition("field ")[2].encode()
        if where.endswith(f" of {self.own.key}") and name not in self.own.names and name in self.shared.names:
            return f"{where.removesuffix(self.own.key)}{self.shared.key}"
        return where

    def set_fields(self) -> list[tuple[str, Stored, bytes]]:
        """Name, hash and raw name of each field that counts: the worker's own hash wins."""
        found = dict.fromkeys(self.shared.names, self.shared) | dict.fromkeys(self.own.names, self.own)
        return [(raw.decode("utf-8", "backslashreplace"), found[raw], raw) for raw in sorted(found)]


def read(connection: Connection, type_: str, id_: str) -> Hashes:
    """Raises ConfigError where there is more than can be looked at."""
    names = keys.type_key(type_), keys.worker_key(type_, id_)
    mend = "look with redis-cli HKEYS, and remove what does not belong there with HDEL"
    with bounded(connection, READ_MAX_BYTES, f"{names[0]} and {names[1]} have", mend):
        shared, own = (_read(connection, name) for name in names)
        return Hashes(shared, own, int(connection.call("TIME")[0]))


def _read(connection: Connection, key: str) -> Stored:
    kind, count = connection.pipeline([("TYPE", key), ("HLEN", key)])
    if isinstance(kind, ReplyError):
        raise kind
    kind = kind.decode()
    if kind != "hash" or count > FIELDS_MAX:
        return Stored(key, kind, 0 if kind != "hash" else count)
    names = sorted(connection.call("HKEYS", key)[: FIELDS_MAX + 1], key=_rank)
    sizes = connection.pipeline([("HSTRLEN", key, name) for name in names])
    long = {
        name: size
        for name, size in zip(names, sizes, strict=True)
        if isinstance(size, int) and size > value_limit(name.decode("utf-8", "replace"))
    }
    wanted = [name for name in names if name not in long]
    values = connection.call("HMGET", key, *wanted) if wanted else []
    found = {name: value for name, value in zip(wanted, values, strict=True) if value is not None}
    return Stored(key, kind, count, found, long)


def _rank(name: bytes) -> int:
    """In the order in which a run reads them, and so finds what is wrong; what it does not read comes last, as Redis has it."""
    return _RANKS.get(name, len(_RANKS))


_RANKS = {name.encode(): rank for rank, name in enumerate(READ_FIELDS)}


def write(connection: Connection, before: Hashes, put: Mapping[str, str], remove: list[str]) -> None:
    """Change the worker's own hash, all or nothing, if both hashes are still what they were; `pid` and what stands beside
    it may have changed. Raises StoreError where they are not."""
    key, shared = before.own.key, before.shared.key
    type_, id_ = keys.split_worker_key(key)
    for _ in range(WRITE_TRIES):
        connection.call("WATCH", key, shared)
        found = read(connection, type_, id_)
        changed = [*_changed(before.own, found.own), *_changed(before.shared, found.shared)]
        if changed:
            connection.call("UNWATCH")
            raise StoreError(
                f"{', '.join(changed[:5])} changed meanwhile, so nothing was written: see sandboxrun show {type_} {id_}, and "
                "run this again"
            )
        if _transaction(connection, key, put, remove):
            return
    raise StoreError(f"{key} changes so often that it cannot be written: find out who writes to it")


def _changed(before: Stored, now: Stored) -> list[str]:
    pid = {name.encode() for name in PID_FIELDS}
    return [
        f"field {name.decode('utf-8', 'backslashreplace')[:80]} of {now.key}"
        for name in sorted({*before.names, *now.names} - pid)
        if before.fields.get(name) != now.fields.get(name) or before.long.get(name) != now.long.get(name)
    ]


def _transaction(connection: Connection, key: str, put: Mapping[str, str], remove: list[str]) -> bool:
    commands: list[Any] = [("MULTI",)]
    if put:
        commands.append(("HSET", key, *(word for pair in put.items() for word in pair)))
    if remove:
        commands.append(("HDEL", key, *remove))
    replies = connection.pipeline([*commands, ("EXEC",)])
    for reply in [*replies, *(replies[-1] or ())]:
        if isinstance(reply, ReplyError):
            raise reply
    return replies[-1] is not None
