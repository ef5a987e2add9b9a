"""What the record of a reply says about the span of a traced request. Imported at the first one."""

from __future__ import annotations

from sandboxrun.config import keys
from sandboxrun.protocol.request import is_method, traceparent_of
from sandboxrun.protocol.tracing import accepted, parent_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from sandboxrun.worker.request import Request

# The names of the fields, which end with the times.
FIELDS = ("traceparent", "parentSpan", "caller", "method", "received", "completed")
Span = tuple[bytes, bytes, bytes, bytes]  # the values of the first four


def span_of(raw: Mapping[bytes, bytes], request: Request | None) -> Span | None:
    """None if the traceparent is malformed. `raw`: the entry, which is hostile; `request`: None if it was refused."""
    own = traceparent_of(raw) if request is None else request.traceparent
    if not own:
        return None
    parent = parent_of(accepted(_text(raw, b"traceparent")))
    caller, method = _text(raw, b"path").rpartition(",")[2], _text(raw, b"method")
    named = caller if keys.is_type(caller) else "", method if is_method(method) else ""
    return own.encode(), parent.encode(), named[0].encode(), named[1].encode()


def _text(raw: Mapping[bytes, bytes], name: bytes) -> str:
    return raw.get(name, b"").decode("utf-8", "replace")
