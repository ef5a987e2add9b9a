"""Wheels that nobody should install: each is refused with its line or has no effect, and nothing appears outside."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from index import Index, serving
from installer import Machine, lock_of, published
from wheels import Wheel, changed, encrypted, lock_text, replaced, wheel, with_size

from sandboxrun.errors import FetchError, IntegrityError, ScriptError
from sandboxrun.packages.index import fetch_wheels
from sandboxrun.packages.options import Options
from sandboxrun.packages.wheels import applicable

NAME = "evil-1.0-py3-none-any.whl"
GOOD = {"evil.py": "x = 1\n"}


def with_entries(*names: str) -> Wheel:
    return wheel("evil", files=GOOD, extra=[(name, b"canary") for name in names])


def raw_entry(name: bytes) -> Wheel:
    """An entry with bytes in its name that zipfile would not write."""
    return replaced(with_entries("Q" * len(name)), b"Q" * len(name), name)


def all_files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


REFUSED: dict[str, tuple[Callable[[], Wheel], str]] = {
    "parent": (lambda: with_entries("../canary.py"), "has the entry '../canary.py', which is no plain relative path"),
    "parent within": (lambda: with_entries("a/../../canary.py"), "which is no plain relative path"),
    "parent at the end": (lambda: with_entries("a/.."), "which is no plain relative path"),
    "parent of data": (lambda: with_entries("evil-1.0.data/purelib/../../../canary"), "which is no plain relative path"),
    "dot": (lambda: with_entries("./canary.py"), "which is no plain relative path"),
    "empty part": (lambda: with_entries("a//canary.py"), "which is no plain relative path"),
    "absolute": (lambda: with_entries("/tmp/canary.py"), "has the entry '/tmp/canary.py', which is no plain relative"),
    "absolute in data": (lambda: with_entries("evil-1.0.data/purelib//tmp/canary"), "which is no plain relative path"),
    "drive": (lambda: with_entries("C:/canary.py"), "which is no plain relative path"),
    "backslash": (lambda: with_entries("..\\canary.py"), "a character that no file of a wheel needs"),
    "NUL": (lambda: raw_entry(b"canary.py\0.txt"), "a character that no file of a wheel needs"),
    "newline": (lambda: raw_entry(b"can\nary.py"), "a character that no file of a wheel needs"),
    "escape sequence": (lambda: raw_entry(b"\x1b[2Jcanary"), "a character that no file of a wheel needs"),
    "no name": (lambda: with_entries(""), "which is no plain relative path"),
    "root": (lambda: with_entries("/"), "which is no plain relative path"),
    "300 characters": (lambda: with_entries("x" * 300), "whose name is too long or too deep"),
    "40 folders": (lambda: with_entries("x/" * 40 + "canary"), "whose name is too long or too deep"),
    "symlink": (lambda: wheel("evil", files=GOOD, symlinks={"link": "/etc/passwd"}), "which is neither a file nor a folder"),
    "symlink, then a file through it": (
        lambda: wheel("evil", files=GOOD, symlinks={"link": "/tmp"}, extra=[("link/canary", b"")]),
        "has the entry 'link', which is neither a file nor a folder",
    ),
    "twice": (lambda: with_entries("canary.py", "canary.py"), "has 'canary.py' twice"),
    "twice by data": (lambda: with_entries("evil-1.0.data/purelib/evil.py"), "has 'evil.py' twice"),
    "case": (lambda: with_entries("Evil.py"), "has 'Evil.py', which differs from 'evil.py' in case alone"),
    "file and folder": (lambda: with_entries("canary", "canary/x"), "which is a file here and a folder there"),
    "folder and file": (lambda: with_entries("canary/x", "canary"), "and so has another wheel"),
    "a folder with contents": (lambda: with_entries("canary/"), "a folder with contents"),
    "ours": (lambda: with_entries("sandboxrun/__init__.py"), "which would hide the package sandboxrun"),
    "our module": (lambda: with_entries("sandboxrun.py"), "which would hide the package sandboxrun"),
    "our extension": (lambda: with_entries("sandboxrun.cpython-311.so"), "which would hide the package sandboxrun"),
    "ours by data": (lambda: with_entries("evil-1.0.data/platlib/sandboxrun/x.py"), "which would hide the package"),
    "unknown scheme": (lambda: with_entries("evil-1.0.data/stdlib/json.py"), "no wheel may have such a folder"),
    "scheme alone": (lambda: with_entries("evil-1.0.data/purelib"), "no wheel may have such a folder"),
    "two dist-info": (lambda: with_entries("other-1.0.dist-info/METADATA"), "has 2 folders NAME.dist-info"),
    "no dist-info": (lambda: wheel("evil", files=GOOD, dist_info=""), "has 0 folders NAME.dist-info"),
    "of another package": (lambda: wheel("evil", files=GOOD, dist_info="other-1.0.dist-info"), "is of another package"),
    "a later format": (lambda: wheel("evil", files=GOOD, wheel_version="2.0"), "is no wheel of format 1"),
    "encrypted": (lambda: encrypted(wheel("evil", files=GOOD)), "which is encrypted"),
    "truncated": (lambda: changed(wheel("evil"), wheel("evil").data[:-30]), "is damaged (BadZipFile"),
    "no zip": (lambda: changed(wheel("evil"), b"<html>not found</html>"), "is damaged (BadZipFile"),
    "empty": (lambda: changed(wheel("evil"), b""), "is damaged (BadZipFile"),
    "smaller than it says": (lambda: with_size(wheel("evil", files=GOOD), "evil.py", 600), "has 'evil.py' with another size than it says"),
    "larger than it says": (lambda: with_size(wheel("evil", files=GOOD), "evil.py", 3), "is damaged (BadZipFile"),
    "other bytes": (lambda: damaged_contents(), "is damaged (BadZipFile"),
    "another name in the entry": (lambda: renamed_in_directory(), "is damaged (BadZipFile"),
}  # fmt: skip


def damaged_contents() -> Wheel:
    old = wheel("evil", files={"evil.py": "x = 'here'"}, compressed=False)
    return changed(old, old.data.replace(b"'here'", b"'evil'"))


def renamed_in_directory() -> Wheel:
    old = with_entries("innocent.py")
    end = old.data.rindex(b"innocent.py")
    return changed(old, old.data[:end] + b"maligned.py" + old.data[end + 11 :])


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused_with_one_line_and_nothing_appears_outside(case: str, machine: Machine) -> None:
    make, cause = REFUSED[case]
    before = set(os.listdir("/tmp"))  # where absolute names lead
    text = machine.refused(machine.cached(make(), wheel("good")), ScriptError)
    assert text.startswith(f"{NAME} ")
    assert cause in text
    assert not [path for path in all_files(machine.folder) if "canary" in path]
    assert "canary.py" not in set(os.listdir("/tmp")) - before
    assert machine.install(lock_text(wheel("good"))).is_dir()


@pytest.mark.parametrize("case", ["truncated", "no zip", "no dist-info", "of another package", "encrypted"])
def test_what_pip_refuses_itself_is_one_line_with_the_package(case: str, machine: Machine, index: Index) -> None:
    lock = published(index, REFUSED[case][0]())
    with pytest.raises((FetchError, ScriptError)) as error:
        machine.install(lock)
    assert str(error.value).isprintable()
    assert "evil" in str(error.value)
    assert machine.environments() == []


EFFECTLESS = {
    "x.pth": "import os; os.mkdir('canary')\n",
    "sitecustomize.py": "x = 1\n",
    "usercustomize.py": "x = 1\n",
    "sitecustomize/__init__.py": "x = 1\n",
    "__pycache__/evil.cpython-311.pyc": "canary",
    "pkg/__pycache__/sub.cpython-311.pyc": "canary",
    "evil-1.0.data/scripts/evil": "#!python\n",
    "evil-1.0.data/headers/evil.h": "x\n",
    "evil-1.0.data/data/etc/evil": "x\n",
}


def test_what_python_or_a_shell_would_run_by_itself_is_left_out(machine: Machine, index: Index) -> None:
    kept = {"pkg/__init__.py": "", "pkg/notes.pth": "kept\n", "evil-1.0.data/purelib/pure.py": "", "evil-1.0.data/platlib/plat.so": "", "json.py": "", "top.pyc": ""}  # fmt: skip
    path = machine.install(published(index, wheel("evil", files=GOOD | EFFECTLESS | kept)))
    found = {name for name in machine.content(path) if not name.startswith("evil-1.0.dist-info/")}
    assert found == {"evil.py", "pkg/__init__.py", "pkg/notes.pth", "pure.py", "plat.so", "json.py"}
    assert (path / "top.pyc").is_file()
    assert sorted(file.name for file in path.rglob("__pycache__/*")) == [
        f"{name}.{sys.implementation.cache_tag}.pyc" for name in ("__init__", "evil", "json", "pure")
    ]


def test_two_wheels_may_not_have_one_file_with_different_contents(machine: Machine, index: Index) -> None:
    one = wheel("first", files={"shared.py": "x = 1\n"})
    other = wheel("second", files={"shared.py": "x = 2\n"})
    text = machine.refused(published(index, one, other), ScriptError)
    assert text == "second-1.0-py3-none-any.whl has 'shared.py', and so has another wheel, with other contents"


def test_two_wheels_of_one_namespace_may_have_the_same_file(machine: Machine, index: Index) -> None:
    init = {"space/__init__.py": "__path__ = __import__('pkgutil').extend_path(__path__, __name__)\n"}
    one = wheel("first", files=init | {"space/a.py": ""})
    other = wheel("second", files=init | {"space/b.py": ""})
    path = machine.install(published(index, one, other))
    assert sorted(file.name for file in path.glob("space/*.py")) == ["__init__.py", "a.py", "b.py"]


def test_two_wheels_may_not_differ_in_case_alone(machine: Machine, index: Index) -> None:
    text = machine.refused(
        published(index, wheel("first", files={"Mod.py": ""}), wheel("second", files={"mod.py": ""})), ScriptError
    )
    assert text == "second-1.0-py3-none-any.whl has 'mod.py', which differs from 'Mod.py' in case alone"


def test_a_bomb_is_refused_by_the_size_it_says(machine: Machine, index: Index) -> None:
    bomb = wheel("evil", files=GOOD | {"zeros": b"\0" * (32 << 20)})
    assert len(bomb.data) < 1 << 16
    text = machine.refused(published(index, bomb), ScriptError, unpacked_max=16 << 20)
    assert text == f"{NAME} brings the unpacked size above {16 << 20} bytes"


def test_a_bomb_that_lies_about_its_size_is_not_unpacked(machine: Machine, index: Index) -> None:
    bomb = with_size(wheel("evil", files=GOOD | {"zeros": b"\0" * (32 << 20)}), "zeros", 1000)
    text = machine.refused(published(index, bomb), ScriptError, unpacked_max=1 << 20)
    assert text.startswith(f"{NAME} is damaged (BadZipFile")


def test_a_bomb_of_many_files_is_refused(machine: Machine, index: Index) -> None:
    bomb = wheel("evil", files=GOOD | {f"f{number}": "" for number in range(300)})
    text = machine.refused(published(index, bomb), ScriptError, files_max=200)
    assert text == f"{NAME} brings the number of files above 200"


def test_all_wheels_together_have_the_limits(machine: Machine, index: Index) -> None:
    wheels = [wheel(f"p{number}", files={f"p{number}/data": os.urandom(100_000)}) for number in range(5)]
    lock = published(index, *wheels)
    assert "brings the unpacked size above 300000 bytes" in machine.refused(lock, ScriptError, unpacked_max=300_000)
    size = sum(len(each.data) for each in wheels)
    text = machine.refused(lock, FetchError, packed_max=size - 1)
    assert (
        text
        == f"the wheels of requirements.lock have {size} bytes: the limit is {size - 1}; packages-size in the policy raises it"
    )
    assert machine.install(lock, packed_max=size).is_dir()


def test_a_source_that_takes_the_compiler_down_ends_the_child_alone(machine: Machine, index: Index) -> None:
    deep = wheel("evil", files=GOOD | {"deep.py": "(" * 50_000 + ")" * 50_000, "long.py": "-" * 300_000 + "1"})
    lock = published(index, deep)
    cause = ""
    try:
        machine.install(lock)  # if the compiler gives up in order, the source is not compiled
    except ScriptError as error:
        cause = str(error)
    assert not cause or "the process that unpacks them was ended by signal" in cause
    assert len(machine.environments()) == (not cause)


def test_an_endless_wheel_is_cut_off(machine: Machine, index: Index) -> None:
    good = wheel("evil")
    lock = published(index, good)
    index.serve_instead(good, b"x" * (1 << 16), endless=True)
    start = time.monotonic()
    text = machine.refused(lock, FetchError, packed_max=1 << 20)
    assert (
        text
        == f"the wheels of requirements.lock have more than {1 << 20} bytes, which is the limit; packages-size in the policy raises it"
    )
    assert time.monotonic() - start < 30
    assert list((machine.cache / "wheels").iterdir()) == []


def test_a_longer_wheel_than_the_digest_has_is_refused(machine: Machine, index: Index) -> None:
    good = wheel("evil")
    lock = published(index, good)
    index.serve_instead(good, good.data + b"more")
    text = machine.refused(lock, IntegrityError)
    assert text.startswith("the index has evil 1.0 with sha256 ")


def test_an_sdist_is_never_built(machine: Machine, index: Index) -> None:
    index.publish_file("evil", "evil-1.0.tar.gz", b"canary")
    lock = f"evil==1.0 --hash=sha256:{wheel('evil').sha256}\n".encode()
    text = machine.refused(lock, FetchError)
    assert text.startswith("requirements.lock: the index has no wheel of evil 1.0 for Python 3.")
    assert not [request for request in index.requests if "files" in request]


def test_a_wheel_of_another_platform_alone_is_refused(machine: Machine, index: Index) -> None:
    text = machine.refused(published(index, wheel("evil", tag="cp311-cp311-win_amd64")), FetchError)
    assert "the index has no wheel of evil 1.0 for Python 3." in text
    assert not [request for request in index.requests if "files" in request]


@pytest.mark.parametrize("by_policy", [True, False])
def test_an_index_that_does_not_answer_is_named_as_the_cause(machine: Machine, index: Index, by_policy: bool) -> None:
    lock = published(index, wheel("evil"))
    index.close()
    text = machine.refused(lock, FetchError, **({"index": index.url} if by_policy else {}))
    named = index.url if by_policy else "of pip's configuration"
    assert text == f"requirements.lock: evil 1.0 cannot be fetched: the index {named} cannot be reached"


def test_the_index_of_the_policy_is_the_only_one_that_is_asked(
    machine: Machine, index: Index, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Neither the environment nor pip's files add another, but their other settings stay."""
    good = wheel("evil")
    lock = published(index, good)
    settings = tmp_path / "pip.conf"
    with serving(good) as own:
        settings.write_text(f"[global]\nextra-index-url = {index.url}\nfind-links = {index.origin}/files/\n")
        monkeypatch.setenv("PIP_CONFIG_FILE", str(settings))
        monkeypatch.setenv("PIP_EXTRA_INDEX_URL", index.url)
        machine.install(lock, index=own.url)
        assert index.requests == []
        assert own.requests == ["/simple/evil/", f"/files/{good.filename}"]


def test_nothing_of_the_environment_but_pips_own_reaches_pip(
    machine: Machine, index: Index, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lock = published(index, wheel("evil"))
    seen = tmp_path / "seen"
    fake = tmp_path / "python"
    fake.write_text(f'#!/bin/sh\nenv >{seen}\nexec {sys.executable} "$@"\n')
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    monkeypatch.setenv("WORKER_TOKEN", "secret")
    monkeypatch.setenv("REDIS_URL", "redis://:secret@h")
    monkeypatch.setenv("PYTHONPATH", "/secret")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = tmp_path / "folder"
    folder.mkdir()
    parsed = lock_of(lock)
    fetch_wheels(parsed, applicable(parsed), folder=str(folder), options=Options(), say=machine.said.append)
    text = seen.read_text()
    assert "secret" not in text
    assert "https_proxy=http://127.0.0.1:1" in text
    assert f"PIP_INDEX_URL={index.url}" in text
