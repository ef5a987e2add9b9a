"""Call a worker over Redis and wait for its reply.

    from sandboxrun import client

    reply = client.call("demo-worker", {"text": "hi"}, timeout=5)      # REDIS_URL, or url=…

    with client.Client(url) as c:
        c.call("demo-worker", {"text": "hi"})
        for reply in c.call_many("demo-worker", [{"n": n} for n in range(1000)]): …

    async with client.AsyncClient(url) as c:
        await asyncio.gather(*(c.call("demo-worker", {"n": n}) for n in range(1000)))

A call tries again until its time-out if Redis is away or can take nothing at the moment; `retry=False` opts out. None or
inf as `timeout` waits without limit. A call without a result raises a CallError, which says whether the request may have
run: BadRequest, Expired and NotSent, it did not; RemoteError, it ran and failed, or its reply cannot be used; CallTimeout,
unknown. If Redis lets nobody in or refuses the request for good, it is a StoreError, and nothing was sent either.
"""

from __future__ import annotations

from sandboxrun.client.blocking import Client, call
from sandboxrun.client.redis_py import send, wait
from sandboxrun.protocol.call import BadRequest, CallError, CallTimeout, Expired, NotSent, RemoteError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sandboxrun.client.awaiting import AsyncClient

__all__ = [
    "AsyncClient", "BadRequest", "CallError", "CallTimeout", "Client", "Expired", "NotSent", "RemoteError", "call", "send",
    "wait",
]  # fmt: skip


def __getattr__(name: str) -> object:
    """AsyncClient where it is first asked for: asyncio takes longer to import than all else of a call."""
    if name != "AsyncClient":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sandboxrun.client.awaiting import AsyncClient

    return AsyncClient
