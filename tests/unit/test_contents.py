"""Which change of a script's files and packages needs approval, and the record of what was approved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sandboxrun.config.block import read_block
from sandboxrun.config.contents import Contents, Package, changed_file, from_plain, grown, to_plain
from sandboxrun.config.worker import Asked
from sandboxrun.errors import ConfigError, PolicyError
from sandboxrun.policy import approval

A, B, C = ("a" * 64, "b" * 64, "c" * 64)


def package(text: str, digest: str = A) -> Package:
    name, _, version = text.partition(" ")
    return Package(name, version, digest)


def having(
    *packages: str, lock: str | None = A, dependencies: tuple[str, ...] = ("requests",), **more: Any
) -> Contents:
    return Contents(packages=tuple(map(package, packages)), lock=lock, dependencies=dependencies, **more)


@pytest.mark.parametrize(
    ("before", "now", "lines"),
    [
        (None, having("idna 3.7", "requests 2.32.3"), ["package idna 3.7", "package requests 2.32.3"]),
        (Contents(), having("requests 2.32.3"), ["package requests 2.32.3"]),
        (having("requests 2.31.0"), having("idna 3.7", "requests 2.31.0", lock=B), ["package idna 3.7"]),
        (having("requests 2.31.0"), having("requests 2.32.3", lock=B), ["package requests 2.32.3 (was 2.31.0)"]),
        (having("requests 2.32.3"), having("requests 2.31.0", lock=B), ["package requests 2.31.0 (was 2.32.3)"]),
        (having("requests 2.32.3"), Contents(packages=(package("requests 2.32.3", B),), lock=B),
         ["package requests 2.32.3 (other wheels than before)"]),
        (None, having(lock=None), ["dependency requests, without a lock"]),
        (having("requests 2.32.3"), having("requests 2.32.3", lock=None), ["dependency requests, without a lock"]),
        (having(lock=None), having(lock=None, dependencies=("requests", "idna>=3")), ["dependency idna>=3, without a lock"]),
        (having(lock=None), having(lock=None, dependencies=("requests>=2",)), ["dependency requests>=2, without a lock"]),
    ],
)  # fmt: skip
def test_what_needs_approval(before: Contents | None, now: Contents, lines: list[str]) -> None:
    assert list(grown(before, now)) == lines
    assert approval.growth(Asked(contents=before), Asked(contents=now)) == tuple(lines)


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (None, None),
        (having("requests 2.32.3"), None),
        (having("requests 2.32.3"), Contents()),
        (having("idna 3.7", "requests 2.32.3"), having("requests 2.32.3", lock=B)),  # one was removed
        (having("requests 2.32.3"), having("requests 2.32.3", lock=B)),
        (having(lock=None), having(lock=None)),
        (having(lock=None), having(lock=A)),
        (None, Contents(files=(("a.py", A),), requires_python=">=3.11")),
        (Contents(files=(("a.py", A),)), Contents(files=(("a.py", B), ("b.py", C)))),
        (having("a 1", "a 2"), having("a 2", "a 1")),
    ],
)  # fmt: skip
def test_what_does_not(before: Contents | None, now: Contents | None) -> None:
    assert approval.growth(Asked(contents=before), Asked(contents=now)) == ()


def test_a_file_that_is_new_or_another_is_told_from_one_that_stayed() -> None:
    before = Contents(files=(("a.py", A), ("b.py", B)))
    assert [changed_file(before, *file) for file in (("a.py", A), ("b.py", C), ("c.py", C))] == [False, True, True]
    assert changed_file(None, "a.py", A)


def test_contents_are_made_of_a_block_and_of_what_is_installed() -> None:
    source = (
        f'# /// script\n# requires-python = ">=3.11"\n# dependencies = ["requests"]\n# [tool.sandboxrun]\n'
        f'# files = {{ "b.py" = "sha256:{B}", "a.py" = "sha256:{A}" }}\n# lock = "sha256:{C}"\n# ///\n'
    )
    block = read_block(source.encode(), "w.py")
    assert block is not None
    packages = [Package.of("requests", "2.32.3", [B, A]), Package.of("idna", "3.7", [C])]
    made = Contents.of(block, packages)
    assert made == Contents((("a.py", A), ("b.py", B)), tuple(reversed(packages)), C, ">=3.11", ("requests",))
    assert Package.of("requests", "2.32.3", (A, B, A)) == packages[0] != Package.of("requests", "2.32.3", [A])
    assert from_plain(json.loads(json.dumps(to_plain(made)))) == made


def test_the_record_has_the_packages_of_the_last_approval(tmp_path: Path) -> None:
    path = str(tmp_path / "t:1.json")

    def approve(contents: Contents | None, *, yes: bool = False) -> tuple[str, tuple[str, ...]]:
        return approval.approve(path, Asked(contents=contents), type_="t", id_="1", yes=yes)

    assert approve(None) == ("first", ())
    assert "contents" not in json.loads(Path(path).read_text())
    both = having("idna 3.7", "requests 2.32.3", files=(("a.py", A),))
    assert approve(both, yes=True) == ("--yes", ("package idna 3.7", "package requests 2.32.3"))
    found = approval.load(path)
    assert found is not None and found.contents == both
    assert approve(both) == ("same", ())
    assert approve(having("requests 2.32.3", lock=B)) == ("same", ())  # idna is gone, and forgotten
    assert approve(both, yes=True) == ("--yes", ("package idna 3.7",))
    assert approve(None) == ("same", ())
    assert approve(having("requests 2.32.3"), yes=True) == ("--yes", ("package requests 2.32.3",))


def test_a_new_package_is_not_approved_without_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "t:1.json")
    approval.save(path, Asked(contents=having("requests 2.31.0")))
    before = Path(path).read_bytes()
    many = having(*(f"p{number} 1" for number in range(60)))
    with pytest.raises(PolicyError, match="asks for 60 things more than at its last run") as error:
        approval.approve(path, Asked(contents=many), type_="t", id_="1", yes=False)
    assert error.value.hint == ("sandboxrun approve t 1",)
    assert Path(path).read_bytes() == before


GOOD = to_plain(having("requests 2.32.3", files=(("a.py", A),)))


@pytest.mark.parametrize(
    "contents",
    [
        [], "", 1, True, {}, {"packages": []}, GOOD | {"more": 1}, {name: GOOD[name] for name in list(GOOD)[1:]},
        GOOD | {"packages": {}}, GOOD | {"packages": [[]]}, GOOD | {"packages": ["requests"]}, GOOD | {"packages": [["requests", "2", "x"]]},
        GOOD | {"packages": [["requests", 2, A]]}, GOOD | {"packages": [["requests", "2", A, A]]}, GOOD | {"packages": None},
        GOOD | {"packages": "*"}, GOOD | {"files": []}, GOOD | {"files": {"a.py": "x"}}, GOOD | {"files": {"a.py": None}},
        GOOD | {"lock": "x"}, GOOD | {"lock": 1}, GOOD | {"lock": A.upper()}, GOOD | {"dependencies": "requests"},
        GOOD | {"dependencies": [1]}, GOOD | {"requires-python": None},
    ],
)  # fmt: skip
def test_a_record_whose_contents_are_damaged_is_an_error_and_approves_nothing(tmp_path: Path, contents: Any) -> None:
    path = tmp_path / "t:1.json"
    path.write_text(json.dumps({"allow": {}, "deny": {}, "limits": {}, "contents": GOOD}))
    assert approval.load(str(path)) is not None
    path.write_text(json.dumps({"allow": {}, "deny": {}, "limits": {}, "contents": contents}))
    with pytest.raises(ConfigError, match=f"the record {path} .* is damaged"):
        approval.approve(str(path), Asked(contents=having("requests 2.32.3")), type_="t", id_="1", yes=True)
