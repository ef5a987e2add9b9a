"""Data keys must not match worker hashes: a worker that writes `T:h` or `T:ID:h` sets the permissions of workers of type T.

A worker is refused if its grants cover hashes of a type that has workers, and a type is refused while an approved grant covers
its hashes. Both are found without a scan of the keyspace, by the records of this host and by a few keys of Redis.
Whichever of the two comes second is refused.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence

from sandboxrun.config import keys
from sandboxrun.config.covers import writes_hash
from sandboxrun.config.permissions import RedisTarget
from sandboxrun.config.worker import WorkerConfig
from sandboxrun.errors import ConfigError, PolicyError
from sandboxrun.host.folders import Folders
from sandboxrun.policy import approval
from sandboxrun.redis.acl import granted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Sends commands to Redis, and returns their replies, errors among them; None if they are too large.
Ask = Callable[[Sequence[tuple[str | int, ...]]], "list[Any] | None"]

QUEUE_IDS = 16  # of each queue
RECORDED_IDS = 64
_URL_FIELDS = ("url", "workerUrl")


def check(config: WorkerConfig, folders: Folders, ask: Ask) -> None:
    """Raise PolicyError or ConfigError if this worker may not run beside those that there are."""
    granted(config)  # its own hashes
    for target in approval.written(config.permissions):
        _check_target(config, target, folders, ask)
    _check_type(config, folders, ask)


def _check_target(config: WorkerConfig, target: RedisTarget, folders: Folders, ask: Ask) -> None:
    """Raise PolicyError if an entry of allowRedis covers hashes of another type that has workers."""
    recorded = _recorded(folders)
    head = target.pattern.partition(":")[0]
    for type_ in recorded if set(head) & set("*?") else [head]:
        if type_ == config.type or not writes_hash(target.pattern, type_):
            continue
        found = _hash_of(type_, [*_named_id(target, type_), "1", *recorded.get(type_, ())], ask)
        if found is not None:
            rest = [str(other) for other in config.permissions.allow["redis"] if other != target]
            raise PolicyError(
                f"field allowRedis of {config.key} has {target}, which covers {found}, a hash of worker type {type_}; writing it would "
                "change that type's permissions",
                hint=keys.set_hint(config.key, f"allowRedis={','.join(rest)}"),
            )


def _check_type(config: WorkerConfig, folders: Folders, ask: Ask) -> None:
    """Raise PolicyError if the approved grant of a worker of another type covers hashes of this type."""
    for type_, id_ in approval.writers(folders.approved, config.type):
        path = approval.record_path(folders.approved, type_, id_)
        if type_ == config.type or (record := approval.load(path)) is None:
            continue
        targets = approval.written(record.permissions)
        covering = next((target for target in targets if writes_hash(target.pattern, config.type)), None)
        if covering is None or _hash_of(type_, [id_], ask) is None:
            continue
        rest = [str(target) for target in record.permissions.allow["redis"] if target != covering]
        key = keys.worker_key(type_, id_)
        raise PolicyError(
            f"the approved grant {covering} of {key} covers hashes of type {config.type}, so {key} could change the permissions "
            f"of {config.key}",
            hint=(keys.set_hint(key, f"allowRedis={','.join(rest)}"), f"sandboxrun approve {type_} {id_}"),
        )


def _recorded(folders: Folders) -> dict[str, list[str]]:
    """The ids of each type that was approved on this host."""
    found: dict[str, list[str]] = {}
    try:
        names = os.listdir(folders.approved)
    except OSError:
        return found
    for name in names:
        type_, _, id_ = name.removesuffix(".json").partition(":")
        if id_ and name.endswith(".json"):
            ids = found.setdefault(type_, [])
            if len(ids) < RECORDED_IDS:
                ids.append(id_)
    return found


def _named_id(target: RedisTarget, type_: str) -> list[str]:
    """The id, if the entry is the key of one worker."""
    id_ = target.pattern.removeprefix(f"{type_}:").removesuffix(":h")
    return [id_] if keys.worker_key(type_, id_) == target.pattern and not set(id_) & set("*?") else []


def _hash_of(type_: str, ids: Iterable[str], ask: Ask) -> str | None:
    """A hash of this type with a url: its own, or that of a worker among `ids` or in its queues; None if there is none."""
    queues = (keys.start_queue(type_), keys.started_queue(type_), keys.stopped_queue(type_))
    first = _asked(type_, ask, [("LRANGE", queue, 0, QUEUE_IDS - 1) for queue in queues])
    queued = (raw.decode("utf-8", "replace") for reply in first if isinstance(reply, list) for raw in reply)
    names = dict.fromkeys([*ids, *filter(_is_id, queued)])
    candidates = [keys.type_key(type_), *(keys.worker_key(type_, id_) for id_ in names)]
    sizes = iter(_asked(type_, ask, [("HSTRLEN", key, name) for key in candidates for name in _URL_FIELDS]))
    for key, size, other in zip(candidates, sizes, sizes, strict=True):
        if any(isinstance(reply, int) and reply > 0 for reply in (size, other)):
            return key
    return None


def _asked(type_: str, ask: Ask, commands: Sequence[tuple[str | int, ...]]) -> list[Any]:
    replies = ask(commands)
    if replies is None:
        raise ConfigError(f"a queue of the type {type_} has too large entries to be read")
    return replies


def _is_id(text: str) -> bool:
    try:
        keys.check_id(text)
    except ConfigError:
        return False
    return True
