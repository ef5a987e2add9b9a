"""The W3C trace context of a request: the header traceparent, as https://www.w3.org/TR/trace-context/ has it. Pure.

A span of ours is one request, from the moment when a handler begins it until its reply is made. The entry names the span of
whoever calls, as every traceparent does, and the worker makes the id of the request's own span.
"""

from __future__ import annotations

import os

from sandboxrun.config import keys

_VERSION_0_CHARS = 55
_MAX_CHARS = 256  # of a later version, which may have more fields
_HEX = keys.DIGITS + "abcdef"
_SAMPLED = 1  # the flags of later levels are cleared, as the standard asks


def parse(text: str) -> tuple[str, str, int] | None:
    """Trace id, parent id and the known flags; None for text that the standard says to ignore."""
    if not _VERSION_0_CHARS <= len(text) <= _MAX_CHARS or text[2] + text[35] + text[52] != "---":
        return None
    version, trace, parent, flags = text[:2], text[3:35], text[36:52], text[53:55]
    if not keys.consists_of(_HEX, version + trace + parent + flags):
        return None
    if version == "ff" or not trace.strip("0") or not parent.strip("0"):
        return None
    if len(text) > _VERSION_0_CHARS and (version == "00" or text[_VERSION_0_CHARS] != "-"):
        return None
    return trace, parent, int(flags, 16) & _SAMPLED


def accepted(text: str) -> str:
    """A traceparent of somebody else as it is passed on; "" for a malformed one."""
    parts = parse(text)
    return "" if parts is None else f"00-{parts[0]}-{parts[1]}-{parts[2]:02x}"


def new_traceparent() -> str:
    """A traceparent for a request that nobody traces yet. Its parent does not exist: `parent_of` returns ""."""
    trace = os.urandom(16).hex()
    return f"00-{trace}-{trace[:16]}-01" if trace[:16].strip("0") else new_traceparent()


def parent_of(text: str) -> str:
    """The id of the span that a valid traceparent names; "" for one of `new_traceparent`."""
    return "" if text[3:19] == text[36:52] else text[36:52]


def child_of(text: str) -> str:
    """The traceparent of a new span under the one that `text` names; "" if `text` is malformed."""
    parts = parse(text)
    if parts is None:
        return ""
    span = os.urandom(8).hex()
    return f"00-{parts[0]}-{span}-{parts[2]:02x}" if span.strip("0") else child_of(text)
