"""An administrator removes or changes the worker's user while it runs: the supervisor makes it again."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import redis
from arena import wait_for
from logins import Server, users, write_worker
from runner import Runner
from servers import NAMES, Own, program

from sandboxrun import client

ECHO = """
from sandboxrun import worker

@worker.handler
def handle(request):
    return {"text": "done"}

worker.run()
"""
WAYS = {
    "removed": lambda r, name: r.acl_deluser(name),
    "reset": lambda r, name: r.execute_command("ACL", "SETUSER", name, "reset"),
    "off": lambda r, name: r.execute_command("ACL", "SETUSER", name, "off"),
    "another password": lambda r, name: r.execute_command("ACL", "SETUSER", name, "resetpass", ">other"),
    "no keys": lambda r, name: r.execute_command("ACL", "SETUSER", name, *CLEAR[len(users_of(r)) > 1]),
    "more rights": lambda r, name: r.execute_command("ACL", "SETUSER", name, "allkeys", "+@all"),
}
CLEAR = {False: ("clearselectors", "resetkeys"), True: ("resetkeys",)}  # two users: there are no selectors


def users_of(r: Any) -> list[str]:
    return [name for name in r.acl_users() if name.startswith("sandboxrun:")]


def ask(r: Any, seconds: float = 25) -> None:
    """Within the worker's own patience with a login that is refused."""
    reply = client.wait(r, client.send(r, "t", {}, now="2026-01-01T00:00:00.000Z"), timeout_seconds=seconds)
    assert reply is not None and reply["code"] == 200


def described(server: Server) -> dict[str, Any]:
    return {name: server.r.execute_command("ACL", "GETUSER", name) for name in users(server)}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("code", [ECHO, ECHO.replace("def handle", "async def handle")], ids=["plain", "async"])
def test_a_user_that_was_removed_or_changed_comes_back_as_it_was(
    server: Server, run: Runner, tmp_path: Path, way: str, code: str
) -> None:
    write_worker(server, tmp_path, code)
    with run.start("t", "1") as process:
        ask(server.r)
        before = described(server)
        for _ in range(2):  # the first look of a watch makes it again in any case
            for name in before:
                WAYS[way](server.r, name)
            wait_for(lambda: described(server) == before)
            ask(server.r)
        assert process.poll() is None
        server.r.hdel("t:1:h", "pid")
        assert process.wait(20) == 0
    assert users(server) == []


@pytest.mark.parametrize("name", NAMES)
def test_acl_load_of_an_administrator_ends_no_worker(run: Runner, tmp_path: Path, name: str) -> None:
    (tmp_path / "worker.py").write_text(ECHO)
    acl = tmp_path / "users.acl"
    acl.write_text("user default on nopass ~* &* +@all\nuser operator on >secret ~* &* +@all\n")
    run.policy.write_text('[worker."*"]\nopen-redis = true\n')
    with Own(f"aclfile {acl}", program=program(name)) as own, redis.Redis(port=own.port, decode_responses=True) as r:
        run.env["REDIS_URL"] = own.url.replace("://", "://operator:secret@")
        r.hset("t:1:h", mapping={"url": str(tmp_path), "version": "local"})
        with run.start("t", "1") as process:
            ask(r)
            for _ in range(2):
                r.execute_command("ACL", "LOAD")
                assert not users_of(r)
                wait_for(lambda: users_of(r))
                ask(r)
            # The operator's own login is away for a while, too.
            whole = acl.read_text()
            acl.write_text(whole.splitlines()[0] + "\n")
            with contextlib.suppress(redis.ConnectionError):
                r.execute_command("ACL", "LOAD")
            acl.write_text(whole)
            r.client_kill_filter(skipme=True)
            r.execute_command("ACL", "LOAD")
            wait_for(lambda: users_of(r))
            ask(r)
            assert process.poll() is None
            r.hdel("t:1:h", "pid")
            assert process.wait(20) == 0
        assert not users_of(r)


def test_a_login_that_may_no_longer_make_users_is_said_once_and_ends_nothing(
    server: Server, run: Runner, tmp_path: Path
) -> None:
    write_worker(server, tmp_path, "import time\nprint('ready', flush=True)\ntime.sleep(5)\n")
    server.r.execute_command("ACL", "SETUSER", "operator", "reset", "on", ">pass", "~*", "&*", "+@all")
    try:
        url = f"redis://operator:pass@{server.url.rpartition('@')[2].rpartition('/')[2]}"
        with run.start("t", "1", "--redis", url) as process:
            assert process.stdout is not None
            process.stdout.readline()
            server.r.execute_command("ACL", "SETUSER", "operator", "-acl")
            _, err = process.communicate(timeout=30)
        assert process.returncode == 0
        assert err.decode().count("the worker's Redis user cannot be made again") == 1
    finally:
        server.r.acl_deluser("operator", *users(server))


def test_a_user_is_not_made_again_once_its_run_has_ended(server: Server, run: Runner, tmp_path: Path) -> None:
    write_worker(
        server,
        tmp_path,
        "import signal, time\nsignal.signal(15, signal.SIG_IGN)\nprint(1, flush=True)\ntime.sleep(60)\n",
    )
    with run.start("t", "1") as process:
        assert process.stdout is not None
        process.stdout.readline()
        server.r.hdel("t:1:h", "pid")
        assert process.stderr is not None
        while b"was removed" not in process.stderr.readline():
            pass
        server.r.acl_deluser(*users(server))  # its worker has 5 s to end
        assert process.wait(20) == 128 + 9
    assert users(server) == []
