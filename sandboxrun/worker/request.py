"""One entry of the request stream, and what is said of it in a reply: pure."""

from __future__ import annotations

import json
import time

from sandboxrun.config import keys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

PAYLOAD_MAX_BYTES = 1024 * 1024  # of one entry's fields together
RESULT_MAX_BYTES = 8 * 1024 * 1024  # of one reply
MESSAGE_MAX_CHARS = 2000
_ENVELOPE = ("ref", "type", "time", "deadline")


class BadRequest(Exception):
    """The request cannot be accepted: answered with code 400 and this message."""


class Expired(Exception):
    """The request's deadline had passed before it could be begun: answered with code 504."""


class Request:
    """What a handler is given. `data`: the parsed JSON of the field `data`, or else the other fields as text."""

    __slots__ = ("_noted", "_raw", "_tell", "data", "deadline", "deliveries", "ref", "type", "xid")

    def __init__(
        self, xid: str, ref: str, type: str, data: Any, raw: Mapping[bytes, bytes], deadline: float | None = None
    ) -> None:
        self.xid = xid  # the entry's id
        self.ref = ref
        self.type = type
        self.data = data
        self.deadline = deadline  # seconds since the epoch, or None
        self.deliveries = 1  # how often it was begun, this time included
        self._raw = raw
        self._noted: dict[str, Any] | None = None
        self._tell: Callable[[Request, dict[str, Any]], None] | None = None

    @property
    def fields(self) -> dict[str, str]:
        """All of the entry's fields, as text."""
        return {k.decode("utf-8", "replace"): v.decode("utf-8", "replace") for k, v in self._raw.items()}

    def trace(self, **fields: Any) -> None:
        """Fields for `req:REF:h`, written together with the reply. Text stays as it is, all else becomes JSON.

        Raises TypeError or ValueError for what JSON cannot be, with its path.
        """
        noted = {_unicode(name): as_text(value, name) for name, value in fields.items()}
        self._noted = {**(self._noted or {}), **noted}

    def progress(self, value: Any) -> None:
        """Write the field `progress` of `req:REF:h` now, for whoever looks while the handler works. Raises as `trace`."""
        text = as_text(value, "progress")
        if self._tell is not None:
            self._tell(self, {"progress": text})

    def remaining(self) -> float | None:
        """Seconds until the deadline, or None where there is none; negative once it has passed."""
        return None if self.deadline is None else self.deadline - time.time()


def ref_of(raw: Mapping[bytes, bytes]) -> str | None:
    """The reference to answer under, or None where there is none that could be part of a key."""
    try:
        ref = raw.get(b"ref", b"").decode()
    except UnicodeDecodeError:
        return None
    return ref if keys.is_ref(ref) else None


def parse(xid: str, raw: Mapping[bytes, bytes], accepted: Mapping[str, object], *, default: str) -> Request:
    """Raises BadRequest saying what is missing or wrong. `default`: the type of a request that names none."""
    if sum(map(len, raw.values())) + sum(map(len, raw)) > PAYLOAD_MAX_BYTES:
        raise BadRequest(f"the request has more than {PAYLOAD_MAX_BYTES} bytes")
    try:
        type_ = raw[b"type"].decode() if raw.get(b"type") else default
        text = raw[b"data"].decode() if b"data" in raw else None
        fields = {k.decode(): v.decode() for k, v in raw.items()} if text is None else None
    except UnicodeDecodeError:
        raise BadRequest("the request is not UTF-8 text") from None
    ref = ref_of(raw)
    if ref is None:
        raise BadRequest("the request has no ref, or none that can be answered")
    if type_ not in accepted:
        raise BadRequest(f"the request's type is {type_[:80]!r}, expected {' or '.join(sorted(accepted))}")
    deadline = _deadline(raw[b"deadline"].decode("utf-8", "replace")) if b"deadline" in raw else None
    if fields is not None:
        data: Any = {name: value for name, value in fields.items() if name not in _ENVELOPE}
    else:
        data = _decoded(text or "")
    return Request(xid, ref, type_, data, raw, deadline)


def _decoded(text: str) -> Any:
    try:
        data, end = _scan(text, 0)  # what json.loads comes to, for what has no white space around it
        if end == len(text):
            return data
    except (ValueError, StopIteration, RecursionError):
        pass
    try:
        return json.loads(text, parse_constant=_no_constant, parse_float=_finite)
    except RecursionError:
        raise BadRequest("the request's data is nested too deeply") from None
    except _NotFinite:
        raise BadRequest(f"the request's data is not JSON: {_first_not_finite(text)}") from None
    except ValueError as error:
        reason = "it has an integer with too many digits" if "integer string conversion" in str(error) else error
        raise BadRequest(f"the request's data is not JSON: {reason}") from None


class _NotFinite(ValueError):
    """Python's json reads NaN, Infinity and 1e999; JSON has none of them, and no reply could repeat them."""


def _no_constant(text: str) -> Any:
    raise _NotFinite(text)


def _finite(text: str) -> float:
    value = float(text)
    if value - value != 0:
        raise _NotFinite(text)
    return value


def _first_not_finite(text: str) -> str:
    """Which number is none, and where: `data.items[3].price: nan is not JSON`."""
    from sandboxrun.worker.results import plain

    try:
        plain(json.loads(text), "data")
    except (TypeError, ValueError, RecursionError) as error:
        return str(error)
    return "it has a number that is not finite"  # under a key that comes again, with another value


_scan: Callable[[str, int], tuple[Any, int]] = json.JSONDecoder(  # type: ignore[attr-defined]  # set in __init__
    parse_constant=_no_constant, parse_float=_finite
).scan_once


def _deadline(text: str) -> float:
    """Milliseconds since the epoch, as in an entry's id, to seconds."""
    if not (text.isascii() and text.isdigit() and len(text) <= 16):
        raise BadRequest(f"the request's deadline is {text[:40]!r}: expected milliseconds since 1970, as 1767225600000")
    return int(text) / 1000


def now() -> str:
    """ISO 8601 in UTC with milliseconds, as JavaScript's toISOString."""
    global _last
    millis = _time_ns() // 1_000_000
    if millis != _last[0]:
        whole, rest = divmod(millis, 1000)
        _last = (millis, _strftime("%Y-%m-%dT%H:%M:%S.", _gmtime(whole)) + f"{rest:03d}Z")
    return _last[1]


# As they are now: a script may put others in their places, to freeze the time for instance.
_time_ns, _strftime, _gmtime = time.time_ns, time.strftime, time.gmtime
_last = (0, "")  # formatting it takes longer than all else of a small request


def _unusual(value: Any) -> Any:
    """What JSON's encoder asks for an object that JSON has not."""
    from sandboxrun.worker.results import simple

    return simple(value)


def _encoder() -> Callable[[Any], str]:
    """json.dumps with these separators, without building an encoder each time; a circle is a RecursionError."""
    plain = json.JSONEncoder(separators=(",", ":"), allow_nan=False, default=_unusual)
    make = getattr(json.encoder, "c_make_encoder", None)
    if make is None:
        return plain.encode
    chunks = make(None, _unusual, json.encoder.encode_basestring_ascii, None, ":", ",", False, False, False)
    return lambda value: "".join(chunks(value, 0))


_encode = _encoder()


def reply(ref: str | None, source: str, code: int, result: Mapping[str, Any], time: str) -> str:
    """The reply's JSON. The envelope wins over result fields of the same name.

    Raises TypeError or ValueError, which say what and where: `result.items[3].price: nan is not JSON`.
    """
    try:
        return _encode({**result, "ref": ref, "source": source, "code": code, "time": time})
    except Exception:  # also of an object's own code; now slowly, for keys that are no text, and for the path
        from sandboxrun.worker.results import plain

        made = plain(result, "result")
    return _encode({**made, "ref": ref, "source": source, "code": code, "time": time})


def as_text(value: Any, path: str) -> str:
    """Text as it is, all else as JSON. Raises TypeError or ValueError, which say what and where; `path` begins that."""
    if isinstance(value, str):
        return _unicode(value)
    try:
        return _encode(value)
    except Exception as error:
        from sandboxrun.worker.handlers import HandlerTimeout
        from sandboxrun.worker.results import plain

        if isinstance(error, HandlerTimeout):  # it came meanwhile
            raise
        made = plain(value, path)
    return _encode(made)


def _unicode(text: str) -> str:
    """Halves of UTF-16 pairs, which JSON can say and Redis cannot be sent, as `\\ud800`."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def failure(error: BaseException, raw: Mapping[bytes, bytes], *, with_payload: bool) -> dict[str, Any]:
    """The result fields of an error: `err.message`, and for a 500 the payload."""
    result: dict[str, Any] = {"err": {"message": message_of(error)}}
    if with_payload:
        result["payload"] = {k.decode("utf-8", "replace"): v.decode("utf-8", "replace")[:2000] for k, v in raw.items()}
    return result


def message_of(error: BaseException) -> str:
    """The error's text, at most 2000 characters that UTF-8 can write. Never raises, whatever the error's class does."""
    kind = "an error"
    try:
        kind = type(error).__name__
        text = str.__str__(str(error))[:MESSAGE_MAX_CHARS]
        if not issubclass(type(error), Exception):  # SystemExit: 1 says more than 1
            text = f"the handler raised {kind}" + (f": {text}" if text else "")
        return text.encode("utf-8", "backslashreplace").decode() or kind
    except BaseException:
        return f"{kind}, whose text cannot be made"


_quote = json.encoder.encode_basestring_ascii


def last_resort(ref: str | None, source: str, time: str) -> str:
    """The reply of a request for which no other one can be made."""
    return (
        f'{{"err":{{"message":"the reply could not be made"}},"ref":{"null" if ref is None else _quote(ref)},'
        f'"source":{_quote(source)},"code":500,"time":{_quote(time)}}}'
    )


def noted(fields: Mapping[str, str]) -> list[bytes]:
    """What `trace` and `progress` were given, as field, value, field, value …"""
    return [word.encode() for pair in fields.items() for word in pair]
