"""What of the arguments is known before they are parsed."""

from __future__ import annotations

import pytest

from sandboxrun.cli import SWITCHES, run, worker_named


def test_the_options_without_a_value_are_those_of_the_parser() -> None:
    actions = run._parser()._actions
    bare = {option for action in actions if action.nargs == 0 for option in action.option_strings}
    assert bare | set(run._INSPECT) == {*SWITCHES, "-h", "--help", "--version"}


@pytest.mark.parametrize(
    ("args", "worker"),
    [
        ("t 1", ("t", "1")),
        ("--quiet t 1", ("t", "1")),
        ("t --redis redis://h 1", ("t", "1")),
        ("t 1 --allow-net=a:1 --inspect --audit f", ("t", "1")),
        ("--limit-memory 1G t 1", ("t", "1")),
        ("t", None),
        ("t 1 2", None),
        ("t 1 --help", None),
        ("--version", None),
        ("", None),
    ],
)
def test_type_and_id_are_found_among_the_options(args: str, worker: tuple[str, str] | None) -> None:
    assert worker_named(args.split()) == worker
