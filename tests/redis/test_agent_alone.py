"""An agent by itself: without Redis, with keys, and seen from the same host."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from agents import Agent, wait_for
from runner import Runner
from servers import Own

WORKER = Path(__file__).parent / "workers" / "fleet.py"
KEY = "worker-v0 " + "0123456789abcdef" * 4 + "\n"


@pytest.fixture
def started(run: Runner) -> Iterator[list[Agent]]:
    found: list[Agent] = []
    yield found
    for each in found:
        each.kill()


def folder(run: Runner, text: str) -> str:
    path = run.home / "script"
    path.mkdir(exist_ok=True)
    (path / "worker.py").write_text(text)
    return str(path)


def test_redis_may_come_later_and_go(run: Runner, started: list[Agent]) -> None:
    with Own() as server:
        server.kill()
        run.env["REDIS_URL"] = server.url
        agent = Agent(run, "t")
        started.append(agent)
        wait_for(lambda: agent.says("waiting for Redis"))
        for number in (1, 2):  # this server keeps nothing when it is killed
            server.start()
            wait_for(lambda count=number: agent.says("is back", count - 1) and agent.says("serving t "))
            with redis.Redis.from_url(server.url, decode_responses=True) as r:
                r.hset("t:h", mapping={"url": folder(run, WORKER.read_text()), "version": "local"})
                r.lpush("t:start:q", "one")
                wait_for(lambda: r.hget("t:one:h", "pid"))
            server.kill()
            wait_for(lambda count=number: agent.says("waits for Redis", count))
        told = sum("not started again" in line for line in agent.lines)
        server.start()
        wait_for(lambda: agent.says("not started again", told + 1))  # nobody orders it in this empty server
        assert sum("waiting for Redis" in line for line in agent.lines) == 1
        agent.process.terminate()
        assert agent.ends() == 0


def test_a_worker_gets_the_key_of_its_type(r: redis.Redis, run: Runner, started: list[Agent]) -> None:
    text = "import time\nfrom sandboxrun import worker\nprint(worker.secrets()['token'], flush=True)\ntime.sleep(600)\n"
    url = folder(run, text)
    key = run.home / "t.key"
    key.write_text(KEY)
    key.chmod(0o600)
    r.hset("t:1:h", mapping={"url": url, "version": "local"})
    done = run("encrypt", "t", "1", "--key-file", str(key), "--write", stdin=json.dumps({"token": "t0ken"}))
    assert done.code == 0, done
    run.env["CANARY"] = "c4nary"
    agent = Agent(run, "t", "--key-file", f"t={key}")
    started.append(agent)
    r.lpush("t:start:q", "1")
    wait_for(lambda: "t0ken" in run("logs", "t", "1").out)
    assert b"c4nary" not in Path(f"/proc/{r.hget('t:1:h', 'pid')}/environ").read_bytes()
    key.chmod(0o640)
    done = run("agent", "t", "--key-file", str(key))
    assert (done.code, "can be read by others (mode 640)" in done.err) == (78, True), done


def test_who_asks_on_the_host_is_told_and_nobody_else(r: redis.Redis, run: Runner, started: list[Agent]) -> None:
    r.hset("t:h", mapping={"url": folder(run, WORKER.read_text()), "version": "local"})
    agent = Agent(run, "t", "--metrics-file", str(run.home / "m.prom"))
    started.append(agent)
    r.lpush("t:start:q", "1")
    wait_for(lambda: r.hget("t:1:h", "pid"))
    (socket,) = (run.home / ".local/state/sandboxrun/agent").glob("*.sock")
    assert (socket.name, socket.stat().st_mode & 0o777) == (f"{agent.process.pid}.sock", 0o600)
    wait_for(lambda: run("health", "t", "1").code == 0)
    wait_for((run.home / "m.prom").exists)
    agent.process.terminate()
    assert agent.ends() == 0
    assert not socket.exists() and not (run.home / "m.prom").exists()


def test_a_second_signal_ends_a_worker_that_does_not(r: redis.Redis, run: Runner, started: list[Agent]) -> None:
    text = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('deaf', flush=True)\ntime.sleep(600)\n"
    r.hset("t:h", mapping={"url": folder(run, text), "version": "local"})
    agent = Agent(run, "t")
    started.append(agent)
    r.lpush("t:start:q", "1")
    wait_for(lambda: "deaf" in run("logs", "t", "1").out)
    pid = r.hget("t:1:h", "pid")
    agent.process.send_signal(signal.SIGTERM)
    wait_for(lambda: r.lrange("t:start:q", 0, -1) == ["1"])
    assert os.path.exists(f"/proc/{pid}")
    agent.process.send_signal(signal.SIGTERM)
    assert agent.ends() == 0
    assert not os.path.exists(f"/proc/{pid}")
    assert r.hlen("sandboxrun:agents") == 0


def test_workers_share_memory_if_the_policy_lets_them(r: redis.Redis, run: Runner, started: list[Agent]) -> None:
    url = folder(run, WORKER.read_text())
    for type_ in "tu":
        r.hset(f"{type_}:h", mapping={"url": url, "version": "local"})
    run.set_policy('[worker."*"]\nopen-redis = true\n[worker."t"]\nopen-redis = true\nshare-memory = true\n')
    started.append(Agent(run, "t", "u"))
    layouts = {}
    for type_ in "tu":
        for id_ in "12":
            r.lpush(f"{type_}:start:q", id_)
            wait_for(lambda: r.hget(f"{type_}:{id_}:h", "pid"))  # noqa: B023
            maps = Path(f"/proc/{r.hget(f'{type_}:{id_}:h', 'pid')}/maps").read_text()
            layouts[type_, id_] = next(line.split()[0] for line in maps.splitlines() if line.endswith("[stack]"))
    assert layouts["t", "1"] == layouts["t", "2"]
    assert layouts["u", "1"] != layouts["u", "2"]


def test_what_a_worker_says_names_it_and_has_its_level(r: redis.Redis, run: Runner, started: list[Agent]) -> None:
    text = "import socket, time\ntry:\n    socket.create_connection(('192.0.2.1', 9))\nexcept OSError:\n    pass\ntime.sleep(600)\n"
    r.hset("t:h", mapping={"url": folder(run, text), "version": "local"})
    run.set_policy('[worker."*"]\nopen-redis = true\n')
    agent = Agent(run, "t", "--json-logs")
    started.append(agent)
    r.lpush("t:start:q", "1")
    wait_for(lambda: agent.says('"denied"'))
    (denied,) = [json.loads(line) for line in agent.lines if '"denied"' in line]
    assert denied["level"] == "denied" and "t" in denied["message"] and "192.0.2.1:9" in denied["message"], denied
    (start,) = [json.loads(line) for line in agent.lines if '"start"' in line]
    assert (start["level"], start["pid"]) == ("info", int(r.hget("t:1:h", "pid") or 0))


def test_types_come_from_a_file(r: redis.Redis, run: Runner, started: list[Agent]) -> None:
    path = run.policy.with_name("agent.toml")
    path.write_text('types = ["t"]\nmost-workers = 1\nmemory = "4G"\nspares = 1\n')
    agent = Agent(run)
    started.append(agent)
    wait_for(lambda: agent.says("serving t as ") and agent.says("at most 1 workers"))
