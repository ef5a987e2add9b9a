"""What a worker is started from, as one value to compare: its hashes, the policy, its approval, and a local script."""

from __future__ import annotations

import os

from sandboxrun.digests import hex_digest
from sandboxrun.errors import ConfigError
from sandboxrun.fleet.queues import read_fields
from sandboxrun.host.folders import Folders
from sandboxrun.policy.approval import record_path
from sandboxrun.redis.connection import Connection
from sandboxrun.redis.hashes import read_for_start
from sandboxrun.redis.lease import AGENT_FIELDS, PID_FIELDS, holder, is_alive

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_NOT_READ = {name.encode() for name in (*PID_FIELDS, *AGENT_FIELDS)}


def footing(connection: Connection, type_: str, id_: str, folders: Folders, policy: str | None) -> str:
    """Raises ConnectionLost, ReplyError."""
    parts: list[str] = []
    script = ""
    try:
        hashes, _ = read_for_start(connection, type_, id_)
        for stored in (hashes.shared, hashes.own):
            parts.append(stored.kind)
            parts += [repr(item) for item in sorted(stored.fields.items()) if item[0] not in _NOT_READ]
            script = (stored.fields.get(b"url") or stored.fields.get(b"workerUrl") or script.encode()).decode(
                "utf-8", "replace"
            )
    except ConfigError as error:
        parts.append(str(error))
        if not connection.is_open:
            connection.open()
    parts += map(_state_of, _files(folders, type_, id_, policy, script))
    return hex_digest("\n".join(parts).encode("utf-8", "backslashreplace"))


def is_held(connection: Connection, key: str) -> bool:
    """Whether another run holds the worker's `pid`, or its hash cannot be read."""
    values = read_fields(connection, [key], PID_FIELDS)[0]
    return values is None or is_alive(holder(values), key, int(connection.call("TIME")[0]))


def _files(folders: Folders, type_: str, id_: str, policy: str | None, script: str) -> Iterator[str]:
    yield from folders.policies
    yield policy or ""
    yield record_path(folders.approved, type_, id_)
    if os.path.isabs(script):
        yield script
        yield os.path.join(script, "worker.py")


def _state_of(path: str) -> str:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return ""
    return f"{status.st_ino} {status.st_mtime_ns} {status.st_size} {status.st_mode} {status.st_uid}"
