"""Set field `pid` of a worker's hash for one run, and remove it at the end: of two runs that try at once, one succeeds.

lease.py decides whether a holder is alive; watch.py looks after `pid` in between.
"""

from __future__ import annotations

import os

from sandboxrun.config import keys
from sandboxrun.errors import AlreadyRunningError, ConfigGone, StoreError
from sandboxrun.redis.connection import Connection
from sandboxrun.redis.lease import PID_FIELDS, Run, holder, is_alive, start_time, this_host
from sandboxrun.redis.transaction import optimistic
from sandboxrun.redis.watch import Loss, fields_left

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    Commands = Sequence[tuple[str | bytes | int, ...]]


def check_free(key: str, held: Mapping[str, str | None], now: int) -> None:
    """Raise AlreadyRunningError, naming the process, if a living worker holds the key. `now`: Redis's clock, in seconds."""
    if is_alive(held, key, now):
        elsewhere = "" if held["pidHost"] in (None, this_host()) else " on another host"
        raise AlreadyRunningError(
            f"{key} runs already as process {(held['pid'] or '')[:32]!r}{elsewhere}",
            hint=f"sandboxrun stop {' '.join(keys.split_worker_key(key))}",
        )


def claim(connection: Connection, run: Run, *, version: str) -> None:
    """Set `pid` and the fields beside it unless a living worker has them.

    Raises AlreadyRunningError, ConfigGone, StoreError if the hash changes too often, ConnectionLost, ReplyError.
    """
    mine = ("pid", run.pid, "pidToken", run.token, "pidHost", this_host(), "pidStarted", start_time(run.pid) or 0)
    about = ("pidName", os.uname().nodename, "pidVersion", version)

    def decide(replies: list[Any]) -> Commands:
        kind, values, time = replies
        if kind == b"none" and run.key in run.stands_on:  # and must not come back with nothing but a pid
            raise ConfigGone(f"{run.key} was removed while the worker was being started")
        now = int(time[0])
        check_free(run.key, holder(values), now)
        return [("HSET", run.key, *mine, *about, "pidSeen", now, "pidSince", now)]

    reads = [("TYPE", run.key), ("HMGET", run.key, *PID_FIELDS), ("TIME",)]
    if not optimistic(connection, [run.key], decide, reads=reads):
        raise StoreError(f"{run.key} changes so often that field pid cannot be set")


def release(connection: Connection, run: Run, also: Commands) -> tuple[Loss | None, bool]:
    """Remove `pid` and the fields beside it as far as they are this run's, and carry out the commands `also`.

    Returns why the run had lost its `pid`, if it had, and whether it was done: not if the hash changes too often. Raises
    ConnectionLost, ReplyError.
    """
    loss: Loss | None = None

    def decide(_: list[Any]) -> Commands:
        nonlocal loss
        loss, fields = fields_left(connection, run)
        if not connection.is_open:  # it was closed by a value that is too long, and the key is not watched any more
            connection.open()
            fields = ()
        return [*([("HDEL", run.key, *fields)] if fields else []), *also]

    # The run may have been long, and the server restarted meanwhile.
    done = optimistic(connection, [run.key], decide, reopen=True)
    return loss, done
