"""Fields that any service adds to the trace of a request. Pure."""

from __future__ import annotations

from sandboxrun.config import keys
from sandboxrun.protocol import PAYLOAD_MAX_BYTES, TRACE_EXPIRE_SECONDS
from sandboxrun.protocol.request import encode
from sandboxrun.redis.connection import pack
from sandboxrun.redis.replies import ReplyError, refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

NOTE_COMMANDS = 2


def note(ref: str, fields: Mapping[str, Any]) -> bytes:
    """The commands, which have NOTE_COMMANDS replies. Raises TypeError or ValueError."""
    if not keys.is_ref(ref):
        raise ValueError(f"{ref[:80]!r} is not a ref")
    if not fields:
        raise ValueError("there is no field to add to the trace")
    words = [
        word for name, value in fields.items() for word in (name, value if isinstance(value, str) else encode(value))
    ]
    if sum([len(word.encode()) for word in words]) > PAYLOAD_MAX_BYTES:
        raise ValueError(f"the fields have more than {PAYLOAD_MAX_BYTES} bytes")
    key = keys.trace_key(ref)
    return pack("HSET", key, *words) + pack("EXPIRE", key, TRACE_EXPIRE_SECONDS, "NX")


def without_nx(ref: str, replies: Sequence[Any], shown: str) -> bytes:
    """What the replies leave to do: a question on a server without EXPIRE NX, before Redis 7; else b"". Raises StoreError."""
    if isinstance(replies[0], ReplyError):
        raise refused(replies[0], shown)
    return pack("TTL", keys.trace_key(ref)) if isinstance(replies[1], ReplyError) else b""


def expire(ref: str, ttl: object) -> bytes:
    """The command that lets a trace expire that would stay for ever; else b""."""
    return pack("EXPIRE", keys.trace_key(ref), TRACE_EXPIRE_SECONDS) if ttl == -1 else b""
