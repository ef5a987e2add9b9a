"""The life of a worker's login at Redis: that it is gone afterwards, however a run ends, and comes back where it must."""

from __future__ import annotations

import contextlib
import signal
import time
from pathlib import Path

import pytest
import redis
from arena import wait_for
from logins import Server, users, write_worker
from runner import Runner

from sandboxrun.redis import embedded

PRINTS_URL = "import os\nprint(os.environ['REDIS_URL'], flush=True)\n"
WAITS = PRINTS_URL + "import time\ntime.sleep(60)\n"


def refused_login(url: str) -> bool:
    try:
        with redis.Redis.from_url(url, socket_timeout=10) as client:
            client.ping()
    except redis.AuthenticationError:
        return True
    return False


@pytest.mark.parametrize(
    ("code", "expected"),
    [("", 0), ("raise SystemExit(7)", 7), ("import os\nos.kill(os.getpid(), 9)", 137), ("1/0", 1)],
    ids=["end", "exit code", "killed", "traceback"],
)
def test_the_user_is_gone_however_the_worker_ends(
    server: Server, run: Runner, tmp_path: Path, code: str, expected: int
) -> None:
    write_worker(server, tmp_path, PRINTS_URL + code)
    done = run("t", "1")
    assert done.code == expected
    assert users(server) == []
    assert refused_login(done.out.strip())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_removes_the_user_and_its_connections(
    server: Server, run: Runner, tmp_path: Path, number: signal.Signals
) -> None:
    write_worker(server, tmp_path, WAITS)
    with run.start("t", "1") as process:
        assert process.stdout is not None
        url = process.stdout.readline().decode().strip()
        assert not refused_login(url)
        with redis.Redis.from_url(url, socket_timeout=10) as stolen:  # somebody outside has been given the login
            assert stolen.ping()
            process.send_signal(number)
            assert process.wait(20) == 128 + signal.SIGTERM
            with pytest.raises((redis.ConnectionError, redis.AuthenticationError)):
                stolen.ping()
    assert refused_login(url)
    assert users(server) == []


def test_a_removed_pid_and_a_refused_start_leave_no_user(server: Server, run: Runner, tmp_path: Path) -> None:
    write_worker(server, tmp_path, WAITS)
    with run.start("t", "1") as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert run("t", "1").code == 73
        assert len({name.removesuffix(":reader") for name in users(server)}) == 1
        server.r.hdel("t:1:h", "pid")
        process.wait(20)
    assert users(server) == []
    write_worker(server, tmp_path, "(", allowNet="")
    assert run("t", "1").code == 69
    assert users(server) == []


@pytest.mark.timeout(300)
def test_users_of_supervisors_killed_a_hundred_times_do_not_survive_the_next_start(
    server: Server, run: Runner, tmp_path: Path
) -> None:
    """Twenty at once, of different workers; each is killed when its worker has begun, or has not yet."""
    kills = 100 if server.name == "redis-7" else 20
    write_worker(server, tmp_path, WAITS)
    fields = server.r.hgetall("t:1:h")
    for number in range(kills):
        server.r.hset(f"t:k{number}:h", mapping=fields)
    left = 0
    for start in range(0, kills, 20):
        with contextlib.ExitStack() as stack:
            running = [stack.enter_context(run.start("t", f"k{n}")) for n in range(start, start + 20)]
            for number, process in enumerate(running, start):
                assert process.stdout is not None
                if number % 2:
                    process.stdout.readline()
                else:
                    wait_for(lambda number=number: any(f":k{number}:" in name for name in users(server)))
            # All are stopped first: one that still starts would remove the users of those that are killed before it.
            for number in (signal.SIGSTOP, signal.SIGKILL):
                for process in running:
                    process.send_signal(number)
            for process in running:
                process.wait()
        left += len({name.removesuffix(":reader") for name in users(server)})  # the others were swept by these starts
    assert left == kills
    write_worker(server, tmp_path, "x = 1")
    assert run("t", "1").code == 0
    assert users(server) == []


def test_users_of_living_supervisors_and_of_strangers_stay(server: Server, run: Runner, tmp_path: Path) -> None:
    write_worker(server, tmp_path, WAITS)
    write_worker(server, tmp_path / "worker", "print('ran')", key="u:1:h")
    now = int(time.time())
    elsewhere = {
        "starting": f"sandboxrun:t:2:{'0' * 16}:1.1.{now}",
        "leased": f"sandboxrun:t:3:{'0' * 16}:1.1.{now - 7200}",
        "dead": f"sandboxrun:t:4:{'0' * 16}:1.1.{now - 7200}",
    }
    stranger = ["sandboxrun", "sandboxrun:t", "sandboxrun:t:1:x", "sandboxrunner:t:1:" + "0" * 16 + ":1.1.1"]
    for name in [*elsewhere.values(), *stranger]:
        server.r.acl_setuser(name, enabled=True, nopass=True)
    lease = {"pid": "1", "pidHost": "elsewhere/1", "pidStarted": "1", "pidSeen": str(int(server.r.time()[0]))}
    server.r.hset("t:3:h", mapping=lease)
    try:
        with run.start("t", "1") as process:
            assert process.stdout is not None
            url = process.stdout.readline().decode().strip()
            assert run("u", "1").out == "ran\n"
            assert not refused_login(url)
            left = set(server.r.acl_users())
            assert left >= {elsewhere["starting"], elsewhere["leased"], *stranger}
            assert elsewhere["dead"] not in left
    finally:
        server.r.acl_deluser(*elsewhere.values(), *stranger)


def test_the_login_comes_back_with_a_server_that_was_started_anew(run: Runner, tmp_path: Path) -> None:
    """A server without an aclfile forgets its users; one that took over by failover never knew them."""
    code = PRINTS_URL + (
        "import redis, sys, time\n"
        "for line in range(600):\n"
        "    try:\n"
        "        redis.Redis.from_url(os.environ['REDIS_URL'], socket_timeout=5).xlen('t:req:x')\n"
        "        print('in', flush=True)\n"
        "    except redis.RedisError: print('out', flush=True)\n"
        "    time.sleep(0.05)\n"
    )
    (tmp_path / "worker.py").write_text(code)
    with embedded.server() as url, redis.Redis.from_url(url) as r:
        run.env["REDIS_URL"] = url
        r.hset("t:1:h", mapping={"url": str(tmp_path), "version": "local"})
        with run.start("t", "1") as process:
            assert process.stdout is not None
            lines = iter(process.stdout.readline, b"")
            next(lines)
            assert next(lines) == b"in\n"
            # The supervisor can restore the login between two tries of the worker: take it away until one fails.
            for line in lines:
                if line == b"out\n":
                    break
                if logins := [name for name in r.acl_users() if name != "default"]:
                    r.acl_deluser(*logins)
            else:
                raise AssertionError("the worker was never refused")
            # As a restart looks to the supervisor: its connections are gone.
            r.client_kill_filter(skipme=True)
            assert next(line for line in lines if line == b"in\n")
