"""A spec as documentation: plain text for a terminal, or Markdown. Texts of the file are escaped and bounded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from sandboxrun.log import escape
from sandboxrun.spec import match
from sandboxrun.spec.model import OK, Case, Interface, Spec
from sandboxrun.spec.words import ROWS_MAX, Row, rows

TESTS = ("tests", "secrets", "ignore")  # members of a spec that only its tests need
TEXT_MAX_CHARS = 300  # of a field's type, conditions or description, and of a test's name
DESCRIPTION_MAX_CHARS = 4000
EXAMPLE_MAX_CHARS = 2000
EXAMPLES_MAX = 3
NAMES_MAX = 200  # of tests
COLUMN_MAX = 32


class Part(NamedTuple):
    """A request or a reply. `rows`: the whole first."""

    title: str
    rows: list[Row]
    examples: list[Any]


class Section(NamedTuple):
    """What the documentation says of one method, or of requests without one."""

    interface: Interface
    parts: list[Part]
    codes: list[int]
    tests: list[str]


def interface(spec: Spec) -> dict[str, Any]:
    """The spec without what only its tests need."""
    return {name: value for name, value in spec.raw.items() if name not in TESTS}


def sections(spec: Spec) -> Iterator[Section]:
    for each in spec.interfaces.values():
        cases = [case for case in spec.cases if case.method == each.method]
        parts = []
        for title, schema in (("request", each.request), ("reply", each.reply)):
            if schema is not True:
                parts.append(Part(title, rows(schema, spec.defs), _examples(schema, title, cases)))
        yield Section(each, parts, sorted({case.code for case in cases}), [case.name for case in cases])


def _examples(schema: Any, title: str, cases: list[Case]) -> list[Any]:
    """Those of the schema, else one of a test that succeeds."""
    own = schema.get("examples") if isinstance(schema, dict) else None
    if isinstance(own, list) and own:
        return own[:EXAMPLES_MAX]
    for case in cases:
        if case.http:  # with {http} for the server of the test
            continue
        if case.code == OK and title == "request":
            return [case.request]
        if case.code == OK and case.reply and not match.has_matcher(dict(case.reply)):
            return [match.plain(dict(case.reply))]
    return []


# --- a terminal


def text(spec: Spec) -> str:
    """Lines without a character that could drive the terminal."""
    title = spec.raw.get("title", "")
    lines = [_line(f"{spec.type}: {title}" if title else spec.type), *_block(spec.description, "  ")]
    if spec.grants:
        width = max(map(len, spec.grants))
        lines += ["", "grants", *(_line(f"  {name:<{width}}  {value}") for name, value in spec.grants.items())]
    for section in sections(spec):
        lines += _section_lines(section)
    return "\n".join(lines)


def _section_lines(section: Section) -> Iterator[str]:
    method = section.interface.method
    indent = "  " if method else ""
    if method:
        yield ""
        yield _line(f"method {method}")
        yield from _block(section.interface.description, indent)
    for part in section.parts:
        yield ""
        yield from _part_lines(part, indent)
    if section.codes:
        yield from ("", f"{indent}codes of its tests: {', '.join(map(str, section.codes))}")
    if section.tests:
        yield from ("", f"{indent}tests")
        yield from (_line(f"{indent}  {name}") for name in section.tests[:NAMES_MAX])
        if len(section.tests) > NAMES_MAX:
            yield f"{indent}  … and {len(section.tests) - NAMES_MAX} more"


def _part_lines(part: Part, indent: str) -> Iterator[str]:
    whole, *fields = part.rows
    about = ", ".join(filter(None, (whole.kind, whole.conditions)))
    yield _line(f"{indent}{part.title}: {about}")
    yield from _block(whole.description, f"{indent}  ")
    names = min(COLUMN_MAX, max((len(escape(row.name)) for row in fields), default=0))
    kinds = min(COLUMN_MAX, max((len(escape(row.kind)) for row in fields), default=0))
    for row in fields:
        more = "; ".join(filter(None, ("required" if row.is_required else "", row.conditions, row.description)))
        yield _line(f"{indent}  {escape(row.name):<{names}}  {escape(row.kind):<{kinds}}  {' '.join(more.split())}")
    if len(part.rows) == ROWS_MAX:
        yield f"{indent}  … and more"
    for example in part.examples:
        yield _line(f"{indent}  example: {json.dumps(example, ensure_ascii=False)}", EXAMPLE_MAX_CHARS)


def _block(given: str, indent: str) -> Iterator[str]:
    yield from (_line(f"{indent}{line}") for line in given[:DESCRIPTION_MAX_CHARS].strip().splitlines())


def _line(given: str, chars: int = 2 * TEXT_MAX_CHARS) -> str:
    line = escape(given.rstrip())
    return line if len(line) <= chars else f"{line[:chars]}…"


# --- Markdown


def markdown(spec: Spec) -> str:
    """For a page of documentation. A description may have marks of Markdown, but no HTML."""
    lines = [f"# {_inline(str(spec.raw.get('title') or spec.type))}", "", f"Worker type `{spec.type}`."]
    lines += _paragraphs(spec.description)
    if spec.grants:
        lines += ["", "## Grants", "", "| field | value |", "|---|---|"]
        lines += [f"| `{name}` | {_code(value)} |" for name, value in spec.grants.items()]
    for section in sections(spec):
        lines += _section_markdown(section)
    return "\n".join(lines)


def _section_markdown(section: Section) -> Iterator[str]:
    method, marks = section.interface.method, "##"
    if method:
        yield from ("", f"## `{method}`", *_paragraphs(section.interface.description))
        marks = "###"
    for part in section.parts:
        yield from ("", f"{marks} {part.title.capitalize()}")
        yield from _part_markdown(part)
    if section.codes:
        yield from ("", f"Codes of its tests: {', '.join(map(str, section.codes))}.")
    if section.tests:
        yield from ("", f"{marks} Tests", "", *(f"- {_inline(name)}" for name in section.tests[:NAMES_MAX]))
        if len(section.tests) > NAMES_MAX:
            yield f"- … and {len(section.tests) - NAMES_MAX} more"


def _part_markdown(part: Part) -> Iterator[str]:
    whole, *fields = part.rows
    yield from ("", _inline(", ".join(filter(None, (whole.kind, whole.conditions)))))
    yield from _paragraphs(whole.description)
    if fields:
        yield from ("", "| field | type | conditions | description |", "|---|---|---|---|")
        for row in fields:
            conditions = ", ".join(filter(None, ("required" if row.is_required else "", row.conditions)))
            cells = (_code(row.name), _inline(row.kind), _inline(conditions), _cell(row.description))
            yield f"| {' | '.join(cells)} |"
    if len(part.rows) == ROWS_MAX:
        yield from ("", "… and more fields.")
    for example in part.examples:
        body = json.dumps(example, ensure_ascii=False)[:EXAMPLE_MAX_CHARS]
        yield from ("", "```json", escape(body), "```")


def _paragraphs(given: str) -> list[str]:
    lines = given[:DESCRIPTION_MAX_CHARS].strip().splitlines()
    return ["", *(escape(line.rstrip()).replace("<", "&lt;") for line in lines)] if lines else []


def _cell(given: str) -> str:
    return _cut(given).replace("<", "&lt;").replace("|", "\\|")


def _inline(given: str) -> str:
    """Text, in which nothing is a mark of Markdown."""
    return "".join(f"\\{char}" if char in "\\`*_[]<>|#~&" else char for char in _cut(given))


def _code(given: str) -> str:
    found = _cut(given)
    return f"`{found}`".replace("|", "\\|") if "`" not in found else _inline(found)


def _cut(given: str) -> str:
    line = escape(" ".join(given.split()))
    return line if len(line) <= TEXT_MAX_CHARS else f"{line[:TEXT_MAX_CHARS]}…"
