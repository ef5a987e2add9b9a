"""Typed payloads: JSON to a dataclass, a TypedDict, a pydantic model or another type. Imported if a handler has one.

A type is compiled to one function when the worker starts, and a type that JSON cannot be converted to is an error then.
At a request, a value that does not fit and any error of the type's own checks become a Mismatch that names the field.
Only OSError, MemoryError and the handler's time-out pass through.
"""

from __future__ import annotations

import collections
import collections.abc
import dataclasses
import enum
import functools
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sandboxrun.errors import ConfigError
from sandboxrun.worker import scalars
from sandboxrun.worker.hints import of_class, substituted
from sandboxrun.worker.mismatch import NAMES, Mismatch, Unusable, at, deeper, furthest, mismatch, unknown
from sandboxrun.worker.results import Forms
from sandboxrun.worker.values import Convert, any_key, choice_of, enum_of, from_text, key_choice, simple

__all__ = ["Mismatch", "converter"]

_LISTS: dict[Any, Any] = {
    list: list,
    set: set,
    frozenset: frozenset,
    collections.deque: collections.deque,
    collections.abc.Set: frozenset,
    collections.abc.MutableSet: set,
    **dict.fromkeys(
        (
            collections.abc.Sequence,
            collections.abc.MutableSequence,
            collections.abc.Collection,
            collections.abc.Iterable,
        ),
        list,
    ),
}
_DICTS: dict[Any, Any] = {
    dict: dict,
    collections.OrderedDict: collections.OrderedDict,
    collections.abc.Mapping: dict,
    collections.abc.MutableMapping: dict,
}
_TRANSPARENT = (typing.Annotated, typing.Required, typing.NotRequired, typing.Final)
_EXPECTED = "expected a dataclass, TypedDict, NamedTuple, pydantic model, or a type that has a form in JSON"


def converter(wanted: Any, local: Mapping[str, Any] | None = None, forms: Forms | None = None) -> Callable[[Any], Any]:
    """The function from JSON values to `wanted`, which raises Mismatch. Raises ConfigError for an unusable type.

    `local`: names that annotations may use beside the globals of their module. `forms`: for the values of enums.
    """
    compiler = _Compiler(local or {}, forms or Forms())
    try:
        convert = compiler.compile(wanted, "")
    except Unusable as error:
        raise ConfigError(f"{shown(wanted)} cannot be a payload: {error}", hint=_dataclass_hint(wanted)) from None
    except RecursionError:
        raise ConfigError(f"{shown(wanted)} cannot be a payload: its type never ends") from None
    except TypeError as error:  # not a type
        raise ConfigError(f"{shown(wanted)} cannot be a payload ({error}): {_EXPECTED}") from None
    return compiler.finished(convert)


def arguments(
    subject: str,
    hints: Mapping[str, Any],
    required: frozenset[str],
    local: Mapping[str, Any] | None = None,
    forms: Forms | None = None,
) -> Callable[[Any], dict[str, Any]]:
    """As `converter`, to the arguments of a method with these parameters. `subject`: the method, for errors."""
    compiler = _Compiler(local or {}, forms or Forms())
    try:
        convert = compiler.object_of(hints, required)
    except Unusable as error:
        raise ConfigError(f"{subject} cannot be given its arguments: {error}") from None
    except RecursionError:
        raise ConfigError(f"{subject} has a parameter whose type is infinitely recursive") from None
    except TypeError as error:  # not a type
        raise ConfigError(f"{subject} cannot be given its arguments ({error}): {_EXPECTED}") from None
    return compiler.finished(convert)


def shown(wanted: Any) -> str:
    """A type, approximately as its author wrote it."""
    return wanted.__name__ if isinstance(wanted, type) and not typing.get_args(wanted) else str(wanted)[:120]


def _dataclass_hint(wanted: Any) -> tuple[str, ...]:
    """For a class that has fields and says nothing else of its form."""
    if not isinstance(wanted, type) or dataclasses.is_dataclass(wanted) or not getattr(wanted, "__annotations__", None):
        return ()
    bases = [base.__qualname__ for base in wanted.__bases__ if base is not object]
    return (
        "from dataclasses import dataclass",
        "@dataclass",
        f"class {wanted.__name__}{f'({chr(44).join(bases)})' if bases else ''}:",
    )


def _pairs(choices: Iterable[Any]) -> list[tuple[Any, Any]]:
    """Pairs of a JSON value and its meaning."""
    return [(choice.value if isinstance(choice, enum.Enum) else choice, choice) for choice in choices]


class _Compiler:
    def __init__(self, local: Mapping[str, Any], forms: Forms) -> None:
        self._local, self._forms = local, forms
        self._known: dict[Any, list[Convert]] = {}  # by class, because a class may contain itself
        self._classes: list[type] = []  # being compiled, for Self
        # Values that no member of a union fits, by union and id: nested unions would try a value once for each path to
        # it. The value itself is kept, so that its id is not reused.
        self.failed: dict[tuple[int, int], tuple[Any, Mismatch]] = {}
        self._unions = 0

    def finished(self, convert: Convert) -> Callable[[Any], Any]:
        """The function that scripts' data is given to. It raises Mismatch."""

        def made(data: Any) -> Any:
            try:
                return convert(data, 0)
            except Exception as error:
                raise at(error, None) from None
            finally:
                self.failed = {}

        return made

    def object_of(self, hints: Mapping[str, Any], required: frozenset[str]) -> Convert:
        """The converter of an object with these fields to a dict."""
        return self._fields(hints, required, "")

    def compile(self, wanted: Any, place: str) -> Convert:
        """The converter of a type. `place`: the field that has this type, for the message of Unusable."""
        origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
        if origin in _TRANSPARENT:
            return self.compile(arguments[0], place)
        if isinstance(wanted, dataclasses.InitVar):
            return self.compile(wanted.type, place)
        if hasattr(wanted, "__supertype__"):  # NewType
            return self.compile(wanted.__supertype__, place)
        if hasattr(wanted, "__value__") and not arguments:  # type X = …
            return self._once(wanted, wanted.__value__, place)
        if hasattr(origin, "__value__"):
            variables = dict(zip(origin.__type_params__, arguments, strict=False))
            return self._once(wanted, substituted(origin.__value__, variables), place)
        if wanted is typing.Self and self._classes:
            return self.compile(self._classes[-1], place)
        if isinstance(wanted, typing.TypeVar):
            return self.compile(substituted(wanted, {}), place)
        if origin in (typing.Union, types.UnionType):
            return self._union(arguments, place)
        if origin is typing.Literal:
            return choice_of(_pairs(arguments), self._forms)
        return self._class(wanted, origin or wanted, arguments, place)

    def _class(self, wanted: Any, kind: Any, arguments: tuple[Any, ...], place: str) -> Convert:
        convert = simple(kind)
        if convert is not None:
            return convert
        if kind in _LISTS:
            return self._list(_LISTS[kind], arguments, place)
        if kind in _DICTS:
            return self._dict(_DICTS[kind], arguments, place)
        if kind is tuple:
            return self._tuple(None if wanted is tuple or wanted is typing.Tuple else arguments, place)  # noqa: UP006
        if isinstance(kind, type):
            if hasattr(kind, "model_validate") or hasattr(kind, "__pydantic_validator__"):
                return _pydantic(wanted, kind)
            if issubclass(kind, enum.Enum):
                return enum_of(kind, self._forms, place)
            for applies, make in (
                (dataclasses.is_dataclass(kind), self._dataclass),
                (typing.is_typeddict(kind), self._typeddict),
                (issubclass(kind, tuple) and hasattr(kind, "_fields"), self._namedtuple),
            ):
                if applies:
                    return self._once(wanted, functools.partial(make, wanted, kind, place), place)
        raise Unusable(f"its field {place} is {shown(wanted)}; {_EXPECTED}" if place else _EXPECTED)

    def _once(self, name: Any, made: Any, place: str) -> Convert:
        """Compile `made`, a type or a partial that compiles one, once for each name, so that a type may contain itself."""
        known = self._known.get(name)
        if known is None:
            known = self._known[name] = []
            kind = typing.get_origin(name) or name
            if isinstance(kind, type):
                self._classes.append(kind)
            known.append(made() if isinstance(made, functools.partial) else self.compile(made, place))
            if isinstance(kind, type):
                self._classes.pop()
            return known[0]
        return known[0] if known else lambda data, depth: known[0](data, depth)

    # --- objects

    def _fields(self, hints: Mapping[str, Any], required: frozenset[str], place: str) -> Convert:
        """The converter of an object with these fields."""
        converts = {name: self.compile(hint, f"{place}.{name}" if place else name) for name, hint in hints.items()}
        needed = sorted(required)

        def fields(data: Any, depth: int) -> dict[str, Any]:
            depth = deeper(data, dict, depth)
            for name in needed:
                if name not in data:
                    raise at(Mismatch(" is missing"), name)
            made = {}
            for name, value in data.items():
                convert = converts.get(name)
                if convert is None:
                    raise at(unknown(name, converts), name[:80])
                try:
                    made[name] = convert(value, depth)
                except Exception as error:
                    raise at(error, name) from None
            return made

        return fields

    def _hints(self, kind: type, wanted: Any, place: str) -> dict[str, Any]:
        try:
            return of_class(kind, wanted, self._local, shown(kind))
        except ConfigError as error:
            raise Unusable(f"{f'of its field {place}, ' if place else ''}{error}") from None

    def _dataclass(self, wanted: Any, kind: Any, place: str) -> Convert:
        hints = self._hints(kind, wanted, place)
        plain = {field.name: field for field in dataclasses.fields(kind)}
        fields = [
            field
            for name, field in kind.__dataclass_fields__.items()
            if (name in plain and field.init) or isinstance(hints.get(name), dataclasses.InitVar)
        ]
        required = frozenset(
            f.name for f in fields if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        )
        convert = self._fields({field.name: hints.get(field.name, Any) for field in fields}, required, place)
        return lambda data, depth: kind(**convert(data, depth))

    def _typeddict(self, wanted: Any, kind: Any, place: str) -> Convert:
        hints = self._hints(kind, wanted, place)
        # If annotations are text, the class itself does not know Required and NotRequired.
        marks = {name: typing.get_origin(hint) for name, hint in hints.items()}
        required = frozenset(
            name
            for name, mark in marks.items()
            if mark is typing.Required or (name in kind.__required_keys__ and mark is not typing.NotRequired)
        )
        return self._fields(hints, required, place)

    def _namedtuple(self, wanted: Any, kind: Any, place: str) -> Convert:
        """A list, as JSON has a tuple, or an object with the field names."""
        hints = self._hints(kind, wanted, place)
        hints = {name: hints.get(name, Any) for name in kind._fields}
        by_name = self._fields(hints, frozenset(hints) - frozenset(kind._field_defaults), place)

        def namedtuple(data: Any, depth: int) -> Any:
            if isinstance(data, list):
                if len(data) > len(hints):
                    raise Mismatch(f": expected a list of {len(hints)}, not of {len(data)}")
                data = dict(zip(hints, data, strict=False))
            elif not isinstance(data, dict):
                raise mismatch(f"a list of {len(hints)} or an object", data)
            return kind(**by_name(data, depth))

        return namedtuple

    def _dict(self, kind: Any, arguments: tuple[Any, ...], place: str) -> Convert:
        keys, values = arguments if len(arguments) == 2 else (Any, Any)
        key, convert = self._key(keys, place), self.compile(values, f"{place}.*" if place else "*")

        def objects(data: Any, depth: int) -> Any:
            depth = deeper(data, dict, depth)
            made = kind()
            for name, value in data.items():
                try:
                    made_name = name if key is None else key(name)
                    if made_name in made:
                        raise Mismatch(" is the same key as another")
                    made[made_name] = convert(value, depth)
                except Exception as error:
                    raise at(error, name) from None
            return made

        return objects

    # --- keys of objects, which are text in JSON

    def _key(self, wanted: Any, place: str) -> Callable[[str], Any] | None:
        """The function from text to a key; None if the key stays text."""
        origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
        if wanted in (str, Any, object):
            return None
        if origin is typing.Annotated:
            return self._key(arguments[0], place)
        if hasattr(wanted, "__supertype__") or hasattr(wanted, "__value__"):
            return self._key(getattr(wanted, "__supertype__", None) or wanted.__value__, place)
        if isinstance(wanted, typing.TypeVar):
            return self._key(substituted(wanted, {}), place)
        if origin in (typing.Union, types.UnionType):
            return any_key([self._key(kind, place) for kind in arguments])
        if origin is typing.Literal:
            return key_choice(_pairs(arguments), self._forms)
        if isinstance(wanted, type) and issubclass(wanted, enum.Enum):
            try:
                return key_choice(_pairs(wanted.__members__.values()), self._forms)
            except (TypeError, ValueError) as error:
                raise Unusable(
                    f"{f'its field {place} has' if place else 'it has'} keys of {wanted.__name__}: {error}"
                ) from None
        form = scalars.text_form(wanted)
        if form is not None:
            expected, make = form
            return lambda text: from_text(wanted, text, expected, make)
        if wanted in (int, float):
            read: Callable[[str], Any] = scalars.integer if wanted is int else scalars.number
            return lambda text: from_text(wanted, text, NAMES[wanted], lambda _, text: read(text))
        if wanted is bool:
            return key_choice(_pairs([True, False]), self._forms)
        if wanted in (None, type(None)):
            return key_choice(_pairs([None]), self._forms)
        raise Unusable(
            f"{f'its field {place} has' if place else 'it has'} keys of {shown(wanted)}; {_EXPECTED} as text"
        )

    # --- lists

    def _list(self, kind: Any, arguments: tuple[Any, ...], place: str) -> Convert:
        convert = self.compile(arguments[0] if arguments else Any, f"{place}[]")
        unique = kind in (set, frozenset)

        def items(data: Any, depth: int) -> Any:
            depth = deeper(data, list, depth)
            made = []
            index = 0
            try:
                for item in data:
                    value = convert(item, depth)
                    if unique:
                        hash(value)
                    made.append(value)
                    index += 1
            except Exception as error:
                raise at(error, index) from None
            return made if kind is list else kind(made)

        return items

    def _tuple(self, arguments: tuple[Any, ...] | None, place: str) -> Convert:
        if arguments is None or (arguments and arguments[-1] is Ellipsis):
            return self._list(tuple, (arguments or ())[:1], place)
        converts = [self.compile(kind, f"{place}[{index}]") for index, kind in enumerate(arguments)]

        def items(data: Any, depth: int) -> tuple[Any, ...]:
            depth = deeper(data, list, depth)
            if len(data) != len(converts):
                raise mismatch(f"a list of {len(converts)}", data)
            made = []
            for index, item in enumerate(data):
                try:
                    made.append(converts[index](item, depth))
                except Exception as error:
                    raise at(error, index) from None
            return tuple(made)

        return items

    def _union(self, kinds: Sequence[Any], place: str) -> Convert:
        # int before float, because 1 fits both.
        ordered = sorted(kinds, key=lambda kind: kind is float)
        converts = [self.compile(kind, place) for kind in ordered]
        self._unions += 1
        number = self._unions

        def union(data: Any, depth: int) -> Any:
            known = self.failed.get((number, id(data)))
            if known is not None and known[0] is data:
                raise known[1].copy()
            problems = []
            for convert in converts:
                try:
                    return convert(data, depth)
                except Exception as error:
                    problem = at(error, None)
                    if not isinstance(problem, Mismatch):
                        raise
                    problems.append(problem)
            problem = furthest(problems)
            if isinstance(data, dict | list):
                self.failed[number, id(data)] = (data, problem.copy())
            raise problem

        return union


# --- pydantic


def _pydantic(wanted: Any, kind: Any) -> Convert:
    """The converter of a pydantic model or dataclass, by pydantic's rules."""
    if hasattr(kind, "model_validate"):
        if wanted.model_config.get("strict"):  # strict mode accepts a date as text in JSON only
            import json

            return lambda data, depth: wanted.model_validate_json(json.dumps(data))
        return lambda data, depth: wanted.model_validate(data)
    import pydantic

    validate = pydantic.TypeAdapter(wanted).validate_python
    config = getattr(kind, "__pydantic_config__", None) or {}
    names = {name for field in dataclasses.fields(kind) for name in (field.name, _alias(kind, field.name))}

    def made(data: Any, depth: int) -> Any:
        deeper(data, dict, depth)
        if "extra" not in config:  # pydantic would ignore a misspelt name
            for name in data:
                if name not in names:
                    raise at(unknown(name, [field.name for field in dataclasses.fields(kind)]), name[:80])
        return validate(data)

    return made


def _alias(kind: Any, name: str) -> Any:
    field = getattr(kind, "__pydantic_fields__", {}).get(name)
    alias = getattr(field, "validation_alias", None) or getattr(field, "alias", None)
    return alias if isinstance(alias, str) else name
