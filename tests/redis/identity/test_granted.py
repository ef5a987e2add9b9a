"""What a worker's login at Redis can do, and which grants it is not given."""

from __future__ import annotations

from pathlib import Path

import pytest
from logins import Probe, Server, users, write_worker
from runner import Runner


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
        ({"allowRedis": "chat:*", "denyRedis": "chat:1"}, "Redis cannot withdraw a part"),
        ({"requestStream": "other:req:x"}, "nor does allowRedis list it"),
        ({"responseStream": "t:2:h"}, "nor does allowRedis list it"),
    ],
)
def test_grants_that_would_undo_the_boundary_are_refused(
    server: Server, run: Runner, tmp_path: Path, fields: dict[str, str], text: str
) -> None:
    write_worker(server, tmp_path, "print('ran')", **fields)
    done = run("t", "1")
    assert (done.code, done.out) == (78, "")
    assert text in done.err
    assert len(done.err.partition("\nhint: ")[0].splitlines()) == 1
    assert users(server) == []


@pytest.mark.parametrize("type_", ["req", "res"])
def test_types_whose_hash_every_worker_could_write_are_refused(server: Server, run: Runner, type_: str) -> None:
    done = run(type_, "1")
    assert done.code == 78
    assert "are keys of requests and replies" in done.err
