"""A request as an entry of a stream: written by a client, read by a worker. Pure."""

from __future__ import annotations

import time

from sandboxrun.config import keys
from sandboxrun.plainjson import decoder, dumps
from sandboxrun.protocol import PAYLOAD_MAX_BYTES, BadRequest
from sandboxrun.protocol.calling import PATH_MAX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from sandboxrun.protocol.calling import Calling

PATH_MAX_CHARS = 200
METHOD_MAX_CHARS = 128
UNLIMITED_SECONDS = 1e9  # a time-out from 31 years counts as no limit
_ENVELOPE = ("ref", "type", "time", "deadline", "traceparent")  # of an entry without `data` all others are the payload


# --- writing


def entry(
    ref: str,
    type_: str,
    text: str,
    created: str,
    deadline: float | None = None,
    *,
    method: str | None = None,
    traceparent: str = "",
    path: Sequence[str] = (),
) -> list[str]:
    """The words of the entry: field, value, field, value … `text`: of `encode`. `deadline`: seconds since the epoch."""
    words = ["ref", ref, "type", type_, "data", text, "time", created]
    if deadline is not None:
        words += ("deadline", str(int(deadline * 1000)))
    if method is not None:
        words += ("method", method)
    if traceparent:
        words += ("traceparent", traceparent)
    if path:
        words += ("path", ",".join(path))
    return words


def trace_fields(
    ref: str,
    type_: str,
    text: str,
    created: str,
    *,
    method: str | None = None,
    traceparent: str = "",
    caller: Calling | None = None,
) -> dict[str, str]:
    """The fields of `req:REF:h` that a client writes together with the entry. `caller`: the handler that calls."""
    fields = {"ref": ref, "type": type_, "requestData": text, "created": created}
    if method is not None:
        fields["method"] = method
    if traceparent:
        from sandboxrun.protocol.tracing import parent_of

        fields["traceparent"], fields["parentSpan"] = traceparent, parent_of(traceparent)
    if caller is not None:
        fields["caller"], fields["callerRef"] = caller.type, caller.ref
    return fields


def is_method(name: str) -> bool:
    """Whether it is a method's name, such as `quote` or `price.quote`: names of letters, digits, - and _ with dots in between."""
    parts = name.replace("-", "_").split(".")
    return len(name) <= METHOD_MAX_CHARS and all(part.isidentifier() for part in parts)


def check_method(name: str) -> None:
    """Raise ValueError for what is no method's name."""
    if not is_method(name):
        raise ValueError(f"the method is {name[:80]!r}: expected a name such as quote or price.quote")


def encode(data: Any) -> str:
    """The text of a payload. Raises TypeError, ValueError, RecursionError."""
    return dumps(data, nan=False)


def iso(millis: int) -> str:
    """Milliseconds since the epoch as ISO 8601 in UTC, as JavaScript's toISOString."""
    global _second
    seconds, rest = divmod(millis, 1000)
    second = _second  # read once, because another thread may replace it
    if second[0] != seconds:
        _second = second = (seconds, _strftime("%Y-%m-%dT%H:%M:%S.", _gmtime(seconds)))
    return f"{second[1]}{rest:03d}Z"


def now() -> str:
    """The time as `iso` writes it."""
    global _last
    millis = _time_ns() // 1_000_000
    if millis != _last[0]:
        _last = (millis, iso(millis))
    return _last[1]


# Bound at import, because a script may replace them, to freeze the time for instance.
_time_ns, _strftime, _gmtime = time.time_ns, time.strftime, time.gmtime
# Caches, because formatting the time takes longer than the rest of a small request.
_last = (0, "")  # milliseconds, as text
_second = (-1, "")  # seconds, as text without the milliseconds


# --- reading


def ref_of(raw: Mapping[bytes, bytes]) -> str | None:
    """The ref, or None if there is none that can be part of a key."""
    try:
        ref = raw.get(b"ref", b"").decode()
    except UnicodeDecodeError:
        return None
    return ref if keys.is_ref(ref) else None


def read(
    raw: Mapping[bytes, bytes], accepted: Mapping[str, object], default: str, *, silent: bool = False
) -> tuple[str, str, Any, float | None]:
    """The ref, the type, the data, and the deadline in seconds since the epoch. `default`: the type if none is named.

    `silent`: the entry is not answered, so it needs no ref, and the ref is "".

    Raises BadRequest with the fault.
    """
    if sum(map(len, raw.values())) + sum(map(len, raw)) > PAYLOAD_MAX_BYTES:
        raise BadRequest(f"the request has more than {PAYLOAD_MAX_BYTES} bytes")
    try:
        type_ = raw[b"type"].decode() if raw.get(b"type") else default
        text = raw[b"data"].decode() if b"data" in raw else None
        fields = {k.decode(): v.decode() for k, v in raw.items()} if text is None else None
    except UnicodeDecodeError:
        raise BadRequest("the request is not UTF-8 text") from None
    ref = "" if silent else ref_of(raw)
    if ref is None:
        raise BadRequest("the request has no ref, or none that can be answered")
    if type_ not in accepted:
        raise BadRequest(f"the request's type is {type_[:80]!r}, expected {' or '.join(sorted(accepted))}")
    deadline = _deadline(raw[b"deadline"].decode("utf-8", "replace")) if b"deadline" in raw else None
    if b"path" in raw or b"method" in raw:
        path_of(raw), method_of(raw)  # to refuse what is malformed
    if fields is not None:
        return ref, type_, {name: value for name, value in fields.items() if name not in _ENVELOPE}, deadline
    return ref, type_, decoded_data(text or ""), deadline


def _deadline(text: str) -> float | None:
    """Milliseconds since the epoch, as in an entry ID, to seconds; None if it is further away than any time-out can be."""
    if not (text.isascii() and text.isdigit() and len(text) <= 16):
        raise BadRequest(
            f"the request's deadline is {text[:40]!r}: expected milliseconds since 1970, such as 1767225600000"
        )
    seconds = int(text) / 1000
    return seconds if seconds < _time_ns() / 1e9 + UNLIMITED_SECONDS else None


def method_of(raw: Mapping[bytes, bytes]) -> str | None:
    """The method that the request is for, or None. Raises BadRequest."""
    if b"method" not in raw or b"data" not in raw:  # without `data` it is a field of the payload, as `path` is
        return None
    name = raw[b"method"].decode("utf-8", "replace")
    if not is_method(name):
        raise BadRequest(f"the request's method is {name[:80]!r}: expected a name such as quote or price.quote")
    return name


def path_of(raw: Mapping[bytes, bytes]) -> tuple[str, ...]:
    """The types through which the request has come, the first caller first. Raises BadRequest."""
    text = raw.get(b"path", b"").decode("utf-8", "replace") if b"data" in raw else ""
    types = tuple(text.split(",")) if text else ()
    if len(types) > PATH_MAX or not all(map(keys.is_type, types)):
        raise BadRequest(f"the request's path is {text[:80]!r}: expected at most {PATH_MAX} types, such as order,price")
    return types


def traceparent_of(raw: Mapping[bytes, bytes]) -> str:
    """The traceparent of a new span for the request, under the one that the entry names; "" if it names none."""
    text = raw.get(b"traceparent")
    if text is None:
        return ""
    from sandboxrun.protocol.tracing import child_of

    return child_of(text.decode("utf-8", "replace"))


def decoded_data(text: str) -> Any:
    """The payload, of the entry's field `data`. Raises BadRequest."""
    try:
        return _decode(text)
    except RecursionError:
        raise BadRequest("the request's data is nested too deeply") from None
    except _NotFinite:
        raise BadRequest(f"the request's data is not JSON: {_first_not_finite(text)}") from None
    except ValueError as error:
        reason = "it has an integer with too many digits" if "integer string conversion" in str(error) else error
        raise BadRequest(f"the request's data is not JSON: {reason}") from None


class _NotFinite(ValueError):
    """Python's json accepts NaN, Infinity and 1e999. JSON has none of them, and no reply could contain them."""


def _no_constant(text: str) -> Any:
    raise _NotFinite(text)


def _finite(text: str) -> float:
    value = float(text)
    if value - value != 0:
        raise _NotFinite(text)
    return value


_decode = decoder(parse_constant=_no_constant, parse_float=_finite)


def _first_not_finite(text: str) -> str:
    """The first such number with its path: `data.items[3].price: nan is not JSON`."""
    path: list[str | int] = ["data"]
    import json

    try:
        value = _find_not_finite(json.loads(text), path)
    except (ValueError, RecursionError):
        value = None
    if value is None:
        return "it has a number that is not finite"  # under a duplicate key, whose last value is finite
    return f"{path_text(path)}: {value!r} is not JSON"


def _find_not_finite(value: Any, path: list[str | int]) -> float | None:
    """The first such number, with `path` left at it."""
    if isinstance(value, float):
        return value if value - value != 0 else None
    if not isinstance(value, dict | list):
        return None
    for step, item in value.items() if isinstance(value, dict) else enumerate(value):
        path.append(step)
        number = _find_not_finite(item, path)
        if number is not None:
            return number
        path.pop()
    return None


def path_text(path: list[str | int]) -> str:
    """A path in a JSON text, as `data.items[3].price`; unusual names are quoted, and the length is bounded."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        elif step.isprintable() and " " not in step and len(step) <= 80:
            text += f".{step}" if text else step
        else:
            text += f"[{step[:80]!r}]"
        if len(text) > PATH_MAX_CHARS:
            return text[:PATH_MAX_CHARS] + "…"
    return text
