"""The supervisor's few reads and writes in Redis: the hashes, and the life of `pid`."""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import parse_qsl, unquote, urlsplit

from sandboxrun import keys
from sandboxrun.config import FIELDS_MAX, value_limit, wanted_fields
from sandboxrun.errors import AlreadyRunningError, ConfigError, SandboxError, StoreError, UsageError
from sandboxrun.identity import Identity, Owner, User

DEFAULT_URL = "redis://127.0.0.1:6379"
TIMEOUT_SECONDS = 5
WATCH_SECONDS = 0.5  # how soon a removed pid is noticed
LEASE_REFRESH_SECONDS = 5
HASH_MAX_BYTES = 64 * 1024 * 1024  # in Redis: values can be read by their lengths, names only whole
CLAIM_TRIES = 100  # against others who change the hash at the same time
LEASE_SECONDS = 20  # a worker on another host that was not seen for so long counts as dead
SELECTORS_SINCE = 7  # the first Redis whose ACL has selectors; every Valkey says it is one
STALE_SECONDS = 3600  # no start takes so long: a user this old belongs to no run that is about to begin
REDIS_ACL = "redis-acl"  # for --allow-degraded

_NOT_A_URL = (
    "the Redis URL is not valid: expected redis://[USER:PASSWORD@]HOST:PORT[/DB], with special characters "
    "percent-encoded"
)
# What stands beside `pid` while a worker runs, so that a left-over pid can be told from a living one.
_PID_FIELDS = ("pid", "pidHost", "pidStarted", "pidSeen")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where Redis is: (host, port) or a Unix socket's path; `shown` has no password."""

    host: str | None
    port: int
    path: str | None
    shown: str
    login: str = "default"
    database: int = 0


def parse_url(url: str) -> Endpoint:
    """Raises UsageError for anything but redis://, rediss:// and unix://."""
    try:
        parts = urlsplit(url)
        port = parts.port or 6379
    except ValueError:
        raise UsageError(_NOT_A_URL) from None  # its text may quote a part of the password
    if parts.scheme not in ("redis", "rediss", "unix"):
        raise UsageError(f"the Redis URL begins with {parts.scheme[:20]!r}: expected redis://, rediss:// or unix://")
    query = dict(parse_qsl(parts.query))
    login = query.get("username") or unquote(parts.username or "") or "default"
    number = query.get("db") or (parts.path.strip("/") if parts.scheme != "unix" else "") or "0"
    if not re.fullmatch(r"[0-9]{1,5}", number):
        raise UsageError(f"the Redis URL names database {number[:20]!r}: expected a number, as in redis://HOST:PORT/1")
    database = int(number)
    if parts.scheme == "unix":
        if not parts.path.startswith("/"):
            raise UsageError("the Redis URL unix://… has no path: expected unix:///PATH/redis.sock")
        return Endpoint(None, 0, parts.path, f"unix://{parts.path}", login, database)
    host = parts.hostname or "127.0.0.1"
    return Endpoint(host, port, None, f"{parts.scheme}://{host}:{port}", login, database)


class Store:
    """A connection to Redis. Every method raises StoreError where Redis cannot be reached or refuses."""

    def __init__(self, url: str) -> None:
        self.endpoint = parse_url(url)
        self._closing = threading.Event()
        self._users: tuple[User, ...] = ()
        self._users_lock = threading.Lock()
        self._reconnected = threading.Event()
        self._readmit_failed = False
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        try:
            # Any: redis-py types every reply as the union of what its sync, async and decoding clients give.
            self._redis: Any = redis.Redis.from_url(
                url,
                socket_timeout=TIMEOUT_SECONDS,
                socket_connect_timeout=TIMEOUT_SECONDS,
                retry=Retry(NoBackoff(), 0),
                client_name="sandboxrun",
                redis_connect_func=self._connected,
            )
        except ValueError:
            raise UsageError(_NOT_A_URL) from None

    def read(self, type_: str, id_: str) -> tuple[dict[bytes, bytes], dict[bytes, bytes]]:
        """The fields of `TYPE:h` and `TYPE:ID:h` that matter, bounded in number and size. Raises ConfigError."""
        names = (keys.type_key(type_), keys.worker_key(type_, id_))
        with self._translated():
            return cast(tuple[dict[bytes, bytes], dict[bytes, bytes]], tuple(self._read_hash(name) for name in names))

    def check_free(self, key: str) -> None:
        """Raise AlreadyRunningError, naming the process, where the worker lives."""
        with self._translated():
            self._check_free(self._redis, key)

    def admit(self, identity: Identity, owner: Owner) -> tuple[User, ...]:
        """Make the run's users: one, or on a server without selectors two, of which the second reads the hashes.

        What killed supervisors have left is removed. Raises SandboxError where the login may not manage users.
        """
        import redis

        with self._translated():
            users = (identity.user,) if self._has_selectors() else (identity.flat, identity.reader)
            try:
                with self._redis.pipeline() as pipe:
                    for user in users:
                        pipe.execute_command("ACL SETUSER", user.name, *user.rules)
                    pipe.execute_command("ACL USERS")
                    self._users = users  # from here on they may be there
                    names = pipe.execute()[-1]
                    self._reconnected.clear()
            except redis.ResponseError as error:
                with contextlib.suppress(StoreError):  # of two, one may be there
                    self.dismiss()
                self._users = ()
                raise SandboxError(self._no_acl(error)) from error
            self._sweep(owner, names, {user.name for user in users})
        return users

    def dismiss(self) -> None:
        """Remove the run's users, which ends their connections."""
        self._closing.set()
        with self._users_lock:
            if self._users:
                with self._translated():
                    self._redis.execute_command(*self._delete_users())
                self._users = ()

    def _delete_users(self) -> tuple[str, ...]:
        return "ACL DELUSER", *(user.name for user in self._users)

    def claim(self, key: str, pid: int) -> None:
        """Set `pid` unless a living worker has it; of two that try at once, one succeeds. Raises AlreadyRunningError."""
        import redis

        mine = {"pid": pid, "pidHost": this_host(), "pidStarted": start_time(pid) or 0}
        with self._translated(), self._redis.pipeline() as pipe:
            for _ in range(CLAIM_TRIES):
                pipe.watch(key)
                now = self._check_free(pipe, key)
                pipe.multi()
                pipe.hset(key, mapping={**mine, "pidSeen": now})
                try:
                    pipe.execute()
                    return
                except redis.WatchError:
                    continue  # the hash changed meanwhile: look again
        raise StoreError(f"{key} changes so often that field pid cannot be set: find out who writes to it")

    def release(self, key: str, pid: int) -> None:
        """Remove `pid`, and what stands beside it, if it is still ours or gone already, and the run's users; ends the watch."""
        import redis

        self._closing.set()
        with self._users_lock, self._translated(), self._redis.pipeline() as pipe:
            for _ in range(CLAIM_TRIES):
                pipe.watch(key)
                if pipe.hget(key, "pid") not in (str(pid).encode(), None):
                    return
                pipe.multi()
                pipe.hdel(key, *_PID_FIELDS)
                if self._users:
                    pipe.execute_command(*self._delete_users())
                try:
                    pipe.execute()
                    self._users = ()
                    return
                except redis.WatchError:
                    continue

    def watch(self, key: str, pid: int, *, lost: Callable[[str], None], warn: Callable[[str], None]) -> None:
        """Start a thread that calls `lost` once when `pid` is removed or changed. Redis being away is no loss."""
        threading.Thread(target=self._watch, args=(key, pid, lost, warn), daemon=True).start()

    def close(self) -> None:
        self._closing.set()
        self._redis.close()

    def _watch(self, key: str, pid: int, lost: Callable[[str], None], warn: Callable[[str], None]) -> None:
        away = False
        refresh = time.monotonic() + LEASE_REFRESH_SECONDS
        while True:
            if self._closing.wait(WATCH_SECONDS):
                return
            try:
                with self._translated():
                    found = self._redis.hget(key, "pid")
                    if found == str(pid).encode() and time.monotonic() >= refresh:
                        self._refresh(key, pid)
                        refresh = time.monotonic() + LEASE_REFRESH_SECONDS
            except StoreError as error:
                if not away and not self._closing.is_set():
                    warn(f"{error}; the worker goes on, and its pid is watched again once Redis is back")
                away = True
                continue
            if self._closing.is_set():
                return  # we removed it ourselves
            if self._reconnected.is_set():
                self._readmit(warn)
            away = False
            if found != str(pid).encode():
                what = "removed" if found is None else f"changed to {found.decode('utf-8', 'replace')[:32]!r}"
                lost(f"field pid of {key} was {what}: ending the worker")
                return

    def _readmit(self, warn: Callable[[str], None]) -> None:
        """Behind a new connection there may be a server that was started anew, or one that took over: it knows no users."""
        self._reconnected.clear()
        try:
            with self._users_lock, self._translated():
                for user in self._users if not self._closing.is_set() else ():
                    self._redis.execute_command("ACL SETUSER", user.name, *user.rules)
        except StoreError as error:
            if not self._readmit_failed:
                warn(f"{error}; the worker's login cannot be made again yet")
            self._readmit_failed = True
            self._reconnected.set()
        else:
            self._readmit_failed = False

    def _refresh(self, key: str, pid: int) -> None:
        """Renew the lease, in a transaction: a hash deleted meanwhile must not come back."""
        import redis

        with self._redis.pipeline() as pipe, contextlib.suppress(redis.WatchError):
            pipe.watch(key)
            if pipe.hget(key, "pid") == str(pid).encode():
                now = pipe.time()[0]
                pipe.multi()
                pipe.hset(key, "pidSeen", now)
                pipe.execute()

    def _connected(self, connection: Any) -> None:
        connection.on_connect()
        self._reconnected.set()

    def _has_selectors(self) -> bool:
        hello = self._redis.execute_command("HELLO")
        fields = hello if isinstance(hello, dict) else dict(zip(hello[::2], hello[1::2], strict=True))
        major = fields.get(b"version", b"").partition(b".")[0]
        return major.isdigit() and int(major) >= SELECTORS_SINCE

    def _no_acl(self, error: Exception) -> str:
        login = self.endpoint.login
        why = str(error).rpartition("caused error: ")[2][:160]  # redis-py quotes the command, which is long
        return (
            f"the Redis login {login[:80]!r} may not make a user for the worker ({why}): an administrator of Redis "
            f"can allow it with ACL SETUSER {login[:80]} +acl|setuser +acl|deluser +acl|users, or do without: "
            f"--allow-degraded={REDIS_ACL} gives the worker this login itself"
        )

    def _sweep(self, ours: Owner, names: list[str], made: set[str]) -> None:
        """Remove the users whose supervisor is dead."""
        dead = []
        for name in names:
            owner = Owner.of_user(name) if name not in made else None
            if owner is not None and not self._may_live(owner, ours):
                dead.append(name)
        if dead:
            self._redis.execute_command("ACL DELUSER", *dead)

    def _may_live(self, owner: Owner, ours: Owner) -> bool:
        if owner.host == ours.host:
            return start_time(owner.pid) == owner.started
        # Of another host, or of this one before it was booted: its worker's lease tells, once it must have one.
        if abs(ours.made - owner.made) < STALE_SECONDS:
            return True
        values = self._redis.hmget(owner.key, _PID_FIELDS)
        return is_alive(_holder(values), owner.key, int(self._redis.time()[0]))

    def _check_free(self, redis: Any, key: str) -> int:
        """Redis's time in seconds, if nobody lives under this key."""
        values = redis.hmget(key, _PID_FIELDS)
        now = int(redis.time()[0])
        holder = _holder(values)
        if is_alive(holder, key, now):
            where = "" if holder["pidHost"] in (None, this_host()) else " on another host"
            raise AlreadyRunningError(
                f"{key} runs already as process {(holder['pid'] or '')[:32]!r}{where}: end it with HDEL {key} pid"
            )
        return now

    def _read_hash(self, name: str) -> dict[bytes, bytes]:
        # The type first, then sizes, then values: whoever can write to Redis must not fill our memory.
        kind = self._redis.type(name)
        if kind == b"none":
            return {}
        if kind != b"hash":
            raise ConfigError(
                f"{name} is a {kind.decode()}, not a hash: remove it with DEL {name} and make it with HSET"
            )
        count = self._redis.hlen(name)
        if count > FIELDS_MAX:
            raise ConfigError(f"{name} has {count} fields: at most {FIELDS_MAX} are read")
        if self._memory(name) > HASH_MAX_BYTES:
            raise ConfigError(
                f"{name} takes more than {HASH_MAX_BYTES >> 20} MiB: remove the fields that do not belong there"
            )
        fields = [
            field.encode() for field in wanted_fields(f.decode("utf-8", "replace") for f in self._redis.hkeys(name))
        ]
        if not fields:
            return {}
        with self._redis.pipeline(transaction=False) as pipe:
            for field in fields:
                pipe.hstrlen(name, field)
            lengths = pipe.execute()
        for field, length in zip(fields, lengths, strict=True):
            limit = value_limit(field.decode())
            if length > limit:
                raise ConfigError(f"field {field.decode()} of {name} has {length} bytes: at most {limit} are read")
        values = self._redis.hmget(name, fields)
        return {field: value for field, value in zip(fields, values, strict=True) if value is not None}

    def _memory(self, name: str) -> int:
        """What a key takes, names of its fields included; 0 for a login that may not ask."""
        import redis

        try:
            return int(self._redis.memory_usage(name, samples=0) or 0)
        except redis.ResponseError:
            return 0

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        import redis

        where = self.endpoint.shown
        try:
            yield
        except redis.AuthenticationError as error:
            raise StoreError(
                f"Redis at {where} refuses the login ({error}): check user and password of --redis or REDIS_URL"
            ) from error
        except (redis.ConnectionError, redis.TimeoutError, OSError) as error:
            reason = str(error).replace("\n", " ")[:200] or type(error).__name__
            raise StoreError(
                f"Redis at {where} cannot be reached ({reason}): start it, or name it with --redis URL or REDIS_URL"
            ) from error
        except redis.RedisError as error:
            raise StoreError(f"Redis at {where} refuses: {str(error)[:200]}") from error


def this_host() -> str:
    """What makes a pid unique: this boot of this kernel, and the pid namespace we are in."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return f"{file.read().strip()}/{os.stat('/proc/self/ns/pid').st_ino}"


def start_time(pid: int) -> int | None:
    """When a process was started, in clock ticks after boot (proc_pid_stat(5), field 22); None if it is not there."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    # A process whose first thread has ended shows as a zombie while its others go on.
    if fields[0] in (b"Z", b"X") and _threads(pid) <= 1:
        return None
    return int(fields[19])


def _threads(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/task"))
    except OSError:
        return 0


def _holder(values: list[bytes | None]) -> dict[str, str | None]:
    text = (value.decode("utf-8", "replace") if value is not None else None for value in values)
    return dict(zip(_PID_FIELDS, text, strict=True))


def is_alive(holder: Mapping[str, str | None], key: str, now: int) -> bool:
    """Whether the process that `pid` and the fields beside it name still lives. `now`: Redis's clock, in seconds."""
    pid, host, started, seen = (holder[name] for name in _PID_FIELDS)
    if pid is None:
        return False
    if host is not None and host != this_host():
        return seen is not None and seen.isdigit() and now - int(seen) < LEASE_SECONDS
    if not (pid.isdigit() and pid.isascii() and len(pid) < 11):
        return False
    if host is not None:
        return started is not None and str(start_time(int(pid))) == started
    # Set by a worker without us: its only argument is its key, so a stranger with the same pid is told apart.
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return key.encode() in file.read(65536).split(b"\0")
    except OSError:
        return False
