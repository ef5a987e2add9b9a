"""Print the public names of the SDK with their signatures. tests/unit/public_surface.txt is what it printed last.

A change of that file is a change of the API: `python tests/tools/public_surface.py > tests/unit/public_surface.txt`.
"""

from __future__ import annotations

import importlib
import inspect
import types
from collections.abc import Iterator
from typing import Any

MODULES = ("sandboxrun", "sandboxrun.worker", "sandboxrun.client")
SPECIAL = ("__init__", "__enter__", "__exit__", "__aenter__", "__aexit__")


def lines() -> Iterator[str]:
    for name in MODULES:
        module = importlib.import_module(name)
        yield f"{name}:"
        for member in sorted(names_of(module)):
            yield from described(member, getattr(module, member))


def names_of(module: types.ModuleType) -> list[str]:
    listed = getattr(module, "__all__", None)
    if listed is not None:
        return list(listed)
    own = [name for name, value in vars(module).items() if not isinstance(value, types.ModuleType)]
    return [name for name in own if not name.startswith("_") or name == "__version__"]


def described(name: str, value: Any) -> Iterator[str]:
    if isinstance(value, type):
        bases = ", ".join(base.__name__ for base in value.__bases__ if not base.__name__.startswith("_"))
        yield f"  class {name}({bases})"
        yield from members(value)
    elif callable(value):
        yield f"  {signature(name, value)}"
    else:
        yield f"  {name}: {type(value).__name__}"


def members(kind: type) -> Iterator[str]:
    """The class's own members. An attribute that is set in `__init__` is found by its slot or annotation."""
    attributes = {*getattr(kind, "__slots__", ()), *vars(kind).get("__annotations__", ())}
    for name in sorted({*vars(kind), *attributes}):
        if name.startswith("_") and name not in SPECIAL:
            continue
        member = inspect.getattr_static(kind, name, None)
        if isinstance(member, types.FunctionType):
            yield f"    {signature(name, member)}"
        elif isinstance(member, property):
            yield f"    {name}: {inspect.signature(member.fget).return_annotation}"  # type: ignore[arg-type]
        elif isinstance(member, types.MemberDescriptorType) or member is None:
            yield f"    {name}"
        else:
            yield f"    {name} = {member!r}"


def signature(name: str, function: Any) -> str:
    """As inspect.signature prints it, but without quotes around annotations, which differ by Python's version."""
    found = inspect.signature(function)
    parts, slash, star = [], False, False
    for parameter in found.parameters.values():
        slash = slash or parameter.kind is parameter.POSITIONAL_ONLY
        if slash and parameter.kind is not parameter.POSITIONAL_ONLY:
            parts.append("/")
            slash = False
        if parameter.kind is parameter.KEYWORD_ONLY and not star:
            parts.append("*")
            star = True
        star = star or parameter.kind is parameter.VAR_POSITIONAL
        parts.append(shown(parameter))
    if slash:
        parts.append("/")
    kind = "async def" if inspect.iscoroutinefunction(function) else "def"
    result = "" if found.return_annotation is found.empty else f" -> {found.return_annotation}"
    return f"{kind} {name}({', '.join(parts)}){result}"


def shown(parameter: inspect.Parameter) -> str:
    text = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "") + parameter.name
    if parameter.annotation is not parameter.empty:
        text += f": {parameter.annotation}"
    return text if parameter.default is parameter.empty else f"{text} = {parameter.default!r}"


if __name__ == "__main__":
    for line in lines():
        print(line)
