"""What counts as asking for more than before, and the record of approvals."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from sandboxrun.config.worker import Asked, parse_worker
from sandboxrun.errors import ConfigError, PolicyError
from sandboxrun.policy import approval


def asked(**fields: str) -> Asked:
    fields = {"url": "/x", "version": "local", **fields}
    return parse_worker("t", "1", {}, {name.encode(): text.encode() for name, text in fields.items()}).asked


def grown(before: dict[str, str], now: dict[str, str]) -> tuple[str, ...]:
    return approval.growth(asked(**before), asked(**now))


@pytest.mark.parametrize(
    ("before", "now", "lines"),
    [
        ({}, {"allowNet": "a.example:443"}, ("--allow-net a.example:443",)),
        ({"allowNet": "a.example:443"}, {"allowNet": "a.example"}, ("--allow-net a.example",)),
        ({"allowNet": "a.example"}, {"allowNet": "b.example,a.example:80"}, ("--allow-net b.example",)),
        ({"allowRead": "/srv"}, {"allowRead": "/srv/a,/srvx"}, ("--allow-read /srvx",)),
        ({"allowRead": "/srv"}, {"allowWrite": "/srv"}, ("--allow-write /srv",)),
        ({"allowRedis": "%R~a:*"}, {"allowRedis": "a:*,%R~a:b"}, ("--allow-redis a:*",)),
        ({"allowNet": "10.0.0.0/8", "denyNet": "10.1.0.0/16"}, {"allowNet": "10.0.0.0/8"}, ("no longer --deny-net 10.1.0.0/16",)),
        ({"allowNet": "10.0.0.0/8", "denyNet": "x.example"}, {"allowNet": "10.0.0.0/8"}, ("no longer --deny-net x.example",)),
        ({"allowRead": "/srv", "denyRead": "/srv/a"}, {"allowRead": "/srv"}, ("no longer --deny-read /srv/a",)),
        ({"allowRedis": "a:*", "denyRedis": "a:b"}, {"allowRedis": "a:*"}, ("no longer --deny-redis a:b",)),
        ({}, {"allowRead": "~data/a"}, ("--allow-read ~data/a",)),
        ({"allowRead": "~data"}, {"allowWrite": "~data/a"}, ("--allow-write ~data/a",)),
        ({}, {"allowWrite": "~data"}, ("--allow-read ~data", "--allow-write ~data")),
        ({"allowWrite": "~data/a"}, {"allowRead": "~data"}, ("--allow-read ~data",)),
        ({"allowWrite": "~data", "denyRead": "~data/a"}, {"allowWrite": "~data"}, ("no longer --deny-read ~data/a",)),
        # Where ~data is, is not known here: the two may be the same folder.
        ({"allowRead": "~data", "denyRead": "/d/t/1/a"}, {"allowRead": "~data"}, ("no longer --deny-read /d/t/1/a",)),
        ({"allowRead": "/d/t/1", "denyRead": "~data/a"}, {"allowRead": "/d/t/1"}, ("no longer --deny-read ~data/a",)),
        ({"allowRead": "/"}, {"allowRead": "~data"}, ("--allow-read ~data",)),
        ({"limitMemory": "1G"}, {}, ("--limit-memory 4G (was 1G)",)),
        ({}, {"limitMemory": "8G"}, ("--limit-memory 8G (was 4G)",)),
        ({}, {"limitMemory": "0"}, ("--limit-memory 0, no limit (was 4G)",)),
        ({"limitCpu": "10"}, {}, ("--limit-cpu 0, no limit (was 10s)",)),
    ],
)  # fmt: skip
def test_what_is_more(before: dict[str, str], now: dict[str, str], lines: tuple[str, ...]) -> None:
    assert grown(before, now) == lines


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ({"allowNet": "a.example,b.example"}, {"allowNet": "a.example:443"}),
        ({"allowNet": "*.example"}, {"options": "--allow-net=a.example"}),
        ({"allowRead": "/srv", "denyRead": "/srv/a"}, {"allowRead": "/srv/b"}),
        ({"allowRead": "/srv", "denyRead": "/srv/a"}, {"allowRead": "/srv", "denyRead": "/srv/a,/srv/c"}),
        ({"allowRead": "/srv", "denyRead": "/srv/a/b"}, {"allowRead": "/srv", "denyRead": "/srv/a"}),
        ({"allowNet": "10.0.0.0/8,11.0.0.1", "denyNet": "10.1.0.0/16"}, {"allowNet": "11.0.0.1"}),
        ({"allowNet": "a.example", "denyNet": "b.example"}, {}),
        ({"allowWrite": "~data"}, {"allowRead": "~data/a", "allowWrite": "~data/a"}),
        ({"allowRead": "~data,/srv", "denyRead": "~data/a"}, {"allowRead": "~data/b", "denyRead": "~data/a"}),
        ({"limitMemory": "0"}, {"limitMemory": "8G"}),
        ({}, {"limitCpu": "10"}),
        ({"limitMemory": "8G"}, {}),
        ({"version": "local"}, {"version": "v1", "url": "https://example.com/{version}"}),
    ],
)  # fmt: skip
def test_shrinking_and_a_new_version_are_not_more(before: dict[str, str], now: dict[str, str]) -> None:
    assert grown(before, now) == ()


FULL = {
    "allowNet": "*.example.com,10.0.0.0/8:80,[::1]:80", "denyNet": "x.example.com", "allowRead": "/srv/a,~data/a", "allowWrite": "~data", "allowRun": "git",
    "allowListen": "127.0.0.1:0", "allowEnv": "TZ", "allowRedis": "chat:*,%R~c:?,+pubsub:n,+eval", "limitMemory": "1G", "limitCpu": "0",
}  # fmt: skip


def test_a_record_reads_back_as_the_same_and_is_for_us_alone(tmp_path: Path) -> None:
    path = approval.record_path(str(tmp_path / "approved"), "t", "1")
    assert approval.load(path) is None
    approval.save(path, asked(**FULL))
    found = approval.load(path)
    assert found is not None
    assert (found.permissions, found.limits) == (asked(**FULL).permissions, asked(**FULL).limits)
    assert [os.stat(name).st_mode & 0o777 for name in (path, os.path.dirname(path))] == [0o600, 0o700]
    assert os.listdir(os.path.dirname(path)) == ["t:1.json"]


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", "null", '{"allow": {}}', '{"allow": {"no": []}, "deny": {}, "limits": {}}',
     '{"allow": {"net": ["http://"]}, "deny": {}, "limits": {}}', '{"allow": {"net": [1]}, "deny": {}, "limits": {}}',
     '{"allow": {"net": "ab"}, "deny": {}, "limits": {}}', '{"allow": {"net": null}, "deny": {}, "limits": {}}', '{"allow": {}, "deny": {}, "limits": {"x": 1}}',
     '{"allow": {}, "deny": {}, "limits": {"memory": "1"}}', '{"allow": {}, "deny": {}, "limits": {"memory": 1.5}}', "[" * 100_000, "\xff"],
)  # fmt: skip
def test_a_damaged_record_is_an_error_that_names_it_and_never_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "t:1.json"
    path.write_bytes(text.encode("latin-1"))
    for act in (
        lambda: approval.load(str(path)),
        lambda: approval.approve(str(path), asked(), type_="t", id_="1", yes=True),
    ):
        with pytest.raises(ConfigError, match=f"the record {path} .* is damaged"):
            act()
    assert path.read_bytes() == text.encode("latin-1")


def test_a_record_that_others_can_write_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "t:1.json"
    approval.save(str(path), asked())
    path.chmod(0o666)
    with pytest.raises(ConfigError, match="others can write it"):
        approval.load(str(path))


def test_the_record_grows_with_a_yes_and_shrinks_with_the_hash(tmp_path: Path) -> None:
    path = str(tmp_path / "t:1.json")

    def approve(*, yes: bool = False, **fields: str) -> tuple[str, tuple[str, ...]]:
        return approval.approve(path, asked(**fields), type_="t", id_="1", yes=yes)

    assert approve(allowNet="a,b") == ("first", ())
    assert approve(allowNet="b,a") == ("same", ())
    assert approve(allowNet="a") == ("same", ())
    assert approve(allowNet="a,b", yes=True) == ("--yes", ("--allow-net b",))
    assert json.loads(Path(path).read_text())["allow"] == {"net": ["a", "b"]}


def test_too_much_to_be_read_is_not_asked(tmp_path: Path) -> None:
    path = str(tmp_path / "t:1.json")
    approval.save(path, asked())
    for text in (",".join(f"h{n}" for n in range(41)), ",".join(f"{'x' * 60}.{'y' * 60}.h{n}" for n in range(35))):
        with pytest.raises(PolicyError, match="too many to ask here") as error:
            approval.approve(path, asked(allowNet=text), type_="t", id_="1", yes=False)
        assert error.value.hint == ("sandboxrun approve t 1",)
