"""The operator's login and the worker's: what is said where the first may not make the second, and what the second is worth."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from urllib.parse import unquote, urlsplit

import redis
from logins import Server, users, write_worker
from runner import Runner
from scripts import script

PRINTS_URL = "import os\nprint(os.environ['REDIS_URL'], flush=True)\n"
WAITS = PRINTS_URL + "import time\ntime.sleep(60)\n"


def limited_login(server: Server, *rules: str) -> str:
    server.r.execute_command("ACL", "SETUSER", "operator", "reset", "on", ">pass", "~*", "&*", "+@all", *rules)
    return server.url.replace("redis://:", "redis://operator:").replace(urlsplit(server.url).password or "", "pass")


def test_a_login_that_may_not_make_users_is_told_the_rule_and_nothing_runs(
    server: Server, run: Runner, tmp_path: Path
) -> None:
    write_worker(server, tmp_path, PRINTS_URL)
    url = limited_login(server, "-acl")
    try:
        done = run("t", "1", "--redis", url)
        assert (done.code, done.out) == (71, "")
        assert len(done.err.partition("\nhint: ")[0].splitlines()) == 1
        assert "ACL SETUSER operator '+acl|setuser' '+acl|deluser' '+acl|users'\n" in done.err
        assert server.r.hget("t:1:h", "pid") is None

        # The rule that the message names is enough.
        server.r.execute_command("ACL", "SETUSER", "operator", "+acl|setuser", "+acl|deluser", "+acl|users")
        done = run("t", "1", "--redis", url)
        assert done.code == 0, done.err
        assert unquote(urlsplit(done.out.strip()).username or "").startswith("sandboxrun:t:1:")
    finally:
        server.r.acl_deluser("operator")


def test_doing_without_gives_the_operators_login_and_is_said_and_recorded(
    server: Server, run: Runner, tmp_path: Path
) -> None:
    write_worker(server, tmp_path, PRINTS_URL)
    url = limited_login(server, "-acl")
    try:
        done = run("t", "1", "--redis", url, "--allow-degraded=redis-acl")
        assert (done.code, done.out.strip()) == (0, url)
        assert "degraded: without redis-acl, the worker can do at Redis whatever your login can" in done.err
        record = json.loads((run.home / ".local/state/sandboxrun/runs/t:1.json").read_text())
        assert record["degraded"] == ["redis-acl"]
        # Where it is not needed, it is not used.
        done = run("t", "1", "--allow-degraded=redis-acl")
        assert unquote(urlsplit(done.out.strip()).username or "").startswith("sandboxrun:t:1:")
    finally:
        server.r.acl_deluser("operator")


def test_a_login_that_may_make_users_and_not_list_them_is_watched_for_its_pid(
    server: Server, run: Runner, tmp_path: Path
) -> None:
    write_worker(server, tmp_path, WAITS)
    url = limited_login(server, "-acl", "+acl|setuser", "+acl|deluser")
    try:
        with run.start("t", "1", "--redis", url, "--allow-degraded=redis-acl") as process:
            assert process.stdout is not None
            assert process.stdout.readline().decode().strip() == url
            assert users(server) == []
            server.r.hdel("t:1:h", "pid")
            _, err = process.communicate(timeout=20)
        assert b"field pid of t:1:h was removed: ending the worker" in err
    finally:
        server.r.acl_deluser("operator")


# --- the original's design, and ours

ESCALATES = """
import os, redis, sys
r = redis.Redis.from_url(os.environ["REDIS_URL"])
if r.hget(sys.argv[1], "allowRead") is None:
    r.hset(sys.argv[1], "allowRead", "{canary}")
    print("escalated", flush=True)
else:
    print(open("{canary}").read(), flush=True)
"""


def test_a_worker_escalates_with_the_operators_login_and_cannot_with_its_own(
    server: Server, run: Runner, tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    canary.write_text("canary")
    code = ESCALATES.format(canary=canary)
    # As the original has it: the worker holds the login of whoever started it.
    write_worker(server, tmp_path, code)
    url = limited_login(server, "-acl")
    try:
        flags = ("--redis", url, "--allow-degraded=redis-acl")
        assert run("t", "1", *flags).out == "escalated\n"
        assert server.r.hget("t:1:h", "allowRead") == str(canary)
    finally:
        server.r.acl_deluser("operator")
    # Ours.
    server.r.hdel("t:1:h", "allowRead")
    done = run("t", "1")
    assert (done.code, done.out) == (1, "")
    assert "NoPermissionError" in done.err
    assert server.r.hget("t:1:h", "allowRead") is None


def test_a_script_that_sets_its_own_pid_by_hand_is_let_believe_so(server: Server, run: Runner, tmp_path: Path) -> None:
    """And nothing else: the login cannot write the hash."""
    write_worker(server, tmp_path, script("pid_by_hand"))
    done = run("t", "1")
    assert (done.code, done.out) == (0, "done\n"), done.err
    assert sorted(server.r.hkeys("t:1:h")) == ["url", "version"]


def test_a_database_of_the_url_is_the_workers_only_one(server: Server, run: Runner, tmp_path: Path) -> None:
    folder = tmp_path / "worker"
    folder.mkdir()
    (folder / "worker.py").write_text(
        "import os, redis\nr = redis.Redis.from_url(os.environ['REDIS_URL'])\nr.lpush('res:x', 'here')\n"
        "try: r.execute_command('SELECT', 0)\nexcept redis.exceptions.NoPermissionError: print('refused')\n"
    )
    with redis.Redis.from_url(f"{server.url}/3", decode_responses=True) as third:
        third.hset("t:1:h", mapping={"url": str(folder), "version": "local"})
        done = run("t", "1", "--redis", f"{server.url}/3")
        assert (done.code, done.out) == (0, "refused\n"), done.err
        assert third.lrange("res:x", 0, -1) == ["here"]


def test_the_password_is_in_no_message_log_or_command_of_the_server(
    server: Server, run: Runner, tmp_path: Path
) -> None:
    write_worker(server, tmp_path, WAITS)
    server.r.config_set("slowlog-log-slower-than", 0)
    server.r.slowlog_reset()
    with server.r.monitor() as monitor:
        with run.start("t", "1", "--debug") as process:
            assert process.stdout is not None
            password = urlsplit(process.stdout.readline().decode().strip()).password or ""
            assert len(password) == 64
            listed = str(server.r.acl_list())
            of_process = b"".join(Path(f"/proc/{process.pid}/{name}").read_bytes() for name in ("cmdline", "environ"))
            process.send_signal(signal.SIGTERM)
            _, err = process.communicate(timeout=20)
        server.r.echo("the end")
        commands = ""
        while "the end" not in commands:
            commands += str(monitor.next_command())
    slow = str(server.r.slowlog_get(1000))
    assert "t:1:h" in slow
    assert "HGETALL" in commands.upper() or "HMGET" in commands.upper()
    assert password not in listed + slow + commands
    assert password.encode() not in of_process + err
