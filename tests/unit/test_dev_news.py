"""What `sandboxrun dev` says of the tests after a save."""

from __future__ import annotations

import pytest

from sandboxrun.dev.tests import Results, news, parse

PASSED = Results({"a": "", "b": ""})
ONE = Results({"a": "x: expected 1, got 2", "b": ""})
BROKEN = Results({}, "spec.json:1:1 is not JSON")
MANY = Results({str(number): "wrong" for number in range(7)})


@pytest.mark.parametrize(
    ("before", "now", "lines"),
    [
        (None, PASSED, ["good tests: 2 pass"]),
        (None, ONE, ["bad tests: `a` fails: x: expected 1, got 2", "bad tests: 1 pass, 1 fails"]),
        (PASSED, PASSED, ["dev tests: 2 pass"]),
        (ONE, ONE, ["dev tests: 1 pass, 1 fails"]),
        (PASSED, ONE, ["bad tests: `a` fails now: x: expected 1, got 2"]),
        (ONE, PASSED, ["good tests: `a` passes again"]),
        (PASSED, BROKEN, ["bad tests: spec.json:1:1 is not JSON"]),
        (BROKEN, BROKEN, ["dev tests: spec.json:1:1 is not JSON"]),
        (Results(PASSED.faults, BROKEN.error), PASSED, ["good tests: 2 pass"]),
        (Results(PASSED.faults, BROKEN.error), ONE, [
            "bad tests: `a` fails now: x: expected 1, got 2", "bad tests: 1 pass, 1 fails",
        ]),
        (None, MANY, [
            *(f"bad tests: `{number}` fails: wrong" for number in range(5)),
            "bad tests: and 2 more have changed", "bad tests: 0 pass, 7 fail",
        ]),
    ],
)  # fmt: skip
def test_only_what_has_changed_is_said(before: Results | None, now: Results, lines: list[str]) -> None:
    assert [f"{kind} {text}" for kind, text in news(before, now)] == lines


def test_what_is_no_result_is_an_error() -> None:
    assert parse(65, b"", b"error: ./spec.json: type: 1\nhint: x\n", "/x") == Results({}, "spec.json: type: 1")
    assert parse(65, b"", b"error: /x/spec.json has no tests\n", "/x") == Results({}, "spec.json has no tests")
    assert parse(-9, b"", b"", "/x") == Results({}, "exit code -9")
    told = b'[{"error": null, "tests": [{"name": "a", "passed": false, "faults": ["\\u001b[2J", "y"]}]}]'
    assert parse(1, told, b"", "/x") == Results({"a": "\\x1b[2J (and 1 more)"})
