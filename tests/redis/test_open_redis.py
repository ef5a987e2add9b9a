"""A Redis that takes commands without a password holds no worker: it is refused, unless the operator accepts that."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator

import pytest
import redis
from runner import Runner

from sandboxrun.redis import embedded

ATTACK = """
import os, socket
from urllib.parse import urlsplit

def answers(*commands):
    parts = urlsplit(os.environ["REDIS_URL"])
    with socket.create_connection((parts.hostname, parts.port), timeout=10) as sock:
        reader = sock.makefile("rb")
        found = []
        for command in commands:
            sock.sendall(command.encode() + b"\\r\\n")
            found.append(reader.readline().decode().strip())
        return found

print(*answers("HSET t:1:h allowRead /etc/passwd", "HSET other secret stolen"), sep="\\n")
"""


@pytest.fixture
def open_redis(run: Runner) -> Iterator[redis.Redis]:
    """As it comes: `default` needs no password."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    program = embedded.find_server()
    with subprocess.Popen(
        [program, "--port", str(port), "--bind", "127.0.0.1", "--save", ""], stdout=subprocess.DEVNULL
    ) as process:
        try:
            run.env["REDIS_URL"] = f"redis://127.0.0.1:{port}"
            client = redis.Redis(port=port, decode_responses=True, retry_on_error=[redis.ConnectionError])
            while True:
                try:
                    client.ping()
                    break
                except (redis.ConnectionError, redis.BusyLoadingError):
                    continue
            run.set_policy(None)
            yield client
            client.close()
        finally:
            process.kill()


def worker(r: redis.Redis, tmp_path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "worker.py").write_text(ATTACK)
    r.hset("t:1:h", mapping={"url": str(tmp_path), "version": "local"})


def test_it_is_refused_with_what_to_do_and_nothing_runs(open_redis: redis.Redis, run: Runner, tmp_path) -> None:  # type: ignore[no-untyped-def]
    worker(open_redis, tmp_path)
    done = run("t", "1")
    assert (done.code, done.out, done.err.count("\n")) == (71, "", 1)
    assert "takes commands without a password" in done.err
    assert "--allow-degraded=redis-password" in done.err
    assert open_redis.acl_users() == ["default"]
    assert not open_redis.hexists("t:1:h", "pid")
    assert not open_redis.exists("other")


def test_a_login_of_the_operators_own_does_not_close_it(open_redis: redis.Redis, run: Runner, tmp_path) -> None:  # type: ignore[no-untyped-def]
    open_redis.acl_setuser(
        "operator", enabled=True, passwords=["+secret"], keys=["*"], channels=["*"], commands=["+@all"]
    )
    worker(open_redis, tmp_path)
    run.env["REDIS_URL"] = run.env["REDIS_URL"].replace("//", "//operator:secret@")
    assert run("t", "1").code == 71
    open_redis.config_set("requirepass", "another")
    done = run("t", "1")
    assert (done.code, done.out) == (0, "-NOAUTH Authentication required.\n" * 2)
    open_redis.execute_command("AUTH", "another")
    assert not open_redis.hexists("t:1:h", "allowRead")
    assert not open_redis.exists("other")


@pytest.mark.parametrize("how", ["flag", "policy"])
def test_where_it_is_accepted_that_is_said_and_recorded_and_the_attack_is_real(
    open_redis: redis.Redis, run: Runner, tmp_path, how: str
) -> None:  # type: ignore[no-untyped-def]
    worker(open_redis, tmp_path)
    if how == "policy":
        run.set_policy('[worker."*"]\nopen-redis = true\n')
    done = run("t", "1", *(["--allow-degraded=redis-password"] if how == "flag" else []))
    assert (done.code, done.out) == (0, ":1\n:1\n")
    assert "warning: degraded: without redis-password, the worker can do at Redis whatever anybody can" in done.err
    record = json.loads((run.home / ".local/state/sandboxrun/runs/t:1.json").read_text())
    assert record["degraded"] == ["redis-password"]
    assert open_redis.hget("other", "secret") == "stolen"


def test_a_policy_file_that_says_no_has_the_last_word(open_redis: redis.Redis, run: Runner, tmp_path) -> None:  # type: ignore[no-untyped-def]
    worker(open_redis, tmp_path)
    run.set_policy('[worker."*"]\nopen-redis = false\n')
    assert run("t", "1").code == 71
