"""docs/postgres.md and docs/postgres-query.md, done as they say: from an empty database to an answer."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import redis
from arena import wait_for
from postgres import PASSWORD, SUPERUSER, Server, program
from runner import Runner

ROOT = Path(__file__).parents[2]
PAGES = [(ROOT / "docs" / name).read_text() for name in ("postgres.md", "postgres-query.md")]


def commands() -> list[tuple[str, str]]:
    """Each command, and the lines that it prints."""
    found: list[tuple[str, str]] = []
    for block in re.findall(r"```console\n(.*?)```", "".join(PAGES), re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], ""))
            elif line.startswith("    "):  # the command goes on
                found[-1] = f"{found[-1][0]}\n{line}", ""
            else:
                found[-1] = found[-1][0], f"{found[-1][1]}{line}\n"
    return found


@pytest.fixture
def server() -> Server:
    return Server()


def test_the_page_leads_from_an_empty_database_to_a_query(r: redis.Redis, run: Runner, server: Server) -> None:
    (run.home / "shop").mkdir()
    for name, page in zip(("shop/sync.json", "queries.json"), PAGES, strict=True):
        (run.home / name).write_text(re.findall(r"```json\n(.*?)```", page, re.DOTALL)[0])
    with server:
        run.env |= {
            "PATH": os.pathsep.join([os.path.dirname(run.command()[0]), os.path.dirname(program("psql")), run.env["PATH"]]),
            "PLUGINS": str(ROOT / "plugins"), "PGHOST": "127.0.0.1", "PGPORT": str(server.port), "PGUSER": SUPERUSER,
            "PGPASSWORD": PASSWORD + SUPERUSER,
            "REDIS_URL": run.env["REDIS_URL"].replace("://:", "://default:"),  # redis-cli needs a user
        }  # fmt: skip
        workers = []
        try:
            for command, output in commands():
                command = command.replace("127.0.0.1:5432", f"127.0.0.1:{server.port}")
                if started := re.match(r"sandboxrun (postgres-\w+) 1 ", command):
                    shell = ["sh", "-c", f"exec {command}"]
                    workers.append(subprocess.Popen(shell, env=run.env, cwd=run.home, stderr=subprocess.PIPE))
                    key = f"{started[1]}:1:h"
                    wait_for(lambda key=key: r.hget(key, "pid"), 60)  # type: ignore[misc]
                    continue
                check(run, command, output)
        finally:
            for worker in workers:
                worker.terminate()
                worker.communicate(timeout=20)
    assert [worker.returncode for worker in workers] == [0, 0]


def check(run: Runner, command: str, output: str) -> None:
    """Run it until it prints what the page shows; a command without output once."""

    def done() -> bool:
        found = subprocess.run(
            ["sh", "-c", command], env=run.env, cwd=run.home, capture_output=True, text=True, timeout=60
        )
        assert found.returncode == 0 or output, (command, found.stderr)
        return not output or found.stdout + found.stderr == output

    wait_for(done, 30, f"{command} to print {output!r}")
