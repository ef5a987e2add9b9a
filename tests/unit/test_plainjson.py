"""JSON without the module json, which is as json has it, for good and for bad text, also before json is imported."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from sandboxrun import plainjson

TEXTS = (
    '{"a": [1, 2.5, -3e2, true, false, null, "\\ud83d\\ude00 \\u00e9"]}', ' {"a": 1}\n', '""', "0", "NaN", "[Infinity, -Infinity]",
    '{"a": 1, "a": 2}', "1" * 100, '"\u2028"',
)  # fmt: skip
FAULTS = (
    "",
    " ",
    "{",
    '{"a"',
    '{"a":}',
    "[1,",
    "[1,]",
    "tru",
    '"\\q"',
    '"\n"',
    "1 2",
    "'a'",
    "[" * 100_000,
    "1" * 5000,
)
VALUES = (
    {"a": [1, 2.5, True, None, "é\u2028\ud800"], "b": {}, "c": (1, 2)}, {1: "a", None: 2, False: 3}, [], "text", 1.5, float("nan"),
)  # fmt: skip


def outcome(function, *args, **named):  # type: ignore[no-untyped-def]
    try:
        return repr(function(*args, **named))
    except (ValueError, TypeError, RecursionError) as error:
        return type(error), str(error) if not isinstance(error, RecursionError) else ""


@pytest.mark.parametrize("text", [*TEXTS, *FAULTS], ids=lambda text: repr(text)[:20])
def test_a_text_is_read_as_json_reads_it(text: str) -> None:
    assert outcome(plainjson.loads, text.encode()) == outcome(json.loads, text)


@pytest.mark.parametrize("value", [*VALUES, {1, 2}, {(1, 2): 3}], ids=lambda value: repr(value)[:20])
@pytest.mark.parametrize("nan", [True, False])
def test_a_value_is_written_as_json_writes_it(value: object, nan: bool) -> None:
    assert outcome(plainjson.dumps, value, nan=nan) == outcome(json.dumps, value, allow_nan=nan)
    assert outcome(plainjson.dumps, value, str, nan=nan) == outcome(json.dumps, value, default=str, allow_nan=nan)


def test_a_circle_is_an_error() -> None:
    circle: list[object] = []
    circle.append(circle)
    assert (
        outcome(plainjson.dumps, circle) == outcome(json.dumps, circle) == (ValueError, "Circular reference detected")
    )


def test_hooks_decide_on_constants_and_floats() -> None:
    decode = plainjson.decoder(parse_float=lambda text: f"float {text}", parse_constant=lambda text: f"constant {text}")  # type: ignore[arg-type,return-value]
    for text in ("[1.5, NaN, 2]", " [1.5, NaN, 2] "):
        assert decode(text) == ["float 1.5", "constant NaN", 2]


CODE = """\
import sys
from sandboxrun import plainjson
assert plainjson.loads(plainjson.dumps({"a": [1]}).encode()) == {"a": [1]}
assert not {"json", "re", "enum"} & set(sys.modules)
for text in sys.argv[1:]:
    try:
        plainjson.loads(text.encode())
    except ValueError as error:
        print(type(error).__name__)
"""


def test_neither_json_nor_re_is_imported_before_a_text_is_malformed() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE, '{"a"', "[1,", '"\\q"'], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["JSONDecodeError"] * 3
