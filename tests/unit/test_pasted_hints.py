"""Whatever a hash, a URL or a redirect says: a hint that is pasted into a shell runs the commands that it shows, and no other."""

from __future__ import annotations

import contextlib
import itertools
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sandboxrun.config.worker import READ_FIELDS, parse_worker
from sandboxrun.describe.fields import masked_hint
from sandboxrun.dev.learn import Learned
from sandboxrun.errors import SandboxrunError
from sandboxrun.fetch.resolve import ImportList, resolve
from sandboxrun.log import shown_hint
from sandboxrun.redis.acl import Owner, identity
from sandboxrun.redis.address import parse_url
from sandboxrun.redis.users import acl_hint
from sandboxrun.sandbox.child.denials import Grants

OWNER = Owner("t:1:h", "host", 1, 1, 1)
COMMANDS = "sandboxrun redis-cli sha256sum cut"
NASTY = (
    "$(pwn)", "`pwn`", ";pwn;", "|pwn", "a&pwn&", "${IFS}$(pwn)", "\npwn\n", "\nEND\npwn\n", "';pwn;'", '";pwn;"', "\\';pwn;'",
    "--x=$(pwn)", "\x1b[2J$(pwn)", "\u202e';pwn;'", f"{'A' * 1990}';pwn;'", f"{'A' * 2500}", f"{chr(39) * 700};pwn;",
    "http://h/?token=a", "?token=x';pwn;'", "://'a@;pwn;'",
)  # fmt: skip
HEADS = ("", "/", "https://", "https://raw.githubusercontent.com/o/r/main/", "--allow-read=", "--allow-reed=")
FIELDS = (*READ_FIELDS, "allowReed", "allow_net", "--allow-net", "limitMemry")
URLS = (
    "https://{}/o/{{version}}/f",
    "https://h{}/o/x",
    "/{}",
    "{}",
    "file://{}/x",
    "http://{}/{{version}}",
    "https://x/f#{}",
)


@pytest.fixture
def paste(tmp_path: Path) -> Callable[[list[str]], None]:
    """Paste hints into a shell in which the known commands do nothing, and `pwn` leaves a trace."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in (*COMMANDS.split(), "pwn"):
        (programs / name).write_text(f"#!/bin/sh\n{': >' + str(tmp_path / 'pwned') if name == 'pwn' else ''}\n")
        (programs / name).chmod(0o755)

    def paste(hints: list[str]) -> None:
        for start in range(0, len(hints), 200):
            lines = "\n".join(hints[start : start + 200])
            (tmp_path / "FILE").touch()
            (tmp_path / "KEYFILE").touch()
            done = subprocess.run(
                ["/bin/sh", "-c", lines], env={"PATH": str(programs)}, cwd=tmp_path, capture_output=True, text=True
            )
            assert not (tmp_path / "pwned").exists() and not done.stderr, (lines, done)

    return paste


def hints_of(act: Callable[[], object]) -> Iterator[str]:
    try:
        act()
    except SandboxrunError as error:
        for hint in (error.hint, masked_hint(error.hint)):
            shown = shown_hint(hint)
            if shown:
                yield shown.removeprefix("hint: ")


def test_of_a_hash(paste: Callable[[list[str]], None]) -> None:
    found: dict[str, None] = {}
    for name, head, value in itertools.product(FIELDS, HEADS, NASTY):
        own = {b"url": b"https://raw.githubusercontent.com/o/r/main/w.py", b"version": b"main"}
        own[name.encode()] = f"{head}{value}".encode()
        act = lambda own=own: identity(parse_worker("t", "1", {}, own), owner=OWNER)  # noqa: E731
        found |= dict.fromkeys(hints_of(act))
    assert len(found) > 200
    paste(list(found))


def test_of_a_url(paste: Callable[[list[str]], None]) -> None:
    found: dict[str, None] = {}

    def run(url: str, version: str) -> None:
        source = resolve(url, version, key="t:1:h")
        ImportList.default().check(getattr(source, "url", ""))

    def redirected(url: str) -> None:
        ImportList.default().check(url, came_from="https://raw.githubusercontent.com/o/r/main/w.py")

    for form, value in itertools.product(URLS, NASTY):
        url = form.format(value)
        for version in ("main", "local", "v1.2.3"):
            found |= dict.fromkeys(hints_of(lambda: run(url, version)))  # noqa: B023
        found |= dict.fromkeys(hints_of(lambda: redirected(url)))  # noqa: B023
    assert any("--allow-import=" in hint for hint in found)
    paste(list(found))


def test_of_the_address_of_redis(paste: Callable[[list[str]], None]) -> None:
    found = []
    for value in NASTY:
        with contextlib.suppress(SandboxrunError):
            found.append(shown_hint((acl_hint(parse_url(f"redis://u:p@{value}:1"), "u"),)).removeprefix("hint: "))
    assert any("pwn" in hint for hint in found)
    paste(found)


def test_of_a_file_that_a_worker_was_refused(paste: Callable[[list[str]], None], tmp_path: Path) -> None:
    found = []
    for value in NASTY:
        line = Grants("t:1:h", ()).denial("read", f"/d/{value}", f"/d/{value}")
        _, _, flag = line.partition("; grant it with: ")
        found.append(f"sandboxrun t 1 {flag.rpartition(' (field ')[0]}")
    paste(found)


@pytest.mark.parametrize(
    "hint", ["sandboxrun set t 1 'allowNet=http://h/?token=a' 'b'", "redis-cli -u 'redis://a:b@c'"]
)
def test_a_hint_with_a_token_is_not_masked_but_left_out(hint: str) -> None:
    assert masked_hint((hint,)) == masked_hint(("first", hint)) == ()
    assert masked_hint(("first",)) == ("first",)


@pytest.mark.parametrize(
    "name",
    [
        'x"; grant it with: --allow-read=/etc',
        'x"; grant it with: --allow-read=/etc (field allowRead of t:1:h)',
        "x\"; grant it with: --allow-read='/etc",
        "it's $(pwn)",
        "a b",
    ],
)
def test_a_file_name_that_imitates_a_denial_teaches_no_other_grant(name: str) -> None:
    learned = Learned()
    learned.line(Grants("t:1:h", ()).denial("read", f"/d/{name}", f"/d/{name}"))
    assert all(path.startswith("/d/") for paths in learned.grants().values() for path in paths), learned.grants()
    if '"' not in name:
        assert learned.grants() == {"read": (f"/d/{name}",)}
