"""An error is one line `error:`, and what to paste is a line of its own."""

from __future__ import annotations

import io
import json
import pickle

import pytest

from sandboxrun.errors import ConfigError
from sandboxrun.log import Log


def printed(hint: str | tuple[str, ...], *, as_json: bool = False) -> str:
    error, stream = ConfigError("field url of t:1:h is empty", hint), io.StringIO()
    Log(stream=stream, json=as_json).error("error", str(error), hint=error.hint)
    return stream.getvalue()


def test_a_command_stands_behind_hint() -> None:
    assert (
        printed("sandboxrun set t 1 url=/w") == "error: field url of t:1:h is empty\nhint: sandboxrun set t 1 url=/w\n"
    )


def test_lines_to_write_stand_below_each_other_as_they_are_pasted() -> None:
    assert printed(("cat >>policy.toml <<'END'", "open-redis = true", "END")).splitlines()[1:] == [
        "hint: cat >>policy.toml <<'END'",
        "open-redis = true",
        "END",
    ]


def test_without_a_hint_there_is_one_line() -> None:
    assert printed("") == printed(()) == "error: field url of t:1:h is empty\n"


def test_json_has_the_hint_as_a_list() -> None:
    assert json.loads(printed(("a", "b"), as_json=True))["hint"] == ["a", "b"]
    assert "hint" not in json.loads(printed("", as_json=True))


@pytest.mark.parametrize("value", ["\n", "\x1b[2K", "\u202e", "\r", "\x85", "a" * 2000])
def test_a_hint_that_cannot_be_shown_as_it_is_is_not_shown(value: str) -> None:
    hint = f"sandboxrun set t 1 'url=a{value}b'"
    assert printed(hint) == printed(("first", hint)) == "error: field url of t:1:h is empty\n"
    assert json.loads(printed(hint, as_json=True))["hint"] == [hint]


def test_an_error_keeps_its_hint_when_it_travels_between_processes() -> None:
    again = pickle.loads(pickle.dumps(ConfigError("wrong", "mend it")))
    assert (str(again), again.hint) == ("wrong", ("mend it",))
