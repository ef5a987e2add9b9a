"""Many workers in one process, by host/pool.py: what one of them does, or what becomes of it, concerns no other."""

from __future__ import annotations

import contextlib
import json
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from pooled import Fixture, pooled, wait_for
from runner import ALLOW_ALL, Runner

from sandboxrun.sandbox.supervisor.spawn import Spawned
from sandboxrun.sandbox.supervisor.zygote import Zygote

Write = Callable[..., None]
WAITS = "import signal\nprint('there', flush=True)\nwhile True: signal.pause()\n"


@pytest.fixture
def pool(redis_url: str, run: Runner) -> Iterator[Fixture]:
    with pooled(redis_url, str(run.home)) as found:
        yield found


@pytest.fixture
def worker(r: redis.Redis, tmp_path: Path) -> Write:
    """Write the script of a type, and its hash."""

    def write(type_: str, code: str, **fields: str) -> None:
        folder = tmp_path / type_
        folder.mkdir()
        (folder / "worker.py").write_text(code)
        r.hset(f"{type_}:h", mapping={"url": str(folder), "version": "local", **fields})

    return write


def test_each_ends_by_itself_with_its_own_code_and_reason(pool: Fixture, r: redis.Redis, worker: Write) -> None:
    worker("three", "import sys\nprint('to the end', file=sys.stderr)\nsys.exit(3)\n")
    worker("waits", WAITS)
    worker("lost", WAITS)
    ends, waits, killed = pool.start("three"), pool.runs("waits"), pool.runs("waits", "2")
    assert (pool.on.end(ends).code, pool.on.end(ends).reason) == (3, "")
    assert pool.on.of(ends) == ["to the end"]

    assert killed.pid is not None
    os.kill(killed.pid, 9)
    ended = pool.on.end(killed)
    assert ended.code == 137 and "SIGKILL" in ended.reason and ended.error is None

    lost = pool.runs("lost")
    pool.says(lost, "there")
    r.hdel("lost:1:h", "pid")
    ended = pool.on.end(lost)
    assert ended.loss is not None and ended.reason == "field pid of lost:1:h was removed: ending the worker"

    assert waits.key not in pool.on.ends and waits.state == "running"
    assert waits.pid is not None and r.hget("waits:1:h", "pid") == str(waits.pid)
    waits.stop("it was told to")
    ended = pool.on.end(waits)
    assert (ended.code, ended.reason) == (143, "it was told to")
    assert r.hgetall("waits:1:h") == {}
    assert not [name for name in r.acl_users() if name.startswith("sandboxrun:")]


def test_what_keeps_a_worker_from_starting_is_its_end_alone(pool: Fixture, r: redis.Redis, worker: Write) -> None:
    worker("waits", WAITS)
    pool.runs("waits")
    again, none = pool.start("waits"), pool.start("none")
    ended = pool.on.end(again)
    assert ended.code == 73 and str(ended.error).startswith("waits:1:h runs already as process ")
    assert pool.on.end(none).code == 78
    r.hset("none:h", mapping={"url": "/nowhere", "version": "local"})
    assert r.hget("waits:1:h", "pid") is not None


def test_a_child_that_was_spawned_ahead_shows_its_key_and_has_the_limits_of_its_plan(
    pool: Fixture, worker: Write
) -> None:
    worker(
        "limits",
        "import os, resource, sys\nprint(sys.argv[1], sys.orig_argv[-1] != '', resource.getrlimit(resource.RLIMIT_NOFILE))\n"
        "print(sorted(os.environ))\n" + WAITS,
    )
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    os.environ["CANARY"] = "canary-of-the-pool"
    try:
        running = pool.runs("limits", limits={"files": 77})
        pool.says(running, "limits:1:h True (77, 77)")
        pool.says(running, "['HOME', 'LANG', 'PATH', 'REDIS_URL', 'TMPDIR']")
    finally:
        del os.environ["CANARY"]
    words = Path(f"/proc/{running.pid}/cmdline").read_bytes().split(b"\0")
    assert b"limits:1:h" in words and not any(word.startswith(b"spare") for word in words)
    assert os.getsid(running.pid or 0) == running.pid


def test_its_denials_name_its_own_key(pool: Fixture, worker: Write) -> None:
    code = (
        "import socket\ntry: socket.create_connection(('127.0.0.1', %d), 5)\nexcept OSError: print('refused')\n" + WAITS
    )
    worker("one", code % 1)
    worker("two", code % 2)
    one, two = pool.runs("one"), pool.runs("two")
    for running, port in ((one, 1), (two, 2)):
        wait_for(lambda running=running: pool.on.of(running, "denied"))  # type: ignore[misc]
        (said,) = pool.on.of(running, "denied")
        assert f"127.0.0.1:{port}" in said and running.key in said, said
        assert running.denials == {("net", f"127.0.0.1:{port}"): 1}


def test_a_worker_is_forked_if_its_policy_lets_it_share_memory_and_no_other_is(
    redis_url: str, run: Runner, worker: Write
) -> None:
    worker("shares", "import sys\nprint('there', flush=True)\nsys.exit(4)\n")
    worker("other", WAITS)
    run.set_policy(ALLOW_ALL + '\n[worker."shares"]\nopen-redis = true\nshare-memory = true\n')
    forked: list[str] = []

    class Kept(Zygote):
        def fork(self, key: str) -> Spawned:
            forked.append(key)
            return super().fork(key)

    with contextlib.closing(Kept()) as zygote, pooled(redis_url, str(run.home), zygote=zygote) as pool:
        shares, other = pool.start("shares"), pool.runs("other")
        assert pool.on.end(shares).code == 4 and pool.on.of(shares) == ["there"]
        assert forked == ["shares:1:h"] and other.state == "running"


def test_it_says_of_itself_how_it_is_until_it_has_ended(pool: Fixture, r: redis.Redis, worker: Write) -> None:
    worker("serves", "from sandboxrun import worker\n@worker.handler\ndef handle(request): return {}\nworker.run()\n")
    running = pool.runs("serves")
    wait_for(lambda: (health := running.health()) is not None and health.ready)
    running.stop()
    pool.on.end(running)
    assert running.health() is None


def test_the_key_of_its_secrets_is_given_and_not_read(
    pool: Fixture, r: redis.Redis, run: Runner, worker: Write
) -> None:
    worker("secret", "from sandboxrun import worker\nprint(worker.secrets()['token'], flush=True)\n")
    key = "worker-v0 " + "0123456789abcdef" * 4 + "\n"
    (run.home / "key").write_text(key)
    text = run("encrypt", "secret", "1", "--key-file", "key", stdin=json.dumps({"token": "t0ken"})).out
    _, name, *fields = text.replace('"', "").split()
    r.hset(name, mapping=dict(zip(fields[::2], fields[1::2], strict=True)))
    running = pool.start("secret", key_line=key.encode())
    assert pool.on.end(running).code == 0 and pool.on.of(running) == ["t0ken"]
    pool.on.ends.clear()
    for wrong, said in ((None, "there is no key"), (b"worker-v0 zz\n", "secret:1:h: ")):
        ended = pool.on.end(pool.start("secret", key_line=wrong))
        assert ended.code == 78 and said in str(ended.error)
        pool.on.ends.clear()
