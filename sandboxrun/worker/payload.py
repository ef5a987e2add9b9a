"""Typed payloads: JSON made into a dataclass, a TypedDict, a pydantic model or a plain type. Imported only where used."""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sandboxrun.errors import ConfigError

_NAMES = {
    dict: "an object",
    list: "a list",
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
}


class Mismatch(Exception):
    """JSON that is not of the type. The message names the field."""


def converter(wanted: Any) -> Callable[[Any], Any]:
    """What makes JSON values into `wanted`, and raises Mismatch. Raises ConfigError for a type that cannot be one."""
    if hasattr(wanted, "model_validate"):
        return lambda data: _pydantic(wanted, data)
    _check(wanted)
    return lambda data: convert(data, wanted, "")


def convert(data: Any, wanted: Any, path: str) -> Any:
    """`data` as `wanted`; `path` is where it stands, for the message."""
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (typing.Annotated, typing.Required, typing.NotRequired):
        return convert(data, arguments[0], path)
    if wanted is Any or wanted is object:
        return data
    if wanted is None or wanted is type(None):
        _expect(data is None, data, "null", path)
        return None
    if origin in (typing.Union, types.UnionType):
        return _union(data, arguments, path)
    if origin is typing.Literal:
        _expect(
            any(data == value and type(data) is type(value) for value in arguments), data, _choices(arguments), path
        )
        return data
    if dataclasses.is_dataclass(wanted):
        return _dataclass(data, wanted, path)
    if typing.is_typeddict(wanted):
        hints = typing.get_type_hints(wanted, include_extras=True)
        return _fields(data, hints, _required(wanted, hints), path)
    if hasattr(wanted, "model_validate"):
        return _pydantic(wanted, data, path)
    if isinstance(wanted, type) and issubclass(wanted, enum.Enum):
        choices = [member.value for member in wanted]
        _expect(data in choices, data, _choices(choices), path)
        return wanted(data)
    return _plain(data, origin or wanted, arguments, path)


def _plain(data: Any, wanted: Any, arguments: tuple[Any, ...], path: str) -> Any:
    if wanted is float:
        _expect(isinstance(data, int | float) and not isinstance(data, bool), data, _NAMES[float], path)
        return float(data)
    if wanted in (list, set, frozenset, tuple, Sequence):
        _expect(isinstance(data, list), data, _NAMES[list], path)
        if wanted is tuple and arguments and arguments[-1] is not Ellipsis:
            _expect(len(data) == len(arguments), data, f"a list of {len(arguments)}", path)
            return tuple(
                convert(item, kind, f"{path}[{i}]") for i, (item, kind) in enumerate(zip(data, arguments, strict=True))
            )
        kind = arguments[0] if arguments else Any
        items = [convert(item, kind, f"{path}[{i}]") for i, item in enumerate(data)]
        return items if wanted in (list, Sequence) else wanted(items)
    if wanted in (dict, Mapping):
        _expect(isinstance(data, dict), data, _NAMES[dict], path)
        kind = arguments[1] if len(arguments) == 2 else Any
        return {name: convert(value, kind, _under(path, name)) for name, value in data.items()}
    right = isinstance(data, wanted) and (wanted is bool or not isinstance(data, bool))
    _expect(right, data, _NAMES[wanted], path)
    return data


def _union(data: Any, kinds: tuple[Any, ...], path: str) -> Any:
    problems = []
    for kind in kinds:
        try:
            return convert(data, kind, path)
        except Mismatch as problem:
            problems.append(str(problem))
    # The one that came furthest says most: its field lies deepest. Null is hardly what was meant.
    raise Mismatch(max((p for p in problems if ": expected null" not in p), key=len, default=problems[0]))


def _dataclass(data: Any, wanted: Any, path: str) -> Any:
    hints = typing.get_type_hints(wanted, include_extras=True)
    fields = [field for field in dataclasses.fields(wanted) if field.init]
    required = frozenset(
        f.name for f in fields if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    )
    values = _fields(data, {field.name: hints[field.name] for field in fields}, required, path)
    try:
        return wanted(**values)
    except (TypeError, ValueError) as error:  # what its own __post_init__ refuses
        if hasattr(error, "errors"):  # pydantic's own dataclass
            raise _first_problem(error, path) from None
        raise Mismatch(f"{path or 'data'}: {error}") from error


def _required(wanted: Any, hints: Mapping[str, Any]) -> frozenset[str]:
    """The keys that must be there. Where annotations are text, the class itself has not seen Required and NotRequired."""
    marks = {name: typing.get_origin(hint) for name, hint in hints.items()}
    return frozenset(
        name
        for name, mark in marks.items()
        if mark is typing.Required or (name in wanted.__required_keys__ and mark is not typing.NotRequired)
    )


def _fields(data: Any, hints: Mapping[str, Any], required: frozenset[str], path: str) -> dict[str, Any]:
    _expect(isinstance(data, dict), data, _NAMES[dict], path)
    for name in sorted(required):
        if name not in data:
            raise Mismatch(f"field {_under(path, name)} is missing")
    for name in data:
        if name not in hints:
            raise Mismatch(f"field {_under(path, name[:80])} is unknown: expected {', '.join(hints)}")
    return {name: convert(value, hints[name], _under(path, name)) for name, value in data.items()}


def _pydantic(model: Any, data: Any, path: str = "") -> Any:
    import pydantic

    try:
        return model.model_validate(data)
    except pydantic.ValidationError as error:
        raise _first_problem(error, path) from None


def _first_problem(error: Any, path: str) -> Mismatch:
    """Of a pydantic.ValidationError."""
    first = error.errors()[0]
    for name in first["loc"]:
        path = f"{path}[{name}]" if isinstance(name, int) else _under(path, str(name))
    return Mismatch(f"field {path or 'data'}: {first['msg']}")


def _check(wanted: Any) -> None:
    """Try the type on a value of no use, so that one that cannot be converted is found at the start."""
    try:
        convert({}, wanted, "")
    except Mismatch:
        pass
    except (KeyError, TypeError, NameError) as error:
        raise ConfigError(
            f"{wanted!r} cannot be a payload ({error}): expected a dataclass, TypedDict, pydantic model or a type of JSON"
        ) from None


def _expect(right: bool, data: Any, expected: str, path: str) -> None:
    if not right:
        found = "null" if data is None else _NAMES[type(data)] if isinstance(data, dict | list) else repr(data)[:80]
        raise Mismatch(f"{f'field {path}' if path else 'it'}: expected {expected}, not {found}")


def _under(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _choices(values: Sequence[Any]) -> str:
    return " or ".join(repr(value) for value in values)
