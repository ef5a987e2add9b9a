"""The supervisor's few reads and writes in Redis: the hashes, the worker's user, and the life of `pid`.

Over the connection of our own: redis-py takes longer to import than all else that a start does.
"""

from __future__ import annotations

import _thread
import contextlib
import os
from collections.abc import Callable, Iterator

from sandboxrun import keys
from sandboxrun.config import FIELDS_MAX, READ_FIELDS, not_a_hash, too_long, too_many, value_limit, wanted_fields
from sandboxrun.connection import Address, Connection, ReplyError, refused
from sandboxrun.errors import AlreadyRunningError, ConfigError, ConnectionLost, SandboxError, StoreError
from sandboxrun.identity import Identity, Owner, User
from sandboxrun.lease import PID_FIELDS, holder, is_alive, start_time, this_host

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

DEFAULT_URL = "redis://127.0.0.1:6379"
TIMEOUT_SECONDS = 5.0
WATCH_SECONDS = 0.5  # how soon a removed pid is noticed
LEASE_REFRESH_TICKS = 10  # of WATCH_SECONDS
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
        self._connection.receive_most = HASHES_MAX_BYTES
        try:
            replies = self._pipeline(commands)
        except ConnectionLost:
            if self._connection.received <= HASHES_MAX_BYTES:
                raise
            replies = []
        self._connection.receive_most = 0
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
        self._sweep(owner, [name.decode("utf-8", "replace") for name in names], {user.name for user in users})
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

    def claim(self, key: str, pid: int, *, version: str) -> None:
        """Set `pid` unless a living worker has it; of two that try at once, one succeeds. Raises AlreadyRunningError."""
        mine = ("pid", pid, "pidHost", this_host(), "pidStarted", start_time(pid) or 0)
        about = ("pidName", os.uname().nodename, "pidVersion", version)
        for _ in range(CLAIM_TRIES):
            _, values, time = self._ask([("WATCH", key), ("HMGET", key, *PID_FIELDS), ("TIME",)])
            now = self._check_free(key, values, time)
            if self._transaction([("HSET", key, *mine, *about, "pidSeen", now, "pidSince", now)]):
                return  # else the hash changed meanwhile: look again
        raise StoreError(f"{key} changes so often that field pid cannot be set: find out who writes to it")

    def release(self, key: str, pid: int) -> None:
        """Remove `pid`, and what stands beside it, if it is still ours or gone already, and the run's users; ends the watch."""
        self._close()
        with self._users_lock:
            for _ in range(CLAIM_TRIES):
                _, found = self._last([("WATCH", key), ("HGET", key, "pid")])
                ours = found in (str(pid).encode(), None)
                commands: Commands = [("HDEL", key, *PID_FIELDS)] if ours else []
                commands += [self._delete_users()] if self._users else []
                if not commands or self._transaction(commands):
                    self._users = ()
                    return

    def watch(self, key: str, pid: int, *, lost: Callable[[str], None], warn: Callable[[str], None]) -> None:
        """Start a thread that calls `lost` once when `pid` is removed or changed. Redis being away is no loss."""
        _thread.start_new_thread(self._watch, (key, pid, lost, warn))

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
        """The replies, errors among them. Raises StoreError."""
        with self._translated():
            if not self._connection.is_open:
                self._connection.open()
            return self._connection.pipeline(commands)

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

    def _sweep(self, ours: Owner, names: list[str], made: set[str]) -> None:
        """Remove the users whose supervisor is dead."""
        dead = self._dead(ours, [name for name in names if name not in made])
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

    def _watch(self, key: str, pid: int, lost: Callable[[str], None], warn: Callable[[str], None]) -> None:
        """On a connection of its own: one that waits must not keep the end of a run waiting."""
        connection, mine = self._new_connection(), str(pid).encode()
        away, ticks = False, 0
        while not self._closing.acquire(timeout=WATCH_SECONDS):
            ticks += 1
            try:
                if not connection.is_open:
                    connection.open()
                    self._readmit(connection)
                found = connection.call("HGET", key, "pid")
                if found == mine and ticks % LEASE_REFRESH_TICKS == 0:
                    _refresh(connection, key, mine)
            except (StoreError, ReplyError) as error:
                connection.close()
                if not away and not self._closed:
                    warn(f"{error}; the worker goes on, and its pid is watched again once Redis is back")
                away = True
                continue
            away = False
            if self._closed:
                break  # we removed it ourselves
            if found != mine:
                what = "removed" if found is None else f"changed to {found.decode('utf-8', 'replace')[:32]!r}"
                lost(f"field pid of {key} was {what}: ending the worker")
                break
        connection.close()

    def _readmit(self, connection: Connection) -> None:
        """Behind a new connection there may be a server that was started anew, or one that took over: it knows no users."""
        with self._users_lock:
            for user in self._users if not self._closed else ():
                connection.call(*_set_user(user))


def _refresh(connection: Connection, key: str, mine: bytes) -> None:
    """Renew the lease, in a transaction: a hash deleted meanwhile must not come back."""
    _, found, time = connection.pipeline([("WATCH", key), ("HGET", key, "pid"), ("TIME",)])
    if found == mine:
        connection.pipeline([("MULTI",), ("HSET", key, "pidSeen", time[0]), ("EXEC",)])
    else:
        connection.call("UNWATCH")


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
