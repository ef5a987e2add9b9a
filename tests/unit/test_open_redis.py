"""What policy files say of a Redis that requires no password, and the section that an answer appends."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandboxrun.config.worker import parse_worker
from sandboxrun.errors import ConfigError
from sandboxrun.policy.ceiling import Ceiling
from sandboxrun.policy.file import FILE_MAX_BYTES, ceiling_for, parse_policy
from sandboxrun.redis.acceptance import record

URL = "redis://127.0.0.1:6379"
WORKER = '[worker."{}"]\nopen-redis = {}\n'
REDIS = '[redis."{}"]\nopen-redis = {}\n'


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o600)
    return path


def ceiling(tmp_path: Path, *texts: str) -> Ceiling:
    """By a file each; the last one is the user's."""
    worker = parse_worker("t", "1", {}, {b"url": b"/x", b"version": b"local"})
    paths = [str(write(tmp_path / f"{number}.toml", text)) for number, text in enumerate(texts)]
    return ceiling_for(worker, system=paths[:-1], user=paths[-1], required=False, data="/data/t/1")


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ([""], "nothing"),
        ([WORKER.format("t", "true")], "yes"),
        ([WORKER.format("u", "true")], "nothing"),
        ([REDIS.format(URL, "true")], "yes"),
        ([REDIS.format(URL, "false")], "no"),
        ([REDIS.format("redis://127.0.0.1:6380", "true")], "nothing"),
        ([REDIS.format("rediss://127.0.0.1:6379", "true")], "nothing"),
        ([REDIS.format("redis://localhost:6379", "true")], "nothing"),
        ([f'[redis."{URL}"]\n'], "nothing"),
        ([WORKER.format("t", "false") + REDIS.format(URL, "true")], "no"),
        ([WORKER.format("u", "false") + REDIS.format(URL, "true")], "yes"),
        ([WORKER.format("t", "true") + REDIS.format(URL, "false")], "no"),
        ([REDIS.format(URL, "true"), ""], "yes"),
        ([REDIS.format(URL, "false"), REDIS.format(URL, "true")], "no"),
        ([REDIS.format(URL, "true"), REDIS.format(URL, "false")], "no"),
        ([WORKER.format("*", "false"), REDIS.format(URL, "true")], "no"),
    ],
)
def test_one_file_must_say_yes_and_none_no(tmp_path: Path, texts: list[str], said: str) -> None:
    found = ceiling(tmp_path, *texts)
    assert (found.accepts_open_redis(URL), bool(found.forbids_open_redis(URL))) == (said == "yes", said == "no")


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("redis = 1\n", 1, "has 'redis'"),
        ("\n[redis]\nopen-redis = true\n", 3, "has 'open-redis' for a Redis"),
        ('[redis."127.0.0.1:6379"]\n', 1, "for a Redis: expected a section as [redis."),
        ('[redis."redis://127.0.0.1"]\n', 1, "with the scheme and the port"),
        ('[redis."redis://:secret@127.0.0.1:6379"]\n', 1, "without a login"),
        ('[redis."redis://127.0.0.1:6379/1"]\n', 1, "for a Redis"),
        ('[redis."*"]\n', 1, "for a Redis"),
        (f'[redis."{URL}"]\nopen-redis = "yes"\n', 2, "expected true or false"),
        (f'[redis."{URL}"]\nopen = true\n', 2, "has 'open': expected open-redis"),
        (f'[redis]\n"{URL}" = true\n', 2, "for a Redis"),
        (REDIS.format(URL, "true") * 2, 3, "is not TOML"),
    ],
)
def test_a_mistake_is_one_line_with_its_place(text: str, line: int, message: str) -> None:
    with pytest.raises(ConfigError) as found:
        parse_policy(text, "/p.toml")
    assert str(found.value).startswith(f"/p.toml:{line} ")
    assert message in str(found.value)
    assert "secret" not in str(found.value)


@pytest.mark.parametrize(
    "url", [URL, "rediss://redis.example:6380", "redis://::1:6379", 'unix:///run/a "b" \\c \x7f é.sock']
)
@pytest.mark.parametrize("text", ["", "# mine", WORKER.format("t", "true"), "[worker]\r\n"])
def test_an_answer_is_appended_and_read_back(tmp_path: Path, url: str, text: str) -> None:
    path = write(tmp_path / "0.toml", text)
    record(str(path), url)
    with open(path, newline="") as file:
        assert file.read().startswith(text)
    assert [(server.url, server.open_redis) for server in parse_policy(path.read_text(), "p").servers] == [(url, True)]
    assert path.stat().st_mode & 0o777 == 0o600
    assert ceiling(tmp_path, path.read_text()).accepts_open_redis(url)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[worker\n", "is not TOML"),
        (f'[redis."{URL}"]\n', "is not TOML"),
        ("redis = {}\n", "is not TOML"),
        ("#" * (FILE_MAX_BYTES - 10) + "\n", "cannot be extended"),
    ],
)
def test_a_file_that_cannot_be_extended_stays_as_it_is(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "policy.toml", text)
    with pytest.raises(ConfigError, match=message):
        record(str(path), URL)
    assert path.read_text() == text
    assert [each.name for each in tmp_path.iterdir()] == ["policy.toml"]


def test_a_file_that_others_can_write_is_not_extended(tmp_path: Path) -> None:
    path = write(tmp_path / "policy.toml", "")
    path.chmod(0o666)
    with pytest.raises(ConfigError, match="can be written by others"):
        record(str(path), URL)
    assert path.read_text() == ""


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be written: "):
        record(str(tmp_path / "file" / "policy.toml"), URL)
