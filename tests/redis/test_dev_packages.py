"""`dev` follows the dependencies of a script: it locks and installs them before a restart, and keeps the worker if it cannot."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from dev_terminal import Terminal, close
from runner import Runner
from small_index import Index, serving

SOURCE = """\
# /// script
# dependencies = [DEPENDENCIES]
# ///
import IMPORT
from sandboxrun import worker

@worker.handler
def handle(request):
    return {"version": IMPORT.VERSION}

worker.run()
"""


@pytest.fixture
def index() -> Iterator[Index]:
    with serving() as found:
        yield found


@pytest.fixture
def folder(run: Runner, index: Index) -> Path:
    run.env |= {"TERM": "dumb", "PIP_CONFIG_FILE": "/dev/null", "PIP_INDEX_URL": index.url, "UV_HTTP_RETRIES": "0"}
    made = run.home / "greeter"
    made.mkdir()
    return made


def write(folder: Path, module: str, *dependencies: str) -> None:
    text = SOURCE.replace("DEPENDENCIES", ", ".join(f'"{each}"' for each in dependencies)).replace("IMPORT", module)
    (folder / "worker.new").write_text(text)
    (folder / "worker.new").rename(folder / "worker.py")


@pytest.fixture
def dev(r: redis.Redis, run: Runner, folder: Path) -> Iterator[Callable[..., Terminal]]:
    made: list[Terminal] = []

    def start(*args: str) -> Terminal:
        made.append(Terminal(run, "greeter", *args))
        return made[-1]

    yield start
    for terminal in made:
        close(terminal.spawned)


def answers(terminal: Terminal, version: str) -> None:
    terminal.until("> ")
    terminal.type("a=1")
    terminal.until(f'"version": "{version}"')


def test_dependencies_are_resolved_installed_and_named(
    folder: Path, index: Index, dev: Callable[..., Terminal]
) -> None:
    index.add("alpha", "1.0", "beta")
    index.add("beta", "2.0")
    write(folder, "alpha", "alpha")
    source = (folder / "worker.py").read_bytes()
    terminal = dev()
    terminal.until("resolving alpha\r\n")
    terminal.until("installed alpha 1.0, beta 2.0\r\n")
    terminal.until("started")
    assert (folder / "requirements.lock").read_text().startswith("# Made by: sandboxrun lock worker.py\n# For: alpha\n")
    assert (folder / "worker.py").read_bytes() == source  # an editor has it open
    answers(terminal, "1.0")

    index.add("gamma", "3.0")
    write(folder, "gamma", "alpha", "gamma")
    terminal.until("resolving alpha, gamma\r\n")
    terminal.until("installed gamma 3.0\r\n")
    between = terminal.until("restarted in ")
    assert "installed" not in between
    answers(terminal, "3.0")

    write(folder, "alpha", "alpha", "delta")
    terminal.until("the dependencies have no solution: Because delta was not found in the package registry")
    terminal.until("the worker that runs is kept")
    answers(terminal, "3.0")

    write(folder, "alpha", "alpha")
    terminal.until("removed gamma\r\n")
    terminal.until("restarted in ")
    answers(terminal, "1.0")
    terminal.type("exit")
    left = terminal.left()
    assert "restarted" not in left  # by its own lock
    assert "error" not in left


def test_a_lock_that_is_there_is_installed_without_a_question_to_the_resolver(
    folder: Path, index: Index, run: Runner, dev: Callable[..., Terminal]
) -> None:
    index.add("alpha", "1.0")
    write(folder, "alpha", "alpha")
    assert run("lock", "greeter").code == 0
    index.add("alpha", "2.0")
    terminal = dev()
    before = terminal.until("installed alpha 1.0\r\n")
    assert "resolving" not in before
    answers(terminal, "1.0")
    terminal.type("exit")
    terminal.left()
    again = dev()
    assert "installed" not in again.until("started")


def test_a_first_start_whose_packages_are_not_to_be_had_waits_for_a_save(
    folder: Path, index: Index, dev: Callable[..., Terminal]
) -> None:
    write(folder, "alpha", "alpha")
    terminal = dev()
    terminal.until("the dependencies have no solution: ")
    terminal.until("the worker starts once that is fixed")
    index.add("alpha", "1.0")
    write(folder, "alpha", "alpha")
    terminal.until("installed alpha 1.0\r\n")
    answers(terminal, "1.0")


def test_a_list_that_is_not_current_is_said_once(
    folder: Path, index: Index, run: Runner, dev: Callable[..., Terminal]
) -> None:
    index.add("alpha", "1.0")
    write(folder, "alpha", "alpha")
    (folder / "helpers.py").write_text("x = 1\n")
    assert run("lock", "greeter", "helpers.py").code == 0
    terminal = dev()
    assert "lists other contents" not in terminal.until("started")
    (folder / "helpers.py").write_text("x = 2\n")
    terminal.until("lists other contents of helpers.py")
    terminal.until("hint: sandboxrun lock ")
    terminal.until("restarted in ")
    (folder / "helpers.py").write_text("x = 3\n")
    assert "lists other contents" not in terminal.until("restarted in ")
    terminal.until("> ")


def test_a_data_file_is_watched_too(folder: Path, index: Index, dev: Callable[..., Terminal]) -> None:
    index.add("alpha", "1.0")
    write(folder, "alpha", "alpha")
    (folder / "pages").mkdir()
    (folder / "pages/a.html").write_text("<p>")
    terminal = dev()
    terminal.until("started")
    (folder / "pages/a.html").write_text("<b>")
    terminal.until("restarted in ")
    assert os.listdir(folder)
