"""Puts requests on their streams at most once, and finds their replies after a connection was lost. Pure.

Requests are sent as one transaction, behind a fence:

    WATCH F                                        at the start of each connection, which has a name F of its own
    MULTI · HSET req:REF:h … · EXPIRE · XADD … · EXEC · WATCH F

In a handler, a request is also named in the trace of the current request, by HSET and EXPIRE before these.

A connection may be lost before the answer to EXEC, and the transaction may still arrive at Redis later, from the buffer of
a proxy or of a suspended server. So a new connection first writes F. That changes a watched key, and from then on the old
transaction does nothing. After that `req:REF:h` exists if and only if the transaction was executed; if it does not exist,
the request is sent again. A server that has lost its data has neither trace nor entry. So the request is at most once in
the stream of the server that goes on, but a worker may have begun it before the loss.

A reply may be lost as well, if Redis has popped it from `res:REF` for a connection that is gone. The worker writes the
same reply to `req:REF:h` in the same transaction, where it is found.
"""

from __future__ import annotations

import os

from sandboxrun.client.request import Outgoing, State
from sandboxrun.config import keys
from sandboxrun.protocol import REPLY_MAX_BYTES
from sandboxrun.redis.connection import pack
from sandboxrun.redis.replies import ReplyError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

    from sandboxrun.errors import SandboxrunError

SEND_BYTES = 256 * 1024  # of requests in one transaction
FENCE_EXPIRE_SECONDS = 5
LOOK_COMMANDS = 2  # for one request
LOOK_REQUESTS = 200  # in one exchange
POP_REQUESTS = 200  # in one exchange
POP_LARGE_REQUESTS = 50  # Redis holds the replies of one exchange in memory until they are read
_LARGE_BYTES = 64 * 1024
_BREAK_COMMANDS = 2  # for one fence, between MULTI and EXEC


def new_fence() -> str:
    """A new fence. Its key has the form of a trace, so it needs no further permission."""
    return keys.trace_key(f"fence-{os.urandom(12).hex()}")


def pop_count(reply: bytes) -> int:
    """How many replies to pop in one exchange, if the others are about as large as `reply`."""
    return POP_REQUESTS if len(reply) < _LARGE_BYTES else POP_LARGE_REQUESTS


def batch_of(requests: Iterable[Outgoing]) -> list[Outgoing]:
    """The first requests, up to SEND_BYTES."""
    batch: list[Outgoing] = []
    size = 0
    for request in requests:
        batch.append(request)
        size += request.size
        if size >= SEND_BYTES:
            break
    return batch


def put(batch: Sequence[Outgoing], fence: str) -> tuple[bytes, int]:
    """The commands that put these requests on their streams, and the number of their replies."""
    data = [pack("MULTI"), *[request.commands() for request in batch], pack("EXEC")]
    if fence:
        data.append(pack("WATCH", fence))
    return b"".join(data), sum([request.count for request in batch]) + 2 + bool(fence)


def taken(batch: Sequence[Outgoing], replies: Sequence[Any], shown: str) -> list[tuple[Outgoing, SandboxrunError]]:
    """Set the requests' states from the replies to `put`, and return those that Redis refused; NotSent may be retried.

    `shown`: the address of Redis.
    """
    begun = not isinstance(replies[0], ReplyError)  # else Redis has executed each command by itself
    results = replies[1 + sum([request.count for request in batch])]
    refusals: list[tuple[Outgoing, SandboxrunError]] = []
    end = 0
    for request in batch:
        first, end = end, end + request.count
        queued = replies[1 + first : 1 + end]
        added = results[end - 1] if isinstance(results, list) else None if begun else queued[-1]
        if isinstance(added, bytes) and added != b"QUEUED":
            request.taken()
            continue
        request.not_taken()
        reasons = (queued[-1], added, *queued, replies[0])
        reason = next((reply for reply in reasons if isinstance(reply, ReplyError)), None)
        if reason is not None:  # if none: the fence was broken, or another request of the transaction was refused
            refusals.append((request, request.refusal(reason, shown, added=reason is queued[-1])))
    if isinstance(results, ReplyError) and not refusals:  # EXEC itself was refused
        unsent = [request for request in batch if request.state is State.UNSENT]
        refusals = [(request, request.refusal(results, shown, added=False)) for request in unsent]
    return refusals


def look(requests: Sequence[Outgoing]) -> tuple[bytes, int]:
    """The commands that ask for the fate of requests whose connection was lost, and the number of their replies."""
    fences = _fences(requests)
    data = []
    if fences:
        data.append(pack("MULTI"))
        for fence in fences:
            data += (pack("HSET", fence, "broken", 1), pack("EXPIRE", fence, FENCE_EXPIRE_SECONDS))
        data.append(pack("EXEC"))
    for request in requests:
        data += (pack("HSTRLEN", request.trace_key, request.trace_field), pack("EXISTS", request.trace_key))
    return b"".join(data), _before(fences) + LOOK_COMMANDS * len(requests)


def looked(requests: Sequence[Outgoing], replies: Sequence[Any]) -> tuple[list[Outgoing], list[Outgoing]]:
    """Set the requests' states from the replies to `look`; return those whose trace has a reply, and a too large one.

    A request stays UNSURE if Redis refuses to answer, or to break the fence, or if there was no fence.
    """
    fences = _fences(requests)
    count = _before(fences)
    broken = bool(fences) and isinstance(replies[count - 1], list)
    answered: list[Outgoing] = []
    too_large: list[Outgoing] = []
    for number, request in enumerate(requests):
        length, exists = replies[count + LOOK_COMMANDS * number :][:LOOK_COMMANDS]
        if isinstance(length, int) and length > 0:
            request.taken()
            (answered if length <= REPLY_MAX_BYTES else too_large).append(request)
        elif isinstance(exists, ReplyError) or request.state is State.SENT:
            continue
        elif exists:
            request.taken()
        elif broken and request.resendable:
            request.state = State.UNSENT
    return answered, too_large


def _fences(requests: Sequence[Outgoing]) -> list[str]:
    return sorted({request.fence for request in requests if request.state is State.UNSURE and request.fence})


def _before(fences: Sequence[str]) -> int:
    return 2 + _BREAK_COMMANDS * len(fences) if fences else 0


def pop_key(head: bytes) -> bytes:
    """The key in the first bytes of a reply to BRPOP, or b""."""
    words = head.split(b"\r\n", 3)
    return words[2] if len(words) == 4 and words[0] == b"*2" else b""
