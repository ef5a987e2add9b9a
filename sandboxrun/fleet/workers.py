"""The workers that Redis knows: their hashes, who holds their `pid`, and what that means.

There is no index of workers that could be wrong. A hash is found in four ways: by the Redis users of running workers (ACL
USERS is one reply, however large the database is), by the queues of the agents' types, by SCAN, bounded in time, and by the
names that the caller knows. Where there are agents, a large database is not scanned.
"""

from __future__ import annotations

import contextlib
import enum
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sandboxrun.config import keys
from sandboxrun.errors import ConfigError, StoreError
from sandboxrun.fleet import agents, queues
from sandboxrun.protocol import GROUP
from sandboxrun.redis.acl import Owner
from sandboxrun.redis.connection import Connection
from sandboxrun.redis.lease import AGENT_FIELDS, PID_FIELDS, holder, is_alive, is_recent, this_host
from sandboxrun.redis.replies import ReplyError, is_wrong_type

SCAN_SECONDS = 5.0
SCAN_COUNT = 1000
WORKERS_MAX = 10_000
PAGE = 200  # hashes read at once
PAGE_MAX_BYTES = 8 * 1024 * 1024  # whoever can write to Redis must not fill our memory
ONE_MAX_BYTES = 512 * 1024
SCAN_MAX_BYTES = 64 * 1024 * 1024
NO_SCAN = (
    "this Redis login may not SCAN, so that only workers with a login of their own, and those of this host, are found"
)
SCAN_KEYS_MAX = 50_000  # of a database that is scanned although agents name the workers: as many take 0.1 s
NOT_SCANNED = (
    "this Redis has many keys and agents, so that only their workers, those with a login of their own and those of this host "
    "are found: --all looks at all keys"
)
FAILING = 5  # restarts after which a worker that does not run is said to fail
_FIELDS = (*PID_FIELDS, *AGENT_FIELDS, "version", "workerVersion", "requestStream", "consumerId")
_SHARED = ("version", "workerVersion", "requestStream")


class State(enum.StrEnum):
    """What `pid` and the fields beside it say."""

    RUNNING = "running"  # the process is there; on another host: it was seen within LEASE_SECONDS
    ENDING = "ending"  # `pid` was removed, and the supervisor has not reaped the worker yet
    STALE = "stale"  # the process is gone, or was not seen for longer, and its number was left behind
    UNKNOWN = "unknown"  # set by a worker without sandboxrun, which is no process of this host
    STOPPED = "stopped"
    UNREADABLE = "unreadable"  # more in it than is read


@dataclass(frozen=True, slots=True)
class Kept:
    """What an agent keeps beside `pid` (AGENT_FIELDS). `agent`: the token of the one that has the worker, or ""."""

    agent: str
    exit: int | None
    reason: str
    restarts: int
    stopped: int | None

    @property
    def end(self) -> str:
        """How the last run has ended; "" if nobody knows."""
        return self.reason or ("" if self.exit is None else f"exit code {self.exit}")


@dataclass(frozen=True, slots=True)
class Worker:
    """One hash. `held`: the values of PID_FIELDS. `version`: the hash's, which is run at the next start."""

    type: str
    id: str
    held: Mapping[str, str | None]
    state: State
    version: str = ""
    stream: str = ""
    consumer: str = ""
    pending: int | None = None  # requests that it has begun; None if Redis does not say
    kept: Kept | None = None

    @property
    def shown_state(self) -> str:
        """Also what an agent, or a stop, makes of one that does not run."""
        if self.state != State.STOPPED or self.kept is None or not self.kept.agent:
            return self.state.value
        return "failing" if self.kept.restarts >= FAILING else "waiting"

    @property
    def name(self) -> str:
        return f"{self.type} {self.id}"

    @property
    def key(self) -> str:
        return keys.worker_key(self.type, self.id)

    @property
    def here(self) -> bool:
        """Whether its process is, or would be, one of this host."""
        return self.held["pidHost"] == this_host() or (self.held["pidHost"] is None and self.state == State.RUNNING)

    @property
    def pid(self) -> int | None:
        text = self.held["pid"] or ""
        return int(text) if text.isascii() and text.isdigit() and len(text) < 11 else None


@dataclass(frozen=True, slots=True)
class Found:
    """The keys that were found, as (type, id). `cut`: why there may be more, or "". `by_type`: whether those of one type may be
    few enough."""

    workers: list[tuple[str, str]]
    cut: str = ""
    by_type: bool = False


def state_of(held: Mapping[str, str | None], key: str, now: int) -> State:
    """`now`: Redis's clock, in seconds."""
    if held["pid"] is None:
        seen = held["pidSeen"]
        if held["pidHost"] is None:
            return State.STOPPED
        recent = seen is not None and seen.isascii() and seen.isdigit() and is_recent(int(seen[:12]), now)
        return State.ENDING if recent else State.STALE
    if is_alive(held, key, now):
        return State.RUNNING
    return State.UNKNOWN if held["pidHost"] is None else State.STALE


def find(
    connection: Connection,
    type_: str | None = None,
    *,
    known: Iterable[tuple[str, str]] = (),
    seconds: float = SCAN_SECONDS,
    everything: bool = False,
) -> Found:
    """The hashes of workers, of one type or of all. `known`: workers that are included if they have a hash, although SCAN may
    not find it. `everything`: look at all keys, however many there are.
    """
    found: set[tuple[str, str]] = set()
    users = connection.pipeline_within([("ACL", "USERS")], SCAN_MAX_BYTES, reopen=True)
    cut = f"ACL USERS has more than {SCAN_MAX_BYTES >> 20} MiB, so not read" if users is None else ""
    for name in users[0] if users is not None and isinstance(users[0], list) else ():
        owner = Owner.of_user(name.decode("utf-8", "replace"))
        _add(found, owner.key if owner is not None else "", type_)
    has_agents = _add_queued(connection, type_, found)
    if has_agents and not everything and _is_large(connection):
        cut = NOT_SCANNED
    else:
        cut = _scan(connection, type_, found, seconds) or cut
    found |= _existing(connection, {worker for worker in known if type_ in (None, worker[0])} - found)
    if len(found) > WORKERS_MAX:
        cut = f"there are more than {WORKERS_MAX} hashes of workers, and no more are shown"
    return Found(sorted(found)[:WORKERS_MAX], cut, by_type=len(found) > WORKERS_MAX)


def _existing(connection: Connection, known: Iterable[tuple[str, str]]) -> set[tuple[str, str]]:
    """The workers whose hash still exists."""
    workers = sorted(known)
    found: set[tuple[str, str]] = set()
    for at in range(0, len(workers), PAGE):
        page = workers[at : at + PAGE]
        replies = connection.pipeline([("EXISTS", keys.worker_key(*worker)) for worker in page])
        # An error, because this login may not ask, says nothing.
        found.update(worker for worker, reply in zip(page, replies, strict=True) if reply != 0)
    return found


def _add_queued(connection: Connection, type_: str | None, found: set[tuple[str, str]]) -> bool:
    """Add what the queues of the type, or of all agents' types, name. Returns whether there are agents."""
    known: dict[str, agents.Agent] = {}
    with contextlib.suppress(ReplyError):  # this login may not read it
        known, _ = agents.read(connection)
    types = {type_} if type_ is not None else {name for agent in known.values() for name in agent.types}
    for name in sorted(types):
        with contextlib.suppress(ConfigError, ReplyError):
            keys.check_type(name)
            for key in (keys.start_queue(name), keys.started_queue(name), keys.stopped_queue(name)):
                found.update((name, id_) for id_ in queues.read_queue(connection, key).ids)
    return bool(known)


def _is_large(connection: Connection) -> bool:
    try:
        return int(connection.call("DBSIZE")) > SCAN_KEYS_MAX
    except ReplyError:
        return False


def _scan(connection: Connection, type_: str | None, found: set[tuple[str, str]], seconds: float) -> str:
    """Add the hashes that SCAN finds; returns why there may be more, or ""."""
    cursor: Any = b"0"
    until = time.monotonic() + seconds
    pattern = keys.worker_key(type_ or "*", "*")
    while True:
        command = ("SCAN", cursor, "MATCH", pattern, "COUNT", SCAN_COUNT, "TYPE", "hash")
        replies = connection.pipeline_within([command], SCAN_MAX_BYTES, reopen=True)
        if replies is None:
            return f"names of keys have more than {SCAN_MAX_BYTES >> 20} MiB, so that not all were looked at: name TYPE and ID"
        reply = replies[0]
        if isinstance(reply, ReplyError):
            return NO_SCAN
        cursor, names = reply
        for name in names:
            _add(found, name.decode("utf-8", "replace"), type_)
        if cursor == b"0" or len(found) > WORKERS_MAX:
            return ""
        if time.monotonic() >= until:
            return f"this Redis has so many keys that not all were looked at within {seconds:g} s: name TYPE and ID where one is missing"


def _add(found: set[tuple[str, str]], key: str, type_: str | None) -> None:
    if len(key) > keys.TYPE_MAX_CHARS + keys.ID_MAX_CHARS + 3:
        return
    try:
        worker = keys.split_worker_key(key)
    except ConfigError:  # as req:REF:h, the trace of a request
        return
    if type_ in (None, worker[0]):
        found.add(worker)


def read(connection: Connection, workers: Sequence[tuple[str, str]]) -> list[Worker]:
    """What their hashes say now. A worker without a hash counts as stopped."""
    types = sorted({type_ for type_, _ in workers})
    shared = dict(zip(types, _values(connection, [(keys.type_key(t), _SHARED) for t in types]), strict=True))
    own = _values(connection, [(keys.worker_key(*worker), _FIELDS) for worker in workers])
    now = int(connection.call("TIME")[0])
    found = [
        _worker(*worker, values, shared[worker[0]], now) for worker, values in zip(workers, own, strict=True)
    ]  # fmt: skip
    return _with_pending(connection, found)


def _worker(
    type_: str, id_: str, values: list[Any] | None, shared: list[Any] | None, now: int
) -> Worker:  # fmt: skip
    if values is None:
        return Worker(type_, id_, holder([None] * len(PID_FIELDS)), State.UNREADABLE)
    held = holder(values[: len(PID_FIELDS)])
    agent_end = len(PID_FIELDS) + len(AGENT_FIELDS)
    kept = _kept(*map(_text, values[len(PID_FIELDS) : agent_end]))
    version, other, stream, consumer = map(_text, values[agent_end:])
    defaults = list(map(_text, shared or [None] * len(_SHARED)))
    return Worker(
        type_,
        id_,
        held,
        state_of(held, keys.worker_key(type_, id_), now),
        version=version or other or defaults[0] or defaults[1],
        stream=stream or defaults[2] or keys.request_stream(type_),
        consumer=consumer or id_,
        kept=kept,
    )


def _kept(agent: str, exit_: str, reason: str, restarts: str, stopped: str) -> Kept | None:
    if not (agent or exit_ or reason or restarts or stopped):
        return None
    return Kept(agent, _number(exit_), reason, _number(restarts) or 0, _number(stopped))


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 13 else None


def _values(connection: Connection, wanted: Sequence[tuple[str, Sequence[str]]]) -> list[list[Any] | None]:
    """The fields of each hash; None if they have too many bytes, or the key is no hash."""
    found: list[list[Any] | None] = []
    for at in range(0, len(wanted), PAGE):
        page = wanted[at : at + PAGE]
        values = _bounded(connection, page, PAGE_MAX_BYTES)
        if values is None:  # one of them is too large: the others are read by themselves
            values = [(_bounded(connection, [one], ONE_MAX_BYTES) or [None])[0] for one in page]
        found += values
    return found


def read_pids(connection: Connection, keys_: Sequence[str]) -> list[list[Any]]:
    """PID_FIELDS of each hash. Raises StoreError for more than PAGE_MAX_BYTES, of which no supervisor writes any."""
    found = _bounded(connection, [(key, PID_FIELDS) for key in keys_], PAGE_MAX_BYTES)
    if found is None:
        raise StoreError(
            f"the pid fields of {keys_[0]} and {len(keys_) - 1} others have more than {PAGE_MAX_BYTES >> 20} MiB"
        )
    return [values if values is not None else [None] * len(PID_FIELDS) for values in found]


def _bounded(
    connection: Connection, wanted: Sequence[tuple[str, Sequence[str]]], max_bytes: int
) -> list[list[Any] | None] | None:
    commands = [("HMGET", key, *fields) for key, fields in wanted]
    replies = connection.pipeline_within(commands, max_bytes, reopen=True)
    if replies is None:
        return None
    for reply in replies:
        if isinstance(reply, ReplyError) and not is_wrong_type(reply):
            connection.checked(reply)
    return [None if isinstance(reply, ReplyError) else reply for reply in replies]


def _with_pending(connection: Connection, workers: list[Worker]) -> list[Worker]:
    """Add how many requests each has begun: one summary a stream."""
    streams = sorted({worker.stream for worker in workers if worker.state in (State.RUNNING, State.STALE)})
    counts: dict[str, dict[str, int]] = {}
    for stream in streams:
        summary = connection.pipeline_within([("XPENDING", stream, GROUP)], PAGE_MAX_BYTES, reopen=True)
        reply = summary[0] if summary else None
        if isinstance(reply, list) and len(reply) == 4:
            counts[stream] = {_text(name): int(count) for name, count in reply[3] or ()}
    return [replace(w, pending=counts[w.stream].get(w.consumer, 0)) if w.stream in counts else w for w in workers]


def _text(value: Any) -> str:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else ""
