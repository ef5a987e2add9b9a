"""The supervisor's few reads and writes in Redis: the hashes, and the life of `pid`."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlsplit

from sandboxrun import keys
from sandboxrun.config import FIELDS_MAX, value_limit, wanted_fields
from sandboxrun.errors import AlreadyRunningError, ConfigError, StoreError, UsageError

DEFAULT_URL = "redis://127.0.0.1:6379"
TIMEOUT_SECONDS = 5
WATCH_SECONDS = 0.5  # how soon a removed pid is noticed
LEASE_REFRESH_SECONDS = 5
HASH_MAX_BYTES = 64 * 1024 * 1024  # in Redis: values can be read by their lengths, names only whole
CLAIM_TRIES = 100  # against others who change the hash at the same time
LEASE_SECONDS = 20  # a worker on another host that was not seen for so long counts as dead

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


def parse_url(url: str) -> Endpoint:
    """Raises UsageError for anything but redis://, rediss:// and unix://."""
    try:
        parts = urlsplit(url)
        port = parts.port or 6379
    except ValueError:
        raise UsageError(_NOT_A_URL) from None  # its text may quote a part of the password
    if parts.scheme == "unix":
        if not parts.path.startswith("/"):
            raise UsageError("the Redis URL unix://… has no path: expected unix:///PATH/redis.sock")
        return Endpoint(None, 0, parts.path, f"unix://{parts.path}")
    if parts.scheme not in ("redis", "rediss"):
        raise UsageError(f"the Redis URL begins with {parts.scheme[:20]!r}: expected redis://, rediss:// or unix://")
    host = parts.hostname or "127.0.0.1"
    return Endpoint(host, port, None, f"{parts.scheme}://{host}:{port}")


class Store:
    """A connection to Redis. Every method raises StoreError where Redis cannot be reached or refuses."""

    def __init__(self, url: str) -> None:
        self.endpoint = parse_url(url)
        self._closing = threading.Event()
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
        """Remove `pid`, and what stands beside it, if it is still ours or gone already; ends the watch."""
        import redis

        self._closing.set()
        with self._translated(), self._redis.pipeline() as pipe:
            for _ in range(CLAIM_TRIES):
                pipe.watch(key)
                if pipe.hget(key, "pid") not in (str(pid).encode(), None):
                    return
                pipe.multi()
                pipe.hdel(key, *_PID_FIELDS)
                try:
                    pipe.execute()
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
            away = False
            if self._closing.is_set():
                return  # we removed it ourselves
            if found != str(pid).encode():
                what = "removed" if found is None else f"changed to {found.decode('utf-8', 'replace')[:32]!r}"
                lost(f"field pid of {key} was {what}: ending the worker")
                return

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

    def _check_free(self, redis: Any, key: str) -> int:
        """Redis's time in seconds, if nobody lives under this key."""
        values = redis.hmget(key, _PID_FIELDS)
        now = int(redis.time()[0])
        holder = dict(
            zip(
                _PID_FIELDS,
                (value.decode("utf-8", "replace") if value is not None else None for value in values),
                strict=True,
            )
        )
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
