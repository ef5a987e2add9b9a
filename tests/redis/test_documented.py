"""What the pages show with commands and tables, done for real."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import urllib.parse
from pathlib import Path

import pytest
import redis
from raw_host import RawHost
from runner import Runner

from sandboxrun import client

ROOT = Path(__file__).parents[2]
SECONDS = 60
REFUSED = {"PermissionError", "KeyError", "NOPERM", "refused"}
ECHO = """\
from sandboxrun import worker


@worker.handler
def handle(request):
    return {"version": VERSION, "text": request.data["name"]}


worker.run()
"""
SECRET = """\
from sandboxrun import worker

print(worker.secrets()["token"])
"""


def shell(run: Runner, command: str, **replaced: str) -> subprocess.CompletedProcess[str]:
    """A command as a page shows it, with its placeholders replaced."""
    for old, new in replaced.items():
        command = command.replace(old, new)
    env = {**run.env, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return subprocess.run(["sh", "-c", command], cwd=run.home, env=env, capture_output=True, text=True, timeout=SECONDS)


def test_a_worker_from_a_url_is_upgraded_rolled_back_and_stopped(r: redis.Redis, run: Runner, host: RawHost) -> None:
    for version in ("v1.1.0", "v1.2.0"):
        host.files[f"/o/r/{version}/worker.py"] = ECHO.replace("VERSION", repr(version))
    commands = re.findall(
        r"^\$ (sandboxrun \w+ ?bot .*?)(?: {2,}#.*)?$", (ROOT / "README.md").read_text(), re.MULTILINE
    )
    assert len(commands) == 4
    first, granted, back, stop = (
        command.replace("https://raw.githubusercontent.com/OWNER/REPO/main/", f"'{host.url}/o/r/{{version}}/'")
        for command in commands
    )
    for before, version in (((first, granted), "v1.2.0"), ((back,), "v1.1.0")):
        for command in before:
            done = shell(run, command)
            assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["written"]), done.stderr
        with run.start("bot", "1") as process:
            reply = client.call("bot", {"name": "x"}, timeout=SECONDS, url=run.env["REDIS_URL"])
            assert reply["version"] == version
            assert shell(run, stop).returncode == 0
            assert process.wait(SECONDS) == 0
    assert r.hget("bot:1:h", "allowNet") == "api.telegram.org:443"


def test_a_secret_is_encrypted_into_the_hash_and_read_with_its_key(r: redis.Redis, run: Runner, local) -> None:  # type: ignore[no-untyped-def]
    local(SECRET, "demo-worker:1:h")
    write, start = re.findall(r"^\$ (.*demo\.key.*)$", (ROOT / "docs/hash.md").read_text(), re.MULTILINE)
    assert shell(run, write).returncode == 0
    assert shell(run, start).stdout == "t0ken\n"


def test_a_worker_is_called_from_a_shell_and_with_any_client(r: redis.Redis, run: Runner, local) -> None:  # type: ignore[no-untyped-def]
    local(ECHO.replace("VERSION", "1"), "demo-worker:1:h")
    page = (ROOT / "docs/calling-workers.md").read_text()
    with run.start("demo-worker", "1"):
        client.call("demo-worker", {"name": "x"}, timeout=SECONDS, url=run.env["REDIS_URL"])
        for command in re.findall(r"^\$ (sandboxrun call .*)$", page, re.MULTILINE):
            done = shell(run, command)
            assert '"text": "you"' in done.stdout, done.stderr
        for command in re.findall(r"^\$ (redis-cli .*)$", page, re.MULTILINE):
            done = shell(run, command, **{"redis-cli": f"redis-cli --no-auth-warning -u {cli_url(run)}"})
            assert done.returncode == 0
        assert '"text":"you"' in re.sub(r"[\\ ]", "", done.stdout)


def cli_url(run: Runner) -> str:
    """redis-cli of Debian takes no URL without a user."""
    parts = urllib.parse.urlsplit(run.env["REDIS_URL"])
    return f"redis://default:{parts.password}@{parts.hostname}:{parts.port}"


# ---- the tables of docs/permissions.md: a worker for each cell

WORKER = """\
import os, pathlib, socket, sqlite3, subprocess, time

from redis.exceptions import NoPermissionError

from sandboxrun import worker
from sandboxrun.errors import ConfigError

srv = pathlib.Path(SRV)


def listen(host, port):
    socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()


def wait(path):
    print("started", flush=True)
    while not path.exists():  # which Landlock does not hide
        time.sleep(0.01)


def act():
    ACT


try:
    act()
except NoPermissionError:
    print("NOPERM")
except ConfigError:
    print("refused")
except (PermissionError, KeyError) as error:
    print(type(error).__name__)
except OSError as error:
    print("tried", type(error).__name__)
else:
    print("done")
"""
NAMED = "tests/kernel/test_names.py has a name server"
ACTS = {
    "connects to that name and port": NAMED,
    "connects to port 80 of that name": NAMED,
    "connects to a public address": NAMED,
    "connects to `a.test.org`": NAMED,
    "connects to `10.1.2.3`, any port": "socket.create_connection(('10.1.2.3', 9), 0.2)",
    "connects to `127.0.0.1:5432`": "socket.create_connection(('127.0.0.1', 5432), 1)",
    "connects to it": "socket.create_connection(('127.0.0.1', 5432), 1)",
    "reads `/srv/site/index.html`": "(srv / 'site/index.html').read_text()",
    "reads `/srv/site/index.html`, made before the start": "(srv / 'site/index.html').read_text()",
    "writes `/srv/site/index.html`": "(srv / 'site/index.html').write_text('x')",
    "makes `/srv/out/report.csv`": "(srv / 'out/report.csv').write_text('x')",
    "reads it again": "(srv / 'out/report.csv').write_text('x'); (srv / 'out/report.csv').read_text()",
    "uses SQLite in `worker.data()`": "sqlite3.connect(f'{worker.data()}/a.db').execute('create table t (a)')",
    "reads `/srv/keys/id`": "(srv / 'keys/id').read_text()",
    "reads `/srv/new`, made after the start": "wait(srv / 'new'); (srv / 'new').read_text()",
    "lists `/srv`": "os.listdir(srv)",
    "makes `/srv/new`": "(srv / 'new').write_text('x')",
    "renames `/srv/keys`": "(srv / 'keys').rename(srv / 'other')",
    '`subprocess.run(["gzip", "--version"])`': 'subprocess.run(["gzip", "--version"], check=True)',
    "starts a program in its scratch folder": "p = pathlib.Path('p'); p.write_text('#!/bin/sh'); p.chmod(0o755); subprocess.run(['./p'])",
    "listens there": "listen('127.0.0.1', 8000)",
    "listens on all IPv4 addresses, or on one of them": "listen('0.0.0.0', 8000)",
    "listens on all addresses, IPv4 included": "listen('::', 8000)",
    "listens on a port that the kernel chooses": "listen('127.0.0.1', 0)",
    "listens on `0.0.0.0:8000`": "listen('0.0.0.0', 8000)",
    '`os.environ["TZ"]`': 'os.environ["TZ"]',
    "`SET chat:1 x`, `GET chat:1`": "r = worker.connect(); r.set('chat:1', 'x'); r.get('chat:1')",
    "`GET config:a`": "worker.connect().get('config:a')",
    "`SET config:a x`": "worker.connect().set('config:a', 'x')",
    "`RPUSH log:1 x`": "worker.connect().rpush('log:1', 'x')",
    "`SUBSCRIBE news`": "p = worker.connect().pubsub(); p.subscribe('news'); p.get_message(timeout=5)",
    '`EVAL "return 1" 0`': "worker.connect().eval('return 1', 0)",
    "sends a request to `price`": "worker.connect().xadd('price:req:x', {'ref': '1'})",
    "sends a request to `bank`": "worker.connect().xadd('bank:req:x', {'ref': '1'})",
    "waits for the reply to it": "worker.connect().blpop(f'res:{os.environ.get(\"SANDBOXRUN_CALL_NONCE\")}1', timeout=0.1)",
    "reads the requests of `price`": "worker.connect().xrange('price:req:x')",
    "runs `XTRIM` on the requests of `price`": "worker.connect().xtrim('price:req:x', maxlen=0)",
    "pops a reply to another worker's request": "worker.connect().lpop('res:1')",
    "deletes a reply to another worker's request": "worker.connect().delete('res:1')",
}


def examples() -> list[tuple[str, str, str, str]]:
    """(hash, act, before, after) of each row; "the same" is the hash of the row above."""
    text, rows, last = (ROOT / "docs/permissions.md").read_text(), [], ""
    for table in re.findall(r"^\| the hash \| the worker does .*\n\|[-|]+\n((?:\|.*\n)+)", text, re.MULTILINE):
        for line in table.splitlines():
            last_cell, act, before, after = (cell.strip() for cell in line.strip("|").split("|"))
            last = last_cell.replace("the same", last.partition(", then ")[0] if ", then " in last_cell else last)
            rows.append((last, act, before, after))
    return rows


def fields(cell: str) -> dict[str, str]:
    return dict(part.split("=", 1) for part in re.findall(r"`(\w+=[^`]+)`", cell))


@pytest.mark.parametrize("row", [row for row in examples() if ACTS.get(row[1]) != NAMED], ids=" | ".join)
def test_an_example_of_a_permission_is_refused_before_and_works_after_as_the_page_says(
    row: tuple[str, str, str, str], r: redis.Redis, run: Runner, local, tmp_path: Path
) -> None:  # type: ignore[no-untyped-def]
    cell, act, before, after = row
    run.env["TZ"] = "UTC"
    first, then, _ = cell.partition(", then ")
    for hash_, expected in ((fields(first) if then else {}, before), (fields(cell), after)):
        srv = tmp_path / ("then" if expected is after else "first")
        for name in ("site", "keys", "out"):
            (srv / name).mkdir(parents=True)
        (srv / "site/index.html").write_text("x")
        (srv / "keys/id").write_text("x")
        r.delete("t:1:h")
        moved = {name: value.replace("/srv", str(srv)) for name, value in hash_.items()}
        local(WORKER.replace("SRV", repr(str(srv))).replace("ACT", ACTS[act]), **moved)
        with run.start("t", "1", "--yes") as process:
            assert process.stdout is not None
            if "made after" in act:
                assert process.stdout.readline() == b"started\n"
                (srv / "new").write_text("x")
            out, err = (data.decode() for data in process.communicate(timeout=SECONDS))
        assert process.returncode == 0, err
        outcome = out.split()[-1]
        assert outcome == expected if expected in REFUSED else outcome not in REFUSED, (out, err)


def test_each_act_is_one_of_the_page() -> None:
    assert {act for _, act, _, _ in examples()} == ACTS.keys()
