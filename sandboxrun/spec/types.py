"""JSON Schemas as types of Python: TypedDicts, aliases, and their names."""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from sandboxrun.log import escape
from sandboxrun.spec.keywords import definition

BUILTINS = frozenset("bool dict float int list str".split())
TYPING = frozenset("Any Literal Never NotRequired Protocol TypeAlias TypedDict".split())
DOC_MAX_CHARS = 2000
COMMENT_MAX_CHARS = 200
DEPTH_MAX = 20  # of references that lead to one another
_SIMPLE = {"string": "str", "integer": "int", "number": "float", "boolean": "bool", "null": "None"}
_BRANCHES = ("anyOf", "oneOf", "if", "then", "else", "dependentSchemas")


class Fields(NamedTuple):
    """Of an object. `rest`: the schema of fields that it does not name; False for none."""

    named: dict[str, Any]
    required: frozenset[str]
    rest: Any


class Types:
    """Types for schemas, and the definitions that they need. `taken`: names that no definition may have."""

    def __init__(self, defs: Mapping[str, Any], taken: Iterable[str], *, is_qualified: bool) -> None:
        """`is_qualified`: write `builtins.list` and `typing.Any`, because a class has a method of such a name."""
        self._defs = defs
        self._root: Any = None
        self._is_qualified = is_qualified
        self._taken = {*TYPING, *keyword.kwlist, *taken}
        self._aliases: dict[int, str] = {}  # by id of the schema, as the next
        self._dicts: dict[int, str] = {}
        self._parts: dict[tuple[int, int], Fields | None] = {}  # of schemas in others, by id of the root too
        self._open: frozenset[int] = frozenset()  # aliases that must not name themselves here
        self.imported: set[str] = set()
        self.definitions: list[str] = []

    def word(self, name: str) -> str:
        """How to write a name of `builtins` or `typing`."""
        if name in TYPING:
            self.imported.add(name)
        return self._spelled(name)

    def _spelled(self, name: str) -> str:
        if not self._is_qualified:
            return name
        return f"{'builtins' if name in BUILTINS else 'typing'}.{name}"

    def enter(self, schema: Any) -> None:
        """Let references be those of this schema, which is a request or a reply."""
        self._root = schema

    def name(self, words: str) -> str:
        """A name of a class that is not taken yet."""
        name = "".join(f"{word[0].upper()}{word[1:]}" for word in re.findall(r"[A-Za-z0-9]+", words))
        name = name if name[:1].isalpha() else f"Type{name}"
        number = 1
        while (found := f"{name}{number if number > 1 else ''}") in self._taken:
            number += 1
        self._taken.add(found)
        return found

    def of(self, schema: Any, words: str) -> str:
        """The type of a schema; `words` name it if it needs a name."""
        if schema is False:
            return self.word("Never")
        if not isinstance(schema, dict):
            return self.word("Any")
        if "$ref" in schema:
            return self._of_reference(schema["$ref"], words)
        if "const" in schema or "enum" in schema:
            return self._of_values(schema["enum"] if "enum" in schema else [schema["const"]])
        fields = self.fields(schema)
        if fields is not None:
            return self._of_object(schema, fields, words)
        types = schema.get("type")
        if types is not None:
            listed = types if isinstance(types, list) else [types]
            return self._union([self._of_type(each, schema, words) for each in listed])
        for name in ("anyOf", "oneOf"):
            if name in schema:
                return self._union([self.of(each, words) for each in schema[name]])
        if "allOf" in schema:
            found = [self.of(each, words) for each in schema["allOf"]]
            return next((each for each in found if each != self.word("Any")), self.word("Any"))
        return self.word("Any")

    def alias(self, schema: Any, words: str) -> str:
        """The name of a definition for the schema: a TypedDict, or a name for its type."""
        known = self._aliases.get(id(schema)) if isinstance(schema, dict) else None
        if known is not None:
            return self.word("Any") if id(schema) in self._open else known
        if isinstance(schema, dict) and "$ref" not in schema and _is_closed(self.fields(schema)):
            return self.of(schema, words)
        name = self._aliases[id(schema)] = self.name(words)
        before, self._open = self._open, self._open | {id(schema)}
        text = self.of(schema, words)
        self._open = before
        self.definitions.append(f"{name}: {self.word('TypeAlias')} = {quoted(text)}")
        return name

    def followed(self, schema: Any) -> Any:
        """What the schema refers to, if it is a reference."""
        for _ in range(DEPTH_MAX):
            if not isinstance(schema, dict) or "$ref" not in schema:
                break
            found = definition(schema["$ref"], self._root, self._defs)
            if found is None:
                return True
            schema = found[1]
        return schema

    # --- kinds of types

    def _of_reference(self, reference: Any, words: str) -> str:
        if reference == "#" and self._root is not None:
            return self.alias(self._root, words)
        found = definition(reference, self._root, self._defs)
        return self.word("Any") if found is None else self.alias(found[1], found[0])

    def _of_type(self, name: str, schema: Mapping[str, Any], words: str) -> str:
        if name == "array":
            return f"{self.word('list')}[{self._of_items(schema, words)}]"
        if name == "object":
            fields = self.fields({**schema, "type": "object"})
            return self.word("Any") if fields is None else self._of_object(schema, fields, words)
        simple = _SIMPLE.get(name, "Any")
        return simple if simple == "None" else self.word(simple)

    def _of_items(self, schema: Mapping[str, Any], words: str) -> str:
        first, rest = schema.get("prefixItems", []), schema.get("items", True)
        with self._guarded():
            types = [self.of(each, f"{words} item") for each in first]
            return self._union(types if first and rest is False else [*types, self.of(rest, f"{words} item")])

    def _of_values(self, values: list[Any]) -> str:
        literals = [value for value in values if isinstance(value, str | bool | int)]
        types = [f"{self.word('Literal')}[{', '.join(map(repr, literals))}]"] if literals else []
        for value in values:
            if value is None:
                types.append("None")
            elif isinstance(value, float):
                types.append(self.word("float"))
            elif isinstance(value, dict | list):
                types.append(self.word("Any"))
        return self._union(types)

    def _union(self, types: list[str]) -> str:
        if self._spelled("Any") in types:
            return self._spelled("Any")
        found = [each for each in dict.fromkeys(types) if each != self._spelled("Never")]
        return " | ".join(found) or self.word("Never")

    def _guarded(self) -> _Guard:
        return _Guard(self)

    # --- objects

    def fields(self, schema: Any) -> Fields | None:
        """The fields of an object, with those of `allOf`; None for what need not be an object."""
        found = self._fields(schema)
        if found is not None and found.named:
            found.named.update(dict.fromkeys(sorted(found.required - found.named.keys()), True))
        return found

    def _part(self, schema: Any) -> Fields | None:
        """The same, of a schema in another one: each is looked at once, since references can make many of few."""
        key = id(self._root), id(schema)
        if not isinstance(schema, dict) or key in self._parts:
            return self._parts.get(key)
        self._parts[key] = None  # as long as it is not known, for one that contains itself
        found = self._parts[key] = self._fields(self.followed(schema))
        return found

    def _fields(self, schema: Any) -> Fields | None:
        if not isinstance(schema, dict):
            return None
        parts = [self._part(each) for each in schema.get("allOf", ())]
        objects = [each for each in parts if each is not None]
        is_object = schema.get("type") == "object" or ("type" not in schema and ("properties" in schema or objects))
        if not is_object:
            return None
        named = dict(schema.get("properties", {}))
        required = {*schema.get("required", ()), *_required(schema.get("allOf", ()))}
        rest = schema.get("additionalProperties", not named and not objects)
        for each in objects:
            named = {**each.named, **named}
            required |= each.required
            rest = rest or each.rest
        if schema.get("patternProperties") or any(self._names_fields(each) for each in _branches(schema)):
            rest = True
        return Fields(named, frozenset(required), rest)

    def _names_fields(self, schema: Any) -> bool:
        found = self._part(schema)
        return found is not None and bool(found.named)

    def _of_object(self, schema: Mapping[str, Any], fields: Fields, words: str) -> str:
        if not _is_closed(fields):
            with self._guarded():
                rest = self.word("Any") if fields.named else self.of(fields.rest, f"{words} value")
            return f"{self.word('dict')}[{self.word('str')}, {rest}]"
        known = self._dicts.get(id(schema))
        if known is not None:
            return known
        name = self._dicts[id(schema)] = self.name(words)
        with self._guarded():
            types = {field: self.of(each, f"{words} {field}") for field, each in fields.named.items()}
        for field in types.keys() - fields.required:
            types[field] = f"{self.word('NotRequired')}[{types[field]}]"
        self.definitions.append("\n".join(self._typed_dict(name, schema, fields.named, types)))
        return name

    def _typed_dict(
        self, name: str, schema: Mapping[str, Any], named: Mapping[str, Any], types: Mapping[str, str]
    ) -> Iterator[str]:
        base = self.word("TypedDict")
        if all(is_name(field) and field not in BUILTINS and not field[0].isupper() for field in types):
            yield f"class {name}({base}):"
            yield from doc(description(schema), "    ")
            for field, text in types.items():
                yield from comment(description(named[field]), "    ")
                yield f"    {field}: {text}"
            if not types and not description(schema):
                yield "    pass"
            return
        yield from comment(description(schema), "")
        yield f"{name} = {base}("
        yield f'    "{name}",'
        yield "    {"
        for field, text in types.items():
            yield from comment(description(named[field]), "        ")
            yield f"        {quoted(field)}: {quoted(text)},"
        yield "    },"
        yield ")"


class _Guard:
    """What is inside of it, as the items of a list, may name the definition that it is part of."""

    def __init__(self, types: Types) -> None:
        self._types, self._before = types, types._open

    def __enter__(self) -> None:
        self._types._open = frozenset()

    def __exit__(self, *_: object) -> None:
        self._types._open = self._before


def _is_closed(fields: Fields | None) -> bool:
    """Whether it is of an object that a TypedDict can be."""
    return fields is not None and fields.rest is False


def _required(schemas: Iterable[Any]) -> Iterator[str]:
    for each in schemas:
        if isinstance(each, dict):
            yield from each.get("required", ())


def _branches(schema: Mapping[str, Any]) -> Iterator[Any]:
    """Schemas that hold for some of the objects."""
    for name in _BRANCHES:
        value = schema.get(name)
        if isinstance(value, list):
            yield from value
        elif name == "dependentSchemas" and isinstance(value, dict):
            yield from value.values()
        elif value is not None:
            yield value


def is_name(text: str) -> bool:
    """Whether it can be a field of a class, or an argument."""
    return text.isascii() and text.isidentifier() and not keyword.iskeyword(text) and not text.startswith("__")


def quoted(text: str) -> str:
    """As a text of Python, in double quotes where these need no escape."""
    return f'"{text}"' if text.isprintable() and not {'"', "\\"} & set(text) else repr(text)


def description(schema: Any) -> str:
    found = schema.get("description", "") if isinstance(schema, dict) else ""
    return found if isinstance(found, str) else ""


def doc(text: str, indent: str) -> Iterator[str]:
    """A docstring. Nothing in the text can end it."""
    lines = [escape(line.rstrip()) for line in text[:DOC_MAX_CHARS].strip().splitlines()]
    safe = [line.replace("\\", "\\\\").replace('"', '\\"') for line in lines]
    if len(safe) == 1:
        yield f'{indent}"""{safe[0]}"""'
    elif safe:
        yield f'{indent}"""{safe[0]}'
        yield from (f"{indent}{line}".rstrip() for line in safe[1:])
        yield f'{indent}"""'


def comment(text: str, indent: str) -> Iterator[str]:
    if text:
        yield f"{indent}# {escape(' '.join(text.split()))[:COMMENT_MAX_CHARS]}"
