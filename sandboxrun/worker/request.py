"""A request as a handler is given it, and what is written of it as JSON."""

from __future__ import annotations

import json
import time

from sandboxrun.protocol import HandlerTimeout
from sandboxrun.protocol.reply import enveloped

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

    from sandboxrun.worker.results import Forms

    Tell = Callable[["Request", dict[str, Any]], None]  # what `progress` calls


class Request:
    """What a handler is given. `data`: the parsed JSON of the field `data`, or else the other fields as text."""

    __slots__ = ("_encoder", "_noted", "_raw", "_tell", "data", "deadline", "deliveries", "ref", "type", "xid")

    def __init__(
        self,
        xid: str,
        ref: str,
        type: str,
        data: Any,
        raw: Mapping[bytes, bytes],
        deadline: float | None = None,
        deliveries: int = 1,
        encoder: Encoder | None = None,
        tell: Tell | None = None,
    ) -> None:
        self.xid = xid  # the entry's id
        self.ref = ref
        self.type = type
        self.data = data
        self.deadline = deadline  # seconds since the epoch, or None
        self.deliveries = deliveries  # how often it was begun, this time included
        self._raw = raw
        self._noted: dict[str, Any] | None = None
        self._encoder, self._tell = encoder, tell

    @property
    def fields(self) -> dict[str, str]:
        """All of the entry's fields, as text."""
        return {k.decode("utf-8", "replace"): v.decode("utf-8", "replace") for k, v in self._raw.items()}

    def trace(self, **fields: Any) -> None:
        """Fields for `req:REF:h`, written together with the reply. Text stays as it is, all else becomes JSON.

        Raises TypeError or ValueError for what JSON cannot be, with its path.
        """
        encoder = self._encoder or Encoder()
        noted = {_unicode(name): encoder.text(value, name) for name, value in fields.items()}
        self._noted = {**(self._noted or {}), **noted}

    def progress(self, value: Any) -> None:
        """Write the field `progress` of `req:REF:h` now, for whoever looks while the handler works. Raises as `trace`."""
        text = (self._encoder or Encoder()).text(value, "progress")
        if self._tell is not None:
            self._tell(self, {"progress": text})

    def remaining(self) -> float | None:
        """Seconds until the deadline, or None where there is none; negative once it has passed."""
        return None if self.deadline is None else self.deadline - time.time()


class Encoder:
    """Values as JSON. Of an object that JSON has not, results.py knows the form; it is imported for the first of them."""

    def __init__(self, custom: Callable[[Any], Any] | None = None) -> None:
        """`custom`: the function of `@worker.encoder`."""
        self.custom = custom
        self._known: Forms | None = None
        self._chunks = _encoder(self._unusual)

    @property
    def forms(self) -> Forms:
        if self._known is None or self._known.custom is not self.custom:
            from sandboxrun.worker.results import Forms

            self._known = Forms(self.custom)
        return self._known

    def _unusual(self, value: Any) -> Any:
        """What JSON's encoder asks for an object that JSON has not."""
        return self.forms.simple(value)

    def reply(self, ref: str | None, source: str, code: int, result: Mapping[str, Any], time: str) -> str:
        """The reply's JSON. The envelope wins over result fields of the same name.

        Raises TypeError or ValueError, which say what and where: `result.items[3].price: nan is not JSON`.
        """
        try:
            return "".join(self._chunks(enveloped(result, ref, source, code, time), 0))
        except Exception:  # also of an object's own code; now slowly, for keys that are no text, and for the path
            made = self.forms.plain(result, "result")
        return "".join(self._chunks(enveloped(made, ref, source, code, time), 0))

    def text(self, value: Any, path: str) -> str:
        """Text as it is, all else as JSON. Raises TypeError or ValueError, which say what and where; `path` begins that."""
        if isinstance(value, str):
            return _unicode(value)
        try:
            return "".join(self._chunks(value, 0))
        except HandlerTimeout:  # it came meanwhile
            raise
        except Exception:
            made = self.forms.plain(value, path)
        return "".join(self._chunks(made, 0))


def _encoder(unusual: Callable[[Any], Any]) -> Callable[[Any, int], Iterable[str]]:
    """What json.dumps makes, in parts, without building an encoder each time; a circle is a RecursionError."""
    make = getattr(json.encoder, "c_make_encoder", None)
    if make is None:
        plain = json.JSONEncoder(separators=(",", ":"), allow_nan=False, default=unusual)
        return lambda value, _: plain.encode(value)
    made: Callable[[Any, int], Iterable[str]] = make(
        None, unusual, json.encoder.encode_basestring_ascii, None, ":", ",", False, False, False
    )
    return made


def _unicode(text: str) -> str:
    """Halves of UTF-16 pairs, which JSON can say and Redis cannot be sent, as `\\ud800`."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def noted(fields: Mapping[str, str]) -> list[bytes]:
    """What `trace` and `progress` were given, as field, value, field, value …"""
    return [word.encode() for pair in fields.items() for word in pair]
