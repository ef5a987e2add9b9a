"""What a worker's login at Redis cannot do. Every refusal is shown to work for the operator first, so that only the worker's
login can be what refuses."""

from __future__ import annotations

import contextlib
import re
from typing import Any

import pytest
import redis
from logins import Probe, Server

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
    "breaks another's fence": ("DEL", "other:req:x:fence:1:f"),
    "writes another's fence": ("HSET", "other:req:x:fence:1:f", "x", "1"),
    "watches another's fence": ("WATCH", "other:req:x:fence:1:f"),
    "lets another's fence expire": ("EXPIRE", "other:req:x:fence:1:f", "100"),
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
    answers = list(zip(REFUSED, probe(*REFUSED.values()), strict=True))
    if probe.fields and not server.selectors:
        answers += zip(REFUSED, probe(*(("call", *command) for command in REFUSED.values())), strict=True)
    for name, answer in answers:
        # What a server does not know, or forbids to everyone by its own settings, it says before it looks at the login.
        by_server = isinstance(answer, str) and re.match(
            "-ERR (unknown command|(MODULE|DEBUG) command not allowed)", answer
        )
        assert by_server or (isinstance(answer, str) and answer.startswith("-NOPERM")), f"{name}: {answer}"
    assert {key: r.dump(key) for key in r.scan_iter() if key != "t:1:h"} == before
    assert sorted(r.hkeys("t:1:h")) == sorted(["url", "version", *probe.fields])
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
