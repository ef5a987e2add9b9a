"""What a new user gets wrong: one line each, which is the line that docs/troubleshooting.md shows."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from raw_host import RawHost
from runner import SECONDS, Done, Runner

PAGE = Path(__file__).parents[2] / "docs" / "troubleshooting.md"
LACKING = Path(__file__).with_name("lacking.py")
KEY = "worker-v0 " + "0123456789abcdef" * 4 + "\n"
WORKS = "print('works')\n"
ASKS = "from sandboxrun import worker\nprint(worker.secrets()['token'])\n"


def rows() -> dict[str, tuple[str, int]]:
    """The page's table: message and exit code by mistake."""
    found = {}
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == 4 and cells[2].isdigit():
            found[cells[0]] = (cells[1].strip("`"), int(cells[2]))
    return found


class Beginner:
    """Makes mistakes with t:1:h."""

    def __init__(self, r: redis.Redis, run: Runner, host: RawHost, local: Callable[..., Path]) -> None:
        self.r, self.run, self.host, self.local = r, run, host, local
        run.set_policy(None)
        host.files["/v1.0.0/worker.py"] = WORKS

    def at(self, url: str, version: str = "v1", *options: str) -> Done:
        self.r.hset("t:1:h", mapping={"url": url, "version": version})
        return self.run("t", "1", *options)

    def script(self, code: str, *options: str, stdin: str = "", **fields: str) -> Done:
        self.local(code, **fields)
        return self.run("t", "1", *options, stdin=stdin)

    def with_secret(self, stdin: str) -> Done:
        self.local(ASKS)
        (self.run.home / "good.key").write_text(KEY)
        text = self.run("encrypt", "t", "1", "--key-file", "good.key", stdin=json.dumps({"token": "t0ken"}))
        assert text.code == 0, text.err
        command, key, *fields = text.out.replace('"', "").split()
        assert (command.upper(), key) == ("HSET", "t:1:h")
        self.r.hset(key, mapping=dict(zip(fields[::2], fields[1::2], strict=True)))
        assert self.run("t", "1", stdin=KEY).out == "t0ken\n"
        return self.run("t", "1", stdin=stdin)

    def without_redis(self) -> Done:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))  # and nobody listens
            self.run.env["REDIS_URL"] = f"redis://127.0.0.1:{sock.getsockname()[1]}"
            return self.run("t", "1")

    def port_taken(self, listens: bool) -> Done:
        with socket.create_server(("127.0.0.1", 0)) as server:
            where = f"127.0.0.1:{server.getsockname()[1]}"
            if not listens:
                return self.script(WORKS, f"--inspect={where}")
            host, port = where.split(":")
            return self.script(f"import socket\nsocket.create_server(({host!r}, {port}))\n", f"--allow-listen={where}")

    def on_an_old_kernel(self) -> Done:
        self.local(WORKS)
        command = [sys.executable, str(LACKING), "landlock-truncate", "t", "1"]
        done = subprocess.run(
            command, env=self.run.env, cwd=self.run.home, capture_output=True, text=True, timeout=SECONDS
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def without_worker(self) -> Done:
        (self.local(WORKS) / "worker.py").unlink()
        return self.run("t", "1")


MISTAKES: dict[str, Callable[[Beginner], Done]] = {
    "the URL's host is wrong": lambda b: b.at("https://host.invalid/o/{version}/worker.py", "v1", "--allow-import=host.invalid"),
    "scripts may not come from the URL's host": lambda b: b.at("https://host.invalid/o/{version}/worker.py"),
    "the URL's path is wrong": lambda b: b.at(b.host.url + "/{version}/wrong.py"),
    "the tag does not exist": lambda b: b.at(b.host.url + "/{version}/worker.py", "v9.9.9"),
    "there is no Redis": lambda b: b.without_redis(),
    "the key is wrong": lambda b: b.with_secret(f"worker-v0 {'00' * 32}\n"),
    "standard input has no valid key": lambda b: b.with_secret("t0ken\n"),
    "standard input is empty": lambda b: b.with_secret(""),
    "a secret is missing": lambda b: b.script(ASKS),
    "a connection is not granted": lambda b: b.script(
        f"import socket\nsocket.create_connection(('127.0.0.1', {b.host.url.rpartition(':')[2]}))\n"
    ),
    "a file is not granted": lambda b: b.script("open('/etc/passwd')\n"),
    "the debugger's port is taken": lambda b: b.port_taken(listens=False),
    "the worker's own port is taken": lambda b: b.port_taken(listens=True),
    "the script has a syntax error": lambda b: b.script("x = (\n"),
    "the kernel is old": lambda b: b.on_an_old_kernel(),
    "the folder has no worker.py": lambda b: b.without_worker(),
    "there is no such hash": lambda b: b.run("t", "2"),
}  # fmt: skip


def test_the_page_has_all_of_them_and_no_other() -> None:
    assert list(rows()) == list(MISTAKES)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_the_line_that_the_page_shows(
    r: redis.Redis, run: Runner, host: RawHost, local: Any, mistake: str
) -> None:
    done = MISTAKES[mistake](Beginner(r, run, host, local))
    message, code = rows()[mistake]
    pattern = ".*".join(map(re.escape, message.split("…")))
    assert done.code == code, done.err
    lines = [line for line in done.err.splitlines() if re.fullmatch(pattern, line)]
    assert len(lines) == 1, done.err
    if message.startswith("error: "):  # nothing ran; else the script's own traceback is there too
        assert [line for line in done.err.splitlines() if not line.startswith(("sandboxrun: ", "hint: "))] == lines
    assert "t0ken" not in done.err
    for id_ in ("1", "2"):
        assert not r.hexists(f"t:{id_}:h", "pid")
