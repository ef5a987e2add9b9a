"""Read what the hashes say of a worker at its start, or wait until they say it."""

from __future__ import annotations

import time
from collections.abc import Mapping

from sandboxrun import timing as trace
from sandboxrun.config import keys
from sandboxrun.config.permissions import Permissions
from sandboxrun.config.worker import WorkerConfig, parse_worker
from sandboxrun.errors import ConnectionLost, NotConfigured
from sandboxrun.log import Log
from sandboxrun.redis.connection import delays
from sandboxrun.redis.store import Store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sandboxrun.config.debugger import Inspect

_NEEDED = (frozenset((b"url", b"workerUrl")), frozenset((b"version", b"workerVersion")))


def read(
    store: Store,
    type_: str,
    id_: str,
    *,
    extra: Permissions,
    limits: Mapping[str, int],
    inspect: Inspect | None,
    wait: bool,
    log: Log,
) -> tuple[WorkerConfig, tuple[str, ...]]:
    """The configuration, and the keys of the hashes without which the worker could not be started again.

    `wait`: as long as Redis is away, or there is no hash or no url or version in it. Raises SandboxrunError.
    """
    said: set[str] = set()
    tries = delays()
    while True:
        try:
            shared, own = store.read(type_, id_)
            trace.mark("hash read")
            config = parse_worker(type_, id_, shared, own, extra=extra, limits=limits, inspect=inspect)
            return config, _stands_on(config, own)
        except (NotConfigured, ConnectionLost) as error:
            if not wait:
                raise
            reason = f"{error}; waiting for {'it' if isinstance(error, NotConfigured) else 'Redis'}"
            if reason not in said:
                log.warning("wait", reason)
            said.add(reason)
        time.sleep(next(tries))


def _stands_on(config: WorkerConfig, own: Mapping[bytes, bytes]) -> tuple[str, ...]:
    by_type = any(not names & own.keys() for names in _NEEDED)
    return (*([config.key] if own else []), *([keys.type_key(config.type)] if by_type else []))
