"""More permissions than last time need a yes: on a terminal, by --yes, or by `sandboxrun approve`."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from arena import wait_for
from runner import Runner

Local = Callable[..., Path]
RAN = "print('ran')\n"
CONTROLLING = (
    "import fcntl, os, sys, termios\nfcntl.ioctl(1, termios.TIOCSCTTY, 0)\nos.execv(sys.argv[1], sys.argv[1:])"
)


def on_terminal(run: Runner, *args: str, answer: bytes, early: bytes = b"") -> tuple[int, str]:
    """The command with a controlling terminal and another standard input; exit code, and what was shown. `answer` is typed when
    the question is there, `early` before."""
    master, slave = pty.openpty()
    with open(master, "rb", buffering=0), open(slave, "rb", buffering=0):
        os.write(master, early)
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", CONTROLLING, *run.command(*args)],
            env=run.env,
            cwd=run.home,
            stdin=subprocess.DEVNULL,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        shown, answered, deadline = b"", False, time.monotonic() + 30
        while process.poll() is None or select.select([master], [], [], 0)[0]:
            assert time.monotonic() < deadline, shown
            if select.select([master], [], [], 0.02)[0]:
                shown += os.read(master, 65536)
            if not answered and shown.endswith(b"[y/N] "):
                answered = True
                os.write(master, answer)
    return process.returncode, shown.decode()


@pytest.fixture
def grown(r: redis.Redis, run: Runner, local: Local) -> Runner:
    """A worker that was run, and whose hash asks for more now."""
    local(RAN, allowNet="a.example:443")
    assert run("t", "1").out == "ran\n"
    r.hset("t:1:h", mapping={"allowNet": "a.example:443,b.example", "allowRead": "/etc/hosts", "limitMemory": "8G"})
    return run


LINES = ["--allow-net b.example", "--allow-read /etc/hosts", "--limit-memory 8G (was 4G)"]
QUESTION = (
    "t:1:h asks for more than at its last run:\n" + "".join(f"  + {line}\n" for line in LINES) + "Allow this? [y/N] "
)


@pytest.mark.parametrize("answer", [b"y\n", b"Yes\n"])
def test_a_yes_on_the_terminal_is_asked_once(grown: Runner, answer: bytes) -> None:
    code, shown = on_terminal(grown, "t", "1", answer=answer)
    assert code == 0
    assert shown.replace("\r\n", "\n").startswith(QUESTION)
    assert shown.endswith("ran\r\n")
    code, shown = on_terminal(grown, "t", "1", answer=b"n\n")
    assert (code, "Allow this?" in shown, shown.endswith("ran\r\n")) == (0, False, True)
    assert grown("t", "1").out == "ran\n"


@pytest.mark.parametrize("answer", [b"\n", b"n\n", b"\x04", b"yess\n", b"x" * 300 + b"\n"])
def test_anything_else_is_a_no(grown: Runner, answer: bytes) -> None:
    code, shown = on_terminal(grown, "t", "1", answer=answer, early=b"y\ny\n")  # typed before it was asked
    assert code == 77
    assert "this was not approved" in shown
    assert "\r\nran\r\n" not in shown
    assert grown("t", "1").code == 77


def test_what_is_asked_cannot_drive_the_terminal(r: redis.Redis, run: Runner, local: Local) -> None:
    local(RAN)
    assert run("t", "1").code == 0
    r.hset("t:1:h", "allowRead", "/a\x1b[2J\r\n\u202eb")
    code, shown = on_terminal(run, "t", "1", answer=b"n\n")
    assert code == 77
    assert "  + --allow-read /a\\x1b[2J\\r\\n\\u202eb\r\n" in shown
    assert not set(shown) & {"\x1b", "\u202e"}
    run.env["TERM"] = "xterm"
    assert on_terminal(run, "t", "1", answer=b"n\n")[1].startswith("\x1b[0mt:1:h asks")


def test_without_a_terminal_it_is_refused_until_yes_is_said(grown: Runner) -> None:
    for _ in range(2):
        done = grown("t", "1")
        assert (done.code, done.out) == (77, "")
        assert done.err == (
            "error: t:1:h asks for more than at its last run (--allow-net b.example, and 2 more), and there is no terminal to ask "
            "on\nhint: sandboxrun approve t 1\n"
        )
    assert grown("t", "1", "--yes").out == "ran\n"
    assert grown("t", "1").out == "ran\n"


def test_diff_shows_and_approve_agrees_to_exactly_that(r: redis.Redis, grown: Runner) -> None:
    shown = "".join(f"  + {line}\n" for line in LINES)
    for _ in range(2):
        assert grown("diff", "t", "1").out == shown
    assert json.loads(grown("diff", "t", "1", "--json").out) == {"recorded": True, "grown": LINES, "script": None}
    assert grown("t", "1").code == 77  # looking changes nothing
    assert grown("approve", "t", "1").out == shown + "approved\n"
    r.hset("t:1:h", "allowNet", "a.example:443,b.example,c.example")
    done = grown("t", "1")
    assert (done.code, "(--allow-net c.example)" in done.err) == (77, True)
    r.hset("t:1:h", "allowNet", "a.example:443,b.example")
    assert grown("t", "1").out == "ran\n"
    assert grown("diff", "t", "1").out == "t:1:h asks for nothing more than it was allowed\n"


def test_diff_and_approve_work_while_the_worker_runs(r: redis.Redis, run: Runner, local: Local) -> None:
    local("import time\ntime.sleep(600)\n", allowNet="a.example")
    with run.start("t", "1") as process:
        wait_for(lambda: r.hexists("t:1:h", "pid"))
        assert run("diff", "t", "1").out == "t:1:h asks for nothing more than it was allowed\n"
        assert run("set", "t", "1", "allowNet=a.example,b.example").code == 0
        done = run("diff", "t", "1", "--json")
        assert (done.code, json.loads(done.out)["grown"]) == (0, ["--allow-net b.example"])
        done = run("approve", "t", "1")
        assert (done.code, done.out) == (0, "  + --allow-net b.example\napproved\n")
        assert process.poll() is None
        assert run("t", "1").code == 73  # which a second run still is
    local(RAN, allowNet="a.example,b.example")
    wait_for(lambda: run("t", "1").out == "ran\n")


def test_what_is_too_much_to_read_is_said_by_diff_as_by_a_run(r: redis.Redis, run: Runner, local: Local) -> None:
    local(RAN)
    run("t", "1")
    for fields in ({"allowNet": "x" * 70_000}, {f"f{n}": "" for n in range(600)}):
        r.hset("t:1:h", mapping=fields)
        expected = run("t", "1")
        assert expected.code == 78
        for command in ("diff", "approve"):
            done = run(command, "t", "1")
            assert (done.code, done.out, done.err) == (78, "", expected.err)


def test_the_first_run_asks_nothing_and_approve_before_it_counts(r: redis.Redis, run: Runner, local: Local) -> None:
    local(RAN, allowNet="a.example")
    assert run("diff", "t", "1").out == "t:1:h was never run or approved; it asks for:\n  + --allow-net a.example\n"
    assert json.loads(run("diff", "t", "1", "--json").out) == {"recorded": False, "grown": None, "script": None}
    assert run("approve", "t", "1").code == 0
    r.hset("t:1:h", "allowNet", "b.example")
    assert run("t", "1").code == 77
    local(RAN, key="t:2:h", allowNet="b.example")
    assert run("t", "2").out == "ran\n"


def test_shrinking_never_asks_and_what_comes_back_is_asked(r: redis.Redis, run: Runner, local: Local) -> None:
    local(RAN, allowNet="a.example,b.example", limitMemory="8G")
    assert run("t", "1").code == 0
    r.hset("t:1:h", mapping={"allowNet": "a.example:443", "limitMemory": "1G"})
    assert run("t", "1").out == "ran\n"
    r.hset("t:1:h", "allowNet", "a.example")
    assert run("t", "1").code == 77


def test_what_the_command_line_grants_is_not_of_the_hash(r: redis.Redis, run: Runner, local: Local) -> None:
    local(RAN)
    assert run("t", "1", "--allow-net=a.example").code == 0
    assert run("t", "1", "--allow-net=a.example,b.example", "--limit-memory=8G").code == 0
    r.hset("t:1:h", "allowNet", "a.example")
    assert run("t", "1").code == 77


def test_a_new_version_with_the_same_permissions_asks_nothing(r: redis.Redis, run: Runner, local: Local) -> None:
    local(RAN, allowNet="a.example")
    assert run("t", "1").code == 0
    local("print('ran, too')", allowNet="a.example")
    assert run("t", "1").out == "ran, too\n"


def test_agreeing_lies_within_the_ceiling(r: redis.Redis, grown: Runner) -> None:
    grown.set_policy('[worker."t"]\nallow-net = ["a.example"]\nallow-read = ["*"]\n')
    for args in (("t", "1", "--yes"), ("approve", "t", "1"), ("diff", "t", "1")):
        assert grown(*args).code == 77
    grown.set_policy('[worker."t"]\nallow-net = ["a.example", "b.example"]\nallow-read = ["*"]\n')
    assert grown("t", "1").code == 77


def test_a_damaged_record_runs_nothing(r: redis.Redis, grown: Runner) -> None:
    record = grown.home / ".local/state/sandboxrun/approved/t:1.json"
    assert record.stat().st_mode & 0o777 == 0o600
    record.write_text(record.read_text()[:-20])
    for args in (("t", "1"), ("t", "1", "--yes"), ("approve", "t", "1"), ("diff", "t", "1")):
        done = grown(*args)
        assert (done.code, done.out) == (78, "")
        assert f"the record {record} of what a worker was allowed is damaged" in done.err
        assert len(done.err.partition("hint: ")[0].splitlines()) == 1


def test_a_program_in_the_background_of_a_terminal_is_not_stopped_but_refused(grown: Runner) -> None:
    code = "import subprocess, sys\nsys.exit(subprocess.run(sys.argv[1:], process_group=0).returncode)"
    command = grown.command("t", "1")
    grown.command = lambda *args: [sys.executable, "-c", code, *command]  # type: ignore[method-assign]
    code_, shown = on_terminal(grown, answer=b"y\n")
    assert (code_, "there is no terminal to ask on" in shown) == (77, True)
