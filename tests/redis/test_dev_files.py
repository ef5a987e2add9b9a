"""What `dev` watches: files behind symlinks, folders of any name, and names that are not UTF-8."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from dev_terminal import Terminal, close
from runner import Runner

from sandboxrun import client

SOURCE = """
from sandboxrun import worker

@worker.handler
def handle(request):
    return {"version": 0}

worker.run()
"""


def version(number: int) -> str:
    return SOURCE.replace('"version": 0', f'"version": {number}')


def replace(path: Path, text: str) -> None:
    """As editors save: a new file in the place of the old."""
    path.with_suffix(".new").write_text(text)
    path.with_suffix(".new").rename(path)


@pytest.fixture
def dev(r: redis.Redis, run: Runner) -> Iterator[Callable[..., Terminal]]:
    run.env["TERM"] = "dumb"
    made: list[Terminal] = []

    def start(*args: str) -> Terminal:
        made.append(Terminal(run, *args))
        made[-1].until("started")
        made[-1].until("> ")
        return made[-1]

    yield start
    for terminal in made:
        close(terminal.spawned)


def answers(terminal: Terminal, number: int, *, restarted: bool = True) -> None:
    if restarted:
        terminal.until("restarted in ")
    terminal.type("a=1")
    terminal.until(f'"version": {number}')


@pytest.mark.parametrize("given", ["folder", "file", "a linked folder"])
def test_an_edit_behind_a_symlink_is_seen(tmp_path: Path, dev: Callable[..., Terminal], given: str) -> None:
    real, folder = tmp_path / "elsewhere" / "real.py", tmp_path / "linked"
    real.parent.mkdir()
    folder.mkdir()
    real.write_text(version(1))
    (folder / "worker.py").symlink_to(real)
    (tmp_path / "link").symlink_to(folder)
    place = {"folder": folder, "file": folder / "worker.py", "a linked folder": tmp_path / "link"}[given]
    terminal = dev(str(place))
    answers(terminal, 1, restarted=False)
    real.write_text(version(2))
    answers(terminal, 2)
    replace(real, version(3))
    answers(terminal, 3)
    if given == "file":  # which is the one behind the link, whatever becomes of that
        return
    other = tmp_path / "elsewhere" / "other.py"
    other.write_text(version(4))
    (tmp_path / "new").symlink_to(other)
    (tmp_path / "new").rename(folder / "worker.py")
    answers(terminal, 4)
    other.write_text(version(5))
    answers(terminal, 5)
    terminal.type("exit")
    assert "restarted" not in terminal.left()  # each edit was seen once


def test_an_edit_of_a_linked_module_is_seen(tmp_path: Path, dev: Callable[..., Terminal]) -> None:
    folder, shared = tmp_path / "linked", tmp_path / "shared.py"
    folder.mkdir()
    shared.write_text("NUMBER = 1\n")
    (folder / "worker.py").write_text(SOURCE.replace("0}", "shared.NUMBER}").replace("from", "import shared\nfrom", 1))
    terminal = dev(str(folder), f"--allow-read={shared}")
    (folder / "shared.py").symlink_to(shared)
    answers(terminal, 1)
    shared.write_text("NUMBER = 2\n")
    answers(terminal, 2)


NAMES = [
    "100%",
    "%20",
    "c#",
    "a?b&c=d",
    "café",
    "日本",
    'it\'s"quoted"',
    "my worker",
    'it\'s "quoted"',
    "-dash",
    "{version}",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_may_have_any_name(
    r: redis.Redis, redis_url: str, run: Runner, tmp_path: Path, dev: Callable[..., Terminal], name: str
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    (folder / "worker.py").write_text(version(1))
    terminal = dev(str(folder))
    answers(terminal, 1, restarted=False)
    (folder / "worker.py").write_text(version(2))
    answers(terminal, 2)
    terminal.type("exit")
    terminal.left()
    done = run("set", "t", "1", f"url={folder}", "version=local")
    assert done.code == 0, done
    with run.start("t", "1") as process:
        assert client.call("t", {}, timeout=30, url=redis_url)["version"] == 2
        process.terminate()
        process.wait(20)
    (folder / "tool.py").write_text(version(3))
    terminal = dev(str(folder / "tool.py"))
    answers(terminal, 3, restarted=False)


def test_a_file_name_that_is_not_utf_8_is_said_and_ignored(tmp_path: Path, dev: Callable[..., Terminal]) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    (folder / "worker.py").write_text(version(1))
    (folder / os.fsdecode(b"was-there-\xff.py")).write_text("x = 1\n")
    terminal = dev(str(folder))
    for number in (2, 3):
        odd = os.path.join(os.fsencode(folder), b"caf\xe9\x1b[31m.txt")
        with open(odd, "w") as file:
            file.write("x")
        if number == 2:
            shown = terminal.until("is not UTF-8; files with such names are not watched")
            assert "\x1b" not in shown
        (folder / "worker.py").write_text(version(number))
        answers(terminal, number)
        os.unlink(odd)
    terminal.type("exit")
    assert "UTF-8" not in terminal.left()


def test_no_folder_is_made_whose_name_is_not_utf_8(run: Runner, tmp_path: Path) -> None:
    done = run("init", os.fsdecode(os.path.join(os.fsencode(tmp_path), b"\xff")))
    assert (done.code, done.err.count("\n")) == (64, 1)
    assert "is not UTF-8" in done.err
    assert not os.path.exists(os.path.join(os.fsencode(tmp_path), b"\xff"))


def test_a_folder_whose_name_is_not_utf_8_is_refused_by_name(run: Runner, tmp_path: Path) -> None:
    folder = os.path.join(os.fsencode(tmp_path), b"\xff")
    os.mkdir(folder)
    with open(os.path.join(folder, b"worker.py"), "w") as file:
        file.write(SOURCE)
    done = run("dev", os.fsdecode(folder))
    assert (done.code, done.err.count("\n")) == (64, 1)
    assert "is not UTF-8" in done.err
