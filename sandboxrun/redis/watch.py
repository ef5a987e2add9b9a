"""Whether a run still holds its `pid`: the look that finds out, the reason if it does not, and the thread that looks."""

from __future__ import annotations

import _thread
import time
from collections.abc import Callable

from sandboxrun.errors import ConfigGone, StoreError, TakenOver
from sandboxrun.records import record
from sandboxrun.redis.connection import Connection
from sandboxrun.redis.lease import PID_FIELDS, Run, this_host
from sandboxrun.redis.replies import ReplyError, Within, is_wrong_type
from sandboxrun.redis.transaction import optimistic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

WATCH_SECONDS = 0.5  # how soon a removed pid is noticed
USERS_SECONDS = 2.0  # how soon a worker's user is made again that an administrator removed or changed
LEASE_REFRESH_SECONDS = 5.0
LOOK_MAX_BYTES = 64 * 1024  # whoever can write to the hash must not fill our memory
HELD_MAX_BYTES = 256  # of IDENTITY, as a run writes it
IDENTITY = ("pid", "pidToken", "pidHost")


@record
class Loss:
    """Why a run ends that has lost its `pid`. `exit_code`: None if it is the worker's own."""

    reason: str
    exit_code: int | None = None


def look(connection: Connection, run: Run) -> Loss | None:
    """None while `pid` is this run's. Raises StoreError, ReplyError."""
    return _look(connection, run)[0]


def fields_left(connection: Connection, run: Run) -> tuple[Loss | None, tuple[str, ...]]:
    """As `look`, and the fields in the hash that are this run's to remove."""
    loss, values = _look(connection, run)
    if values is None:
        return loss, ()
    pid, token, host = values
    if token not in (None, run.token.encode()):
        return loss, ()
    if pid in (None, str(run.pid).encode()):
        # Without its token, the number is this run's only together with its host.
        mine = token is not None or pid is None or host in (None, this_host().encode())
        return loss, PID_FIELDS if mine else ()
    return loss, tuple(name for name in PID_FIELDS if name != "pid") if token is not None else ()


def _look(connection: Connection, run: Run) -> tuple[Loss | None, list[bytes | None] | None]:
    """The loss, and the values of IDENTITY if they can be read."""
    values: list[bytes | None] | None
    try:
        values = _bounded(connection, "HMGET", run.key, *IDENTITY)
    except ReplyError as error:
        if not is_wrong_type(error):
            raise
        return lost_hash(connection, f"{run.key} is no hash any more: somebody has replaced it"), None
    if values is None:
        return Loss(f"field pid of {run.key} was changed to something long: ending the worker"), None
    if is_held(run, values):
        return None, values
    pid, token, _ = values
    return _loss(connection, run, pid, token), values


def _loss(connection: Connection, run: Run, pid: bytes | None, token: bytes | None) -> Loss:
    if pid is None and token is None and (missing := missing_hash(connection, run)):
        return lost_hash(connection, missing)
    if token not in (None, run.token.encode()) or (pid == str(run.pid).encode() and token is not None):
        by = f" as process {_shown(pid)}" if pid is not None else ""
        name = (_bounded(connection, "HMGET", run.key, "pidName") or [None])[0]
        return Loss(
            f"{run.key} was taken over by another run on {_shown(name) if name else 'another host'}{by}: ending the worker",
            TakenOver.exit_code,
        )
    if pid is None:
        return Loss(f"field pid of {run.key} was removed: ending the worker")
    if pid != str(run.pid).encode():
        return Loss(f"field pid of {run.key} was changed to {_shown(pid)!r}: ending the worker")
    return Loss(f"field pidToken of {run.key} was removed: ending the worker")


def missing_hash(connection: Connection, run: Run) -> str:
    """What is said of the hash that the run's configuration came from and that is not there any more, or ""."""
    for key in run.stands_on:
        if connection.call("TYPE", key) == b"none":
            return f"{key} does not exist any more: it was removed, or Redis has lost it"
    return ""


def lost_hash(connection: Connection, what: str) -> Loss:
    """`what`: as `missing_hash` says it."""
    return Loss(f"{what} ({connection.address.shown}): ending the worker", ConfigGone.exit_code)


def _bounded(connection: Connection, *words: str) -> Any:
    """The reply to one command, or None if it has more bytes than a `pid` needs; then the connection is closed."""
    if not connection.is_open:
        connection.open()
    replies = connection.pipeline_within([words], LOOK_MAX_BYTES)
    return None if replies is None else connection.checked(replies[0])


def _shown(value: bytes | None) -> str:
    return (value or b"").decode("utf-8", "replace")[:64]


def is_held(run: Run, values: list[bytes | None]) -> bool:
    """Whether these values of IDENTITY say that `pid` is this run's."""
    pid, token, host = values
    return (pid, token) == (str(run.pid).encode(), run.token.encode()) and host in (None, this_host().encode())


def renew(connection: Connection, *runs: Run) -> list[Run]:
    """Renew leases, in a transaction: a hash that was deleted meanwhile must not come back. Returns those that were renewed.

    One transaction renews all. If it fails because a hash has changed or is no hash any more, each half is tried by itself.
    """
    held: list[Run] = []

    def decide(replies: list[Any]) -> list[tuple[str | bytes, ...]]:
        *values, now = replies
        held[:] = [run for run, found in zip(runs, values, strict=True) if is_held(run, found)]
        return [("HSET", run.key, "pidSeen", now[0]) for run in held]

    reads = [*(("HMGET", run.key, *IDENTITY) for run in runs), ("TIME",)]
    try:
        with Within(connection, LOOK_MAX_BYTES + len(runs) * HELD_MAX_BYTES):
            done = optimistic(connection, [run.key for run in runs], decide, reads=reads, tries=1)
    except ReplyError as error:  # of a full server, for instance: the next renewal tries again
        if not is_wrong_type(error):
            return []
        done = False
    if done:
        return held
    half = len(runs) // 2
    return [*renew(connection, *runs[:half]), *renew(connection, *runs[half:])] if half else []


class Watch:
    """A thread that calls `lost` once if the run loses its `pid`, renews its lease, and has its users made again.

    `ended` waits for so many seconds, and says whether the run has ended. An outage of Redis does not count as a loss.
    """

    def __init__(
        self,
        connection: Connection,
        run: Run,
        *,
        lost: Callable[[Loss], None],
        warn: Callable[[str], None],
        readmit: Callable[[Connection], None],
        ended: Callable[[float], bool],
    ) -> None:
        """`connection`: of its own: a read that waits must not keep the end of a run waiting."""
        self._connection, self._run = connection, run
        self._lost, self._warn, self._readmit, self._ended = lost, warn, readmit, ended
        self._renew_at = time.monotonic() + LEASE_REFRESH_SECONDS
        self._users_at = time.monotonic() + USERS_SECONDS
        self._away = self._refused = self._missing = False

    def start(self) -> None:
        _thread.start_new_thread(self._go_on, ())

    def _go_on(self) -> None:
        while not self._ended(WATCH_SECONDS):
            try:
                loss = self._tick()
            except (StoreError, ReplyError) as error:
                self._connection.close()
                if self._ended(0):
                    return
                if not self._away:
                    self._warn(f"{error}; the worker goes on, and its pid is watched again once Redis is back")
                self._away = True
                continue
            self._away = False
            if loss is not None:
                if not self._ended(0):  # else the run has ended, and has removed it itself
                    self._lost(loss)
                break
        self._connection.close()

    def _tick(self) -> Loss | None:
        fresh = not self._connection.is_open
        if fresh:
            self._connection.open()
        loss = look(self._connection, self._run)
        if loss is not None:
            return loss
        # By the clock: this process may have been stopped meanwhile (SIGTSTP), or Redis away.
        now = time.monotonic()
        if fresh or now >= self._users_at:
            self._make_users()
            self._users_at = now + USERS_SECONDS
        if now >= self._renew_at or self._missing:
            renew(self._connection, self._run)
            self._renew_at = now + LEASE_REFRESH_SECONDS
            missing = missing_hash(self._connection, self._run)
            if missing and self._missing:  # twice: a tool may write it again by DEL and HSET
                return lost_hash(self._connection, missing)
            self._missing = bool(missing)
        return None

    def _make_users(self) -> None:
        """A server that was restarted or took over knows no users; ACL LOAD and ACL DELUSER remove them."""
        try:
            self._readmit(self._connection)
            self._refused = False
        except ReplyError as error:
            if not self._refused:
                self._warn(f"the worker's Redis user cannot be made again ({str(error)[:160]}), and is tried again")
            self._refused = True
