"""One entry of the request stream, and the reply to it: pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

REF_MAX_CHARS = 256
PAYLOAD_MAX_BYTES = 1024 * 1024  # of one entry's fields together
_ENVELOPE = ("ref", "type", "time")


class BadRequest(Exception):
    """The request cannot be accepted: answered with code 400 and this message."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a handler is given. `data`: the parsed JSON of the field `data`, or else the other fields as text."""

    xid: str  # the entry's id
    ref: str
    type: str
    data: Any
    fields: Mapping[str, str]


def ref_of(raw: Mapping[bytes, bytes]) -> str | None:
    """The reference to answer under, or None where there is none that could be part of a key."""
    ref = raw.get(b"ref", b"").decode("utf-8", "replace")
    return ref if ref and len(ref) <= REF_MAX_CHARS and ref.isprintable() and not re.search(r"\s", ref) else None


def parse(xid: str, raw: Mapping[bytes, bytes], accepted: frozenset[str], *, default: str) -> Request:
    """Raises BadRequest saying what is missing or wrong. `default`: the type of a request that names none."""
    if sum(len(k) + len(v) for k, v in raw.items()) > PAYLOAD_MAX_BYTES:
        raise BadRequest(f"the request has more than {PAYLOAD_MAX_BYTES} bytes")
    try:
        fields = {k.decode(): v.decode() for k, v in raw.items()}
    except UnicodeDecodeError:
        raise BadRequest("the request is not UTF-8 text") from None
    ref = ref_of(raw)
    if ref is None:
        raise BadRequest("the request has no ref, or not a printable one")
    type_ = fields.get("type") or default
    if type_ not in accepted:
        raise BadRequest(f"the request's type is {type_[:80]!r}, expected {' or '.join(sorted(accepted))}")
    if "data" in fields:
        try:
            data = json.loads(fields["data"])
        except (ValueError, RecursionError) as error:
            raise BadRequest(f"the request's data is not JSON: {error}") from None
    else:
        data = {name: value for name, value in fields.items() if name not in _ENVELOPE}
    return Request(xid, ref, type_, data, fields)


def now() -> str:
    """ISO 8601 in UTC with milliseconds, as JavaScript's toISOString."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def reply(ref: str | None, source: str, code: int, result: Mapping[str, Any], time: str) -> str:
    """The reply's JSON. The envelope wins over result fields of the same name. Raises TypeError, ValueError."""
    return json.dumps({**result, "ref": ref, "source": source, "code": code, "time": time}, separators=(",", ":"))


def failure(error: BaseException, raw: Mapping[bytes, bytes], *, with_payload: bool) -> dict[str, Any]:
    """The result fields of a 400 or 500: `err.message`, and for a 500 the payload."""
    result: dict[str, Any] = {"err": {"message": str(error)[:2000] or type(error).__name__}}
    if with_payload:
        result["payload"] = {k.decode("utf-8", "replace"): v.decode("utf-8", "replace")[:2000] for k, v in raw.items()}
    return result


def trace_field(type_: str) -> str:
    """`demo-worker` to `demoWorkerTrace`."""
    first, *rest = re.split(r"[-_]", type_)
    return first + "".join(part.capitalize() for part in rest) + "Trace"
