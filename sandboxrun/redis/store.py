"""The supervisor's few reads and writes in Redis: the hashes, the worker's user, and the life of `pid`.

Over the connection of our own: redis-py takes longer to import than all else that a start does.
"""

from __future__ import annotations

import _thread
import contextlib
import os
from collections.abc import Callable, Iterator

from sandboxrun.config import keys
from sandboxrun.config.worker import FIELDS_MAX, READ_FIELDS, not_a_hash, too_long, too_many, value_limit, wanted_fields
from sandboxrun.errors import AlreadyRunningError, ConfigError, ConfigGone, ConnectionLost, SandboxError, StoreError
from sandboxrun.redis.acl import Identity, Owner, User
from sandboxrun.redis.address import Address
from sandboxrun.redis.connection import Connection
from sandboxrun.redis.lease import PID_FIELDS, Run, holder, is_alive, start_time, this_host
from sandboxrun.redis.replies import ReplyError, refused
from sandboxrun.redis.watch import Loss, Watch, fields_left

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

DEFAULT_URL = "redis://127.0.0.1:6379"
TIMEOUT_SECONDS = 5.0
HASHES_MAX_BYTES = 16 * 1024 * 1024  # of both: all fields that are read at their longest, and their names
CLAIM_TRIES = 100  # against others who change the hash at the same time
SELECTORS_SINCE = 7  # the first Redis whose ACL has selectors; every Valkey says it is one
STALE_SECONDS = 3600  # no start takes so long: a user this old belongs to no run that is about to begin
REDIS_ACL = "redis-acl"  # for --allow-degraded
REDIS_PASSWORD = "redis-password"  # noqa: S105 - the name of what is missing
# Done before we log in, to learn whether anybody can: it changes nothing.
_ANYBODY = ("HDEL", "sandboxrun:probe:h", "pid")

Commands = list[tuple[str | bytes | int, ...]]


class Store:
    """A connection to Redis. Every method raises StoreError where Redis cannot be reached or refuses."""

    def __init__(self, url: str) -> None:
        """Raises UsageError for a URL that is none."""
        self.url = url
        self._connection = self._new_connection()
        self._connection.ask_first = _ANYBODY
        self._selectors = False
        self._users: tuple[User, ...] = ()
        self._rivals: list[str] = []  # users of other runs of the same worker
        self._users_lock = _thread.allocate_lock()
        self._closing = _thread.allocate_lock()  # held until it closes: to wait for it with a time-out
        self._closing.acquire()
        self._closed = False

    @property
    def address(self) -> Address:
        return self._connection.address

    @property
    def open_to_all(self) -> bool:
        """Whether this server carries out commands of who has not logged in, for its user `default` needs no password: then
        no worker needs the login that it is given. Known once the hash was read."""
        reply = self._connection.first
        return not (isinstance(reply, ReplyError) and str(reply).startswith(("NOAUTH", "NOPERM")))

    def read(self, type_: str, id_: str) -> tuple[dict[bytes, bytes], dict[bytes, bytes]]:
        """The fields of `TYPE:h` and `TYPE:ID:h` that matter, in one round trip. Raises ConfigError where there is too much
        of them, and AlreadyRunningError, naming the process, where the worker lives."""
        names = (keys.type_key(type_), keys.worker_key(type_, id_))
        commands: Commands = []
        for name in names:
            commands += [("TYPE", name), ("HLEN", name), ("HKEYS", name), ("HMGET", name, *READ_FIELDS)]
        commands += [("HELLO",), ("HMGET", names[1], *PID_FIELDS), ("TIME",)]
        # Whoever can write to Redis must not fill our memory: what comes is bounded, and what was too much is named.
        before = self._connection.received
        try:
            replies = self._pipeline(commands)
        except ConnectionLost:
            if self._connection.received <= before + HASHES_MAX_BYTES:
                raise
            replies = []
        if not replies:
            raise ConfigError(self._too_much(names))
        shared, own = (
            _hash(name, replies[at : at + 4], self.address.shown) for at, name in zip((0, 4), names, strict=True)
        )
        self._selectors = _has_selectors(replies[8])
        self._check_free(names[1], replies[9], replies[10])
        return shared, own

    def admit(self, identity: Identity, owner: Owner) -> tuple[User, ...]:
        """Make the run's users: one, or on a server without selectors two, of which the second reads the hashes.

        What killed supervisors have left is removed. Raises SandboxError where the login may not manage users.
        """
        users = (identity.user,) if self._selectors else (identity.flat, identity.reader)
        self._users = users  # from here on they may be there
        *made, names = self._pipeline([*map(_set_user, users), ("ACL", "USERS")])
        error = next((reply for reply in (*made, names) if isinstance(reply, ReplyError)), None)
        if error is not None:
            with contextlib.suppress(StoreError):  # of two, one may be there
                self.dismiss()
            self._users = ()
            raise SandboxError(self._no_acl(error))
        others = [text for name in names if (text := name.decode("utf-8", "replace")) not in {u.name for u in users}]
        self._sweep(owner, others)
        self._rivals = [name for name in others if (of := Owner.of_user(name)) is not None and of.key == owner.key]
        return users

    def dismiss(self) -> None:
        """Remove the run's users, which ends their connections."""
        self._close()
        with self._users_lock:
            if self._users:
                self._last([self._delete_users()])
                self._users = ()

    def leftover(self, ours: Owner, *, remove: bool = False) -> list[str]:
        """The users that killed supervisors have left, as `admit` would remove them. `ours`: whoever asks, now."""
        names = [name.decode("utf-8", "replace") for name in self._ask([("ACL", "USERS")])[0]]
        dead = self._dead(ours, names)
        if dead and remove:
            self._ask([("ACL", "DELUSER", *dead)])
        return dead

    def claim(self, run: Run, *, version: str) -> None:
        """Set `pid` unless a living worker has it; of two that try at once, one succeeds. Raises AlreadyRunningError."""
        mine = ("pid", run.pid, "pidToken", run.token, "pidHost", this_host(), "pidStarted", start_time(run.pid) or 0)
        about = ("pidName", os.uname().nodename, "pidVersion", version)
        for _ in range(CLAIM_TRIES):
            _, kind, values, time = self._ask([
                ("WATCH", run.key), ("TYPE", run.key), ("HMGET", run.key, *PID_FIELDS), ("TIME",)
            ])  # fmt: skip
            if kind == b"none" and run.key in run.stands_on:  # and must not come back with nothing but a pid
                raise ConfigGone(f"{run.key} was removed while the worker was being started")
            now = self._check_free(run.key, values, time)
            if self._transaction([("HSET", run.key, *mine, *about, "pidSeen", now, "pidSince", now)]):
                self._dismiss_rivals(run.key)
                return  # else the hash changed meanwhile: look again
        raise StoreError(f"{run.key} changes so often that field pid cannot be set: find out who writes to it")

    def release(self, run: Run) -> Loss | None:
        """Remove `pid`, and the fields beside it, if they are still this run's, and the run's users; ends the watch.

        Returns why the run had lost its `pid`, if it had.
        """
        self._close()
        loss: Loss | None = None
        with self._users_lock:
            for _ in range(CLAIM_TRIES):
                self._last([("WATCH", run.key)])
                with self._translated():
                    try:
                        loss, fields = fields_left(self._connection, run)
                    except ReplyError as error:
                        raise refused(error, self.address.shown) from error
                commands: Commands = [("HDEL", run.key, *fields)] if fields else []
                commands += [self._delete_users()] if self._users else []
                if not commands or self._transaction(commands):
                    self._users = ()
                    break
        return loss

    def watch(self, run: Run, *, lost: Callable[[Loss], None], warn: Callable[[str], None]) -> None:
        """Start a thread that calls `lost` once when `pid` is removed or changed. An outage of Redis does not count."""
        connection = self._new_connection()
        ended = lambda seconds: self._closing.acquire(timeout=seconds)  # noqa: E731
        Watch(connection, run, lost=lost, warn=warn, readmit=self._readmit, ended=ended).start()

    def close(self) -> None:
        self._close()
        self._connection.close()

    def _close(self) -> None:
        if not self._closed:
            self._closed = True
            self._closing.release()

    def _new_connection(self) -> Connection:
        return Connection(self.url, name="sandboxrun", seconds=TIMEOUT_SECONDS)

    # --- asking

    def _pipeline(self, commands: Commands) -> list[Any]:
        """The replies, errors among them, with HASHES_MAX_BYTES at most. Raises StoreError."""
        connection = self._connection
        with self._translated():
            if not connection.is_open:
                connection.open()
            connection.receive_most = connection.received + HASHES_MAX_BYTES
            try:
                return connection.pipeline(commands)
            finally:
                connection.receive_most = 0

    def _ask(self, commands: Commands) -> list[Any]:
        """The replies, none of which is an error."""
        return self._checked(self._pipeline(commands))

    def _last(self, commands: Commands) -> list[Any]:
        """As `_ask`, after a time in which the server may have been started anew."""
        try:
            return self._ask(commands)
        except ConnectionLost:
            return self._ask(commands)

    def _transaction(self, commands: Commands) -> bool:
        """False where what is watched has changed. Raises StoreError."""
        replies = self._ask([("MULTI",), *commands, ("EXEC",)])
        if replies[-1] is None:
            return False
        self._checked(replies[-1])
        return True

    def _checked(self, replies: list[Any]) -> list[Any]:
        for reply in replies:
            if isinstance(reply, ReplyError):
                raise refused(reply, self.address.shown)
        return replies

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except ConnectionLost as error:
            raise ConnectionLost(f"{error}: start it, or name it with --redis URL or REDIS_URL") from error

    # --- hashes

    def _too_much(self, names: tuple[str, str]) -> str:
        """Which of two hashes is too large, and why."""
        for name in names:
            count, *lengths = self._pipeline([("HLEN", name), *(("HSTRLEN", name, field) for field in READ_FIELDS)])
            if count > FIELDS_MAX:
                return too_many(name, count)
            for field, length in zip(READ_FIELDS, lengths, strict=True):
                if length > value_limit(field):
                    return too_long(field, name, length)
        return (
            f"{' and '.join(names)} have more than {HASHES_MAX_BYTES >> 20} MiB of names of fields: remove those that do not "
            f"belong there"
        )

    # --- users

    def _delete_users(self) -> tuple[str, ...]:
        return "ACL", "DELUSER", *(user.name for user in self._users)

    def _no_acl(self, error: Exception) -> str:
        login = (self.address.user or "default")[:80]
        return (
            f"the Redis login {login!r} may not make a user for the worker ({str(error)[:160]}): an administrator of Redis "
            f"can allow it with ACL SETUSER {login} +acl|setuser +acl|deluser +acl|users, or do without: "
            f"--allow-degraded={REDIS_ACL} gives the worker this login itself"
        )

    def _dismiss_rivals(self, key: str) -> None:
        """Remove the users of the runs that this one took `key` over from: what still reads with them stops at once."""
        if self._rivals:
            rivals, self._rivals = self._rivals, []
            with contextlib.suppress(StoreError):  # a worker also ends by the token that it finds
                self._ask([("ACL", "DELUSER", *rivals)])

    def _sweep(self, ours: Owner, names: list[str]) -> None:
        """Remove the users whose supervisor is dead."""
        dead = self._dead(ours, names)
        if dead:
            self._ask([("ACL", "DELUSER", *dead)])

    def _dead(self, ours: Owner, names: list[str]) -> list[str]:
        owners = [(name, Owner.of_user(name)) for name in names]
        return [name for name, owner in owners if owner is not None and not self._may_live(owner, ours)]

    def _may_live(self, owner: Owner, ours: Owner) -> bool:
        if owner.host == ours.host:
            return start_time(owner.pid) == owner.started
        # Of another host, or of this one before it was booted: its worker's lease tells, once it must have one.
        if abs(ours.made - owner.made) < STALE_SECONDS:
            return True
        values, time = self._ask([("HMGET", owner.key, *PID_FIELDS), ("TIME",)])
        return is_alive(holder(values), owner.key, int(time[0]))

    # --- pid

    def _check_free(self, key: str, values: list[bytes | None], time: list[bytes]) -> int:
        """Redis's time in seconds, if nobody lives under this key."""
        now, found = int(time[0]), holder(values)
        if is_alive(found, key, now):
            where = "" if found["pidHost"] in (None, this_host()) else " on another host"
            raise AlreadyRunningError(
                f"{key} runs already as process {(found['pid'] or '')[:32]!r}{where}: end it with sandboxrun stop "
                f"{' '.join(keys.split_worker_key(key))}"
            )
        return now

    def _readmit(self, connection: Connection) -> None:
        """Make the run's users again, unless it has ended."""
        with self._users_lock:
            for user in self._users if not self._closed else ():
                connection.call(*_set_user(user))


def _set_user(user: User) -> tuple[str, ...]:
    return "ACL", "SETUSER", user.name, *user.rules


def _has_selectors(hello: Any) -> bool:
    """From HELLO's answer: a map, or in RESP2 its names and values in a list."""
    if isinstance(hello, list):
        hello = dict(zip(hello[::2], hello[1::2], strict=True))
    if not isinstance(hello, dict):
        return False
    major = hello.get(b"version", b"").partition(b".")[0]
    return major.isdigit() and int(major) >= SELECTORS_SINCE


def _hash(name: str, replies: list[Any], shown: str) -> dict[bytes, bytes]:
    """From TYPE, HLEN, HKEYS and HMGET. A field that decides something and is none of READ_FIELDS has an empty value: it is
    an error whatever it holds."""
    kind, count, names, values = replies
    if kind == b"none":
        return {}
    if isinstance(kind, ReplyError):
        raise refused(kind, shown)
    if kind != b"hash":
        raise ConfigError(not_a_hash(name, kind.decode()))
    for reply in (count, names, values):
        if isinstance(reply, ReplyError):
            raise refused(reply, shown)
    if count > FIELDS_MAX:
        raise ConfigError(too_many(name, count))
    found = {field.encode(): value for field, value in zip(READ_FIELDS, values, strict=True) if value is not None}
    for field in wanted_fields(field.decode("utf-8", "replace") for field in names):
        found.setdefault(field.encode(), b"")
    return found
