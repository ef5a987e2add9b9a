"""The socket on which an agent says how it is, and `sandboxrun health`, which reads it and asks no Redis."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_status import STATUS, WORKER, busy, with_workers
from runner import Runner

from sandboxrun.fleet.status import AgentStatus, as_json
from sandboxrun.host import statuses
from sandboxrun.host.statuses import Cached, StatusSocket, read_all
from sandboxrun.records import replace
from sandboxrun.redis.lease import start_time, this_host

NO_REDIS = "redis://127.0.0.1:1"


@pytest.fixture
def run(tmp_path: Path) -> Runner:
    return Runner(NO_REDIS, tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return str(tmp_path / ".local/state/sandboxrun/agent")


@pytest.fixture
def said(folder: str) -> Iterator[list[bytes]]:
    """What the agent says, which is this process."""
    words = [as_json(STATUS)]
    made = StatusSocket(folder, lambda: words[-1])
    yield words
    made.close()
    assert os.listdir(folder) == []


def test_a_status_is_read_as_it_was(said: list[bytes], folder: str) -> None:
    assert list(read_all(folder)) == [(os.getpid(), STATUS)]
    assert list(read_all(folder)) == [(os.getpid(), STATUS)]
    (name,) = os.listdir(folder)
    assert stat.S_IMODE(os.stat(f"{folder}/{name}").st_mode) == 0o600
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700


def test_a_long_path_is_no_obstacle(tmp_path: Path) -> None:
    folder = str(tmp_path / ("x" * 100) / ("y" * 100))
    made = StatusSocket(folder, lambda: as_json(STATUS))
    assert list(read_all(folder)) == [(os.getpid(), STATUS)]
    made.close()


def test_what_a_killed_agent_has_left_is_removed(folder: str) -> None:
    os.makedirs(folder)
    with socket.socket(socket.AF_UNIX) as dead:
        os.chdir(folder)
        dead.bind("999999.sock")
    Path(folder, "1.txt").touch()
    Path(folder, "x.sock").touch()
    assert list(read_all(folder)) == []
    assert sorted(os.listdir(folder)) == ["1.txt", "x.sock"]


@pytest.mark.parametrize("data", [b"", b"{}", b"null", b"\xff", b"x" * (9 << 20)])
def test_an_agent_that_says_nonsense_is_not_healthy(said: list[bytes], folder: str, run: Runner, data: bytes) -> None:
    said.append(data)
    done = run("health")
    assert done.code == 1 and f"agent {os.getpid()}: answers what is no status: " in done.out


def test_an_agent_that_does_not_answer_is_not_healthy(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statuses, "READ_SECONDS", 0.2)
    release = threading.Event()
    made = StatusSocket(folder, lambda: b"x" * release.wait(60))
    assert list(read_all(folder)) == [(os.getpid(), "does not answer within 0.2 s")]
    release.set()
    made.close()


def test_readers_that_read_nothing_hold_neither_agent_nor_others(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statuses, "WRITE_SECONDS", 0.2)
    words = [b"x" * (4 << 20)]
    made = StatusSocket(folder, lambda: words[-1])
    deaf = [socket.socket(socket.AF_UNIX) for _ in range(statuses.READERS_MAX)]
    for each in deaf:
        with statuses._short(folder, made.path) as path:
            each.connect(path)
    words.append(as_json(STATUS))
    for _ in range(600):
        if [status for _, status in read_all(folder)] == [STATUS]:
            break
        time.sleep(0.05)
    else:
        pytest.fail("the places were never free again")
    for each in deaf:
        each.close()
    made.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="connects as another user")
def test_another_user_is_told_nothing_whatever_the_modes() -> None:
    code = (
        "import os, socket, sys\nos.setuid(int(sys.argv[2]))\ns = socket.socket(socket.AF_UNIX)\ns.connect(sys.argv[1])\n"
        "print(len(s.recv(9)))"
    )
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        made = StatusSocket(folder, lambda: as_json(STATUS))
        os.chmod(folder, 0o755)
        os.chmod(made.path, 0o666)
        try:
            for user, count in ((0, "9\n"), (65534, "0\n")):
                command = [sys.executable, "-I", "-S", "-c", code, made.path, str(user)]
                assert subprocess.check_output(command, text=True, timeout=60) == count
        finally:
            made.close()


def test_a_status_is_made_once_for_many_readers() -> None:
    made: list[int] = []
    cached = Cached(lambda: made.append(1) or len(made), 3600)  # type: ignore[func-returns-value]
    assert [cached() for _ in range(100)] == [1] * 100
    always = Cached(lambda: made.append(1) or len(made), 0)  # type: ignore[func-returns-value]
    assert [always() for _ in range(3)] == [2, 3, 4]


def test_without_an_agent_nothing_is_healthy(run: Runner) -> None:
    done = run("health")
    assert (done.code, done.out) == (1, "no agent of this user runs on this host\nhint: sandboxrun agent\n")
    assert json.loads(run("health", "--json").out) == {"healthy": False, "agents": []}


def test_an_agent_whose_workers_work_is_healthy_and_its_problems_are_said(said: list[bytes], run: Runner) -> None:
    said.append(as_json(busy(clock=time.monotonic(), now=time.time())))
    done = run("health")
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[0] == f"agent {os.getpid()}: 48 of 50 workers run"
    assert "hint: sandboxrun stop thumbnail 5 && sandboxrun start thumbnail 5" in lines
    assert lines[1].startswith("error: 1 worker is stuck: thumbnail 5 has handled one request for ")
    value = json.loads(run("health", "--json").out)
    assert value["healthy"] and [each["kind"] for each in value["agents"][0]["problems"]] == [
        "stuck",
        "failing",
        "dead",
        "denied",
    ]


def test_an_agent_without_a_worker_is_healthy_and_says_why(said: list[bytes], run: Runner) -> None:
    idle = with_workers()
    said.append(as_json(replace(idle, types=(replace(idle.types[0], waiting_ids=0),))))
    done = run("health")
    assert (done.code, done.out) == (0, f"agent {os.getpid()}: no workers: none is ordered\n")
    said.append(as_json(of(state="stopped", denials=())))
    assert "no workers: none is ordered, 1 is stopped\n" in run("health").out


def of(**changes: object) -> AgentStatus:
    return with_workers(replace(WORKER, **changes))


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (of(), 0, "greeter 1 is running for "),
        (of(state="starting", health=None, since=None), 0, "greeter 1 is starting\n"),
        (of(state="stuck"), 1, "greeter 1 is stuck for "),
        (of(state="failing"), 1, "greeter 1 is failing: exit code 1"),
        (of(state="waiting", last_exit=78), 1, "greeter 1 is waiting: exit code 78"),
        (of(state="stopped", last_exit=None, since=None, health=None), 1, "greeter 1 is stopped\n"),
        (of(state="failing", last_reason="\x1b[2J\u202e"), 1, "\\x1b[2J\\u202e"),
    ],
)
def test_a_worker_of_an_agent(said: list[bytes], run: Runner, status: AgentStatus, code: int, words: str) -> None:
    said.append(as_json(status))
    done = run("health", "greeter", "1")
    assert done.code == code and words in done.out, done
    assert json.loads(run("health", "greeter", "1", "--json").out)["healthy"] is (code == 0)


def record(run: Runner, value: object) -> None:
    folder = run.home / ".local/state/sandboxrun/runs"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "greeter:1.json").write_text(json.dumps(value))


def supervisor(**changes: object) -> dict[str, object]:
    pid = os.getpid()
    return {"supervisor": {"pid": pid, "started": start_time(pid), "host": this_host(), **changes}}


def test_a_worker_without_an_agent_is_its_supervisor(run: Runner) -> None:
    assert run("health", "greeter", "1").out == "greeter 1 has not run on this host, as this user\n"
    record(run, supervisor())
    done = run("health", "greeter", "1")
    assert done.code == 0 and done.out.startswith("greeter 1 is running for ")
    for wrong in (supervisor(started=1), supervisor(host="elsewhere/1"), supervisor(pid=10**9), supervisor(pid="x")):
        record(run, wrong)
        assert (run("health", "greeter", "1").code, run("health", "greeter", "1").out) == (
            1,
            "greeter 1 does not run\n",
        )
    log = run.home / ".local/state/sandboxrun/logs/greeter:1.log"
    log.parent.mkdir()
    log.write_bytes(b"")
    for value in ({}, [], {"supervisor": None}, {"supervisor": {}}):
        record(run, value)
        assert "has a record that says nothing of its supervisor" in run("health", "greeter", "1").out


@pytest.mark.parametrize("args", [("../../etc", "1"), ("greeter", ".."), ("a:b", "1"), ("greeter", "x" * 300)])
def test_a_name_that_is_none_reads_no_file(run: Runner, args: tuple[str, str]) -> None:
    assert run("health", *args).code == 78


def test_a_probe_imports_little(said: list[bytes], run: Runner) -> None:
    """What it imports, for a time would differ from machine to machine."""
    script = "import sys, sandboxrun.cli as c\ntry: c.main(['health'])\nfinally: pass"
    code = (
        "import os, sys\nbefore = set(sys.modules)\nend = os._exit\n"
        "def done(code): print(' '.join(sorted(set(sys.modules) - before)), file=sys.stderr, flush=True); end(code)\n"
        f"os._exit = done\n{script}"
    )
    done = replace_python(run, code)
    names = {name for name in done.split() if name.startswith("sandboxrun.")}
    assert names == {
        "sandboxrun.cli", "sandboxrun.cli.commands", "sandboxrun.cli.health", "sandboxrun.fleet", "sandboxrun.fleet.problems",
        "sandboxrun.fleet.status", "sandboxrun.fleet.units", "sandboxrun.errors", "sandboxrun.health", "sandboxrun.healthpage",
        "sandboxrun.host", "sandboxrun.host.folders", "sandboxrun.host.statuses", "sandboxrun.log", "sandboxrun.modulecache",
        "sandboxrun.records", "sandboxrun.sandbox", "sandboxrun.sandbox.supervisor", "sandboxrun.sandbox.supervisor.ending",
        "sandboxrun.timing",
    }  # fmt: skip
    assert not {"json", "re", "argparse", "socket", "enum", "hiredis", "redis"} & set(done.split())


def replace_python(run: Runner, code: str) -> str:
    import subprocess

    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys\nsys.path[:0] = {sys.path!r}\n{code}"],
        env=run.env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done
    return done.stderr.splitlines()[-1]
