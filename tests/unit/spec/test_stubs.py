"""`sandboxrun spec types`: mypy accepts the module and good calls, and rejects wrong ones."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spec_files import GOOD

from sandboxrun.spec import model, page, stubs

KINDS: dict[str, Any] = {
    "type": "kinds",
    "description": 'Ends """ a docstring \\',
    "$defs": {
        "loop": {"$ref": "#/$defs/other"},
        "other": {"anyOf": [{"type": "integer"}, {"$ref": "#/$defs/loop"}]},
        "value": {"anyOf": [{"type": ["string", "null"]}, {"type": "array", "items": {"$ref": "#/$defs/value"}}]},
        "maybe": {"type": ["object", "null"], "properties": {"next": {"$ref": "#/$defs/maybe"}}},
        "base": {"type": "object", "properties": {"id": {"type": "integer"}}, "required": ["id"]},
    },
    "request": {
        "type": "object",
        "description": "What\nis asked.",
        "properties": {
            "loop": {"$ref": "#/$defs/loop"},
            "value": {"$ref": "#/$defs/value"},
            "maybe": {"$ref": "#/$defs/maybe", "description": "Or nothing."},
            "class": {"const": "a"},
            "list": {"type": "array", "items": {"enum": [1, 2.5, None]}},
            "pair": {"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}], "items": False},
            "scores": {"type": "object", "additionalProperties": {"type": "number"}},
            "whole": {"allOf": [{"$ref": "#/$defs/base"}, {"properties": {"text": {"type": "string"}}}]},
            "shadow": {"type": "object", "properties": {"str": {"type": "string"}, "other": {"type": "string"}}},
            "never": False,
            "any": {"minimum": 3},
        },
        "required": ["list", "unnamed"],
    },
    "reply": {"type": "object", "properties": {"Text": {"type": "string"}}, "oneOf": [{"required": ["Text"]}, {}]},
    "methods": {"all": {"request": {"$ref": "#/$defs/base"}, "reply": {"$ref": "#/$defs/value"}}},
}
OURS = {path.parent.name: json.loads(path.read_text()) for path in Path(__file__).parents[3].glob("*/*/spec.json")}
SPECS = {**OURS, **GOOD, "kinds": KINDS}
RIGHT = """\
from typing import Any, assert_type
from sandboxrun import client, connect
from kinds_types import Kinds, Request
from odd_types import OddOne
from plain_types import Request as Plain
from price_types import OfReply, Price, Tree

price = connect("price", Price)
assert_type(price.of(item="tea"), OfReply)
assert_type(price.of(item="cup", count=2, coupon=None)["total"], int)
assert_type(price.count(), int)
tree: Tree = {"name": "a", "parts": [{"name": "b", "parts": []}]}
assert_type(connect("odd-one", OddOne).shop.list(), list[str])
plain: Plain = {"user": "ann"}
client.call("counter", plain)
request: Request = {"list": [1, None, 2.5], "unnamed": 1, "class": "a", "value": ["a", [None]], "pair": ["a", 1]}
request["maybe"] = {"next": {"next": None}}
request["whole"] = {"id": 1, "text": "x"}
request["scores"] = {"a": 1.5}
connect("kinds", Kinds).all(id=1)
"""
# Each line is an error.
WRONG = """\
price.of(item="milk")
price.of(count=2)
price.of(item="tea", cuont=2)
price.of("tea")
price.of(item="tea", count="2")
price.offf()
text: str = price.count()
reply["sum"]
tree: Tree = {"name": "a", "parts": [{"nam": "b"}]}
plain: Plain = {"user": 5}
again: Plain = {}
value: Request = {"list": ["a"], "unnamed": 1}
whole: Request = {"list": [], "unnamed": 1, "whole": {"text": "x"}}
either: Request = {"list": [], "unnamed": 1, "class": "b"}
pair: Request = {"list": [], "unnamed": 1, "pair": [None]}
"""


def parse(raw: Any) -> model.Spec:
    return model.parse(json.dumps(raw).encode(), "spec.json")


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[int, str]]]:
    """What `mypy --strict` says of each file, as line and message."""
    folder = tmp_path_factory.mktemp("user")
    for name, raw in SPECS.items():
        (folder / f"{re.sub('[ -]', '_', name)}_types.py").write_text(stubs.module(parse(raw)))
    (folder / "right.py").write_text(RIGHT)
    head = RIGHT[: RIGHT.index("assert_type(price")]
    (folder / "wrong.py").write_text(f"{head}reply = price.of(item='tea')\n{WRONG}")
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--follow-imports=silent", "."]
    env = {name: value for name, value in os.environ.items() if name not in ("MYPYPATH", "PYTHONPATH")}
    (folder / "mypy.ini").write_text("[mypy]\n")
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=110)
    assert done.returncode == 1 and done.stderr == "", done
    found: dict[str, list[tuple[int, str]]] = {}
    for line in done.stdout.splitlines():
        match = re.fullmatch(r"(\w+)\.py:(\d+): error: (.*)", line)
        if match is not None:
            found.setdefault(match[1], []).append((int(match[2]), match[3]))
    return found


def test_the_modules_and_good_calls_have_no_error(said: dict[str, list[tuple[int, str]]]) -> None:
    assert {name: lines for name, lines in said.items() if name != "wrong"} == {}


def test_each_wrong_call_is_an_error(said: dict[str, list[tuple[int, str]]]) -> None:
    first = RIGHT[: RIGHT.index("assert_type(price")].count("\n") + 2
    assert {line for line, _ in said["wrong"]} == set(range(first, first + WRONG.count("\n")))


@pytest.mark.parametrize("name", SPECS)
def test_a_module_can_be_run(name: str) -> None:
    source = stubs.module(parse(SPECS[name]))
    made: dict[str, Any] = {}
    exec(compile(source, name, "exec"), made)
    assert made["__doc__"].startswith(f"Types of the worker type {SPECS[name]['type']}, made by ")


def test_what_a_method_is_for_is_its_docstring() -> None:
    made: dict[str, Any] = {}
    exec(stubs.module(parse(SPECS["price"])), made)
    assert "The price of some pieces.\n" in made["Price"].of.__doc__
    assert "item: What is sold.\n" in made["Price"].of.__doc__
    exec(stubs.module(parse(KINDS)), made)
    assert made["Kinds"].__doc__ == 'Ends """ a docstring \\'


def test_a_field_does_not_hide_a_type_of_the_same_name() -> None:
    assert '\nRequestShadow = TypedDict(\n    "RequestShadow",\n' in stubs.module(parse(KINDS))


@pytest.mark.parametrize("keyword", ["allOf", "anyOf", "prefixItems"])
def test_a_few_references_cannot_make_many_steps(keyword: str) -> None:
    """Without a bound, each of these would be looked at 30 ** 30 times."""
    defs: dict[str, Any] = {f"d{n}": {keyword: [{"$ref": f"#/$defs/d{n + 1}"}] * 30} for n in range(30)}
    raw = {"type": "t", "$defs": {**defs, "d30": {"type": "string"}}, "request": {"$ref": "#/$defs/d0"}}
    spec = parse(raw)
    ast.parse(stubs.module(spec))
    assert page.text(spec).startswith("t\n")


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
SCHEMAS = st.recursive(
    st.sampled_from([True, False, {}, {"type": "string"}, {"$ref": "#/$defs/a"}, {"$ref": "#"}, {"type": "null"}]),
    lambda inner: st.one_of(
        st.fixed_dictionaries({"type": st.just("array"), "items": inner}),
        st.fixed_dictionaries(
            {"properties": st.dictionaries(TEXTS, inner, max_size=3)},
            optional={"description": TEXTS, "required": st.lists(TEXTS, max_size=2, unique=True)},
        ),
        st.fixed_dictionaries({"enum": st.lists(TEXTS | st.none() | st.integers(), min_size=1, max_size=3)}),
        st.fixed_dictionaries({"anyOf": st.lists(inner, min_size=1, max_size=3)}),
        st.fixed_dictionaries({"allOf": st.lists(inner, min_size=1, max_size=2)}),
    ),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(SCHEMAS, SCHEMAS, SCHEMAS, TEXTS)
def test_no_text_of_a_spec_breaks_the_module(request: Any, reply: Any, shared: Any, words: str) -> None:
    method = {"description": words, "request": request, "reply": reply}
    raw = {"type": "t", "description": words, "$defs": {"a": shared}, "methods": {"m": method}, "request": request}
    spec = parse(raw)
    tree = ast.parse(stubs.module(spec))
    called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert called <= {"TypedDict"}
