"""A worker's two hashes as they are, also with faults: bounded reads for a run and for the commands, and the one write."""

from __future__ import annotations

from collections.abc import Mapping

from sandboxrun.config import keys
from sandboxrun.config.fields import is_inherited
from sandboxrun.config.worker import FIELDS_MAX, READ_FIELDS, not_a_hash, too_long, too_many, value_limit, wanted_fields
from sandboxrun.errors import ConfigError, StoreError
from sandboxrun.records import field, record
from sandboxrun.redis.connection import Connection
from sandboxrun.redis.lease import AGENT_FIELDS, PID_FIELDS, holder
from sandboxrun.redis.replies import ReplyError, TooManyBytes, Within, raise_errors
from sandboxrun.redis.transaction import optimistic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

    Commands = list[tuple[str | bytes | int, ...]]

READ_MAX_BYTES = 32 * 1024 * 1024  # of both hashes, with all their fields
START_MAX_BYTES = 16 * 1024 * 1024  # of both: the fields that a start reads at their longest, and the names of all
_START_FIELDS = (*READ_FIELDS, *PID_FIELDS)


@record
class Stored:
    """One hash. `fields` are those that were read; `long`: the sizes in bytes of those that were too long to be read."""

    key: str
    kind: str  # as TYPE says
    count: int
    fields: Mapping[bytes, bytes] = field(default_factory=dict)
    long: Mapping[bytes, int] = field(default_factory=dict)

    def check(self) -> None:
        """Raise ConfigError for what a run would not read at all."""
        if self.kind not in ("hash", "none"):
            raise not_a_hash(self.key, self.kind)
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
        shared = filter(is_inherited, self.shared.names)
        found = dict.fromkeys(shared, self.shared) | dict.fromkeys(self.own.names, self.own)
        return [(raw.decode("utf-8", "backslashreplace"), found[raw], raw) for raw in sorted(found)]


def read(connection: Connection, type_: str, id_: str) -> Hashes:
    """All fields of both hashes, in several round trips: a value is read if its size is within the limit.

    Raises ConfigError for more than READ_MAX_BYTES, ReplyError.
    """
    both = keys.type_key(type_), keys.worker_key(type_, id_)
    try:
        with Within(connection, READ_MAX_BYTES):
            shared, own = (_by_size(connection, key) for key in both)
            return Hashes(shared, own, int(connection.call("TIME")[0]))
    except TooManyBytes as error:
        raise ConfigError(
            f"{both[0]} and {both[1]} have more than {READ_MAX_BYTES >> 20} MiB", hint=_remove_hint(both[1])
        ) from error


def read_for_start(
    connection: Connection, type_: str, id_: str, *, also: Commands | None = None
) -> tuple[Hashes, list[Any]]:
    """Of both hashes the fields that decide how the worker is run, and its `pid` fields, in one round trip.

    A field that looks like a permission or a limit and is none is an error, whose hint shows its value. If there is one, both
    hashes are read once more.

    Returns the replies to the commands `also`, too. Raises ConfigError for more than START_MAX_BYTES, ReplyError.
    """
    both = keys.type_key(type_), keys.worker_key(type_, id_)
    commands: Commands = []
    for key in both:
        commands += [("TYPE", key), ("HLEN", key), ("HKEYS", key), ("HMGET", key, *_START_FIELDS)]
    replies = connection.pipeline_within([*commands, ("TIME",), *(also or ())], START_MAX_BYTES)
    if replies is None:
        raise _too_much(connection, both)
    shared, own = (_at_once(key, replies[at : at + 4]) for key, at in zip(both, (0, 4), strict=True))
    time, *others = replies[8:]
    if any(name.decode() not in _START_FIELDS for name in (*shared.fields, *own.fields)):
        return read(connection, type_, id_), others
    return Hashes(shared, own, int(raise_errors([time])[0][0])), others


def _at_once(key: str, replies: Sequence[Any]) -> Stored:
    """From TYPE, HLEN, HKEYS and HMGET of _START_FIELDS."""
    kind, count, names, values = replies
    if isinstance(kind, ReplyError):
        raise kind
    if kind != b"hash":
        return Stored(key, kind.decode(), 0)
    raise_errors([count, names, values])
    if count > FIELDS_MAX:
        return Stored(key, "hash", count)
    fields = {name.encode(): value for name, value in zip(_START_FIELDS, values, strict=True) if value is not None}
    for name in wanted_fields(name.decode("utf-8", "replace") for name in names):
        fields.setdefault(name.encode(), b"")
    return Stored(key, "hash", count, fields)


def _too_much(connection: Connection, both: tuple[str, str]) -> ConfigError:
    """Why two hashes have more than START_MAX_BYTES: raised here if it is one field or the number of fields."""
    connection.open()
    for key in both:
        _sizes(connection, key, [name.encode() for name in READ_FIELDS])[0].check()
    return ConfigError(
        f"{' and '.join(both)} have more than {START_MAX_BYTES >> 20} MiB of names of fields",
        hint=_remove_hint(both[1]),
    )


def _remove_hint(key: str) -> str:
    """By redis-cli, because what is too large for a start is too large for sandboxrun set."""
    from shlex import quote

    return f'redis-cli -u "$REDIS_URL" HDEL {quote(key)} FIELD'


def _by_size(connection: Connection, key: str) -> Stored:
    stored, names = _sizes(connection, key)
    values = connection.call("HMGET", key, *names) if names else []
    fields = {name: value for name, value in zip(names, values, strict=True) if value is not None}
    return Stored(key, stored.kind, stored.count, fields, stored.long)


def _sizes(connection: Connection, key: str, only: Iterable[bytes] | None = None) -> tuple[Stored, list[bytes]]:
    """A hash without its values, and the fields that are not too long to be read: among `only`, else among all."""
    kind, count = connection.pipeline([("TYPE", key), ("HLEN", key)])
    if isinstance(kind, ReplyError):
        raise kind
    kind = kind.decode()
    if kind != "hash":
        return Stored(key, kind, 0), []
    raise_errors([count])
    if count > FIELDS_MAX:
        return Stored(key, kind, count), []
    names = _in_order(connection.call("HKEYS", key)[: FIELDS_MAX + 1] if only is None else only)
    sizes = connection.pipeline([("HSTRLEN", key, name) for name in names])
    long = {
        name: size
        for name, size in zip(names, sizes, strict=True)
        if isinstance(size, int) and size > value_limit(name.decode("utf-8", "replace"))
    }
    return Stored(key, kind, count, long=long), [name for name in names if name not in long]


def _in_order(names: Iterable[bytes]) -> list[bytes]:
    """As a start reads them, so that the same fault is found first: _START_FIELDS, then the others as Redis has them."""
    there = dict.fromkeys(names)
    known = [raw for name in _START_FIELDS if (raw := name.encode()) in there]
    return list(dict.fromkeys((*known, *there)))


def write(connection: Connection, before: Hashes, put: Mapping[str, str], remove: list[str]) -> None:
    """Change the worker's own hash, all or nothing, if both hashes are still as they were `before`, except for `pid` and
    the fields beside it, which supervisor and agent write. Raises StoreError if they are not, ReplyError."""
    key = before.own.key
    type_, id_ = keys.split_worker_key(key)
    commands: Commands = []
    if put:
        commands.append(("HSET", key, *(word for pair in put.items() for word in pair)))
    if remove:
        commands.append(("HDEL", key, *remove))

    def decide(_: list[Any]) -> Commands:
        now = read(connection, type_, id_)
        changed = [*_changed(before.own, now.own), *_changed(before.shared, now.shared)]
        if changed:
            raise StoreError(
                f"{', '.join(changed[:5])} changed meanwhile, so nothing was written",
                hint=f"sandboxrun show {type_} {id_}",
            )
        return commands

    if not optimistic(connection, [key, before.shared.key], decide):
        raise StoreError(f"{key} changes so often that it cannot be written")


def _changed(before: Stored, now: Stored) -> list[str]:
    pid = {name.encode() for name in (*PID_FIELDS, *AGENT_FIELDS)}
    return [
        f"field {name.decode('utf-8', 'backslashreplace')[:80]} of {now.key}"
        for name in sorted({*before.names, *now.names} - pid)
        if before.fields.get(name) != now.fields.get(name) or before.long.get(name) != now.long.get(name)
    ]
