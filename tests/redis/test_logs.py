"""sandboxrun logs: what a worker printed, kept by its supervisor, out of the worker's reach."""

from __future__ import annotations

import json
import os
import pty
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from arena import wait_for
from leases import lease
from runner import Runner

from sandboxrun.host import logs as runlogs
from sandboxrun.sandbox.supervisor.outputlog import LOG_MAX_BYTES, OutputLog

Local = Callable[..., Path]
EVIL = b"\x1b[2J\x1b]0;t\x07\xe2\x80\xae\xff\x1e1 info\nforged\x1b[31mred\n"


def log_of(run: Runner, name: str = "t:1") -> Path:
    return run.home / f".local/state/sandboxrun/logs/{name}.log"


def test_output_and_our_messages_are_kept(r: redis.Redis, run: Runner, local: Local) -> None:
    local("import sys\nprint('one')\nprint('two', file=sys.stderr)\nopen('/etc/hostname')\n")
    assert run("t", "1", "--quiet").code == 1
    done = run("logs", "t", "1")
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[0].startswith("sandboxrun: t:1:h runs ")
    assert {"one", "two", "PermissionError: [Errno 13] Permission denied: '/etc/hostname'"} <= set(lines)
    assert lines[-1] == "sandboxrun: ended with exit code 1"
    found = [json.loads(line) for line in run("logs", "t", "1", "--json").out.splitlines()]
    assert [(row["stream"], row["text"]) for row in found if row["text"] in ("one", "two")] != []
    assert {row["text"]: row["stream"] for row in found if row["text"] in ("one", "two")} == {
        "one": "out",
        "two": "err",
    }
    assert found[-1]["exit_code"] == 1
    assert run("logs", "t", "1", "-n", "1").out == "sandboxrun: ended with exit code 1\n"
    assert run("logs", "t", "1", "-n", "0").out == ""
    log = log_of(run)
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    assert stat.S_IMODE(log.parent.stat().st_mode) == 0o700
    assert run("logs").out.startswith("t 1 ")
    assert run("logs", "t", "1", "--clear").out == "removed the log of t 1\n"
    assert not log.exists()


def test_a_start_that_fails_is_in_the_log_and_one_beside_a_running_worker_is_not(
    r: redis.Redis, run: Runner, local: Local
) -> None:
    local("import time\nprint('ready', flush=True)\ntime.sleep(600)\n", allowNonsense="1")
    assert run("t", "1").code == 78
    assert "allowNonsense" in run("logs", "t", "1").out
    r.hdel("t:1:h", "allowNonsense")
    with run.start("t", "1") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        assert run("t", "1").code == 73
        assert "runs already" not in run("logs", "t", "1").out


def test_it_follows_over_restarts(r: redis.Redis, run: Runner, local: Local) -> None:
    local("print('first')\n")
    assert run("t", "1").code == 0
    with run.start("logs", "t", "1", "-f", "-n", "1") as follower:
        assert follower.stdout is not None
        assert follower.stdout.readline() == b"sandboxrun: ended with exit code 0\n"
        local("print('second')\n")
        assert run("t", "1").code == 0
        assert b" runs " in follower.stdout.readline()
        assert follower.stdout.readline() == b"second\n"
        os.replace(log_of(run), f"{log_of(run)}.1")
        local("print('third')\n")
        assert run("t", "1").code == 0
        assert follower.stdout.readline() == b"sandboxrun: ended with exit code 0\n"
        assert b" runs " in follower.stdout.readline()
        assert follower.stdout.readline() == b"third\n"


def test_a_worker_cannot_drive_the_terminal_or_forge_an_entry(r: redis.Redis, run: Runner, local: Local) -> None:
    local(f"import os\nos.write(1, {EVIL!r})\n")
    subprocess.run(run.command("t", "1"), env=run.env, cwd=run.home, capture_output=True, timeout=60, check=True)
    rows = [json.loads(line) for line in run("logs", "t", "1", "--json").out.splitlines()]
    assert [row["stream"] for row in rows if "forged" in row["text"]] == ["out"]
    ours, theirs = pty.openpty()
    env = {**run.env, "TERM": "xterm"}
    done = subprocess.run(run.command("logs", "t", "1"), env=env, stdout=theirs, timeout=60, check=True)
    os.close(theirs)
    seen = os.read(ours, 65536)
    os.close(ours)
    assert done.returncode == 0
    assert b"\\x1b[2J\\x1b]0;t\\x07\\u202e\\xff" in seen
    assert b"\x1b[2J" not in seen and b"\x07" not in seen
    assert b"\x1b[31mred\x1b[0m" in seen


def test_it_is_bounded(r: redis.Redis, run: Runner, local: Local) -> None:
    local("for number in range(60000): print(f'{number:060}')\n")
    done = run("t", "1", "--quiet")
    assert done.code == 0
    log = log_of(run)
    kept = [path.stat().st_size for path in (log, Path(f"{log}.1"))]
    assert max(kept) <= LOG_MAX_BYTES and sum(kept) > LOG_MAX_BYTES
    lines = run("logs", "t", "1").out.splitlines()
    assert lines[-2:] == [f"{59999:060}", "sandboxrun: ended with exit code 0"]
    assert lines[1:-1] == [f"{number:060}" for number in range(60001 - len(lines) + 1, 60000)]
    assert len(done.out.splitlines()) == 60000


def test_a_disk_that_takes_no_more_does_not_hurt_the_run(r: redis.Redis, run: Runner, local: Local) -> None:
    # A limit of the size of files stands for it: write(2) takes a part, and then fails.
    local(
        "import time\nfor number in range(5000):\n    print(f'{number:060}', flush=True)\n"
        "    if number in (99, 4999): time.sleep(1)\n"
    )
    assert run("t", "1").code == 0  # what is compiled once is there
    run("logs", "t", "1", "--clear")
    command = ["bash", "-c", 'ulimit -f 64; exec "$@"', "bash", *run.command("t", "1")]
    done = subprocess.run(command, env=run.env, cwd=run.home, capture_output=True, text=True, timeout=60)
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 5000)
    assert done.stderr.count("cannot be written (") == 1 and "--no-log" in done.stderr
    lines = run("logs", "t", "1").out.splitlines()
    assert lines[1:100] == [f"{number:060}" for number in range(99)]


def test_no_log_keeps_none(r: redis.Redis, run: Runner, local: Local) -> None:
    local("print('secret')\n")
    assert run("t", "1", "--no-log").out == "secret\n"
    assert not log_of(run).exists()
    done = run("logs", "t", "1")
    assert done.code == 78
    assert done.err == (
        "error: t 1 has no log of this user on this host: it has not run yet, or only with --no-log\nhint: sandboxrun t 1\n"
    )
    r.hset("t:1:h", mapping=lease(r, pidName="far\x1b[2J"))
    assert run("logs", "t", "1").err.endswith("host: it runs on far\\x1b[2J\n")
    r.hset("t:1:h", "pidName", "far")
    assert run("logs", "t", "1").err.endswith(" it runs on far\nhint: ssh far sandboxrun logs t 1\n")
    for name in ("-oProxyCommand=reboot", "far;reboot", "$(reboot)", "root@far"):  # ssh would run the first
        r.hset("t:1:h", "pidName", name)
        assert run("logs", "t", "1").err.endswith(f" it runs on {name}\n")


def test_no_worker_reads_or_writes_a_log(r: redis.Redis, run: Runner, local: Local) -> None:
    home = os.path.realpath(run.home)
    logs = f"{home}/.local/state/sandboxrun/logs"
    (run.home / "note").write_text("seen")
    code = (
        f"import os\nprint(open({home + '/note'!r}).read())\n"
        f"for act in (lambda: os.listdir({logs!r}), lambda: open({logs + '/t:1.log'!r}), lambda: open({logs + '/t:1.log'!r}, 'ab'),\n"
        f"            lambda: os.unlink({logs + '/t:1.log'!r})):\n"
        "    try: act()\n    except PermissionError: print('refused')\n"
    )
    local(code, allowRead=home)
    done = run("t", "1")
    assert done.out == "seen\n" + "refused\n" * 4, done.err
    local(code, allowRead=logs)
    done = run("t", "1")
    assert done.code == 78
    assert "where what workers print is kept, which no worker reads" in done.err
    r.hdel("t:1:h", "allowRead")
    local(code, allowWrite=logs)
    done = run("t", "1", "--yes")
    assert done.code == 78 and "would let the worker change" in done.err


def test_a_log_that_is_another_file_is_not_written(tmp_path: Path) -> None:
    path, warnings = tmp_path / "logs" / "t:1.log", []
    log = OutputLog(str(path), warnings.append)
    log.write(b"out", b"x\n")
    path.unlink()
    (tmp_path / "victim").write_text("")
    path.symlink_to(tmp_path / "victim")
    log.write(b"out", b"y\n")
    log.write(b"out", b"y\n")
    assert len(warnings) == 1
    path.unlink()
    log.write(b"out", b"z")
    log.write(b"err", b"e\n")
    log.write(b"out", b"z\n")
    assert (tmp_path / "victim").read_text() == ""
    assert [(line.kind, line.text) for line in runlogs.read(str(path))] == [("err", "e"), ("out", "zz")]


@pytest.mark.parametrize("cut", [1, 7, 64])
def test_lines_are_the_same_in_any_parts(tmp_path: Path, cut: int) -> None:
    log = OutputLog(str(tmp_path / "log"), lambda message: None)
    for kind, data in [
        (b"out", b"a\nb"),
        (b"err", b"\x1e\n\n"),
        (b"out", b"c\n"),
        (b"info", b"said\n"),
        (b"end", b"0\n"),
    ]:
        log.write(kind, data)
    data = (tmp_path / "log").read_bytes()
    lines = runlogs.Lines()
    found = [line for at in range(0, len(data), cut) for line in lines.feed(data[at : at + cut])]
    assert [(line.kind, line.text) for line in [*found, *lines.end()]] == [
        ("out", "a"), ("err", "␞"), ("err", ""), ("out", "bc"), ("info", "said"), ("end", "0"),
    ]  # fmt: skip


def test_a_torn_log_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"torn\x1e5 out\na\n\x1enonsense\n\x1e6 out\nb\n\x1e7 o")
    assert [line.text for line in runlogs.read(str(tmp_path / "log"))] == ["a", "b"]


@pytest.mark.parametrize("args", [("t",), ("t", "1", "-n", "-1"), ("T", "1"), ("t", "1")])
def test_bad_arguments_are_one_line(run: Runner, r: redis.Redis, args: tuple[str, ...]) -> None:
    done = run("logs", *args)
    assert done.code in (64, 78)
    error, *hint = done.err.splitlines()
    assert error.startswith("error: ") and [line.partition(" ")[0] for line in hint] in ([], ["hint:"])


def test_of_a_flood_the_last_is_kept(r: redis.Redis, run: Runner, local: Local) -> None:
    local("import os\nfor number in range(3000): os.write(1, b'%065535d\\n' % number)\n")
    with open(os.devnull, "wb") as sink:
        subprocess.run(run.command("t", "1"), env=run.env, cwd=run.home, stdout=sink, timeout=60, check=True)
    lines = run("logs", "t", "1").out.splitlines()
    assert lines[-1] == "sandboxrun: ended with exit code 0"
    numbers = [int(line[-9:]) for line in lines if len(line) == 65535]
    assert numbers[-16:] == list(range(2984, 3000))
    assert all(log.stat().st_size <= LOG_MAX_BYTES for log in (log_of(run), Path(f"{log_of(run)}.1")))


def test_many_starts_at_once_share_a_log(tmp_path: Path) -> None:
    path = str(tmp_path / "log")
    logs = [OutputLog(path, lambda message: None) for _ in range(3)]
    for number in range(30000):
        logs[number % 3].write(b"out", b"%060d\n" % number)
    wait_for(lambda: os.path.exists(f"{path}.1"))
    found = [int(line.text) for line in runlogs.read(path)]
    assert found == list(range(found[0], 30000))
