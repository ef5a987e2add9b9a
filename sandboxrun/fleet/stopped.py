"""The workers of a type that `sandboxrun stop` keeps stopped: no agent has them, and each agent of the type shows them."""

from __future__ import annotations

from sandboxrun.config import keys
from sandboxrun.fleet.queues import read_fields, read_queue
from sandboxrun.fleet.status import WorkerStatus
from sandboxrun.redis.connection import Connection

SHOWN_MAX = 200
_FIELDS = ("pidStopped", "pidExit", "pidReason", "pidRestarts")


def stopped_workers(connection: Connection, type_: str) -> tuple[WorkerStatus, ...]:
    """At most SHOWN_MAX of them. Raises ConnectionLost, ReplyError."""
    ids = read_queue(connection, keys.stopped_queue(type_), enough=SHOWN_MAX).ids[-SHOWN_MAX:]
    values = read_fields(connection, [keys.worker_key(type_, id_) for id_ in ids], _FIELDS)
    return tuple(_status(type_, id_, each) for id_, each in zip(ids, values, strict=True))


def _status(type_: str, id_: str, values: list[bytes | None] | None) -> WorkerStatus:
    since, code, reason, restarts = values or [None] * len(_FIELDS)
    return WorkerStatus(
        type=type_,
        id=id_,
        state="stopped",
        pid=None,
        since=_number(since),
        version="",
        restarts=_number(restarts) or 0,
        restarts_by=(),
        last_exit=_number(code),
        last_reason=(reason or b"").decode("utf-8", "backslashreplace"),
        next_start=None,
        health=None,
        denials=(),
        memory=None,
        cpu=None,
        lease_age=None,
    )


def _number(value: bytes | None) -> int | None:
    return int(value) if value is not None and value.isdigit() and len(value) < 13 else None
