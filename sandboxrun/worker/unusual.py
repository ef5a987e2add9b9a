"""Handlers that are not plain functions: methods, partials, decorated functions, objects, classes. By inspect's rules."""

from __future__ import annotations

import functools
import importlib
import inspect
import types
from typing import Any

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def look_into(function: Any, shape: Any) -> None:
    """Fill in a Shape (handlers.py) from inspect.signature; a builtin without a signature takes one argument."""
    parameters = parameters_of(function)
    positional = [p for p in parameters if p.kind in _POSITIONAL]
    shape.positional = tuple(p.name for p in positional)
    shape.required = sum(p.default is p.empty for p in positional)
    shape.keywords = tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty)
    shape.more = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    shape.notes = {p.name: p.annotation for p in parameters if p.annotation is not p.empty}
    shape.source = _source(function)
    surface, inner = _surface(function), _unwrapped(function)
    shape.is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(surface)
    if not shape.is_async and inspect.iscoroutinefunction(inner):
        shape.is_async = None
    shape.is_generator = inspect.isgeneratorfunction(surface) or inspect.isasyncgenfunction(surface)


def parameters_of(function: Any) -> list[inspect.Parameter]:
    """Its parameters; one, if it is a builtin that does not say."""
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
    """The function whose code runs first in a call."""
    while True:
        if isinstance(function, functools.partial):
            function = function.func
        elif isinstance(function, staticmethod | types.MethodType):
            function = function.__func__
        elif isinstance(function, type | types.FunctionType | types.BuiltinFunctionType):
            return function
        else:
            call = getattr(type(function), "__call__", None)  # noqa: B004  # the attribute itself is needed
            if not isinstance(call, types.FunctionType | functools.partial):
                return function
            function = call


def _unwrapped(function: Any) -> Any:
    """The innermost function, inside all decorators and partials."""
    while True:
        inner = _surface(inspect.unwrap(function))
        if inner is function:
            return function
        function = inner


def _source(function: Any) -> Any:
    """The function that has the parameters and their annotations."""
    inner = _unwrapped(function)
    if isinstance(inner, type):
        name = "__new__" if inner.__init__ is object.__init__ else "__init__"  # type: ignore[misc]  # it is only read
        return inspect.unwrap(getattr(inner, name))
    return inner
