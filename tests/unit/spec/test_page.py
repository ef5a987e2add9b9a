"""`sandboxrun spec show`: what the documentation of a worker says, and that it is bounded and safe to print."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from spec_files import ODD, PRICE, STATE

from sandboxrun.spec import model, page, words

PAGE = """\
price: Prices
  What things cost.

grants
  allowRedis  price:*
  allowCall   stock,tax

method of
  The price of some pieces.

  request: object, no other fields
    item    "tea" or "cup"  required; What is sold.
    count   integer         at least 1, at most 99, default 1
    coupon  string or null  like ^[A-Z]{4}$
    example: {"item": "tea", "count": 2}

  reply: object
    total        integer                      required
    parts        object
    parts.name   string                       required
    parts.parts  array of object, tree again
    example: {"total": 500}

  codes of its tests: 200, 400

  tests
    two cups of tea
    no such thing

method count

  reply: object
    result  integer  required"""


def parse(raw: Any) -> model.Spec:
    return model.parse(json.dumps(raw).encode(), "spec.json")


def kinds(schema: Any, **defs: Any) -> dict[str, tuple[str, str]]:
    return {row.name: (row.kind, row.conditions) for row in words.rows(schema, defs)}


def test_a_service_is_documented_with_its_methods() -> None:
    assert page.text(parse(PRICE)) == PAGE


def test_a_worker_without_a_schema_has_codes_and_tests() -> None:
    shown = "t\n\ncodes of its tests: 200\n\ntests\n  every kind\n  a matcher alone"
    assert page.text(parse(STATE)) == shown


def test_markdown_has_a_table_of_fields_and_fenced_examples() -> None:
    text = page.markdown(parse(PRICE))
    assert text.startswith("# Prices\n\nWorker type `price`.\n\nWhat things cost.\n\n## Grants\n")
    assert "\n## `of`\n\nThe price of some pieces.\n\n### Request\n" in text
    assert '\n| `item` | "tea" or "cup" | required | What is sold. |\n' in text
    assert '\n```json\n{"item": "tea", "count": 2}\n```\n' in text
    assert text.endswith("| `result` | integer | required |  |")


def test_the_interface_is_a_spec_without_what_only_tests_need() -> None:
    made = page.interface(parse(PRICE))
    assert PRICE.keys() - made.keys() == {"tests", "secrets"}
    parse(made)


def test_fields_in_fields_references_and_alternatives_have_rows() -> None:
    found = kinds(ODD["request"], **ODD["$defs"])
    assert found["class.again"] == ("object, the whole again", "and further conditions of its schema")
    assert found["own pair"] == ("null", "")
    assert found["a/b~c.in"] == found["a.in"] == ("string", "")
    assert found["open.*"] == ("number", "")
    assert found["level"] == ('"low" or 1 or null or true or 1.5', "")
    assert found["either"] == ("integer or array of boolean or null", "")
    items = {"type": "array", "minItems": 1, "items": {"properties": {"n": {"type": "integer", "maximum": 3}}}}
    assert kinds(items) == {"": ("array of object", "at least 1 item"), "[].n": ("integer", "at most 3")}
    assert kinds({"allOf": [{"properties": {"a": {"const": 1}}}]}) == {"": ("object", ""), "a": ("1", "")}


def test_examples_are_those_of_the_schema_else_of_a_test_that_succeeds() -> None:
    tests = [
        {"name": "bad", "request": {"n": 0}, "reply": {"code": 400}},
        {"name": "of a server", "request": {"n": "{http}"}, "http": [{"request": {"path": "/"}}]},
        {"name": "open", "request": {"n": 1}, "reply": {"n": "$any"}},
        {"name": "good", "request": {"n": 2}, "reply": {"n": "$$2"}},
    ]
    spec = parse({"type": "t", "request": {"type": "object"}, "reply": {"type": "object"}, "tests": tests})
    (section,) = page.sections(spec)
    assert [part.examples for part in section.parts] == [[{"n": 1}], [{"n": "$2"}]]
    assert section.codes == [200, 400]


def test_a_large_spec_is_shown_in_part() -> None:
    many = {f"f{number}": {"type": "string", "description": "x" * 9000} for number in range(5000)}
    tests = [{"name": f"test {number}"} for number in range(5000)]
    spec = parse({"type": "t", "description": "y" * 10**6, "request": {"properties": many}, "tests": tests})
    for text in (page.text(spec), page.markdown(spec)):
        assert len(text) < 200_000
        assert "… and more" in text
        assert "… and 4800 more" in text


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


@settings(max_examples=60, deadline=None)
@given(TEXTS, TEXTS, TEXTS)
def test_no_text_of_a_spec_drives_the_terminal_or_leaves_its_cell(field: str, words: str, name: str) -> None:
    schema = {"properties": {field: {"description": words, "enum": [words]}}, "description": words, "examples": [words]}
    tests = [{"name": name[:100]}]
    spec = parse({"type": "t", "title": words, "description": words, "request": schema, "tests": tests})
    for text in (page.text(spec), page.markdown(spec)):
        assert all(line.isprintable() for line in text.split("\n"))


def test_no_text_of_a_spec_is_html_or_leaves_its_cell_in_markdown() -> None:
    schema = {"properties": {"a|b": {"description": "<b>|x\n# y", "pattern": "`<i>`"}}}
    text = page.markdown(
        parse({"type": "t", "description": "<script>", "request": schema, "tests": [{"name": "*<a>"}]})
    )
    assert "| `a\\|b` | anything | like \\`\\<i\\>\\` | &lt;b>\\|x # y |" in text
    assert "\n&lt;script>\n" in text
    assert "- \\*\\<a\\>" in text
