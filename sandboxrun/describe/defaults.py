"""A change of `TYPE:h`, the hash that all workers of a type share: read, checked and written as one of a worker's own is.

Here the type's hash stands in the place of the worker's own, above no other.
"""

from __future__ import annotations

from sandboxrun.config import keys
from sandboxrun.describe.change import Change
from sandboxrun.errors import NotConfigured, SandboxrunError, StoreError
from sandboxrun.host.examine import examine
from sandboxrun.host.folders import Folders
from sandboxrun.host.plan import Get, Preparation
from sandboxrun.host.runplan import RunOptions
from sandboxrun.policy.beyond import beyond
from sandboxrun.records import replace
from sandboxrun.redis import hashes as stored_hashes
from sandboxrun.redis.connection import Connection
from sandboxrun.redis.hashes import Hashes, Stored
from sandboxrun.redis.transaction import optimistic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sandboxrun.host.neighbours import Ask

# Stands for the id of any worker of the type, in what is checked and in the messages about it.
ANY_ID = "ID"
_PLACEHOLDERS = {b"url": b"https://example.com/{version}", b"version": b"v1"}


def read(connection: Connection, type_: str) -> Hashes:
    """Raises ConfigError, ReplyError."""
    both = stored_hashes.read(connection, type_, ANY_ID)
    return Hashes(Stored("", "none", 0), both.shared, both.now)


def write(connection: Connection, change: Change) -> None:
    """All or nothing, if the hash is still as it was. Raises StoreError if it is not, ReplyError."""
    before = change.before.own
    type_ = before.key.removesuffix(":h")
    commands: list[tuple[str | bytes | int, ...]] = []
    if change.put:
        commands.append(("HSET", before.key, *(word for pair in change.put.items() for word in pair)))
    if change.remove:
        commands.append(("HDEL", before.key, *change.remove))

    def decide(_: list[object]) -> list[tuple[str | bytes | int, ...]]:
        now = read(connection, type_).own
        if (now.kind, now.fields, now.long) != (before.kind, before.fields, before.long):
            raise StoreError(f"{before.key} changed meanwhile, so nothing was written")
        return commands

    if not optimistic(connection, [before.key], decide):
        raise StoreError(f"{before.key} changes so often that it cannot be written: find out who writes to it")


def examined(change: Hashes, options: RunOptions, folders: Folders, ask: Ask, get: Get | None = None) -> Preparation:
    """What a worker makes of the type's hash alone. A url and a version may be missing, for each worker may have its own."""
    key = keys.worker_key(options.type, ANY_ID)
    both = Hashes(change.own, Stored(key, "none", 0), change.now)
    found = examine(both, options, folders, ask, get)
    if found.faults and isinstance(found.faults[0], NotConfigured):
        return _incomplete(both, options, folders, ask)
    return found


def _incomplete(both: Hashes, options: RunOptions, folders: Folders, ask: Ask) -> Preparation:
    """Fields and policy, without a script."""
    fields = {name: value for name, value in _PLACEHOLDERS.items() if not both.shared.fields.get(name)}
    found = Preparation(options, folders)
    try:
        found.parse_stored(replace(both, own=Stored(both.own.key, "hash", len(fields), fields)))
        found.bound()
        found.check_names(ask)
    except SandboxrunError as error:
        found.faults.append(error)
    if found.ceiling is not None:
        found.faults += [fault for fault in beyond(found.ceiling) if str(fault) not in map(str, found.faults)]
    return found
