"""Data keys must not match worker hashes: no worker may write the hash that lists another one's permissions.

Whichever comes second is refused: a grant that covers the hashes of an existing type, and a type whose hashes an approved
grant covers. The keyspace is never scanned for that.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from agents import Agent, wait_for
from hints import hint_of, paste
from runner import Runner

Local = Callable[..., Path]
RAN = "print('ran')\n"
COVERS = "which covers {}, a hash of worker type chat"
WRITTEN = "the approved grant chat:* of t:1:h covers hashes of type chat"


def refused(run: Runner, *args: str, said: str, code: int = 77) -> str:
    done = run(*args)
    assert (done.code, done.out) == (code, ""), done
    assert said in done.err
    assert len(done.err.partition("\nhint: ")[0].splitlines()) == 1
    return hint_of(done.err)


@pytest.mark.parametrize("entry", ["chat:*", "%W~chat:1:h", "c*:h"])
def test_a_grant_that_covers_hashes_of_a_type_that_is_there_is_refused(
    r: redis.Redis, run: Runner, local: Local, entry: str
) -> None:
    local(RAN, allowRedis=f"order:*,{entry}")
    local(RAN, "chat:1:h")
    assert run("chat", "1").code == 0  # recorded here, so that a wildcard in front is known to cover it
    said = COVERS.format("chat:1:h")
    hint = refused(run, "t", "1", said=said)
    assert refused(run, "approve", "t", "1", said=said) == hint
    assert refused(run, "diff", "t", "1", said=said) == hint
    refused(run, "set", "t", "1", "greeting=hello", said=said)
    assert not r.hexists("t:1:h", "greeting")
    assert not (run.home / ".local/state/sandboxrun/approved/t:1.json").exists()
    assert paste(hint, run.env, run.home).returncode == 0
    assert r.hget("t:1:h", "allowRedis") == "order:*"
    assert run("t", "1").out == "ran\n"


@pytest.mark.parametrize(
    ("key", "queue"),
    [("chat:h", ""), ("chat:1:h", ""), ("chat:far:h", "chat:start:q"), ("chat:far:h", "chat:stopped:q")],
)  # fmt: skip
def test_a_type_is_there_by_what_redis_says(r: redis.Redis, run: Runner, local: Local, key: str, queue: str) -> None:
    """It runs on another host, so that nothing is recorded here."""
    local(RAN, allowRedis="chat:*")
    r.hset(key, "workerUrl", "https://example.com/worker.py")
    if queue:
        r.rpush(queue, "\xff", "-", "far")
    refused(run, "t", "1", said=COVERS.format(key))
    r.hset(key, "workerUrl", "")
    assert run("t", "1").code == 0


def test_a_record_of_writers_that_cannot_be_read_is_an_error(r: redis.Redis, run: Runner, local: Local) -> None:
    local(RAN)
    place = run.home / ".local/state/sandboxrun/writers/t"
    place.parent.mkdir(parents=True)
    place.write_text("")
    done = run("t", "1")
    assert (done.code, done.err) == (
        78,
        f"error: {place}, which names the writers of hashes, cannot be read: Not a directory\n",
    )


def test_data_with_names_like_hashes_is_no_type(r: redis.Redis, run: Runner, local: Local) -> None:
    local(RAN, allowRedis="chat:*")
    r.hset("chat:1:h", mapping={"words": "40", "type": "x"})
    r.set("chat:h", "x")
    r.set("chat:start:q", "x")
    assert run("t", "1").out == "ran\n"


@pytest.mark.parametrize("entry", ["%R~chat:*", "chat:*:z,chatter:*,chat:req:x,+pubsub:chat:*"])
def test_a_grant_that_covers_no_hash_of_the_type_is_none_of_its_business(
    r: redis.Redis, run: Runner, local: Local, entry: str
) -> None:
    local(RAN, allowRedis=entry)
    local(RAN, "chat:1:h")
    for _ in range(2):
        assert run("t", "1").out == "ran\n"
        assert run("chat", "1").out == "ran\n"


def test_a_type_is_refused_while_an_agreed_grant_covers_its_hashes(r: redis.Redis, run: Runner, local: Local) -> None:
    folder = local(RAN, allowRedis="chat:*,order:*")
    assert run("t", "1").out == "ran\n"
    refused(run, "set", "chat", "1", f"url={folder}", "version=local", said=WRITTEN)
    refused(run, "set", "chat", f"url={folder}", "version=local", said=WRITTEN)
    refused(run, "set", "chat", "limitMemory=1G", said=WRITTEN)
    assert not r.keys("chat:*")
    local(RAN, "chat:1:h")
    hint = refused(run, "chat", "1", said=WRITTEN)
    refused(run, "approve", "chat", "1", said=WRITTEN)
    assert paste(hint, run.env, run.home).returncode == 0
    assert r.hget("t:1:h", "allowRedis") == "order:*"
    assert run("chat", "1").out == "ran\n"


def test_an_agent_refuses_both(r: redis.Redis, run: Runner, local: Local) -> None:
    local(RAN, allowRedis="chat:*")
    assert run("t", "1").code == 0
    local(RAN, "chat:1:h")
    r.lpush("t:start:q", "1")
    r.lpush("chat:start:q", "1")
    agent = Agent(run, "t", "chat")
    try:
        wait_for(lambda: agent.says(WRITTEN) and agent.says(COVERS.format("chat:1:h")))
    finally:
        agent.kill()


def test_of_a_worker_that_is_gone_no_agreement_is_left(r: redis.Redis, run: Runner, local: Local) -> None:
    local(RAN, allowRedis="chat:*")
    assert run("t", "1").code == 0
    r.delete("t:1:h")
    local(RAN, "chat:1:h")
    assert run("chat", "1").out == "ran\n"
    local(RAN, allowRedis="chat:*")  # it comes back, and what was approved once does not help
    refused(run, "t", "1", said=COVERS.format("chat:1:h"))


def test_a_damaged_record_is_no_agreement_that_ended(run: Runner, local: Local) -> None:
    local(RAN, allowRedis="chat:*")
    assert run("t", "1").code == 0
    local(RAN, "chat:1:h")
    record = run.home / ".local/state/sandboxrun/approved/t:1.json"
    record.write_text("{")
    hint = refused(run, "chat", "1", said="is damaged", code=78)
    assert paste(hint, run.env, run.home).returncode == 0
    assert run("chat", "1").out == "ran\n"


def test_a_grant_of_the_command_line_is_refused_too(run: Runner, local: Local) -> None:
    local(RAN)
    local(RAN, "chat:1:h")
    refused(run, "t", "1", "--allow-redis=chat:*", said=COVERS.format("chat:1:h"))
    assert run("chat", "1").code == 0


@pytest.mark.parametrize("entry", ["%W~res:x", "%R~req:1:h", "%R~*"])
def test_replies_and_requests_of_others_are_granted_by_nothing(run: Runner, local: Local, entry: str) -> None:
    local(RAN, allowRedis=f"order:*,{entry}")
    hint = refused(run, "t", "1", said=f"has {entry}, which covers replies or requests of others", code=78)
    refused(run, "set", "t", "1", "greeting=hello", said="which covers replies or requests of others", code=78)
    assert paste(hint, run.env, run.home).returncode == 0
    assert run("t", "1").out == "ran\n"


@pytest.mark.parametrize("entry", ["%W~t:2:h", "*:*:h", "t:data:*"])
def test_hashes_of_its_own_type_are_granted_to_no_worker(run: Runner, local: Local, entry: str) -> None:
    local(RAN, allowRedis=entry)
    refused(run, "t", "1", said="the worker could change what it is granted", code=78)


def test_no_start_looks_through_the_keyspace(r: redis.Redis, run: Runner, local: Local) -> None:
    local(RAN, allowRedis="chat:*,order:*,log:*")
    assert run("t", "1").code == 0
    r.config_resetstat()
    assert run("t", "1").code == 0
    local(RAN, "plain:1:h")
    assert run("plain", "1").code == 0
    commands = {name.removeprefix("cmdstat_") for name in r.info("commandstats")}
    assert not commands & {"scan", "keys", "sort", "hgetall"}, commands


def test_what_an_older_record_grants_counts_from_its_workers_next_start(run: Runner, local: Local) -> None:
    """A record of a version that noted no writers."""
    local(RAN, allowRedis="chat:*")
    assert run("t", "1").code == 0
    writers = run.home / ".local/state/sandboxrun/writers"
    shutil.rmtree(writers)
    assert run("t", "1").code == 0
    assert (writers / "chat/t:1").is_file()
