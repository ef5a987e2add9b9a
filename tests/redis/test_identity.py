"""A worker's login at Redis: what it can do, what it cannot, and that it is gone afterwards.

Every refusal is shown to work for the operator first, so that only the worker's login can be what refuses.
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import redis
import servers
from arena import wait_for
from runner import Done, Runner

from sandboxrun import embedded

# Each line of standard input, a JSON list, is a command; its answer is printed. By a socket of its own, so that no client
# library stands between the attempt and the server.
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
read = connect(os.environ["SANDBOXRUN_HASH_URL"]) if "SANDBOXRUN_HASH_URL" in os.environ else ask
for number, command in enumerate(json.loads(sys.stdin.readline().split(" ", 1)[1])):
    print(json.dumps((read if command[:1] == ["read"] else ask)(*command[command[:1] == ["read"]:])), flush=True)
"""


@dataclass(frozen=True)
class Server:
    name: str
    url: str
    r: Any  # the operator's client

    @property
    def selectors(self) -> bool:
        return self.name != "redis-6.2"


@pytest.fixture(scope="module", params=servers.NAMES)
def started(request: pytest.FixtureRequest) -> Iterator[Server]:
    with (
        embedded.server(program=servers.program(request.param)) as url,
        redis.Redis.from_url(url, decode_responses=True, socket_timeout=30) as client,
    ):
        yield Server(request.param, url, client)


@pytest.fixture
def server(started: Server) -> Server:
    started.r.flushall()
    return started


@pytest.fixture
def run(server: Server, tmp_path: Path) -> Runner:
    home = tmp_path / "home"
    home.mkdir()
    return Runner(server.url, home)


def write_worker(server: Server, folder: Path, code: str, key: str = "t:1:h", **fields: str) -> None:
    folder = folder / "worker"
    folder.mkdir(exist_ok=True)
    (folder / "worker.py").write_text(code)
    server.r.hset(key, mapping={"url": str(folder), "version": "local", **fields})


def users(server: Server) -> list[str]:
    return [name for name in server.r.acl_users() if name.startswith("sandboxrun:")]


class Probe:
    """Commands as a worker sends them, with what the server answered."""

    def __init__(self, server: Server, run: Runner, tmp_path: Path) -> None:
        self.server, self._run, self._folder = server, run, tmp_path

    def __call__(self, *commands: tuple[Any, ...], **fields: str) -> list[Any]:
        # The key line carries the commands: a worker without secrets is given whatever line there is.
        code = PROBE.replace('sys.stdin.readline().split(" ", 1)[1]', repr(json.dumps(commands)))
        write_worker(self.server, self._folder, code, **fields)
        done: Done = self._run("t", "1")
        assert done.code == 0, done.err
        return [json.loads(line) for line in done.out.splitlines()]


@pytest.fixture
def probe(server: Server, run: Runner, tmp_path: Path) -> Probe:
    return Probe(server, run, tmp_path)


# --- what is refused

ANOTHERS = {"string": "other:secret", "hash": "other:1:h", "stream": "other:req:x"}


def prepare(r: Any) -> None:
    r.set(ANOTHERS["string"], "canary")
    r.hset(ANOTHERS["hash"], "allowNet", "canary")
    r.xadd(ANOTHERS["stream"], {"data": "canary"})
    r.lpush("res:of-another", "canary")
    r.hset("req:of-another:h", "requestData", "canary")


# By name: (the command, whether the operator's own run of it would end the server or this connection).
REFUSED: dict[str, tuple[Any, ...]] = {
    "writes its own hash": ("HSET", "t:1:h", "allowNet", "*"),
    "writes its own pid": ("HSET", "t:1:h", "pid", "1"),
    "adds to its own hash": ("HSETNX", "t:1:h", "allowWrite", "/"),
    "removes a field of its own hash": ("HDEL", "t:1:h", "url"),
    "counts up a field of its own hash": ("HINCRBY", "t:1:h", "limitMemory", "1"),
    "deletes its own hash": ("DEL", "t:1:h"),
    "lets its own hash expire": ("EXPIRE", "t:1:h", "100"),
    "renames another key over its hash": ("RENAME", "t:x", "t:1:h"),
    "copies another key over its hash": ("COPY", "t:x", "t:1:h", "REPLACE"),
    "restores over its hash": ("RESTORE", "t:1:h", "0", "x", "REPLACE"),
    "writes its type's hash": ("HSET", "t:h", "allowNet", "*"),
    "deletes its type's hash": ("DEL", "t:h"),
    "lets its type's hash expire": ("EXPIRE", "t:h", "100"),
    "reads another service's key": ("GET", ANOTHERS["string"]),
    "overwrites another service's key": ("SET", ANOTHERS["string"], "x"),
    "asks for the type of another's key": ("TYPE", ANOTHERS["string"]),
    "dumps another's key": ("DUMP", ANOTHERS["string"]),
    "reads another worker's hash": ("HGETALL", ANOTHERS["hash"]),
    "writes another worker's hash": ("HSET", ANOTHERS["hash"], "allowNet", "*"),
    "reads another's requests": ("XRANGE", ANOTHERS["stream"], "-", "+"),
    "asks another worker": ("XADD", ANOTHERS["stream"], "*", "ref", "forged"),
    "starts workers": ("LPUSH", "t:start:q", "2"),
    "reads replies to others": ("LRANGE", "res:of-another", "0", "-1"),
    "takes replies of others": ("RPOP", "res:of-another"),
    "waits for replies of others": ("BRPOP", "res:of-another", "1"),
    "reads others' requests in traces": ("HGETALL", "req:of-another:h"),
    "reads a field of others' traces": ("HGET", "req:of-another:h", "requestData"),
    "another database": ("SELECT", "1"),
    "moves a key to another database": ("MOVE", "t:req:x", "1"),
    "swaps databases": ("SWAPDB", "0", "1"),
    "lists all keys": ("KEYS", "*"),
    "scans all keys": ("SCAN", "0"),
    "asks for any key": ("RANDOMKEY",),
    "counts all keys": ("DBSIZE",),
    "sorts by other keys": ("SORT", "t:req:x", "BY", "other:*", "GET", "other:*"),
    "ACL WHOAMI": ("ACL", "WHOAMI"),
    "ACL LIST": ("ACL", "LIST"),
    "ACL SETUSER": ("ACL", "SETUSER", "evil", "on", "nopass", "~*", "+@all"),
    "ACL LOG": ("ACL", "LOG"),
    "CONFIG GET": ("CONFIG", "GET", "dir"),
    "CONFIG SET": ("CONFIG", "SET", "maxmemory-policy", "noeviction"),
    "MODULE LIST": ("MODULE", "LIST"),
    "MODULE LOAD": ("MODULE", "LOAD", "/tmp/evil.so"),
    "SCRIPT LOAD": ("SCRIPT", "LOAD", "return 1"),
    "SCRIPT FLUSH": ("SCRIPT", "FLUSH"),
    "EVAL": ("EVAL", "return 1", "0"),
    "EVAL of its own hash": ("EVAL", "return redis.call('hset', KEYS[1], 'allowNet', '*')", "1", "t:1:h"),
    "EVALSHA": ("EVALSHA", "e0e1f9fabfc9d4800c877a703b823ac0578ff8db", "0"),
    "FUNCTION LIST": ("FUNCTION", "LIST"),
    "FCALL": ("FCALL", "f", "0"),
    "FLUSHALL": ("FLUSHALL",),
    "FLUSHDB": ("FLUSHDB",),
    "REPLICAOF": ("REPLICAOF", "NO", "ONE"),
    "SLAVEOF": ("SLAVEOF", "NO", "ONE"),
    "SYNC": ("SYNC",),
    "PSYNC": ("PSYNC", "?", "-1"),
    "REPLCONF": ("REPLCONF", "capa", "eof"),
    "CLUSTER": ("CLUSTER", "INFO"),
    "FAILOVER": ("FAILOVER", "ABORT"),
    "MIGRATE": ("MIGRATE", "127.0.0.1", "1", "t:req:x", "0", "10"),
    "DEBUG": ("DEBUG", "SLEEP", "0"),
    "SAVE": ("SAVE",),
    "BGSAVE": ("BGSAVE",),
    "BGREWRITEAOF": ("BGREWRITEAOF",),
    "SHUTDOWN": ("SHUTDOWN", "NOSAVE"),
    "MONITOR": ("MONITOR",),
    "INFO": ("INFO",),
    "ROLE": ("ROLE",),
    "LATENCY": ("LATENCY", "LATEST"),
    "SLOWLOG": ("SLOWLOG", "GET"),
    "MEMORY": ("MEMORY", "USAGE", ANOTHERS["string"]),
    "OBJECT": ("OBJECT", "ENCODING", ANOTHERS["string"]),
    "CLIENT LIST": ("CLIENT", "LIST"),
    "CLIENT KILL": ("CLIENT", "KILL", "TYPE", "pubsub"),
    "CLIENT PAUSE": ("CLIENT", "PAUSE", "1"),
    "CLIENT UNBLOCK": ("CLIENT", "UNBLOCK", "1"),
    "CLIENT TRACKING": ("CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", ""),
    "SUBSCRIBE": ("SUBSCRIBE", "news"),
    "PSUBSCRIBE": ("PSUBSCRIBE", "*"),
    "PUBLISH": ("PUBLISH", "news", "x"),
    "PUBSUB": ("PUBSUB", "CHANNELS"),
    "XGROUP DESTROY": ("XGROUP", "DESTROY", "t:req:x", "worker"),
    "XGROUP SETID": ("XGROUP", "SETID", "t:req:x", "worker", "0"),
    "XSETID": ("XSETID", "t:req:x", "99999999999999-0"),
}
# What the operator cannot be seen to do without an end of the server, of its data or of this connection, or needs a state of
# things that tests do not make; for these the server's own word counts: that it knows them.
UNTRIED = {
    "SHUTDOWN", "MONITOR", "SYNC", "PSYNC", "SUBSCRIBE", "PSUBSCRIBE", "FLUSHALL", "FLUSHDB", "MODULE LOAD", "FAILOVER", "FCALL",
    "FUNCTION LIST", "CLUSTER", "MIGRATE", "restores over its hash", "EVALSHA", "BGREWRITEAOF", "SWAPDB", "swaps databases",
    "moves a key to another database", "sorts by other keys", "CLIENT TRACKING", "waits for replies of others", "DEBUG",
    "copies another key over its hash", "renames another key over its hash", "BGSAVE", "another database", "REPLCONF",
}  # fmt: skip


def test_what_a_worker_must_not_do_works_for_the_operator_and_not_for_the_worker(server: Server, probe: Probe) -> None:
    """One run of the worker tries them all; afterwards nothing has changed."""
    r = server.r
    commands = r.execute_command("COMMAND")
    known = {name.upper() if isinstance(name, str) else name[0].upper() for name in commands}
    for name, command in REFUSED.items():
        assert command[0] in known or not server.selectors, f"{name}: this server does not know {command[0]}"
    for name, command in REFUSED.items():
        if name in UNTRIED or command[0] not in known:
            continue
        r.flushall()
        prepare(r)
        r.hset("t:1:h", "url", "/x")
        r.hset("t:h", "version", "local")
        r.xgroup_create("t:req:x", "worker", id="0", mkstream=True)
        try:
            # By a connection of its own: some answers are for a client that listens on.
            with redis.Redis.from_url(server.url, socket_timeout=10) as mine:
                mine.execute_command(*command)
        except redis.ResponseError as error:
            if "NOPERM" in str(error):
                pytest.fail(f"{name}: the operator may not: {error}")
    with contextlib.suppress(redis.ResponseError):
        r.acl_deluser("evil")
    r.flushall()
    prepare(r)
    r.hset("t:h", "xreadGroupBlockMillis", "100")
    r.xgroup_create("t:req:x", "worker", id="0", mkstream=True)
    before = {key: r.dump(key) for key in r.scan_iter() if key != "t:1:h"}
    answers = dict(zip(REFUSED, probe(*REFUSED.values()), strict=True))
    for name, answer in answers.items():
        # What a server does not know, or forbids to everyone by its own settings, it says before it looks at the login.
        by_server = isinstance(answer, str) and re.match(
            "-ERR (unknown command|(MODULE|DEBUG) command not allowed)", answer
        )
        assert by_server or (isinstance(answer, str) and answer.startswith("-NOPERM")), f"{name}: {answer}"
    assert {key: r.dump(key) for key in r.scan_iter() if key != "t:1:h"} == before
    assert sorted(r.hkeys("t:1:h")) == ["url", "version"]
    assert r.acl_users() == ["default"]


def test_default_cannot_be_logged_into_and_a_guess_is_refused(server: Server, probe: Probe) -> None:
    answers = probe(
        ("AUTH", "x"),
        ("AUTH", "default", ""),
        ("AUTH", "default", "x"),
        ("HELLO", "3", "AUTH", "default", "x"),
        ("PING",),
    )
    assert all(answer.startswith("-WRONGPASS") for answer in answers[:-1])
    assert answers[-1] == "+PONG"


def test_a_transaction_gives_no_more(server: Server, probe: Probe) -> None:
    answers = probe(("MULTI",), ("HSET", "t:1:h", "allowNet", "*"), ("LPUSH", "res:r", "x"), ("EXEC",))
    assert answers[1].startswith("-NOPERM")
    assert answers[3].startswith("-EXECABORT")
    assert server.r.hget("t:1:h", "allowNet") is None
    assert not server.r.exists("res:r")


# --- what is granted


def test_what_the_request_loop_needs_works(server: Server, probe: Probe) -> None:
    server.r.hset("t:h", "greeting", "hello")
    xid = "1-1"
    answers = probe(
        ("read", "HGET", "t:1:h", "version"),
        ("read", "HGETALL", "t:h"),
        ("XGROUP", "CREATE", "t:req:x", "worker", "0", "MKSTREAM"),
        ("XADD", "t:req:x", xid, "ref", "r"),
        ("XREADGROUP", "GROUP", "worker", "1", "COUNT", "1", "STREAMS", "t:req:x", ">"),
        ("WATCH", "req:t:req:x 1:h"),
        ("UNWATCH",),
        ("MULTI",),
        ("LPUSH", "res:r", "{}"),
        ("EXPIRE", "res:r", "8"),
        ("XADD", "t:res:x", "MAXLEN", "~", "1000", "*", "ref", "r"),
        ("HSET", "req:r:h", "tTrace", "x"),
        ("EXPIRE", "req:r:h", "120"),
        ("XACK", "t:req:x", "worker", xid),
        ("EXEC",),
        ("XADD", "t:dead:x", "*", "ref", "r"),
        ("XAUTOCLAIM", "t:req:x", "worker", "1", "0", "0"),
        ("XPENDING", "t:req:x", "worker"),
        ("CLIENT", "SETNAME", "t"),
        ("TIME",),
    )
    assert [answer for answer in answers if isinstance(answer, str) and answer.startswith("-")] == []
    assert answers[0] == "local"
    assert answers[1] == ["greeting", "hello"]
    assert len(answers[14]) == 6
    assert server.r.ttl("res:r") > 0


def test_what_allow_redis_lists_is_granted_and_not_more(server: Server, probe: Probe) -> None:
    r = server.r
    r.set("chat:1", "hi")
    r.set("config:1", "blue")
    r.set("log:1", "old")
    r.set("chatter", "canary")
    answers = probe(
        ("GET", "chat:1"),
        ("SET", "chat:2", "x"),
        ("read", "GET", "config:1"),
        ("SET", "log:2", "x"),
        ("PUBLISH", "news", "x"),
        ("SUBSCRIBE", "news"),
        ("UNSUBSCRIBE", "news"),
        ("SET", "config:1", "red"),
        ("read", "SET", "config:1", "red"),
        ("GET", "chatter"),
        ("SUBSCRIBE", "newsroom"),
        ("KEYS", "chat:*"),
        ("SCAN", "0", "MATCH", "chat:*"),
        ("HSET", "t:1:h", "allowNet", "*"),
        ("EVAL", "return 1", "0"),
        allowRedis="chat:*,%R~config:*,%W~log:*,+pubsub:news",
    )
    assert answers[:4] == ["hi", "+OK", "blue", "+OK"]
    assert answers[4] == ":0"
    assert answers[5] == ["subscribe", "news", ":1"]
    assert all(answer.startswith("-NOPERM") for answer in answers[7:])
    assert (r.get("config:1"), r.get("chatter"), r.get("chat:2")) == ("blue", "canary", "x")


def test_what_is_only_read_or_only_written_is_held_to_that(server: Server, probe: Probe) -> None:
    server.r.set("log:1", "canary")
    answers = probe(("GET", "log:1"), ("GETDEL", "log:1"), ("APPEND", "log:1", "!"), allowRedis="%W~log:*")
    if server.selectors:
        assert answers[0].startswith("-NOPERM")
        assert answers[1].startswith("-NOPERM")
        assert server.r.get("log:1") == "canary!"
    assert answers[2].startswith(":")


def test_an_extra_command_is_granted_by_name_and_obeys_the_keys(server: Server, probe: Probe) -> None:
    answers = probe(
        ("EVAL", "return redis.call('set', KEYS[1], 'x')", "1", "chat:1"),
        ("EVAL", "return redis.call('hset', KEYS[1], 'allowNet', '*')", "1", "t:1:h"),
        ("EVAL", "return redis.call('hset', 't:1:h', 'allowNet', '*')", "0"),
        ("EVAL", "return redis.call('config', 'get', 'dir')", "0"),
        allowRedis="chat:*,+eval",
    )
    assert answers[0] == "+OK"
    assert all(answer.startswith(("-NOPERM", "-ERR")) for answer in answers[1:]), answers
    assert server.r.hget("t:1:h", "allowNet") is None


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"allowRedis": "t:*"}, "covers t:1:h: the worker could change what it is granted"),
        ({"allowRedis": "*"}, "covers t:1:h"),
        ({"allowRedis": "%W~*:h"}, "covers t:1:h"),
        ({"allowRedis": "+config"}, "never granted"),
        ({"allowRedis": "+flushall"}, "never granted"),
        ({"allowRedis": "+@all"}, "not the name of a command"),
        ({"allowRedis": "a b"}, "a pattern has"),
        ({"allowRedis": "chat:*", "denyRedis": "chat:1"}, "Redis cannot take a part out"),
        ({"requestStream": "other:req:x"}, "list it in allowRedis too"),
        ({"responseStream": "t:2:h"}, "list it in allowRedis too"),
    ],
)
def test_grants_that_would_undo_the_boundary_are_refused(
    server: Server, run: Runner, tmp_path: Path, fields: dict[str, str], text: str
) -> None:
    write_worker(server, tmp_path, "print('ran')", **fields)
    done = run("t", "1")
    assert (done.code, done.out) == (78, "")
    assert text in done.err
    assert len(done.err.splitlines()) == 1
    assert users(server) == []


@pytest.mark.parametrize("type_", ["req", "res"])
def test_types_whose_hash_every_worker_could_write_are_refused(server: Server, run: Runner, type_: str) -> None:
    done = run(type_, "1")
    assert done.code == 78
    assert "are keys of requests and replies" in done.err


# --- the life of the user

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
            for process in running:
                process.kill()
            for process in running:
                process.wait()
        left += len({name.removesuffix(":reader") for name in users(server)})  # the others were swept by these starts
    assert left == kills
    write_worker(server, tmp_path, "")
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
            r.acl_deluser(*(name for name in r.acl_users() if name != "default"))
            assert next(line for line in lines if line == b"out\n")
            # As a restart looks to the supervisor: its connections are gone.
            r.client_kill_filter(skipme=True)
            assert next(line for line in lines if line == b"in\n")


# --- what the operator's login may not


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
        assert len(done.err.splitlines()) == 1
        assert "ACL SETUSER operator +acl|setuser +acl|deluser +acl|users" in done.err
        assert "--allow-degraded=redis-acl" in done.err
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
    code = """
    import asyncio, os, sys, redis, redis.asyncio
    url = os.environ.get("SANDBOXRUN_HASH_URL") or os.environ["REDIS_URL"]
    r, key, pid = redis.Redis.from_url(url, decode_responses=True), sys.argv[1], os.getpid()
    assert r.hset(key, "pid", pid) == 0 and r.hset(key, mapping={"pid": str(pid)}) == 0
    assert r.hget(key, "pid") == str(pid)
    with r.pipeline() as pipe:
        pipe.hset(key, "pid", pid).hget(key, "pid")
        assert pipe.execute() == [0, str(pid)]
    async def by_asyncio():
        async with redis.asyncio.Redis.from_url(url) as client:
            return await client.hset(key, "pid", pid)
    assert asyncio.run(by_asyncio()) == 0
    for change in (lambda: r.hset(key, "pid", 1), lambda: r.hset(key, mapping={"pid": pid, "allowNet": "*"}),
                   lambda: r.hset("t:2:h", "pid", pid), lambda: r.hdel(key, "url")):
        try:
            change()
        except redis.exceptions.NoPermissionError:
            continue
        raise AssertionError("written")
    assert r.hdel(key, "pid") == 1
    print("done")
    """
    import textwrap

    write_worker(server, tmp_path, textwrap.dedent(code))
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
