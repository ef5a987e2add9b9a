"""Developing a worker, in a real terminal: a folder is made, run, asked, edited and left, and nothing stays behind."""

from __future__ import annotations

import os
import queue
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import dap
import pexpect
import pytest
import redis
from dev_terminal import Terminal, close
from runner import Runner

from sandboxrun import client
from sandboxrun.redis import embedded

Local = Callable[..., Path]
SECONDS = 30
SLOW = """
import time
from sandboxrun import worker

@worker.handler
def handle(request):
    time.sleep(request.data.get("sleep", 0))
    return {"version": 0, "n": request.data["n"]}

worker.run()
"""


@pytest.fixture
def alone(run: Runner) -> Runner:
    """With no Redis to be found."""
    del run.env["REDIS_URL"]
    run.env["TERM"] = "dumb"
    return run


@pytest.fixture
def folder(alone: Runner) -> Path:
    assert alone("init", "greeter").code == 0
    return alone.home / "greeter"


@pytest.fixture
def dev(run: Runner) -> Iterator[Callable[..., Terminal]]:
    made: list[Terminal] = []

    def start(*args: str) -> Terminal:
        made.append(Terminal(run, *args))
        return made[-1]

    yield start
    for terminal in made:
        close(terminal.spawned)


def test_init_makes_a_folder_whose_tests_pass_and_overwrites_nothing(alone: Runner, folder: Path) -> None:
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert names == [".vscode/launch.json", "README.md", "spec.json", "test_worker.py", "worker.py"]
    tested = alone("test", "greeter", "--generate")
    assert tested.code == 0 and "no test names" not in tested.out, tested
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=folder,
        env=alone.env,
        capture_output=True,
        text=True,
        timeout=SECONDS * 2,
    )
    assert "2 passed" in done.stdout, done.stdout + done.stderr
    (folder / "worker.py").write_text("mine")
    again = alone("init", "greeter")
    assert (again.code, again.err.count("\n")) == (64, 2)
    assert "is there and not empty, so nothing is written\nhint: sandboxrun init greeter-2\n" in again.err
    assert (folder / "worker.py").read_text() == "mine"


def test_a_worker_is_asked_edited_broken_mended_and_left(
    alone: Runner, folder: Path, dev: Callable[..., Terminal]
) -> None:
    script = folder / "worker.py"
    source = script.read_text()
    terminal = dev("greeter", "--learn")
    terminal.until("started")
    terminal.until("greeter> ")
    terminal.type("name=world")
    terminal.until('"text": "Hello, world!"')
    script.write_text(source.replace("Hello", "Good morning"))
    terminal.until("restarted in ")
    terminal.type('{"name": "you"}')
    terminal.until('"text": "Good morning, you!"')
    script.write_text(source.replace("Hello", "Good night") + "x = (\n")
    terminal.until("worker.py:15: SyntaxError: '(' was never closed")
    terminal.until("the worker that runs is kept")
    terminal.type("name=still")
    terminal.until('"text": "Good morning, still!"')
    script.write_text(
        source.replace("Hello", "Good night").replace("    data =", "    open('/etc/passwd')\n    data =")
    )
    terminal.until("restarted in ")
    terminal.type("name=thief")
    terminal.until("500 in ")
    terminal.type("= not a request")
    terminal.until("greeter> ")
    terminal.type("exit")
    learned = terminal.left()
    assert f"sandboxrun set greeter 1 url={folder} version=local allowRead=/etc/passwd" in learned
    assert "sandboxrun dev greeter --learn --allow-read=/etc/passwd" not in learned
    assert "sandboxrun dev greeter --allow-read=/etc/passwd" in learned


def test_no_request_is_lost_or_answered_twice_by_restarts(
    r: redis.Redis, redis_url: str, run: Runner, dev: Callable[..., Terminal], tmp_path: Path
) -> None:
    folder = tmp_path / "slow"
    folder.mkdir()
    script = folder / "worker.py"
    script.write_text(SLOW)
    terminal = dev(str(folder))
    terminal.until("slow> ")
    answers: queue.SimpleQueue[int] = queue.SimpleQueue()  # versions, as they come
    counts: list[int] = []
    done = threading.Event()

    def ask() -> None:
        with client.Client(redis_url) as c:
            count = 0
            while not done.is_set():
                answers.put(c.call("slow", {"n": count, "sleep": 0.01}, timeout=SECONDS)["version"])
                count += 1
            counts.append(count)

    callers = [threading.Thread(target=ask) for _ in range(4)]
    for caller in callers:
        caller.start()
    for version in (1, 2, 3):
        script.write_text(SLOW.replace('"version": 0', f'"version": {version}'))
        terminal.until("restarted in ")
        while answers.get(timeout=SECONDS) != version:
            pass
    done.set()
    for caller in callers:
        caller.join()
    assert len(counts) == 4  # every request had its reply
    assert len(r.xrange("slow:res:x")) == sum(counts)
    terminal.spawned.sendeof()
    terminal.left()
    assert not r.keys("slow*")
    assert not [user for user in r.acl_users() if user.startswith("sandboxrun:")]


def test_without_a_terminal_it_runs_until_a_signal_and_leaves_nothing(
    r: redis.Redis, redis_url: str, run: Runner, local: Local
) -> None:
    folder = local(SLOW, allowNet="127.0.0.1:9")
    with run.start("dev", "t", "1", "--learn") as process:
        assert client.call("t", {"n": 7}, timeout=SECONDS, url=redis_url)["n"] == 7
        (folder / "worker.py").write_text("import socket\nsocket.create_connection(('127.0.0.1', 10))")
        assert process.stdout is not None
        lines = iter(process.stdout.readline, b"")
        assert any(b"the worker ended with exit code 1" in line for line in lines)
        process.send_signal(signal.SIGINT)
        rest = b"".join(lines).decode()
        assert process.wait(SECONDS) == 0
    assert "sandboxrun set t 1 allowNet=127.0.0.1:9,127.0.0.1:10" in rest
    assert "sandboxrun t 1 --allow-net=127.0.0.1:10" in rest
    assert r.hget("t:1:h", "version") == "local"  # it was not ours
    assert not r.hexists("t:1:h", "pid")


def test_a_refused_database_is_learned_and_one_that_the_worker_hides_is_not_denied(
    r: redis.Redis, run: Runner, local: Local, dev: Callable[..., Terminal], tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    opening = f"import sqlite3\nsqlite3.connect({str(tmp_path / 'data' / 'my.db')!r})\n"
    folder = local(SLOW)
    for source, learned in (
        (opening, f"sandboxrun set t 1 allowRead={tmp_path}/data allowWrite={tmp_path}/data"),
        (
            f"try:\n    exec({opening!r})\nexcept Exception:\n    raise SystemExit(1)",
            "learned: no refusal named a grant; one that the worker handled itself names none",
        ),
    ):
        terminal = dev("t", "1", "--learn")
        terminal.until("> ")
        (folder / "worker.py").write_text(source)
        terminal.until("the worker ended with exit code 1")
        terminal.type("exit")
        assert learned in terminal.left()
        (folder / "worker.py").write_text(SLOW)


@pytest.mark.parametrize("protocol", [2, 3])
def test_either_protocol_of_redis_will_do(
    r: redis.Redis, redis_url: str, run: Runner, local: Local, dev: Callable[..., Terminal], protocol: int
) -> None:
    folder = local(SLOW, allowNet="127.0.0.1:9")
    run.env |= {"REDIS_URL": f"{redis_url}?protocol={protocol}", "TERM": "dumb"}
    for words, grant in (((str(folder),), "allowNet=127.0.0.1:10"), (("t", "1"), "allowNet=127.0.0.1:9,127.0.0.1:10")):
        terminal = dev(*words, "--learn")
        terminal.until("> ")
        terminal.type("n=7")
        terminal.until('"n": 7')
        (folder / "worker.py").write_text("import socket\nsocket.create_connection(('127.0.0.1', 10))\n" + SLOW)
        terminal.until("the worker ended with exit code 1")
        terminal.type("exit")
        assert grant in terminal.left()
        (folder / "worker.py").write_text(SLOW)
    assert r.keys("*:dev:h") == []


def test_an_interrupt_at_the_terminal_ends_the_worker_before_its_redis(
    alone: Runner, folder: Path, dev: Callable[..., Terminal]
) -> None:
    terminal = dev("greeter")
    terminal.until("started")
    terminal.until("greeter> ")
    # All of the terminal's foreground processes get it. Python's input() sleeps on where one comes in the moment between its
    # prompt and its select(2), until a key is pressed: another one.
    for _ in range(SECONDS):
        terminal.spawned.sendintr()
        if terminal.spawned.expect([pexpect.EOF, pexpect.TIMEOUT], timeout=1) == 0:
            break
    assert "warning" not in terminal.spawned.before
    terminal.spawned.close()
    assert terminal.spawned.exitstatus == 0


def test_a_killed_dev_takes_its_worker_with_it(r: redis.Redis, redis_url: str, run: Runner, local: Local) -> None:
    local(SLOW)
    with run.start("dev", "t", "1") as process:
        assert client.call("t", {"n": 7}, timeout=SECONDS, url=redis_url)["n"] == 7
        pid = int(r.hget("t:1:h", "pid") or 0)
        worker = os.pidfd_open(pid)
        process.kill()
        assert select.select([worker], [], [], SECONDS)[0]
        os.close(worker)


def test_dev_with_inspect_is_debugged_again_after_a_restart(
    alone: Runner, folder: Path, dev: Callable[..., Terminal]
) -> None:
    script = folder / "worker.py"
    terminal = dev("greeter", "--inspect=0")
    for name in ("one", "two"):
        terminal.until("Debugger listening on 127.0.0.1:")
        port = int(terminal.spawned.readline())
        terminal.until("started" if name == "one" else "restarted in ")
        with dap.session("127.0.0.1", port) as session:
            session.attach(script, 11)
            terminal.type(f"name={name}")
            thread, line, found = session.locals()
            assert (line, found["data"]) == (11, f"{{'name': '{name}'}}")
            session.ask("continue", threadId=thread)
            terminal.until(f"Hello, {name}!")
        script.write_text(script.read_text() + "\n")
    terminal.until("restarted in ")
    terminal.type("exit")
    terminal.left()


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["nowhere"], "nowhere is neither a folder nor a file"),
        (["."], ". has no worker.py"),
        (["t", "1"], "t:1:h does not exist"),
        (["a", "b", "c"], "3 words"),
    ],
)
def test_what_cannot_be_developed_is_said_in_one_line(r: redis.Redis, run: Runner, args: list[str], text: str) -> None:
    done = run("dev", *args)
    assert done.code in (64, 78)
    assert done.out == ""
    error, *hints = done.err.splitlines()
    assert text in error
    assert all(line.startswith("hint: ") for line in hints[:1])


def test_when_redis_goes_away_the_prompt_ends_with_one_line(
    run: Runner, tmp_path: Path, dev: Callable[..., Terminal]
) -> None:
    folder = tmp_path / "slow"
    folder.mkdir()
    (folder / "worker.py").write_text(SLOW)
    with embedded.server() as url:
        terminal = dev(str(folder), "--redis", url)
        terminal.until("slow> ")
    (folder / "worker.py").write_text(SLOW + "\n")
    terminal.spawned.expect(pexpect.EOF)
    terminal.spawned.close()
    assert "error: Redis at redis://127.0.0.1" in terminal.spawned.before
    assert terminal.spawned.exitstatus == 75


def test_options_that_start_no_worker_end_it(r: redis.Redis, run: Runner, local: Local) -> None:
    local(SLOW)
    done = run("dev", "t", "1", "--allow-magic=x")
    assert done.code == 64
    assert "there is no option '--allow-magic'" in done.err


def test_a_hash_that_is_somebodys_is_left_alone(r: redis.Redis, alone: Runner, folder: Path, redis_url: str) -> None:
    for fields in ({"url": "mine"}, {"url": str(folder), "version": "local", "type": "greeter", "allowNet": "a:1"}):
        r.delete("greeter:dev:h")
        r.hset("greeter:dev:h", mapping=fields)
        done = alone("dev", "greeter", "--redis", redis_url)
        assert (done.code, done.err.count("\n")) == (78, 2)
        assert "greeter:dev:h is there already" in done.err
        assert r.hgetall("greeter:dev:h") == fields
