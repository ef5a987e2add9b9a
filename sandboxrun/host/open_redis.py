"""Before a command makes or starts workers: is this Redis one that the operator accepts?"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from sandboxrun.config.worker import parse_worker
from sandboxrun.host.folders import Folders
from sandboxrun.redis import acceptance
from sandboxrun.redis.store import Store


def check_open_redis(
    url: str, type_: str, id_: str, *, policy: str | None = None, ask: bool = True, say: Callable[[str], None]
) -> None:
    """Raise SandboxError, with a hint, if Redis accepts commands without a password and the operator does not accept that.

    `ask`: ask at a terminal, if there is one and the policy does not say; `say` is told what was recorded. `policy`: a file
    instead of the user's. Raises StoreError, ConfigError too.
    """
    with contextlib.closing(Store(url)) as store:
        store.connect()
        if not store.open_to_all:
            return
        shown = store.address.shown
    worker = parse_worker(type_, id_, {}, {b"url": b"/", b"version": b"local"})  # its sections of the policy count
    ceiling = Folders.of_user().ceiling(worker, policy)
    if ceiling.accepts_open_redis(shown) or (ask and acceptance.accept(ceiling, shown, say)):
        return
    raise acceptance.refusal(ceiling, shown)
