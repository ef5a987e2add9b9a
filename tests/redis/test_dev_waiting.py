"""At the prompt of `dev`: nobody waits for a worker that does not run, and the end is heard while a reply is awaited."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pexpect
import pytest
import redis
from dev_terminal import SECONDS, Terminal, close
from runner import Runner

SLOW = """
import os, time
from sandboxrun import worker

@worker.handler
def handle(request):
    if request.data.get("die"):
        os._exit(9)
    time.sleep(request.data.get("sleep", 0))
    return {"n": request.data["n"]}

worker.run()
"""
SOON_SECONDS = 10  # of a call's 30


@pytest.fixture
def dev(r: redis.Redis, run: Runner, tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    """A terminal with a worker of this source, which has been started, or could not be."""
    run.env["TERM"] = "dumb"
    made: list[Terminal] = []
    folder = tmp_path / "slow"
    folder.mkdir()

    def start(source: str, *args: str, shown: str = "started") -> Terminal:
        (folder / "worker.py").write_text(source)
        made.append(Terminal(run, str(folder), *args))
        made[-1].until(shown)
        made[-1].until("slow> ")
        return made[-1]

    yield start
    for terminal in made:
        close(terminal.spawned)


NOT_STARTED = {
    "an error": "raise SystemExit(3)",
    "a syntax error": "x = (",
    "an empty script": "",
    "a refusal of the sandbox": "open('/etc/passwd')",
}


@pytest.mark.parametrize("source", NOT_STARTED.values(), ids=NOT_STARTED)
def test_a_request_to_a_worker_that_did_not_start_is_answered_at_once(
    r: redis.Redis, tmp_path: Path, dev: Callable[..., Terminal], source: str
) -> None:
    terminal = dev(source, shown="SyntaxError" if source == "x = (" else "the worker ended with exit code")
    began = time.monotonic()
    terminal.type("n=1")
    terminal.until("no worker runs, so nothing was sent; it is started again when a file is saved")
    assert time.monotonic() - began < SOON_SECONDS
    assert not r.exists("slow:req:x") or not r.xlen("slow:req:x")
    (tmp_path / "slow" / "worker.py").write_text(SLOW)
    terminal.until("restarted in ")
    terminal.type("n=2")
    terminal.until('"n": 2')
    terminal.type("exit")
    terminal.left()


def test_a_request_that_ends_its_worker_is_answered_by_the_next_start(
    tmp_path: Path, dev: Callable[..., Terminal]
) -> None:
    terminal = dev(SLOW)
    began = time.monotonic()
    terminal.type('{"n": 1, "die": true}')
    terminal.until("the request waits for the next start of the worker")
    assert time.monotonic() - began < SOON_SECONDS
    (tmp_path / "slow" / "worker.py").write_text(SLOW.replace("os._exit(9)", "pass"))
    terminal.until('"n": 1')
    terminal.type("exit")
    terminal.left()


@pytest.mark.parametrize("how", ["exit", "quit", "n=2\rexit", "Ctrl-D", "Ctrl-C"])
def test_the_end_is_heard_while_a_reply_is_awaited(r: redis.Redis, dev: Callable[..., Terminal], how: str) -> None:
    terminal = dev(SLOW)
    terminal.type('{"n": 1, "sleep": 60}')
    while not r.exists("slow:req:x") or r.xpending("slow:req:x", "worker")["pending"] == 0:
        time.sleep(0.02)
    if how == "Ctrl-D":
        terminal.spawned.sendeof()
    elif how == "Ctrl-C":
        terminal.spawned.sendintr()
    else:
        terminal.spawned.send(f"{how}\r")
    began = time.monotonic()
    terminal.spawned.expect(pexpect.EOF, timeout=SECONDS)
    terminal.spawned.close()
    assert terminal.spawned.exitstatus == 0
    assert time.monotonic() - began < 20  # its worker may finish for a while
    assert r.keys("slow:dev:h") == []
    assert not [user for user in r.acl_users() if user.startswith("sandboxrun:")]


def test_what_is_typed_ahead_is_sent_next(dev: Callable[..., Terminal]) -> None:
    terminal = dev(SLOW)
    terminal.spawned.send('{"n": 1, "sleep": 1}\rn=2\rn=3\r')
    for number in (1, 2, 3):
        terminal.until(f'"n": {number}')
    terminal.type("exit")
    terminal.left()


def test_what_is_learned_is_not_more_than_what_was_seen(tmp_path: Path, dev: Callable[..., Terminal]) -> None:
    source = SLOW.replace(
        "    time.sleep",
        "    try:\n        open('/etc/shadow', 'w')\n    except OSError:\n        pass\n    time.sleep",
    )
    terminal = dev(source, "--learn")
    terminal.type("n=1")
    terminal.until('"n": 1')
    terminal.type("exit")
    shown = terminal.left()
    assert "nothing was refused" not in shown
    assert "learned: no refusal named a grant; one that the worker handled itself names none" in shown
