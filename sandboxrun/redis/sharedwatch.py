"""One thread that does for all runs of a process what Watch does for one: notices that a run has lost its `pid`, renews leases,
and has users made again. It decides by the same functions.

It reads a hash again when Redis says that it has changed (tracking.py), or, if the server or the login does not do that, twice
a second.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable, Iterable

from sandboxrun.errors import StoreError
from sandboxrun.records import record
from sandboxrun.redis.connection import Connection
from sandboxrun.redis.lease import Run
from sandboxrun.redis.replies import ReplyError, raise_errors
from sandboxrun.redis.tracking import Tracking
from sandboxrun.redis.users import Users
from sandboxrun.redis.watch import (
    HELD_MAX_BYTES,
    IDENTITY,
    LEASE_REFRESH_SECONDS,
    LOOK_MAX_BYTES,
    USERS_SECONDS,
    WATCH_SECONDS,
    Loss,
    is_held,
    look,
    lost_hash,
    missing_hash,
    renew,
)

TIMEOUT_SECONDS = 5.0
_BREATH_SECONDS = 0.02  # between two looks, however often somebody writes to the hashes
_EVERY_USER_SECONDS = (
    10.0  # how soon a user is made again that somebody has changed; one that was removed: USERS_SECONDS
)


@record
class _Watched:
    run: Run
    users: Users
    lost: Callable[[Loss], None]


class _Reopen(Exception):
    """The connections have to be opened again, and Redis is not away."""


class SharedWatch:
    """Calls `lost` once for each run that loses its `pid`. An outage of Redis does not count, and is said once for all."""

    def __init__(self, url: str, *, warn: Callable[[str], None], tick: Callable[[], None] = lambda: None) -> None:
        """`tick` is called about once a second, from the thread."""
        self._url, self._warn, self._tick = url, warn, tick
        self._tracking = Tracking(url, name="sandboxrun", seconds=TIMEOUT_SECONDS)
        self._watched: dict[str, _Watched] = {}  # by token
        self._renewed: dict[str, float] = {}  # by token: when its lease was (time.monotonic)
        self._new: list[_Watched] = []
        self._lock = threading.Lock()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._closed = self._refused = False
        self._missing: set[str] = set()  # hashes that were missing at the last look for them
        now = time.monotonic()
        self._renew_at, self._users_at, self._every_user_at = (
            now + LEASE_REFRESH_SECONDS,
            now,
            now + _EVERY_USER_SECONDS,
        )
        self.is_away = False
        """Whether Redis cannot be reached."""
        self.tracks = False
        """Whether Redis says what has changed."""
        self._thread = threading.Thread(target=self._go_on, name="watch", daemon=True)
        self._thread.start()

    def add(self, run: Run, users: Users, lost: Callable[[Loss], None]) -> None:
        """From now on; the run has set its `pid`. `lost` must not block."""
        watched = _Watched(run, users, lost)
        with self._lock:
            self._watched[run.token] = watched
            self._renewed[run.token] = time.monotonic()
            self._new.append(watched)
        os.eventfd_write(self._wake, 1)

    def remove(self, run: Run) -> None:
        """The run removes its `pid` itself: `lost` is not called any more."""
        with self._lock:
            self._watched.pop(run.token, None)
            self._renewed.pop(run.token, None)

    def lease_age(self, token: str) -> float | None:
        """Seconds since the lease of this run was renewed; None if it is not watched. From any thread."""
        renewed = self._renewed.get(token)
        return time.monotonic() - renewed if renewed is not None else None

    def close(self) -> None:
        self._closed = True
        os.eventfd_write(self._wake, 1)
        self._thread.join(2 * TIMEOUT_SECONDS)
        if not self._thread.is_alive():
            os.close(self._wake)

    def _go_on(self) -> None:
        while not self._closed:
            try:
                self._session()
            except _Reopen:
                pass
            except (StoreError, ReplyError) as error:
                if not self.is_away:
                    self._warn(f"{error}; the workers go on, and their pids are watched again once Redis is back")
                self.is_away, self.tracks = True, False
                self._tracking.close()
                self._wait(WATCH_SECONDS)
                self._tick()
        self._tracking.close()

    def _session(self) -> None:
        """Until the connections have to be opened again. Raises StoreError, ReplyError, _Reopen."""
        while not self._all() and not self._closed:
            self._wait(1.0)
            self._tick()
        self.tracks = self._tracking.open()
        self._take_new()
        due = self._all()
        self._make_users(due)  # a server that was restarted or took over knows none
        while not self._closed:
            self._look(due)
            self.is_away = False
            due = self._next()

    def _next(self) -> list[_Watched]:
        """Wait until something has to be read, and do meanwhile what is due."""
        looked = time.monotonic()
        while not self._closed:
            now = time.monotonic()
            self._keep(now)
            if not self.tracks and now >= looked + WATCH_SECONDS:
                return self._all()
            told = self._wait(min(WATCH_SECONDS, max(0.001, min(self._renew_at, self._users_at) - now)))
            new, changed = self._take_new(), self._of(self._tracking.changed()) if told else []
            if new or changed:
                time.sleep(0 if new else _BREATH_SECONDS)
                return new + changed
        return []

    def _wait(self, seconds: float) -> bool:
        """Until something has changed or was added, at most so long. Whether Redis has said something."""
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        told = self._tracking.fileno() if self.tracks else -1
        if told >= 0:
            poll.register(told, select.POLLIN)
        ready = [fd for fd, _ in poll.poll(seconds * 1000)]
        if self._wake in ready:
            os.eventfd_read(self._wake)
        return told in ready

    def _all(self) -> list[_Watched]:
        with self._lock:
            return list(self._watched.values())

    def _take_new(self) -> list[_Watched]:
        with self._lock:
            new, self._new = self._new, []
        return new

    def _of(self, keys: list[bytes] | None) -> list[_Watched]:
        if keys is None:
            return self._all()
        names = {key.decode("utf-8", "replace") for key in keys}
        return [watched for watched in self._all() if watched.run.key in names] if names else []

    def _look(self, due: list[_Watched]) -> None:
        """Raises _Reopen if nothing is read over the connection any more."""
        if not due:
            return
        most = LOOK_MAX_BYTES + len(due) * HELD_MAX_BYTES
        replies = self._tracking.reading.pipeline_within([("HMGET", each.run.key, *IDENTITY) for each in due], most)
        if replies is None:  # one of them is too long
            self._judge(due)
            raise _Reopen
        pairs = zip(due, replies, strict=True)
        self._judge(each for each, found in pairs if isinstance(found, Exception) or not is_held(each.run, found))

    def _judge(self, suspects: Iterable[_Watched]) -> None:
        """Over a connection of their own, because a long reply closes it."""
        connection = Connection(self._url, seconds=TIMEOUT_SECONDS)
        try:
            for watched in suspects:
                loss = look(connection, watched.run)
                if loss is not None:
                    self._lose(watched, loss)
        finally:
            connection.close()

    def _lose(self, watched: _Watched, loss: Loss) -> None:
        with self._lock:
            known = self._watched.pop(watched.run.token, None)
            self._renewed.pop(watched.run.token, None)
        if known is not None:  # else the run has ended, and has removed it itself
            watched.lost(loss)

    def _keep(self, now: float) -> None:
        """What is due by the clock: this process may have been stopped meanwhile (SIGTSTP), or Redis away."""
        self._tick()
        if now >= self._users_at:
            self._users_at = now + USERS_SECONDS
            everyone = now >= self._every_user_at
            if everyone:
                self._every_user_at = now + _EVERY_USER_SECONDS
            self._make_users(self._all() if everyone else self._without_users())
        if now >= self._renew_at:
            self._renew_at = now + (WATCH_SECONDS if self._look_for_missing() else LEASE_REFRESH_SECONDS)
            watched = self._all()
            if watched:
                renewed = renew(self._tracking.reading, *[each.run for each in watched])
                with self._lock:
                    self._renewed |= {run.token: now for run in renewed if run.token in self._watched}
                self._look(watched)  # Redis has forgotten that they were read
            if self.tracks:
                self._tracking.check()

    def _look_for_missing(self) -> bool:
        """Whether a hash is missing that a run stands on, and that is not its own. Missing twice, it ends the run: a tool may
        write it again by DEL and HSET."""
        connection, watched = self._tracking.reading, self._all()
        keys = list(dict.fromkeys(key for each in watched for key in each.run.stands_on if key != each.run.key))
        kinds = raise_errors(connection.pipeline([("TYPE", key) for key in keys])) if keys else []
        missing = {key for key, kind in zip(keys, kinds, strict=True) if kind == b"none"}
        for each in watched:
            if self._missing & missing & set(each.run.stands_on) and (what := missing_hash(connection, each.run)):
                self._lose(each, lost_hash(connection, what))
        self._missing = missing
        return bool(missing)

    def _without_users(self) -> list[_Watched]:
        """The runs of which somebody has removed a user."""
        watched = [each for each in self._all() if each.users.names]
        if not watched:
            return []
        (names,) = raise_errors(self._tracking.reading.pipeline([("ACL", "USERS")]))
        return [each for each in watched if not {name.encode() for name in each.users.names} <= set(names)]

    def _make_users(self, watched: list[_Watched]) -> None:
        try:
            for each in watched:
                each.users.readmit(self._tracking.reading)
            self._refused = False
        except ReplyError as error:
            if not self._refused:
                self._warn(f"a worker's Redis user cannot be made again ({str(error)[:160]}), and is tried again")
            self._refused = True
