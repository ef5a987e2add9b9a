"""Annotations to types. Text is evaluated in the scope where it was written, one annotation at a time."""

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


def resolve(note: Any, scope: Mapping[str, Any], local: Mapping[str, Any], subject: str) -> Any:
    """The type that an annotation means. Raises ConfigError, whose message begins with `subject`."""
    names = {"Request": Request, **scope}
    holder = type("_", (), {"__annotations__": {"it": note}})  # a class's annotations may have every special form
    try:
        return typing.get_type_hints(holder, names, dict(local), include_extras=True)["it"]
    except Exception as error:  # evaluated text may raise anything
        text = note if isinstance(note, str) else getattr(note, "__forward_arg__", repr(note))
        raise ConfigError(
            f"{subject} has the annotation {str(text)[:80]!r}, which cannot be resolved when the worker starts ({error})",
            hint=_import_hint(getattr(error, "name", None), scope) if isinstance(error, NameError) else "",
        ) from None


def _import_hint(name: str | None, scope: Mapping[str, Any]) -> str:
    """The import of `name` that stands under `if TYPE_CHECKING:`, to be written above that line."""
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
    """By name. Python 3.14 evaluates them on access, and a name that exists for a type checker only raises NameError."""
    try:
        notes: Mapping[str, Any] = function.__annotations__
    except NameError:
        annotationlib = import_module("annotationlib")
        notes = annotationlib.get_annotations(function, format=annotationlib.Format.FORWARDREF)
    return notes


def of_function(note: Any, source: Any, subject: str) -> Any:
    """The type of a handler's parameter. Raises ConfigError."""
    inner = local_names(source) if "<locals>" in getattr(source, "__qualname__", "") else {}
    return resolve(note, getattr(source, "__globals__", {}), inner, subject)


def is_request(wanted: Any) -> bool:
    """Whether a parameter of this type is given the request, not its payload."""
    return wanted is Request or typing.get_origin(wanted) is Request or wanted is Any or wanted is type(None)


def payload_of(wanted: Any) -> Any:
    """Order of `Request[Order]`; None if the request's type names no payload."""
    payload = next(iter(typing.get_args(wanted)), None)
    return None if payload is Any else payload


def local_names(source: Any) -> dict[str, Any]:
    """Names that annotations may use beside globals: the handler's closure, and variables of the enclosing functions."""
    scope = getattr(source, "__globals__", None)
    frames: list[types.FrameType] = []
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_globals is scope and frame.f_code.co_flags & _FUNCTION:
            frames.append(frame)
        frame = frame.f_back
    variables: dict[str, Any] = {}
    for frame in reversed(frames):
        variables.update(frame.f_locals)
    names = getattr(getattr(source, "__code__", None), "co_freevars", ())
    for name, cell in zip(names, getattr(source, "__closure__", None) or (), strict=False):
        try:
            variables[name] = cell.cell_contents
        except ValueError:  # assigned later
            pass
    return variables


def of_class(kind: type, wanted: Any, local: Mapping[str, Any], subject: str) -> dict[str, Any]:
    """The resolved annotations of a class and its bases by name, with type parameters replaced.

    `wanted`: the class, or the class with type arguments, as `Box[int]`.
    """
    replaced = _parameters(kind, typing.get_args(wanted))
    resolved: dict[str, Any] = {}
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
            hint = resolve(note, scope, inner, f"{subject} has a field {name} that")
            resolved[name] = substituted(hint, variables)
    return resolved


def _own_annotations(kind: type) -> Mapping[str, Any]:
    """The class's own only; Python before 3.14 returns those of a base for a class without any."""
    if "__annotations__" not in kind.__dict__ and sys.version_info < (3, 14):
        return {}
    try:
        return annotations_of(kind)
    except AttributeError:  # a class that is not written in Python
        return {}


def _own(base: type) -> dict[str, Any]:
    """The type parameters of `class Box[T]`, from 3.12."""
    return {parameter.__name__: parameter for parameter in getattr(base, "__type_params__", ())}


def substituted(hint: Any, variables: Mapping[Any, Any]) -> Any:
    """The hint with its type parameters replaced; an unknown one by its bound, or by Any."""
    if isinstance(hint, typing.TypeVar):
        return variables.get(hint, _bound(hint))
    parameters = getattr(hint, "__parameters__", ())
    if not parameters or typing.get_origin(hint) is None:
        return hint
    return hint[tuple(variables.get(parameter, _bound(parameter)) for parameter in parameters)]


def _bound(parameter: Any) -> Any:
    constraints = getattr(parameter, "__constraints__", ())
    if constraints:
        return typing.Union[constraints]  # noqa: UP007  # a tuple of types
    return getattr(parameter, "__bound__", None) or Any


def _parameters(kind: type, arguments: tuple[Any, ...]) -> dict[type, dict[Any, Any]]:
    """The values of the type parameters of the class and of each of its bases."""
    own = dict(zip(getattr(kind, "__parameters__", ()), arguments, strict=False))
    values = {kind: own}
    for base in kind.__dict__.get("__orig_bases__", kind.__bases__):
        origin = typing.get_origin(base) or base
        if isinstance(origin, type) and origin not in (object, typing.Generic, typing.Protocol):
            values.update(_parameters(origin, tuple(substituted(each, own) for each in typing.get_args(base))))
    return values
