"""Shared by the tests of a worker's login at Redis: servers, and a worker that sends commands over its own socket."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
import servers
from runner import Done, Runner

from sandboxrun.redis import embedded

# Sends each command of a JSON list and prints the answer. It uses a socket of its own, so that no client library stands
# between the attempt and the server.
PROBE = """
import json, os, socket, sys
from urllib.parse import unquote, urlsplit

def packed(*words):
    words = [w if isinstance(w, bytes) else str(w).encode() for w in words]
    return b"*%d\\r\\n" % len(words) + b"".join(b"$%d\\r\\n%s\\r\\n" % (len(w), w) for w in words)

def value(file):
    kind, rest = (line := file.readline().rstrip(b"\\r\\n"))[:1], line[1:]
    if kind == b"*":
        return [value(file) for _ in range(int(rest))]
    if kind == b"$":
        return None if rest == b"-1" else file.read(int(rest) + 2)[:-2].decode("utf-8", "replace")
    return (kind + rest).decode()

def connect(url):
    parts = urlsplit(url)
    raw = socket.create_connection((parts.hostname, parts.port), 10)
    file = raw.makefile("rb")
    raw.sendall(packed("AUTH", unquote(parts.username), parts.password))
    assert value(file) == "+OK"
    def ask(*words):
        raw.sendall(packed(*words))
        return value(file)
    return ask

ask = connect(os.environ["REDIS_URL"])
logins = {
    name: connect(os.environ[variable]) if variable in os.environ else ask
    for name, variable in (("read", "SANDBOXRUN_HASH_URL"), ("call", "SANDBOXRUN_CALL_URL"))
}
nonce = os.environ.get("SANDBOXRUN_CALL_NONCE", "")
for command in json.loads(sys.stdin.readline().split(" ", 1)[1]):
    words = [str(word).replace("{NONCE}", nonce) for word in command]
    print(json.dumps(logins[words[0]](*words[1:]) if words[0] in logins else ask(*words)), flush=True)
"""


@dataclass(frozen=True)
class Server:
    name: str
    url: str
    r: Any  # the operator's client

    @property
    def selectors(self) -> bool:
        return self.name != "redis-6.2"


@contextlib.contextmanager
def started(name: str) -> Iterator[Server]:
    """The server with this name, of servers.NAMES."""
    with (
        embedded.server(program=servers.program(name)) as url,
        redis.Redis.from_url(url, decode_responses=True, socket_timeout=30) as client,
    ):
        yield Server(name, url, client)


def write_worker(server: Server, folder: Path, code: str, key: str = "t:1:h", **fields: str) -> None:
    folder = folder / "worker"
    folder.mkdir(exist_ok=True)
    (folder / "worker.py").write_text(code)
    server.r.hset(key, mapping={"url": str(folder), "version": "local", **fields})


def users(server: Server) -> list[str]:
    return [name for name in server.r.acl_users() if name.startswith("sandboxrun:")]


class Probe:
    """Sends commands as a worker does, and returns the answers of the server. The first word of a command may be a login:
    "read" or "call"; {NONCE} in it is that of the run. `fields`: of the worker's hash."""

    def __init__(self, server: Server, run: Runner, tmp_path: Path, **fields: str) -> None:
        self.server, self._run, self._folder = server, run, tmp_path
        self.fields = fields

    def __call__(self, *commands: tuple[Any, ...], **fields: str) -> list[Any]:
        # The commands stand in the script: it reads nothing.
        code = PROBE.replace('sys.stdin.readline().split(" ", 1)[1]', repr(json.dumps(commands)))
        write_worker(self.server, self._folder, code, **self.fields, **fields)
        done: Done = self._run("t", "1")
        assert done.code == 0, done.err
        return [json.loads(line) for line in done.out.splitlines()]
