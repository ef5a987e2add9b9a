"""The types of a worker for its callers: a module for `connect("TYPE", Kind)`, and for requests without a method."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sandboxrun.spec.model import Interface, Spec
from sandboxrun.spec.types import BUILTINS, TYPING, Types, comment, description, doc, is_name

RESULT = "result"  # the field of a reply that has a result which is no object


def module(spec: Spec) -> str:
    """The source of the module."""
    methods = [name for name in spec.interfaces if name is not None]
    parts = {part for name in methods for part in name.split(".")}
    types = Types(spec.defs, parts, is_qualified=bool(parts & (BUILTINS | TYPING)))
    if None in spec.interfaces:
        for schema, name in ((spec.interfaces[None].request, "Request"), (spec.interfaces[None].reply, "Reply")):
            types.enter(schema)
            types.alias(schema, name)
    kind = types.name(spec.type) if methods else ""
    classes = list(_classes(spec, kind, types)) if methods else []
    lines = [
        '"""' + f"Types of the worker type {spec.type}, made by `sandboxrun spec types`.",
        "",
        *_usage(spec, kind),
        '"""',
        "",
        "from __future__ import annotations",
        "",
        *_imports(types),
    ]
    return "\n".join(lines) + "".join(f"\n\n\n{text}" for text in [*types.definitions, *classes]) + "\n"


def _usage(spec: Spec, kind: str) -> list[str]:
    if kind:
        return ["from sandboxrun import connect", "", f'service = connect("{spec.type}", {kind})']
    return ["Request is the data of a request. Reply is a reply without ref, source, code and time."]


def _imports(types: Types) -> Iterator[str]:
    if types.word("int") != "int":
        yield "import builtins"
        yield "import typing"
    elif types.imported:
        yield f"from typing import {', '.join(sorted(types.imported))}"


def _classes(spec: Spec, kind: str, types: Types) -> Iterator[str]:
    """A Protocol for each service, and the one of the worker last."""
    bodies: dict[str, list[str]] = {"": []}
    for method, interface in spec.interfaces.items():
        if method is None:
            continue
        service, _, name = method.rpartition(".")
        body = bodies.setdefault(service, [])
        body += ["", *_method(interface, name, types)] if body else _method(interface, name, types)
    base = types.word("Protocol")
    attributes = []
    for service, body in bodies.items():
        if not service:
            continue
        if service in spec.interfaces or not is_name(service):
            bodies[""] += comment(f"{service}: no attribute of Python", "    ")
            continue
        name = types.name(f"{kind} {service}")
        attributes.append(f"    {service}: {name}")
        yield "\n".join([f"class {name}({base}):", *body, *_empty(body)])
    parts = [list(doc(spec.description, "    ")), attributes, bodies[""]]
    whole = [line for part in parts if part for line in ("", *part)][1:]
    yield "\n".join([f"class {kind}({base}):", *whole, *_empty(whole)])


def _empty(body: list[str]) -> list[str]:
    return [] if any(not line.lstrip().startswith("#") for line in body) else ["    pass"]


def _method(interface: Interface, name: str, types: Types) -> Iterator[str]:
    if not is_name(name):
        yield from comment(f'{name}: no name of Python; getattr(service, "{name}")(…) calls it', "    ")
        return
    words = interface.method or ""
    types.enter(interface.request)
    arguments = list(_arguments(interface.request, words, types))
    types.enter(interface.reply)
    returned = _returned(interface.reply, f"{words} reply", types)
    star = ["*"] if any(not each.startswith("**") for each in arguments) else []
    words_of_all = "\n".join(filter(None, [interface.description, *_notes(interface.request, types)]))
    text = list(doc(words_of_all, "        "))
    head = f"    def {name}({', '.join(['self', *star, *arguments])}) -> {returned}:"
    yield head if text else f"{head} ..."
    yield from text


def _arguments(request: Any, words: str, types: Types) -> Iterator[str]:
    fields = types.fields(types.followed(request))
    if fields is None:
        yield f"**more: {types.word('Any')}"
        return
    rest = fields.rest
    for name, schema in fields.named.items():
        if not is_name(name) or name in ("self", "more"):
            rest = True
        elif name in fields.required:
            yield f"{name}: {types.of(schema, f'{words} {name}')}"
        else:
            yield f"{name}: {types.of(schema, f'{words} {name}')} = ..."
    if rest is not False:
        yield f"**more: {types.word('Any') if fields.named else types.of(rest, f'{words} value')}"


def _notes(request: Any, types: Types) -> Iterator[str]:
    fields = types.fields(types.followed(request))
    for name, schema in fields.named.items() if fields is not None else ():
        text = " ".join((description(schema) or description(types.followed(schema))).split())
        if text:
            yield f"{name}: {text}"


def _returned(reply: Any, words: str, types: Types) -> str:
    """What `connect` returns of the reply."""
    fields = types.fields(types.followed(reply))
    if fields is not None and set(fields.named) == {RESULT} and fields.rest is False:
        return types.of(fields.named[RESULT], words)
    return types.of(reply, words)
