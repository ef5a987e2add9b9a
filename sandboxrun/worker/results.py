"""Forms in JSON of objects that JSON does not have. Imported for the first such value.

The forms are those of pydantic and msgspec: ISO 8601 for dates, times and durations, text for Decimal, UUID, paths and
addresses, base64 for bytes, a list for sets and tuples, an object for dataclasses, models and mappings.
"""

from __future__ import annotations

import enum
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence, Set, ValuesView
from typing import Any

from sandboxrun.protocol import HandlerTimeout
from sandboxrun.protocol.request import path_text
from sandboxrun.protocol.services import WHOLE

STEPS_MAX = 100  # conversions of one object; more means that the encoder never returns a JSON value
_LARGE_BITS = 10_000  # Python refuses to write integers of more than 4300 digits, 14,284 bits


class Whole(dict[str, Any]):
    """The reply's fields for a result that is no JSON object: the field `result` has all of it."""


class Returned:
    """What a service's method returned. Its reply tells an object, None and any other value apart."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


class _NoJson(TypeError):
    pass


class _NoNumber(ValueError):
    pass


class Forms:
    """The forms in JSON for one worker: the usual ones, and those of its `@worker.encoder`."""

    def __init__(self, custom: Callable[[Any], Any] | None = None) -> None:
        self.custom = custom

    def fields(self, result: Any) -> dict[str, Any]:
        """The reply's fields for a result that is no dict: those of a mapping, a dataclass or a model, else `result`.

        Raises TypeError or ValueError with the path.
        """
        if type(result) is Returned:
            made = Whole(result=None) if result.value is None else self.fields(result.value)
            return made if isinstance(made, Whole) or WHOLE.isdisjoint(made) else Whole(result=made)
        made = result
        try:
            for _ in range(STEPS_MAX):
                if isinstance(made, dict):
                    return made
                if made is None or isinstance(made, str | int | float | list | tuple):
                    return Whole(result=made)
                made = self.simple(made)
        except Exception:
            self.plain(result, "result")  # raises the same with its path
            raise
        self.plain(result, "result")
        raise TypeError("result: it does not become JSON")

    def plain(self, value: Any, root: str) -> Any:
        """`value` as dict, list, str, int, float, bool or None. `root`: the first step of paths in errors.

        Raises TypeError, or ValueError for a number that JSON does not have: `root.items[3].price: nan is not JSON`.
        """
        path: list[str | int] = [root]
        holders: list[tuple[Any, int]] = []
        try:
            if isinstance(value, Whole):
                return {"result": self._walk(value["result"], path, holders)}
            return self._walk(value, path, holders)
        except HandlerTimeout:
            raise
        except RecursionError:
            raise ValueError(_circle(path, holders)) from None
        except _NoJson as error:
            raise TypeError(f"{path_text(path)}: {error}") from error.__cause__
        except _NoNumber as error:
            raise ValueError(f"{path_text(path)}: {error}") from None
        except Exception as error:  # raised by the object's own code
            raise TypeError(f"{path_text(path)}: {type(error).__name__}: {error}") from error

    def simple(self, value: Any) -> Any:
        """One conversion of an object towards JSON. Raises TypeError, ValueError, or any error of the object's own code."""
        kind = type(value)
        if kind not in _rules:
            _rules[kind] = _rule(kind)
        rule = _rules[kind]
        return self._unknown(value) if rule is None else rule(value)

    def _walk(self, value: Any, path: list[str | int], holders: list[tuple[Any, int]]) -> Any:
        """Convert recursively. On an error `path` is left at the value."""
        if value is None or isinstance(value, str | bool):
            return value
        if isinstance(value, int):
            if value.bit_length() > _LARGE_BITS:
                _digits(value)
            return value
        if isinstance(value, float):
            if not math.isfinite(value):
                raise _NoNumber(f"{float.__repr__(value)} is not JSON")
            return value
        holders.append((value, len(path)))
        made: Any
        if isinstance(value, dict):
            made = {}
            for key, item in [*value.items()]:
                name = self.key_text(key)
                if name in made:
                    raise _NoJson(f"two of its keys are {name[:80]!r} as JSON")
                path.append(name)
                made[name] = self._walk(item, path, holders)
                path.pop()
        elif isinstance(value, list | tuple):
            made = []
            for index, item in enumerate(value):
                path.append(index)
                made.append(self._walk(item, path, holders))
                path.pop()
        else:
            made = self._walk(self.simple(value), path, holders)
        holders.pop()
        return made

    def key_text(self, key: Any) -> str:
        """The key of a JSON object as text: numbers as json.dumps writes them, UUIDs, dates and enums in their form."""
        if isinstance(key, str):
            return key
        made = key
        for _ in range(STEPS_MAX):
            if made is None or isinstance(made, bool):
                return {None: "null", True: "true", False: "false"}[made]
            if isinstance(made, str):
                return made
            if isinstance(made, int):
                return _digits(made)
            if isinstance(made, float):
                if not math.isfinite(made):
                    raise _NoNumber(f"the key {float.__repr__(made)} is not JSON")
                return float.__repr__(made)
            if isinstance(made, dict | list | tuple):
                break
            made = self.simple(made)
        raise _NoJson(f"the key {repr(key)[:80]} is of type {type(key).__name__}: expected one that becomes text")

    def _unknown(self, value: Any) -> Any:
        name = type(value).__name__
        if hasattr(value, "__await__") or hasattr(value, "__anext__") or hasattr(value, "__next__"):
            advice = "await it in an async handler" if hasattr(value, "__await__") else "return a list of what it gives"
            if hasattr(value, "close") and hasattr(value, "cr_frame"):
                value.close()  # else Python warns that it was never awaited
            raise _NoJson(f"{name} is not JSON: {advice}")
        if self.custom is None:
            raise _NoJson(f"{name} is not JSON: return its values, or say with @worker.encoder what it is")
        try:
            made = self.custom(value)
        except TypeError as error:
            raise _NoJson(f"{name} is not JSON: {error}") from error
        if made is value:
            raise _NoJson(f"{name} is not JSON: the encoder returned it as it is")
        return made


def _digits(value: int) -> str:
    try:
        return int.__repr__(value)
    except ValueError:
        raise _NoNumber(f"an integer of {value.bit_length()} bits is more than Python writes as text") from None


def _circle(path: list[str | int], holders: list[tuple[Any, int]]) -> str:
    """The message for a value that is too deep, or that contains itself."""
    seen: set[int] = set()
    for holder, length in holders:
        if id(holder) in seen:
            return f"{path_text(path[:length])}: it contains itself"
        seen.add(id(holder))
    return f"{path_text(path)}: it is nested too deeply"


# --- the form of each kind of object


def _rule(kind: type) -> Callable[[Any], Any] | None:
    """The conversion of a type, or None if it has no usual form. Types of other modules are known by name, not imported."""
    if issubclass(kind, enum.Enum):
        return lambda value: value.value
    for base in kind.__mro__:
        rule = _BY_NAME.get(f"{base.__module__}.{base.__qualname__}")
        if rule is not None:
            return rule
    if hasattr(kind, "model_dump"):
        return lambda value: value.model_dump(mode="json")
    if hasattr(kind, "__pydantic_serializer__"):
        return _pydantic_dataclass(kind)
    for mark, names in _FIELDS.items():
        if hasattr(kind, mark):
            return lambda value: {name: getattr(value, name) for name in names(value)}
    if hasattr(kind, "tolist") and (hasattr(kind, "dtype") or hasattr(kind, "typecode")):
        return _array
    if issubclass(kind, Mapping):
        return dict
    if issubclass(kind, Sequence | Set | ValuesView | deque):
        return list
    if hasattr(kind, "__fspath__"):
        return _path
    return None


def _datetime(value: Any) -> str:
    text: str = value.isoformat()
    return text[:-6] + "Z" if text.endswith("+00:00") else text


def _duration(value: Any) -> str:
    """ISO 8601, as `P1DT2H3M4.5S`, with `-` before a negative duration."""
    micros = (value.days * 86400 + value.seconds) * 1_000_000 + value.microseconds
    seconds, rest = divmod(abs(micros), 1_000_000)
    days, seconds = divmod(seconds, 86400)
    (hours, seconds), text = divmod(seconds, 3600), f"P{days}D" if days else "P"
    minutes, seconds = divmod(seconds, 60)
    whole = f"{seconds}.{rest:06d}".rstrip("0").rstrip(".") if rest else str(seconds)
    clock = (
        (f"{hours}H" if hours else "") + (f"{minutes}M" if minutes else "") + (f"{whole}S" if seconds or rest else "")
    )
    text += f"T{clock}" if clock else ""
    return ("-" if micros < 0 else "") + (text if text != "P" else "PT0S")


def _decimal(value: Any) -> str:
    if not value.is_finite():
        raise _NoNumber(f"Decimal {value} is not JSON")
    return str(value)


def _base64(value: Any) -> str:
    from binascii import b2a_base64

    return b2a_base64(bytes(value), newline=False).decode()


def _path(value: Any) -> Any:
    return value.__fspath__()


def _array(value: Any) -> Any:
    """Arrays of numpy and array.array, and objects with the same methods."""
    unit = getattr(getattr(value, "dtype", None), "kind", "")
    if unit in ("M", "m"):  # in nanoseconds they would be bare numbers
        value = value.astype("datetime64[us]" if unit == "M" else "timedelta64[us]")
    made = value.tolist()
    if type(made) is type(value):
        raise _NoJson(f"{type(value).__name__} is not JSON: float(…) or str(…) makes it so")
    return made


def _pydantic_dataclass(kind: type) -> Callable[[Any], Any]:
    from pydantic import TypeAdapter

    dump: Callable[..., Any] = TypeAdapter(kind).dump_python
    return lambda value: dump(value, mode="json")


def _dataclass_names(value: Any) -> list[str]:
    import dataclasses

    return [field.name for field in dataclasses.fields(value)]


_FIELDS: dict[str, Callable[[Any], Sequence[str]]] = {
    "__dataclass_fields__": _dataclass_names,
    "__struct_fields__": lambda value: value.__struct_fields__,  # msgspec
    "__attrs_attrs__": lambda value: [field.name for field in value.__attrs_attrs__],
}
_BY_NAME: dict[str, Callable[[Any], Any]] = {
    "datetime.datetime": _datetime,
    "datetime.date": lambda value: value.isoformat(),
    "datetime.time": _datetime,
    "datetime.timedelta": _duration,
    "decimal.Decimal": _decimal,
    "fractions.Fraction": str,
    "uuid.UUID": str,
    "builtins.bytes": _base64,
    "builtins.bytearray": _base64,
    "builtins.memoryview": _base64,
    **{
        f"ipaddress.IPv{version}{what}": str for version in (4, 6) for what in ("Address", "Interface", "Network")
    },
}  # fmt: skip
_rules: dict[type, Callable[[Any], Any] | None] = {}  # cache of _rule, shared by all workers
