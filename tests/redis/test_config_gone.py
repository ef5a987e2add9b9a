"""A configuration that vanished while its worker ran, told from a removed `pid`; and a start that waits for one."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from arena import wait_for
from runner import Runner
from servers import Own

from sandboxrun import client

Local = Callable[..., Path]
GONE = 66
ECHO = """
from sandboxrun import worker

@worker.handler
def handle(request):
    return {"text": "done"}

worker.run()
"""
LONG = "import time\nprint('ready', flush=True)\ntime.sleep(60)\n"


def ask(r: redis.Redis) -> None:
    reply = client.wait(r, client.send(r, "t", {}, now="2026-01-01T00:00:00.000Z"), timeout_seconds=20)
    assert reply is not None and reply["code"] == 200


def swap(r: redis.Redis) -> None:
    r.execute_command("SWAPDB", 0, 9)


def replace(r: redis.Redis) -> None:
    r.pipeline().delete("t:1:h").set("t:1:h", "no hash").execute()


VANISHES: dict[str, Callable[[redis.Redis], object]] = {
    "DEL": lambda r: r.delete("t:1:h"),
    "UNLINK": lambda r: r.unlink("t:1:h"),
    "RENAME": lambda r: r.rename("t:1:h", "t:1:old"),
    "expired": lambda r: r.pexpire("t:1:h", 1),
    "FLUSHDB": lambda r: r.flushdb(),
    "FLUSHALL": lambda r: r.flushall(),
    "SWAPDB": swap,
    "MOVE": lambda r: r.move("t:1:h", 9),
    "another type": replace,
}


@pytest.mark.parametrize("way", VANISHES)
@pytest.mark.parametrize("code", [ECHO, LONG], ids=["sdk", "by hand"])
def test_a_hash_that_vanishes_ends_the_worker_with_a_code_and_a_line_of_its_own(
    r: redis.Redis, run: Runner, local: Local, way: str, code: str
) -> None:
    local(code)
    with run.start("t", "1") as process:
        if code == ECHO:
            ask(r)
        else:
            assert process.stdout is not None
            process.stdout.readline()
        VANISHES[way](r)
        _, err = process.communicate(timeout=20)
    assert process.returncode == GONE, err
    said = "t:1:h is no hash any more" if way == "another type" else "t:1:h does not exist any more"
    assert err.decode().count(said) == 1
    if way != "another type":
        assert not r.exists("t:1:h")  # nothing of ours makes it again
    assert not [name for name in r.acl_users() if name.startswith("sandboxrun:")]


def test_a_server_that_comes_back_empty_ends_the_worker_so(run: Runner, tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(ECHO)
    with Own("requirepass secret") as own:
        run.env["REDIS_URL"] = own.url.replace("://", "://:secret@")
        with redis.Redis.from_url(run.env["REDIS_URL"], decode_responses=True) as r:
            r.hset("t:1:h", mapping={"url": str(tmp_path), "version": "local"})
            with run.start("t", "1") as process:
                ask(r)
                own.kill()
                own.start()
                _, err = process.communicate(timeout=30)
            assert process.returncode == GONE, err
            assert "t:1:h does not exist any more: it was removed, or Redis has lost it" in err.decode()
            assert r.dbsize() == 0


def test_a_type_hash_that_the_worker_stood_on_counts_too(r: redis.Redis, run: Runner, local: Local) -> None:
    folder = local(LONG, "t:h")
    r.hset("t:1:h", "requestLimit", "0")
    with run.start("t", "1") as process:
        assert process.stdout is not None
        process.stdout.readline()
        r.delete("t:h")
        _, err = process.communicate(timeout=30)
    assert process.returncode == GONE
    assert "t:h does not exist any more" in err.decode()
    assert r.hgetall("t:1:h") == {"requestLimit": "0"}
    # One that gave a default only: the worker could be started again without it.
    r.hset("t:h", "requestLimit", "0")
    r.hset("t:1:h", mapping={"url": str(folder), "version": "local"})
    with run.start("t", "1") as process:
        assert process.stdout is not None
        process.stdout.readline()
        r.delete("t:h")
        r.hdel("t:1:h", "pid")
        _, err = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM


def test_a_removed_pid_is_said_to_be_that(r: redis.Redis, run: Runner, local: Local) -> None:
    local(ECHO)
    for fields in (
        ["pid"],
        [*(f"pid{part}" for part in ("", "Host", "Token", "Seen", "Started", "Name", "Since", "Version"))],
    ):
        with run.start("t", "1") as process:
            ask(r)
            r.hdel("t:1:h", *fields)
            _, err = process.communicate(timeout=20)
        assert process.returncode == 0
        assert err.decode().count("field pid of t:1:h was removed: ending the worker") == 1


def test_whoever_ends_it_by_a_signal_gets_the_workers_own_code(r: redis.Redis, run: Runner, local: Local) -> None:
    local(
        "import signal, sys\nsignal.signal(15, lambda *_: sys.exit(7))\nprint(1, flush=True)\nsignal.pause()\nsignal.pause()\n"
    )
    with run.start("t", "1") as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        r.delete("t:1:h")
        assert process.wait(20) == 7


# --- waiting for one


def test_a_start_without_a_hash_ends_or_waits_for_it(r: redis.Redis, run: Runner, local: Local) -> None:
    folder = local("print('ran')")
    r.delete("t:1:h")
    assert run("t", "1").code == 78
    with run.start("t", "1", "--wait") as process:
        assert process.stderr is not None
        assert b"t:1:h does not exist" in process.stderr.readline()
        assert process.stderr.readline() == b"hint: sandboxrun set t 1 url=URL version=VERSION\n"
        r.hset("t:1:h", "url", str(folder))  # as redis-cli would, field by field
        assert b"t:1:h has no version" in process.stderr.readline()
        r.hset("t:1:h", "version", "local")
        out, _ = process.communicate(timeout=20)
    assert (process.returncode, out) == (0, b"ran\n")


def test_it_waits_for_redis_too(run: Runner, tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text("print('ran')")
    with Own("requirepass secret") as own:
        run.env["REDIS_URL"] = own.url.replace("://", "://:secret@")
        own.kill()
        assert run("t", "1").code == 75
        with run.start("t", "1", "--wait") as process:
            assert process.stderr is not None
            assert b"waiting for Redis" in process.stderr.readline()
            assert process.stderr.readline().startswith(b"hint: ")
            own.start()
            assert b"t:1:h does not exist" in process.stderr.readline()
            with redis.Redis.from_url(run.env["REDIS_URL"]) as r:
                r.hset("t:1:h", mapping={"url": str(tmp_path), "version": "local"})
            out, _ = process.communicate(timeout=20)
    assert (process.returncode, out) == (0, b"ran\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_ends_the_waiting(r: redis.Redis, run: Runner, number: signal.Signals) -> None:
    with run.start("t", "1", "--wait") as process:
        assert process.stderr is not None
        process.stderr.readline()
        process.send_signal(number)
        assert process.wait(20) == 128 + number
    assert r.keys() == []


@pytest.mark.parametrize(
    "fields", [{"url": "ftp://x", "version": "v1"}, {"url": "/x", "version": "local", "allowFoo": "x"}]
)
def test_a_hash_that_is_wrong_is_not_waited_for(r: redis.Redis, run: Runner, fields: dict[str, str]) -> None:
    r.hset("t:1:h", mapping=fields)
    assert run("t", "1", "--wait").code in (69, 78)


def test_the_hash_may_come_while_a_start_is_looked_at_by_others(r: redis.Redis, run: Runner, local: Local) -> None:
    """Two that wait for one hash: one runs, the other says so."""
    folder = local("import time\ntime.sleep(3)\n")
    r.delete("t:1:h")
    with run.start("t", "1", "--wait") as one, run.start("t", "1", "--wait") as two:
        for process in (one, two):
            assert process.stderr is not None
            process.stderr.readline()
        r.hset("t:1:h", mapping={"url": str(folder), "version": "local"})
        wait_for(lambda: None not in (one.poll(), two.poll()), 20)
        assert sorted([one.returncode, two.returncode]) == [0, 73]
