"""A reply: how a worker makes it, and how a client reads it, from its list or from the request's trace. Pure."""

from __future__ import annotations

from sandboxrun.plainjson import decoder
from sandboxrun.plainjson import quote as _quote
from sandboxrun.protocol import MESSAGE_MAX_CHARS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

SHOWN_MAX_CHARS = 500  # of a message that was received

# --- making

# The worker's field of `req:REF:h`: the times, and the reply's JSON.
STORY = b'{"received":"%b","completed":"%b","res":%b}'
STORY_BYTES = len(STORY % (b"", b"", b""))


def enveloped(result: Mapping[str, Any], ref: str | None, source: str, code: int, time: str) -> dict[str, Any]:
    """The reply's fields. The envelope wins over result fields of the same name."""
    return {**result, "ref": ref, "source": source, "code": code, "time": time}


def failure(error: BaseException, raw: Mapping[bytes, bytes], *, with_payload: bool) -> dict[str, Any]:
    """The result fields of an error: `err.message`, and for a 500 the payload."""
    result: dict[str, Any] = {"err": {"message": message_of(error)}}
    if with_payload:
        result["payload"] = {k.decode("utf-8", "replace"): v.decode("utf-8", "replace")[:2000] for k, v in raw.items()}
    return result


def message_of(error: BaseException) -> str:
    """The error's text, at most 2000 characters, valid in UTF-8. Never raises, even if the error's own code does."""
    kind = "an error"
    try:
        kind = type(error).__name__
        text = str.__str__(str(error))[:MESSAGE_MAX_CHARS]
        if not issubclass(type(error), Exception):  # "1" alone would not say that it is a SystemExit
            text = f"the handler raised {kind}" + (f": {text}" if text else "")
        return text.encode("utf-8", "backslashreplace").decode() or kind
    except BaseException:
        return f"{kind}, whose text cannot be made"


def last_resort(ref: str | None, source: str, time: str) -> str:
    """The reply for a request whose own reply cannot be encoded."""
    return (
        f'{{"err":{{"message":"the reply could not be made"}},"ref":{"null" if ref is None else _quote(ref)},'
        f'"source":{_quote(source)},"code":500,"time":{_quote(time)}}}'
    )


# --- reading


class Unusable(Exception):
    """A reply that breaks the protocol. The message completes "the reply …"."""


def checked(reply: object, ref: str) -> tuple[int, dict[str, Any]]:
    """The code and the fields of the reply to `ref`. Raises Unusable."""
    if not isinstance(reply, dict):
        raise Unusable(f"is not a JSON object but {_kind(reply)}")
    given, code = reply.get("ref"), reply.get("code")
    if given is not None and given != ref:
        raise Unusable(f"is for another request: its ref is {given!r:.80}")
    if not isinstance(code, int) or isinstance(code, bool):
        raise Unusable(f"has the code {code!r:.80}: expected a whole number" if "code" in reply else "has no code")
    return code, reply


def error_text(reply: Mapping[str, Any]) -> str:
    """The message of an error's reply."""
    err = reply.get("err")
    message = err.get("message") if isinstance(err, dict) else None
    return str(message)[:SHOWN_MAX_CHARS]


def reply_in(story: object) -> object:
    """The reply in the decoded STORY of a trace, or None before the worker has replied."""
    return story.get("res") if isinstance(story, dict) else None


def decoded(value: bytes | str) -> object:
    """Decode JSON of RFC 8259, which has no NaN. Raises ValueError."""
    try:
        return _decode(value.decode() if isinstance(value, bytes) else value)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 (byte {error.start})") from None
    except ValueError as error:
        raise ValueError(str(error)[:SHOWN_MAX_CHARS]) from None


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON")


_decode = decoder(parse_constant=_refuse_constant)


def _kind(value: object) -> str:
    names = {list: "a list", str: "text", type(None): "null"}
    return names.get(type(value), "a number" if not isinstance(value, bool) else "true or false")
