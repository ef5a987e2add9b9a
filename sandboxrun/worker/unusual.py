"""Handlers that are no plain functions: methods, partials, decorated ones, objects, classes. By the rules of inspect."""

from __future__ import annotations

import functools
import importlib
import inspect
import types
from typing import Any

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def look_into(function: Any, found: Any) -> None:
    """Fill in a Shape (handlers.py) as inspect.signature has it; a builtin that does not say its parameters takes one."""
    parameters = _parameters(function)
    positional = [p for p in parameters if p.kind in _POSITIONAL]
    found.positional = tuple(p.name for p in positional)
    found.required = sum(p.default is p.empty for p in positional)
    found.keywords = tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty)
    found.more = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    found.notes = {p.name: p.annotation for p in parameters if p.annotation is not p.empty}
    found.source = _source(function)
    surface, inner = _surface(function), _unwrapped(function)
    found.is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(surface)
    if not found.is_async and inspect.iscoroutinefunction(inner):
        found.is_async = None
    found.is_generator = inspect.isgeneratorfunction(surface) or inspect.isasyncgenfunction(surface)


def _parameters(function: Any) -> list[inspect.Parameter]:
    try:
        try:
            signature = inspect.signature(function)
        except NameError:  # see hints.annotations_of
            form = importlib.import_module("annotationlib").Format.FORWARDREF
            signature = inspect.signature(function, annotation_format=form)  # type: ignore[call-arg,unused-ignore]
    except (ValueError, TypeError):
        return [inspect.Parameter("request", inspect.Parameter.POSITIONAL_ONLY)]
    return list(signature.parameters.values())


def _surface(function: Any) -> Any:
    """The function whose code a call runs first."""
    while True:
        if isinstance(function, functools.partial):
            function = function.func
        elif isinstance(function, staticmethod | types.MethodType):
            function = function.__func__
        elif isinstance(function, type | types.FunctionType | types.BuiltinFunctionType):
            return function
        else:
            call = getattr(type(function), "__call__", None)  # noqa: B004  # what it is, not whether
            if not isinstance(call, types.FunctionType | functools.partial):
                return function
            function = call


def _unwrapped(function: Any) -> Any:
    """The function that all decorators and partials go round."""
    while True:
        inner = _surface(inspect.unwrap(function))
        if inner is function:
            return function
        function = inner


def _source(function: Any) -> Any:
    """The function that the parameters, and so their annotations, come from."""
    inner = _unwrapped(function)
    if isinstance(inner, type):
        name = "__new__" if inner.__init__ is object.__init__ else "__init__"  # type: ignore[misc]  # it is looked at
        return inspect.unwrap(getattr(inner, name))
    return inner
