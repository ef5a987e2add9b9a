"""Call a worker over Redis and wait for its reply.

    from sandboxrun import client

    reply = client.call("demo-worker", {"text": "hi"}, timeout=5)      # REDIS_URL, or url=…

    with client.Client(url) as c:
        c.call("demo-worker", {"text": "hi"})
        for index, reply, seconds in c.call_many("demo-worker", [{"n": n} for n in range(1000)]): …

    async with client.AsyncClient(url) as c:
        await asyncio.gather(*(c.call("demo-worker", {"n": n}) for n in range(1000)))

    client.connect("price").quote(item="tea")             # a method of a service
    await client.aconnect("price").quote(item="tea")

`timeout` is in seconds; None or inf waits without limit. While Redis is away, or can accept nothing, a call is retried
until its time-out; `retry=False` opts out.

A call without a result raises a CallError. Its `may_have_run` says whether the handler may have run: not after BadRequest,
CallDenied, Expired and NotSent; it did after RemoteError, except for an unusable reply; unknown after CallTimeout. A
StoreError that is no CallError means that Redis refuses the login or the request for good, and that nothing was sent.

In the handler of a worker, a call inherits deadline, path and trace of the current request: docs/calling-workers.md.
"""

from __future__ import annotations

from sandboxrun.client.blocking import Client, call
from sandboxrun.client.redis_py import send, wait
from sandboxrun.client.services import aconnect, connect
from sandboxrun.protocol.call import (
    BadRequest,
    CallDenied,
    CallError,
    CallTimeout,
    Expired,
    NotSent,
    RemoteError,
    UnknownMethod,
)
from sandboxrun.protocol.tracing import new_traceparent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sandboxrun.client.awaiting import AsyncClient

__all__ = [
    "AsyncClient", "BadRequest", "CallDenied", "CallError", "CallTimeout", "Client", "Expired", "NotSent", "RemoteError",
    "UnknownMethod", "aconnect", "call", "connect", "new_traceparent", "send", "wait",
]  # fmt: skip


def __getattr__(name: str) -> object:
    """AsyncClient, imported at first use, because asyncio takes longer to import than everything else of a call."""
    if name != "AsyncClient":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sandboxrun.client.awaiting import AsyncClient

    return AsyncClient
