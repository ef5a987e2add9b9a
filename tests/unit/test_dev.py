"""The pure parts of developing: what is learned, what is Python, what a folder's worker is called."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import watchfiles

from sandboxrun.config.permissions import KINDS, Denial, Kind
from sandboxrun.dev import source
from sandboxrun.dev.learn import Learned, as_flags, as_set
from sandboxrun.dev.process import parse_message, shown
from sandboxrun.dev.target import Target, type_from
from sandboxrun.dev.watch import changes
from sandboxrun.sandbox.child.denials import Grants


def learned(*wanted: tuple[str, str]) -> Learned:
    found = Learned()
    for kind, target in wanted:
        found.event(json.loads(json.dumps(Denial(Kind(kind), target, target, "t:1:h").fields)))
    return found


def test_a_refusal_of_each_kind_becomes_its_grant() -> None:
    wanted = (("net", "a.example:443"), ("net", "[::1]:5"), ("read", "/etc/passwd"), ("listen", "127.0.0.1:8000"))
    grants = learned(*wanted).grants()
    assert grants == {
        "listen": ("127.0.0.1:8000",),
        "net": ("[::1]:5", "a.example:443"),
        "read": ("/etc/passwd",),
    }
    assert (
        as_flags(grants) == "--allow-listen=127.0.0.1:8000 '--allow-net=[::1]:5,a.example:443' --allow-read=/etc/passwd"
    )


def test_what_another_grant_covers_is_left_out() -> None:
    found = learned(("read", "/srv/a/b"), ("read", "/srv/a"), ("read", "/srv/ab"), ("net", "h:1"), ("net", "h"))
    assert found.grants() == {"net": ("h",), "read": ("/srv/a", "/srv/ab")}
    assert found.grants({"read": [KINDS["read"].parse("/srv")]}) == {"net": ("h",)}


def test_a_hash_keeps_what_it_allows_already() -> None:
    grants = learned(("net", "b:2")).grants()
    assert as_set("t", "1", grants, {"allowNet": "a:1, c"}, url=None) == "sandboxrun set t 1 allowNet=a:1,c,b:2"
    made = as_set("t", "1", grants, {}, url="/a b")
    assert made == "sandboxrun set t 1 'url=/a b' version=local allowNet=b:2"


@pytest.mark.parametrize(
    "line",
    [
        "",
        "Requires net access",
        str(Denial(Kind.NET, "a:1", None, "t:1:h")),  # no grant would allow it
        'Requires read access to "/a,b"; grant it with: --allow-read=/a,b (field allowRead of t:1:h)',
        'Requires magic access to "x"; grant it with: --allow-magic=x (field allowMagic of t:1:h)',
    ],
)
def test_a_line_that_names_no_grant_teaches_nothing(line: str) -> None:
    found = Learned()
    found.line(line)
    assert found.grants() == {}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        Denial(Kind.NET, "a:1", None, "t:1:h").fields,  # no grant would allow it
        {"kind": "read", "grant": "/a,b"},
        {"kind": "magic", "grant": "x"},
        {"kind": ["net"], "grant": "a:1"},
        {"kind": "net", "grant": 1},
        {"kind": "net", "grant": "a:b:c"},
        {"message": str(Denial(Kind.NET, "a:1", "a:1", "t:1:h"))},  # prose
    ],
)
def test_an_event_that_names_no_grant_teaches_nothing(fields: dict[str, object]) -> None:
    found = Learned()
    found.event(fields)
    assert found.grants() == {}


@pytest.mark.parametrize("kind", ["read", "write", "run", "listen", "redis"])
@pytest.mark.parametrize("grant", ["/etc/passwd", "/var/tmp", "127.0.0.1:80"])
def test_the_line_of_a_workers_traceback_is_that_of_a_denial_and_is_read_back(kind: str, grant: str) -> None:
    line = Grants("t:1:h", []).denial(kind, "/var/tmp/absent", grant)
    assert line == str(Denial(Kind(kind), "/var/tmp/absent", grant, "t:1:h"))
    learned = Learned()
    learned.line(f"{line}\n")
    try:
        Kind(kind).parse(grant)
    except ValueError:
        assert learned.grants() == {}
    else:
        assert learned.grants() == {kind: (grant,)}


def test_a_syntax_error_is_shown_with_its_line(tmp_path: Path) -> None:
    files = {"good.py": "x = 1\n", "bad.py": "x = 1\nif x\n    pass\n", "nul.py": "\0", "data.txt": "if x"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    paths = [str(tmp_path / name) for name in (*files, "gone.py")]
    found = source.problems(paths, str(tmp_path))
    assert [Path(path).name for path in found] == ["bad.py", "nul.py"]
    assert found[paths[1]] == "bad.py:2: SyntaxError: expected ':'\n    if x\n        ^"


@pytest.mark.parametrize(
    ("name", "type_"),
    [
        ("greeter", "greeter"),
        ("My Worker!", "my-worker"),
        ("2nd_try", "nd_try"),
        ("req", "req-worker"),
        ("a" * 99, "a" * 64),
        ("Größe Café", "grosse-cafe"),
        ("日本", "worker"),
        ("42", "worker"),
        ("", "worker"),
    ],
)
def test_a_folders_name_becomes_a_valid_type(name: str, type_: str) -> None:
    assert type_from(name) == type_


def test_only_a_whole_message_counts_as_one() -> None:
    assert parse_message('{"time": 1, "level": "info", "event": "start", "message": "m"}') is not None
    for line in ('{"time": 1', '{"time": 1}', '{"time": 1, "level": 2, "event": "start", "message": "m"}', "text"):
        assert parse_message(line) is None
    assert shown("a\tb\x1b[2J") == "a\tb\\x1b[2J"


def test_an_edit_just_before_the_kernel_watches_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "worker.py"
    script.write_text("1\n")
    watch = watchfiles.watch

    def edited(*folders: str, **options: Any) -> Iterator[Any]:
        script.write_text("1 + 1\n")
        return watch(*folders, **options)

    monkeypatch.setattr(watchfiles, "watch", edited)
    stop = threading.Event()
    threading.Timer(5, stop.set).start()
    seen = changes(Target.of_path(str(tmp_path)), stop=stop, armed=lambda: None, warn=print)
    assert next(seen, None) == {str(script)}
    stop.set()
