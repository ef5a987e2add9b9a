"""Read what the hashes say of a worker at its start, or wait until they say it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from sandboxrun import timing
from sandboxrun.errors import ConnectionLost, NotConfigured
from sandboxrun.log import Log
from sandboxrun.redis.connection import delays
from sandboxrun.redis.store import Store

Parse = Callable[[Mapping[bytes, bytes], Mapping[bytes, bytes]], None]


def read(store: Store, type_: str, id_: str, parse: Parse, *, wait: bool, log: Log) -> None:
    """Parse both hashes. `wait` until Redis is there, and until the hash exists and has a url and a version.

    Raises SandboxrunError.
    """
    said: set[str] = set()
    tries = delays()
    while True:
        try:
            shared, own = store.read(type_, id_)
            timing.mark("hash read")
            parse(shared, own)
            return
        except (NotConfigured, ConnectionLost) as error:
            if not wait:
                raise
            reason = f"{error}; waiting for {'it' if isinstance(error, NotConfigured) else 'Redis'}"
            if reason not in said:
                log.warning("wait", reason, hint=error.hint)
            said.add(reason)
        time.sleep(next(tries))
