"""Who a worker is at Redis: a user of its own for one run, as rules of Redis's ACL. Pure.

A worker with the operator's login could rewrite the hash that says what it may touch, read what every other service
keeps, or make Redis write files. Its user can do what the request loop needs, and what `allowRedis` lists:

- read its own hash and its type's, and write neither;
- use its request and response streams, and the stream of dead letters, and fence others off its request stream;
- write replies (`res:*`) and traces (`req:*:h`), and read nobody's;
- send requests to the types that `allowCall` lists, and read the replies and traces of its own requests alone: their refs
  begin with the run's NONCE.

Selectors (Redis 7, Valkey) say which commands apply to which keys. A server without them gets two users: one for the
streams and replies, one that only reads, for the hashes; and a third, for calls, if the worker may call others.

users.py makes and removes the users at the server.

Source: redis.io/docs/latest/operate/oss_and_stack/management/security/acl.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from sandboxrun.config import keys
from sandboxrun.config.covers import globs_meet, writes_hash
from sandboxrun.config.permissions import RedisTarget
from sandboxrun.config.worker import WorkerConfig
from sandboxrun.digests import hex_digest
from sandboxrun.errors import ConfigError
from sandboxrun.records import field, record

PREFIX = "sandboxrun"  # of our users' names
HASH_URL = "SANDBOXRUN_HASH_URL"  # where a server without selectors lets a worker read its hashes
NONCE_BYTES = 8
_READER, _CALLER = "reader", "caller"
_NUMBER_DIGITS = (10, 20, 12)  # at most, of the three numbers in a user's name

# What a client says before it says anything: none of it touches a key, another client or the server. Not CLIENT SETINFO,
# which servers before Redis 7.2 do not know; clients go on without.
_CONNECTION = ("+ping +echo +time +multi +exec +discard +unwatch +client|id +client|setname +client|getname").split()
_HASH_READS = (
    "+hget +hmget +hgetall +hexists +hlen +hkeys +hvals +hstrlen +hscan +exists +type +ttl +pttl +watch".split()
)
_STREAM = (
    "+watch +xadd +xlen +xrange +xrevrange +xread +xreadgroup +xack +xpending +xclaim +xautoclaim +xdel +xtrim +exists +type "
    "+xgroup|create +xgroup|createconsumer +xgroup|delconsumer +xinfo|stream +xinfo|groups +xinfo|consumers"
).split()
# No DEL: everybody's replies and traces have such names.
_REPLY = "+watch +lpush +rpush +expire +pexpire +exists".split()
_TRACE = "+watch +hset +hsetnx +hexists +expire +pexpire +exists".split()
_FENCE = "+watch +hset +hexists +del".split()
# Of its own requests: to wait for their replies, and to look for those that a lost connection has taken (client/put.py).
_OWN_REPLY = "+brpop +blpop +rpop +lpop +del +type".split()
_OWN_TRACE = "+hget +hstrlen".split()
# Without selectors, each of these applies to the streams of the callees too: so no DEL. EXPIRE is needed, for traces.
_FLAT_CALL = "+watch +xadd +hset +hget +hstrlen +expire +exists +type +lpush +brpop +blpop +rpop +lpop".split()
# Whole categories, less what reaches more than its keys. The order counts: later rules win.
_LESS = "-@admin -@dangerous -@scripting -scan -randomkey -dbsize -copy -move -object -select".split()
_READS = ["+watch", "+@read", *_LESS]
_WRITES = ["+watch", "+@write", *_LESS]
_BOTH = ["+watch", "+@read", "+@write", *_LESS]
_KEYS = ("rw", "r", "w")  # accesses of keys
_REPLIES, _REQUESTS = keys.reply_key("*"), "req:*"
_CHANNEL = "+subscribe +unsubscribe +psubscribe +punsubscribe +publish".split()


@record
class Owner:
    """The run that a user is for, as it stands in the user's name."""

    key: str  # the worker's
    host: str  # a digest of this boot of this host
    pid: int  # the worker's; until 0.2, its supervisor's
    started: int  # in clock ticks after boot
    made: int  # Unix time in seconds

    @classmethod
    def of_run(cls, key: str, *, host: str, pid: int, started: int, now: float) -> Owner:
        """`host`: whatever tells this boot of this host from every other."""
        return cls(key, hex_digest(host.encode())[:16], pid, started, int(now))

    @property
    def name(self) -> str:
        type_, id_ = keys.split_worker_key(self.key)
        return f"{PREFIX}:{type_}:{id_}:{self.host}:{self.pid}.{self.started}.{self.made}"

    @classmethod
    def of_user(cls, name: str) -> Owner | None:
        """None if it is not the name of a worker's user."""
        prefix, *parts = name.removesuffix(f":{_READER}").removesuffix(f":{_CALLER}").split(":")
        if prefix != PREFIX or len(parts) != 4:
            return None
        type_, id_, host, rest = parts
        numbers = rest.split(".")
        if len(host) != 16 or not keys.consists_of(keys.DIGITS + "abcdef", host) or len(numbers) != len(_NUMBER_DIGITS):
            return None
        for number, most in zip(numbers, _NUMBER_DIGITS, strict=True):
            if len(number) > most or not keys.consists_of(keys.DIGITS, number):
                return None
        try:
            key = keys.worker_key(keys.check_type(type_), keys.check_id(id_))
        except ConfigError:
            return None
        return cls(key, host, *map(int, numbers))


@record
class User:
    """One user at Redis. `rules` are the arguments of ACL SETUSER after the name, with the password's SHA-256 only."""

    name: str
    password: str = field(repr=False)
    rules: tuple[str, ...]


@record
class Identity:
    """A worker's user, in the form of servers with selectors and in that of those without."""

    user: User
    flat: User  # the same name and password
    reader: User  # beside `flat`
    caller: User | None  # beside `flat`, if the worker may call others
    nonce: str  # of its requests' refs; empty if it may not

    @property
    def without_selectors(self) -> tuple[User, ...]:
        """The users of a server that has none: for the request loop, for the hashes, and perhaps for calls."""
        return (self.flat, self.reader) if self.caller is None else (self.flat, self.reader, self.caller)


def identity(config: WorkerConfig, *, owner: Owner, database: int = 0) -> Identity:
    """The users of one run. `database`: the number that the URL selects. Raises ConfigError naming the field."""
    targets = granted(config)
    _check_streams(config, targets)
    connection = [*_CONNECTION, *([f"+select|{database}"] if database else [])]
    password = os.urandom(32).hex()
    calls = _Calls.of(config)

    def beside(name: str, rules: Iterable[str]) -> User:
        return _user(f"{owner.name}:{name}", os.urandom(32).hex(), [*connection, *rules])

    return Identity(
        user=_user(owner.name, password, [*connection, *_selectors(config, targets, calls)]),
        flat=_user(owner.name, password, [*connection, *_flat(config, targets)]),
        reader=beside(_READER, _flat_reader(config, targets)),
        caller=beside(_CALLER, calls.flat) if calls.types else None,
        nonce=calls.nonce,
    )


@record
class _Calls:
    """The requests that a worker may send: to whom, and under which refs."""

    types: tuple[str, ...]
    nonce: str  # empty if there are no types

    @classmethod
    def of(cls, config: WorkerConfig) -> _Calls:
        denied = config.permissions.deny.get("call", ())
        types = tuple(type_ for type_ in config.permissions.allow.get("call", ()) if type_ not in denied)
        return cls(types, os.urandom(NONCE_BYTES).hex() if types else "")

    @property
    def selectors(self) -> list[str]:
        if not self.types:
            return []
        streams = [f"%W~{keys.request_stream(type_)}" for type_ in self.types]
        return [
            _selector(streams, ["+xadd"]),
            _selector([f"~{self._replies}"], _OWN_REPLY),
            _selector([f"%R~{self._traces}"], _OWN_TRACE),
        ]

    @property
    def flat(self) -> list[str]:
        """Every command for every key: so this user has none of the worker's own keys."""
        names = [*map(keys.request_stream, self.types), self._replies, self._traces, keys.trace_key("fence-*")]
        return [*(f"~{name}" for name in names), *_FLAT_CALL, *_CONNECTION_AGAIN]

    @property
    def _replies(self) -> str:
        return keys.reply_key(f"{self.nonce}*")

    @property
    def _traces(self) -> str:
        return keys.trace_key(f"{self.nonce}*")


def url_for(url: str, user: User) -> str:
    """The operator's Redis URL with the worker's login in place of the operator's."""
    scheme, _, rest = url.partition("://")
    rest, mark, query = rest.partition("?")
    place, slash, path = rest.partition("/")
    host = place.rpartition("@")[2]
    # redis-py takes a login from the query too, and lets it win.
    kept = [part for part in query.split("&") if part.partition("=")[0] not in ("username", "password")]
    name = user.name.replace(":", "%3A")  # nothing else in it has to be encoded
    return f"{scheme}://{name}:{user.password}@{host}{slash}{path}{mark if kept else ''}{'&'.join(kept)}"


def _user(name: str, password: str, rules: Iterable[str]) -> User:
    # The digest, so that the password itself is in no log and no MONITOR of the server.
    digest = hex_digest(password.encode())
    return User(name, password, ("reset", "on", f"#{digest}", "resetkeys", "resetchannels", *rules))


def granted(config: WorkerConfig) -> tuple[RedisTarget, ...]:
    """What `allowRedis` lists less what `denyRedis` does, checked. Raises ConfigError."""
    allowed: tuple[RedisTarget, ...] = config.permissions.allow.get("redis", ())
    denied: tuple[RedisTarget, ...] = config.permissions.deny.get("redis", ())
    for target in denied:
        if target not in allowed:
            raise ConfigError(
                f"field denyRedis of {config.key} has {target}, and allowRedis does not list exactly that: Redis cannot "
                "withdraw a part of what it grants",
                hint=_approve_hint(config, "denyRedis", [other for other in denied if other != target]),
            )
    targets = tuple(target for target in allowed if target not in denied)
    for target in targets:
        others = [other for other in allowed if other != target]
        if target.access in ("rw", "w") and writes_hash(target.pattern, config.type):
            own = [name for name in (config.key, keys.type_key(config.type)) if target.matches(name)]
            raise ConfigError(
                f"field allowRedis of {config.key} has {target}, which covers {own[0] if own else f'{config.type}:ID:h'}: the "
                "worker could change what it is granted" + ("" if own else ", or another of its type"),
                hint=_set_hint(config, "allowRedis", others),
            )
        if target.access in _KEYS and any(globs_meet(target.pattern, form) for form in (_REPLIES, _REQUESTS)):
            raise ConfigError(
                f"field allowRedis of {config.key} has {target}, which covers replies or requests of others ({_REPLIES}, "
                f"{_REQUESTS}): every worker writes its own without a grant, and calls others by allowCall",
                hint=_set_hint(config, "allowRedis", others),
            )
    return targets


def _check_streams(config: WorkerConfig, granted: Iterable[RedisTarget]) -> None:
    """A stream outside the type's own names is another service's: the field alone does not open it.

    And one that is named as a reply or a trace could be removed by every worker.
    """
    for name, stream, own_stream in (
        ("requestStream", config.loop.request_stream, keys.request_stream(config.type)),
        ("responseStream", config.loop.response_stream, keys.response_stream(config.type)),
    ):
        if stream.startswith(keys.reply_key("")) or (stream.startswith("req:") and stream.endswith(":h")):
            raise ConfigError(
                f"field {name} of {config.key} is {stream!r}, and every worker may write keys of this form",
                hint=_set_hint(config, name, [own_stream]),
            )
        own = stream.startswith(f"{config.type}:") and stream.endswith(":x")
        if not own and not any(t.access == "rw" and t.matches(stream) for t in granted):
            raise ConfigError(
                f"field {name} of {config.key} is {stream!r}, which is not one of {config.type}:…:x, nor does allowRedis list it",
                hint=_approve_hint(config, "allowRedis", [*config.permissions.allow.get("redis", ()), stream]),
            )


def _set_hint(config: WorkerConfig, name: str, entries: Iterable[object]) -> str:
    from shlex import quote

    return f"sandboxrun set {config.type} {config.id} {name}={quote(','.join(map(str, entries)))}"


def _approve_hint(config: WorkerConfig, name: str, entries: Iterable[object]) -> tuple[str, ...]:
    """For more than at the last run, which has to be approved too."""
    return _set_hint(config, name, entries), f"sandboxrun approve {config.type} {config.id}"


def _streams(config: WorkerConfig) -> list[str]:
    return [config.loop.request_stream, config.loop.response_stream, keys.dead_stream(config.type)]


def _fences(config: WorkerConfig) -> str:
    """Whoever may answer on a stream may fence others off on it, and nobody else may."""
    return keys.fence_pattern(literal(config.loop.request_stream))


def _old_fences(config: WorkerConfig) -> str:
    """Those of workers of 0.1, which have the form of traces. In a selector no pattern can have a space."""
    return keys.old_fence_key(literal(config.loop.request_stream), "*").replace(" ", "?")


def _hashes(config: WorkerConfig) -> list[str]:
    return [config.key, keys.type_key(config.type)]


def _by_access(granted: Iterable[RedisTarget], *accesses: str) -> list[str]:
    return [target.pattern for target in granted if target.access in accesses]


def _selectors(config: WorkerConfig, granted: tuple[RedisTarget, ...], calls: _Calls) -> list[str]:
    extra = [f"+{command}" for command in _by_access(granted, "command")]
    never = ["-@admin", "-@dangerous"] if extra else []
    found = [
        _selector([f"%R~{name}" for name in _hashes(config)], _HASH_READS),
        _selector([f"~{literal(name)}" for name in _streams(config)], _STREAM),
        _selector([f"~{_fences(config)}", f"~{_old_fences(config)}"], _FENCE),
        _selector([f"%W~{keys.reply_key('*')}"], _REPLY),
        _selector([f"%W~{keys.trace_key('*')}"], _TRACE),
        *calls.selectors,
    ]
    for access, prefix, commands in (("rw", "~", _BOTH), ("r", "%R~", _READS), ("w", "%W~", _WRITES)):
        patterns = [prefix + pattern for pattern in _by_access(granted, access)]
        if patterns:
            found.append(_selector(patterns, [*commands, *extra, *never]))
    channels = [f"&{pattern}" for pattern in _by_access(granted, "channel")]
    if channels:
        found.append(_selector(channels, _CHANNEL))
    if extra:
        found.append(_selector([], [*extra, *never]))  # for those without a key
    return found


def _selector(patterns: list[str], commands: list[str]) -> str:
    return f"({' '.join([*patterns, *commands])})"


def _flat(config: WorkerConfig, granted: tuple[RedisTarget, ...]) -> list[str]:
    """Every command for every key: so the hashes are not among the keys."""
    patterns = [*map(literal, _streams(config)), _fences(config), keys.reply_key("*"), keys.trace_key("*")]
    patterns += _by_access(granted, "rw", "w")
    # XGROUP and XINFO have no subcommands of their own there; those of CLIENT and SELECT are allowed by first argument.
    commands = [*_STREAM, *_FENCE, *_REPLY, *_TRACE, "+ttl", "+pttl"]  # it has no EXPIRE NX
    if _by_access(granted, "rw"):
        commands += _BOTH
    if _by_access(granted, "w"):
        commands += _WRITES
    commands += [f"+{command}" for command in _by_access(granted, "command")]
    channels = _by_access(granted, "channel")
    return [
        *(f"~{pattern}" for pattern in patterns),
        *(f"&{pattern}" for pattern in channels),
        *commands,
        *(_CHANNEL if channels else ()),
        "-@admin",
        "-@dangerous",
        *_CONNECTION_AGAIN,
    ]


# CLIENT is @admin and @dangerous as a whole before Redis 7: what of it is harmless is given back last.
_CONNECTION_AGAIN = [rule for rule in _CONNECTION if rule.startswith("+client")]


def _flat_reader(config: WorkerConfig, granted: tuple[RedisTarget, ...]) -> list[str]:
    readable = _by_access(granted, "r")
    commands = _READS if readable else _HASH_READS
    return [*(f"~{name}" for name in [*_hashes(config), *readable]), *commands, *_CONNECTION_AGAIN]


def literal(name: str) -> str:
    """A key's name as a pattern that matches it alone."""
    return "".join(f"\\{c}" if c in "*?[]\\^" else c for c in name)
