"""How a worker comes to Redis: by a user of its own, for as long as it runs."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Iterator

from sandboxrun.config import keys
from sandboxrun.config.worker import WorkerConfig
from sandboxrun.errors import SandboxError, StoreError
from sandboxrun.log import Log
from sandboxrun.policy.ceiling import Ceiling
from sandboxrun.records import record
from sandboxrun.redis.acl import HASH_URL, Identity, Owner, identity, url_for
from sandboxrun.redis.lease import start_time, this_host
from sandboxrun.redis.store import Store
from sandboxrun.redis.users import REDIS_ACL, REDIS_PASSWORD, SELECTORS_SINCE


@record
class Login:
    """How the worker comes to Redis: variables of its environment."""

    env: dict[str, str]
    degraded: list[str]  # the parts of the boundary at Redis that do not hold


@contextlib.contextmanager
def admitted(
    config: WorkerConfig, ceiling: Ceiling, store: Store, degraded: Collection[str], log: Log, *, pid: int
) -> Iterator[Login]:
    """A Redis user for as long as the run lasts. `degraded`: the names of --allow-degraded. `pid`: the worker's, because a
    supervisor may have had many of the same key.

    Raises SandboxError if there can be no such user, or if it would restrict nothing, and the operator has not accepted that.
    """
    owner = Owner.of_run(config.key, host=this_host(), pid=pid, started=start_time(pid) or 0, now=time.time())
    made = identity(config, owner=owner, database=store.address.db)
    try:
        yield _admit(made, owner, ceiling, store, degraded, log)
    finally:
        try:
            store.dismiss()
        except StoreError as error:
            log.warning("redis", f"{error}; the worker's user {owner.name} is removed by the next start")


def _admit(made: Identity, owner: Owner, ceiling: Ceiling, store: Store, degraded: Collection[str], log: Log) -> Login:
    forgone = []
    nonce = {keys.CALL_NONCE: made.nonce} if made.nonce else {}
    if store.open_to_all and REDIS_ACL not in degraded:
        if REDIS_PASSWORD not in degraded and not ceiling.accepts_open_redis(store.address.shown):
            from sandboxrun.redis.acceptance import refusal

            raise refusal(ceiling, store.address.shown)
        log.warning("degraded", f"degraded: without {REDIS_PASSWORD}, the worker can do at Redis whatever anybody can")
        forgone.append(REDIS_PASSWORD)
    try:
        users = store.admit(made, owner)
    except SandboxError:
        if REDIS_ACL not in degraded:
            raise
        log.warning("degraded", f"degraded: without {REDIS_ACL}, the worker can do at Redis whatever your login can")
        return Login({"REDIS_URL": store.url, **nonce}, [REDIS_ACL])
    if len(users) > 1:
        log.warning(
            "redis",
            f"this server is older than Redis {SELECTORS_SINCE}: the worker can read requests and replies of others, and "
            f"reads its hash at {HASH_URL} only",
        )
    urls = [url_for(store.url, user) for user in users]
    return Login({**dict(zip(("REDIS_URL", HASH_URL, keys.CALL_URL), urls, strict=False)), **nonce}, forgone)
