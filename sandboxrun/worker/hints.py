"""Annotations made into types: text is evaluated where it was written, one annotation at a time."""

from __future__ import annotations

import sys
import types
import typing
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from sandboxrun.errors import ConfigError
from sandboxrun.worker.request import Request

_FUNCTION = 0x2  # CO_NEWLOCALS: the frame is a function's


def resolve(note: Any, scope: Mapping[str, Any], local: Mapping[str, Any], place: str) -> Any:
    """The type that an annotation means. Raises ConfigError, which begins with `place`."""
    names = {"Request": Request, **scope}
    holder = type("_", (), {"__annotations__": {"it": note}})  # of a class, where each special form is allowed
    try:
        return typing.get_type_hints(holder, names, dict(local), include_extras=True)["it"]
    except Exception as error:  # whatever the text does when it is evaluated
        text = note if isinstance(note, str) else getattr(note, "__forward_arg__", repr(note))
        raise ConfigError(
            f"{place} has the annotation {str(text)[:80]!r}, which cannot be resolved when the worker starts ({error})",
            hint=_import_hint(getattr(error, "name", None), scope) if isinstance(error, NameError) else "",
        ) from None


def _import_hint(name: str | None, scope: Mapping[str, Any]) -> str:
    """The import of the name that stands under `if TYPE_CHECKING:`, to be written above it."""
    import ast

    try:
        with open(scope["__file__"], encoding="utf-8") as file:
            tree = ast.parse(file.read())
    except (KeyError, TypeError, OSError, ValueError, SyntaxError):
        return ""
    for branch in ast.walk(tree):
        if isinstance(branch, ast.If) and ast.unparse(branch.test).endswith("TYPE_CHECKING"):
            for node in branch.body:
                for alias in node.names if isinstance(node, ast.Import | ast.ImportFrom) else ():
                    if name == (alias.asname or alias.name):
                        module = f"{'.' * node.level}{node.module or ''}" if isinstance(node, ast.ImportFrom) else ""
                        imported = ast.unparse(alias)
                        return f"from {module} import {imported}" if module else f"import {imported}"
    return ""


def annotations_of(function: Any) -> Mapping[str, Any]:
    """By name. Python 3.14 evaluates them when they are asked for, and not all may have a meaning at run time."""
    try:
        found: Mapping[str, Any] = function.__annotations__
    except NameError:
        annotationlib = import_module("annotationlib")
        found = annotationlib.get_annotations(function, format=annotationlib.Format.FORWARDREF)
    return found


def of_function(note: Any, source: Any, place: str) -> Any:
    """The type that the annotation of a handler's parameter means. Raises ConfigError."""
    inner = local_names(source) if "<locals>" in getattr(source, "__qualname__", "") else {}
    return resolve(note, getattr(source, "__globals__", {}), inner, place)


def is_request(wanted: Any) -> bool:
    """Whether a parameter of this type is given the request, not its payload."""
    return wanted is Request or typing.get_origin(wanted) is Request or wanted is Any or wanted is type(None)


def payload_of(wanted: Any) -> Any:
    """Order of `Request[Order]`; None if the request's type names no payload."""
    payload = next(iter(typing.get_args(wanted)), None)
    return None if payload is Any else payload


def local_names(source: Any) -> dict[str, Any]:
    """What annotations may name beside globals: a handler's closure, and variables of the functions it is defined in."""
    scope = getattr(source, "__globals__", None)
    frames: list[types.FrameType] = []
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_globals is scope and frame.f_code.co_flags & _FUNCTION:
            frames.append(frame)
        frame = frame.f_back
    found: dict[str, Any] = {}
    for frame in reversed(frames):
        found.update(frame.f_locals)
    names = getattr(getattr(source, "__code__", None), "co_freevars", ())
    for name, cell in zip(names, getattr(source, "__closure__", None) or (), strict=False):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # assigned later
            pass
    return found


def of_class(kind: type, wanted: Any, local: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The resolved annotations of a class and its bases, with type parameters replaced; by name.

    `wanted`: the class, or the class with its parameters, as `Box[int]`.
    """
    replaced = _parameters(kind, typing.get_args(wanted))
    found: dict[str, Any] = {}
    merged: dict[Any, Any] = {}
    for variables in replaced.values():
        merged.update(variables)
    for base in reversed(kind.__mro__):
        notes = _own_annotations(base)
        if not notes:
            continue
        module = sys.modules.get(base.__module__)
        scope = {**vars(base), **(vars(module) if module is not None else {}), **_own(base), base.__name__: base}
        inner = local if "<locals>" in base.__qualname__ else {}
        variables = replaced.get(base, {}) if not typing.is_typeddict(kind) else merged
        for name, note in notes.items():
            if typing.get_origin(note) is typing.ClassVar:
                continue
            if isinstance(note, str) and note.replace("typing.", "").startswith("ClassVar"):
                continue
            hint = resolve(note, scope, inner, f"{place} has a field {name} that")
            found[name] = substituted(hint, variables)
    return found


def _own_annotations(kind: type) -> Mapping[str, Any]:
    """Without those of its bases, which Python before 3.14 returns for a class that has none."""
    if "__annotations__" not in kind.__dict__ and sys.version_info < (3, 14):
        return {}
    try:
        return annotations_of(kind)
    except AttributeError:  # of a class that is not written in Python
        return {}


def _own(base: type) -> dict[str, Any]:
    """The type parameters of `class Box[T]`, from 3.12."""
    return {parameter.__name__: parameter for parameter in getattr(base, "__type_params__", ())}


def substituted(hint: Any, variables: Mapping[Any, Any]) -> Any:
    """The hint with its type parameters replaced. One that nothing is known of stands for its bound, or for anything."""
    if isinstance(hint, typing.TypeVar):
        return variables.get(hint, _bound(hint))
    parameters = getattr(hint, "__parameters__", ())
    if not parameters or typing.get_origin(hint) is None:
        return hint
    return hint[tuple(variables.get(parameter, _bound(parameter)) for parameter in parameters)]


def _bound(parameter: Any) -> Any:
    constraints = getattr(parameter, "__constraints__", ())
    if constraints:
        return typing.Union[constraints]  # noqa: UP007  # of a tuple
    return getattr(parameter, "__bound__", None) or Any


def _parameters(kind: type, arguments: tuple[Any, ...]) -> dict[type, dict[Any, Any]]:
    """For each class of the family, what its type parameters are."""
    own = dict(zip(getattr(kind, "__parameters__", ()), arguments, strict=False))
    found = {kind: own}
    for base in kind.__dict__.get("__orig_bases__", kind.__bases__):
        origin = typing.get_origin(base) or base
        if isinstance(origin, type) and origin not in (object, typing.Generic, typing.Protocol):
            found.update(_parameters(origin, tuple(substituted(each, own) for each in typing.get_args(base))))
    return found
