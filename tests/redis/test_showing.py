"""What an agent shows of its types: figures of real streams, by page, socket, file and sd_notify at once."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from agent_status import STATUS
from runner import Runner

from sandboxrun.describe.showing import Showing
from sandboxrun.fleet.status import AgentStatus, as_json
from sandboxrun.fleet.streams import Figures, figures
from sandboxrun.host.page import Server
from sandboxrun.host.statuses import StatusSocket, read_all
from sandboxrun.redis.connection import Connection

SECONDS = 60


def until(ask: Callable[[], Any], true: Callable[[Any], bool]) -> Any:
    end = time.monotonic() + SECONDS
    while not true(found := ask()):
        assert time.monotonic() < end, found
        time.sleep(0.05)
    return found


def connected(url: str) -> Connection:
    connection = Connection(url, protocol=2)
    connection.open()
    return connection


def test_figures_of_a_stream(r: redis.Redis, redis_url: str) -> None:
    connection = connected(redis_url)
    assert figures(connection, ["greeter"]) == {"greeter": Figures(dead=0)}
    r.xgroup_create("greeter:req:x", "worker", "0", mkstream=True)
    assert figures(connection, ["greeter"])["greeter"] == Figures(lag=0, pending=0, dead=0)
    now = r.time()[0] * 1000
    for seconds in (90, 60, 30):
        r.xadd("greeter:req:x", {"ref": "r"}, id=f"{now - seconds * 1000}-0")
    r.xreadgroup("worker", "1", {"greeter:req:x": ">"}, count=1)
    r.xadd("greeter:dead:x", {"ref": "r"})
    found = figures(connection, ["greeter"])["greeter"]
    assert (found.lag, found.pending, found.dead) == (2, 1, 1)
    assert found.oldest_pending is not None and found.oldest_waiting is not None
    assert 0 <= found.oldest_pending - 90 < SECONDS and 0 <= found.oldest_waiting - 60 < SECONDS
    connection.close()


def test_hostile_streams_have_no_figures(r: redis.Redis, redis_url: str) -> None:
    connection = connected(redis_url)
    r.set("a:req:x", "no stream")
    r.set("a:dead:x", "x")
    r.xgroup_create("b:req:x", "worker", "0", mkstream=True)
    r.xadd("b:req:x", {"data": "x" * (20 << 20)})
    r.xadd("c:req:x", {"ref": "r"}, id="18446744073709551615-1")
    r.xgroup_create("c:req:x", "worker", "0")
    r.xgroup_create("d:req:x", "other", "0", mkstream=True)
    found = figures(connection, "abcd")
    assert found["a"] == Figures()
    assert (found["b"].lag, found["b"].oldest_waiting) == (1, None)
    assert found["c"].oldest_waiting is None
    assert found["d"] == Figures(dead=0)
    connection.close()


def test_an_agent_is_seen_in_all_ways(
    r: redis.Redis, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    r.xgroup_create("greeter:req:x", "worker", "0", mkstream=True)
    r.xadd("greeter:req:x", {"ref": "r"})
    r.xadd("greeter:dead:x", {"ref": "r"})
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    name = f"showing-{os.urandom(6).hex()}"
    manager.bind(f"\0{name}")
    manager.settimeout(SECONDS)
    monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
    folder, file, warned = str(tmp_path / "agent"), tmp_path / "x.prom", list[str]()
    made = Showing(lambda: STATUS, folder, redis_url, warned.append, page="127.0.0.1:0", metrics_file=str(file))
    with made:
        assert manager.recv(4096).decode() == "READY=1\nSTATUS=2 of 2 workers run"
        assert "NOTIFY_SOCKET" not in os.environ
        until(
            lambda: file.exists() and file.read_text(),
            lambda text: 'sandboxrun_dead{type="greeter"} 1\n' in (text or ""),
        )

        def lag() -> int | None:
            ((_, status),) = read_all(folder)
            assert isinstance(status, AgentStatus)
            return status.types[0].lag

        until(lag, lambda found: found == 1)
        server = next(each for each in made._open if isinstance(each, Server))
        with socket.create_connection(("127.0.0.1", server.port), timeout=SECONDS) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert client.recv(15) == b"HTTP/1.1 200 OK"
    assert manager.recv(4096).decode() == "STOPPING=1"
    manager.close()
    assert os.listdir(folder) == [] and warned == []


def test_what_cannot_be_written_is_said_once_and_ends_nothing(tmp_path: Path) -> None:
    warned: list[str] = []
    (tmp_path / "folder").touch()
    path = str(tmp_path / "missing/x.prom")
    with Showing(lambda: STATUS, str(tmp_path / "folder"), "redis://127.0.0.1:1", warned.append, metrics_file=path):
        until(lambda: len(warned), lambda count: count >= 2)
        time.sleep(1.2)  # two more beats
    assert warned == [
        f"sandboxrun health cannot ask this agent: {tmp_path}/folder: File exists",
        f"the metrics cannot be written to {path}: No such file or directory",
    ]


def test_info_says_how_old_a_request_in_hand_is_and_what_workers_here_answered(r: redis.Redis, run: Runner) -> None:
    """An endless handler renews its claim, so that the idle time of its entry says nothing."""
    now = r.time()[0] * 1000
    r.xgroup_create("greeter:req:x", "worker", "0", mkstream=True)
    r.xadd("greeter:req:x", {"ref": "r"}, id=f"{now - 90_000}-0")
    r.xreadgroup("worker", "1", {"greeter:req:x": ">"})
    socket_ = StatusSocket(str(run.home / ".local/state/sandboxrun/agent"), lambda: as_json(STATUS))
    found = json.loads(run("info", "greeter", "--json").out)
    assert found["pending"][0]["idle"] < 60_000 and 90_000 <= found["pending"][0]["age"] < 90_000 + SECONDS * 1000
    (worker,) = found["workers"]
    assert (worker["id"], worker["codes"]) == ("1", {"200": 10, "500": 2}) and worker["handling"] > 0
    lines = run("info", "greeter").out.splitlines()
    assert any(
        line.startswith("  worker 1 is running, has handled 12 (10 with 200, 2 with 500), p50 ") for line in lines
    )
    assert any(" sent " in line and " ago, with 1 for " in line for line in lines)
    socket_.close()
