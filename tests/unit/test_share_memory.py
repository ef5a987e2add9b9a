"""What policy files say of workers that an agent may fork from a zygote."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandboxrun.config.worker import parse_worker
from sandboxrun.errors import ConfigError
from sandboxrun.policy.ceiling import Ceiling
from sandboxrun.policy.file import ceiling_for, parse_policy

KEY = '[worker."{}"]\nshare-memory = {}\n'


def ceiling(tmp_path: Path, *texts: str) -> Ceiling:
    """By a file each; the last one is the user's."""
    worker = parse_worker("t", "1", {}, {b"url": b"/x", b"version": b"local"})
    paths = [tmp_path / f"{number}.toml" for number in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text)
        path.chmod(0o600)
    *system, user = map(str, paths)
    return ceiling_for(worker, system=system, user=user, required=False, data="/data/t/1")


@pytest.mark.parametrize(
    ("texts", "shares"),
    [
        ([""], False),
        ([KEY.format("t", "true")], True),
        ([KEY.format("*", "true")], True),
        ([KEY.format("u", "true")], False),
        ([KEY.format("t", "false")], False),
        ([KEY.format("*", "true") + KEY.format("t", "false")], False),
        ([KEY.format("*", "false") + KEY.format("t:1", "true")], True),
        ([KEY.format("*", "true") + '[worker."t"]\npinned = true\n'], False),  # the most specific section decides
        ([KEY.format("t", "true"), ""], True),
        ([KEY.format("t", "true"), KEY.format("t", "true")], True),
        ([KEY.format("t", "true"), KEY.format("t", "false")], False),
        ([KEY.format("*", "false"), KEY.format("t", "true")], False),
    ],
)
def test_memory_is_shared_if_one_file_says_so_and_none_says_no(tmp_path: Path, texts: list[str], shares: bool) -> None:
    assert ceiling(tmp_path, *texts).shares_memory is shares


@pytest.mark.parametrize("value", ['"yes"', "1", "[]", '"true"'])
def test_another_value_is_an_error_with_its_line(value: str) -> None:
    with pytest.raises(ConfigError, match=r"^p:2 has share-memory = .*: expected true or false$"):
        parse_policy(KEY.format("t", value), "p")


def test_a_near_name_gets_the_hint_to_write_it_right() -> None:
    with pytest.raises(ConfigError) as error:
        parse_policy(KEY.format("t", "true").replace("share-memory", "share-memry"), "p")
    assert error.value.hint == ("sed -i 2s/share-memry/share-memory/ p",)
