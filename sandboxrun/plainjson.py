"""JSON by the C functions of the standard library alone: `json` itself imports `re`, and compiles six patterns of it, which
takes longer than all that a start reads and writes as JSON.

`json` has the error of a text that is not JSON, so that is where such a text goes.
"""

from __future__ import annotations

from _json import encode_basestring_ascii as quote
from _json import make_encoder as _make_encoder
from _json import make_scanner as _make_scanner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

__all__ = ["decoder", "dumps", "encoder", "loads", "quote"]

# SystemError: Python 3.11, as long as nothing has imported the module that has JSONDecodeError.
_MALFORMED = (ValueError, StopIteration, RecursionError, SystemError)


class _Hooks:
    """What make_scanner takes from a json.JSONDecoder."""

    strict, object_hook, object_pairs_hook, parse_int = True, None, None, int

    def __init__(self, parse_float: Callable[[str], float], parse_constant: Callable[[str], Any]) -> None:
        self.parse_float, self.parse_constant = parse_float, parse_constant


def decoder(
    *, parse_float: Callable[[str], float] = float, parse_constant: Callable[[str], Any] = float
) -> Callable[[str], Any]:
    """A function as json.loads with these arguments. It raises ValueError, RecursionError."""
    hooks: Any = _Hooks(parse_float, parse_constant)
    scan = _make_scanner(hooks)

    def decode(text: str) -> Any:
        try:
            value, end = scan(text, 0)
            if end == len(text):
                return value
        except _MALFORMED:
            pass
        import json  # for white space around the value, or to say what is wrong

        return json.loads(text, parse_float=parse_float, parse_constant=parse_constant)

    return decode


def encoder(
    default: Callable[[Any], Any], *, spaces: bool = False, circles: bool = False, nan: bool = False
) -> Callable[[Any, int], Iterable[str]]:
    """A function of a value and 0: its JSON in parts. `circles`: one raises ValueError, not RecursionError; such an encoder is
    for one value."""
    key, item = (": ", ", ") if spaces else (":", ",")
    markers: dict[int, Any] | None = {} if circles else None
    made: Callable[[Any, int], Iterable[str]] = _make_encoder(
        markers, default, quote, None, key, item, False, False, nan
    )
    return made


_decode = decoder()


def loads(data: bytes) -> Any:
    """As json.loads, of UTF-8. Raises ValueError, RecursionError."""
    return _decode(data.decode())


def dumps(value: Any, default: Callable[[Any], Any] | None = None, *, nan: bool = True) -> str:
    """As json.dumps. Raises TypeError, ValueError, RecursionError."""
    return "".join(encoder(default or _refuse, spaces=True, circles=True, nan=nan)(value, 0))


def _refuse(value: Any) -> Any:
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")
