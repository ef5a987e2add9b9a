"""End workers by removing `pid` from their hashes, which their supervisors watch, and wait for the end. Nothing is killed here,
because a supervisor ends its own worker, and a stale number may belong to another process by now."""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sandboxrun.config import keys
from sandboxrun.errors import ConfigError, StoreError
from sandboxrun.fleet import desired
from sandboxrun.fleet.workers import State, read_pids, state_of
from sandboxrun.records import never
from sandboxrun.redis.connection import Connection
from sandboxrun.redis.lease import PID_FIELDS, holder, start_time, this_host
from sandboxrun.redis.replies import ReplyError
from sandboxrun.redis.transaction import optimistic
from sandboxrun.sandbox.supervisor import group

LOOK_SECONDS = 0.1

Held = Mapping[str, str | None]


class End(enum.StrEnum):
    """What became of it."""

    ENDED = "ended"
    RESTARTED = "restarted"  # ended, and somebody has started it again since
    CLEARED = "cleared"  # there was no process any more: what it had left in the hash is removed
    NOT_RUNNING = "not running"
    STILL = "still running"


@dataclass(frozen=True, slots=True)
class Stopped:
    """One worker. `held`: PID_FIELDS as they were; `now`: as they are; `seconds`: from the removal of `pid`."""

    type: str
    id: str
    end: End
    held: Held
    now: Held
    before: State
    seconds: float = 0.0
    is_kept: bool = False  # no agent starts it again


def stop(
    connection: Connection, workers: Sequence[tuple[str, str]], *, timeout: float, only_stale: bool = False
) -> Iterator[Stopped]:
    """Ask all of them at once, then say of each how it ended, at most `timeout` seconds later.

    A worker that agents keep running is kept stopped. `only_stale`: leave those alone that run. Raises ConfigError if a hash does not exist, before any worker is asked.
    """
    _check_there(connection, workers)
    waiting: dict[tuple[str, str], tuple[Held, State, bool]] = {}
    for worker in workers:
        before, held, is_kept = _stop(connection, *worker, only_stale=only_stale)
        if before in (State.RUNNING, State.ENDING):
            if not only_stale:
                waiting[worker] = held, before, is_kept
        else:
            end = End.NOT_RUNNING if before == State.STOPPED else End.CLEARED
            yield Stopped(*worker, end, held, held, before, is_kept=is_kept)
    yield from _wait(connection, waiting, timeout)


def _wait(
    connection: Connection, waiting: dict[tuple[str, str], tuple[Held, State, bool]], timeout: float
) -> Iterator[Stopped]:
    begun = time.monotonic()
    while waiting:
        passed = time.monotonic() - begun
        replies = read_pids(connection, [keys.worker_key(*worker) for worker in waiting])
        for worker, reply in zip(list(waiting), replies, strict=True):
            held, before, is_kept = waiting[worker]
            now = holder(reply)
            end = ended(held, now)
            if end is None and passed >= timeout:
                end = _at_last(connection, keys.worker_key(*worker), held)
            if end is not None:
                del waiting[worker]
                yield Stopped(*worker, end, held, now, before, passed, is_kept)
        if waiting:
            time.sleep(LOOK_SECONDS)


def ended(held: Held, now: Held) -> End | None:
    """Whether the run of which `held` tells is over, from what the hash says `now`; None if it is not."""
    if now["pid"] is not None or now["pidToken"] not in (None, held["pidToken"]):  # it was removed, so it is another's
        return End.RESTARTED
    if held["pidHost"] is None:
        return None if _there(held) else End.ENDED
    # The supervisor removes the other fields once it has reaped the worker: that shows on every host.
    return End.ENDED if now["pidHost"] is None and not _there(held) else None


def _at_last(connection: Connection, key: str, held: Held) -> End:
    """After the time-out: a killed supervisor leaves a dead worker, and the fields in the hash."""
    if held["pid"] is not None and held["pidHost"] in (None, this_host()) and not _there(held):
        _remove(connection, key, held)
        return End.ENDED
    return End.STILL


def _there(held: Held) -> bool:
    """Whether this very process still is one of this host: the start time tells it from another of the same number."""
    pid, host, started = held["pid"], held["pidHost"], held["pidStarted"]
    if host not in (None, this_host()) or pid is None or not (pid.isascii() and pid.isdigit() and len(pid) < 11):
        return False
    now = start_time(int(pid))
    if now is None and host is not None:
        return bool(group.living(int(pid)))  # programs that it has started; its number is kept for their group
    return now is not None if host is None else str(now) == started


def _check_there(connection: Connection, workers: Sequence[tuple[str, str]]) -> None:
    names = [keys.worker_key(*worker) for worker in workers]
    shared = [keys.type_key(type_) for type_, _ in workers]
    kinds = connection.pipeline([("TYPE", name) for name in (*names, *shared)])
    for name, kind, by_type in zip(names, kinds, kinds[len(names) :], strict=False):
        connection.checked(kind)
        if kind != b"hash" and (kind, by_type) != (
            b"none",
            b"hash",
        ):  # of a type's hash alone, a worker that does not run
            type_ = name.partition(":")[0]
            raise ConfigError(f"{name} is no hash in this Redis", hint=f"sandboxrun ps {type_} --all")


def _stop(connection: Connection, type_: str, id_: str, *, only_stale: bool) -> tuple[State, Held, bool]:
    """What was found, and whether it is kept stopped."""
    key = keys.worker_key(type_, id_)
    if only_stale:
        return (*_ask(connection, key, only_stale=True), False)
    found, held = _change(connection, key, lambda state: ())
    try:
        is_kept = desired.keep_stopped(connection, type_, id_)
    except ReplyError as error:
        if not str(error).startswith("NOPERM"):
            raise
        is_kept = False  # who may not see the queues can end the run all the same
    before, left = _ask(connection, key, only_stale=False)
    if is_kept and found != State.STOPPED and before in (State.ENDING, State.STOPPED):
        return found, held, True  # its pid was removed just now, and its agent may have ended it already
    return before, left, is_kept


def _ask(connection: Connection, key: str, *, only_stale: bool) -> tuple[State, Held]:
    """Remove `pid` of one that runs, or all that one that does not has left; what was found."""

    def wanted(state: State) -> Sequence[str]:
        match state:
            case State.STALE | State.UNKNOWN:
                return PID_FIELDS
            case State.RUNNING:
                return () if only_stale else ("pid",)
            case State.ENDING | State.STOPPED | State.UNREADABLE:
                return ()
            case _:
                raise never(state)

    return _change(connection, key, wanted)


def _remove(connection: Connection, key: str, held: Held) -> None:
    """What a dead run has left, unless another has begun."""
    _change(connection, key, lambda state: PID_FIELDS if state != State.RUNNING else (), only=held["pidToken"])


def _change(
    connection: Connection, key: str, wanted: Callable[[State], Sequence[str]], *, only: str | None = None
) -> tuple[State, Held]:
    """Remove the wanted fields, of the run with the token `only` if it is given; what was there before."""
    before: list[tuple[State, Held]] = []

    def decide(_: list[Any]) -> list[tuple[str, ...]]:
        held = holder(read_pids(connection, [key])[0])
        state = state_of(held, key, int(connection.call("TIME")[0]))
        before.append((state, held))
        fields = wanted(state) if only in (None, held["pidToken"]) else ()
        return [("HDEL", key, *fields)] if fields else []

    if not optimistic(connection, [key], decide):
        raise StoreError(f"{key} changes so often that field pid cannot be removed")
    return before[-1]
