"""The demo's story: keys, a server for the script, the worker, requests, replies, refusals, and the way back."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import redis

from sandboxrun import client
from sandboxrun.config import keys
from sandboxrun.config.secrets import encrypt
from sandboxrun.errors import SandboxrunError
from sandboxrun.host.open_redis import check_open_redis
from sandboxrun.log import shown_hint
from sandboxrun.protocol.request import now
from sandboxrun.redis import embedded

TYPE, ID = "demo-worker", "1"
KEY = keys.worker_key(TYPE, ID)
ROOT = Path(__file__).resolve().parent.parent
MADE_BY = {"madeBy": "sandboxrun demo"}  # so that we never overwrite or delete keys of somebody else
OWN_KEYS = (keys.type_key(TYPE), KEY, keys.request_stream(TYPE), keys.response_stream(TYPE))


class DemoError(Exception):
    pass


def main() -> None:
    try:
        if sys.argv[1:] == ["clean"]:
            with redis.Redis.from_url(os.environ["REDIS_URL"], decode_responses=True) as r:
                clean(r)
        else:
            with contextlib.ExitStack() as stack:
                url = os.environ.get("REDIS_URL") or stack.enter_context(embedded.server())
                run(url, stack)
    except SandboxrunError as error:
        sys.exit("\n".join([f"error: {error}", *([shown_hint(error.hint)] if error.hint else [])]))
    except DemoError as error:
        sys.exit(f"error: {error}")
    except (redis.ConnectionError, redis.TimeoutError) as error:
        sys.exit(f"error: Redis cannot be reached ({error}): check REDIS_URL, or unset it to use an embedded one")


def run(url: str, stack: contextlib.ExitStack) -> None:
    r = stack.enter_context(contextlib.closing(redis.Redis.from_url(url, decode_responses=True, socket_timeout=20)))
    say("Redis", "embedded, for this demo only" if not os.environ.get("REDIS_URL") else "from REDIS_URL")
    check_ours(r)
    check_open_redis(url, TYPE, ID, say=print)  # the worker has no terminal to ask on
    port = stack.enter_context(serve_scripts())
    worker_url = os.environ.get("WORKER_URL") or f"http://127.0.0.1:{port}/sandboxrun/{{version}}/demo/worker.py"
    version = os.environ.get("WORKER_VERSION") or "v0.1.0"
    key = secrets.token_bytes(32)
    hash_ = {
        "url": worker_url,
        "version": version,
        "allowNet": "",  # Redis itself is always allowed
        **encrypt({"greeting": "Hello"}, key, worker_key=KEY, type_=TYPE, algorithm="aes-256-gcm"),
        **MADE_BY,
    }
    r.delete(KEY, keys.type_key(TYPE))
    r.hset(keys.type_key(TYPE), mapping={"xreadGroupBlockMillis": "1000", **MADE_BY})
    r.hset(KEY, mapping=hash_)
    show(f"HGETALL {KEY}", r.hgetall(KEY))

    print(f"\n$ echo worker-v0 HEX | sandboxrun {TYPE} {ID}", flush=True)
    with worker(url, key):
        wait_until(lambda: r.hget(KEY, "pid") is not None, "the worker to start")
        call(r, {"name": "world"}, show_trace=True)
        call(r, {"greet": "nobody"})
        say("\nrefused", "a connection and a file that the hash does not grant")
        # Our own HTTP server: it listens, so only the sandbox can be what refuses.
        call(r, {"connect": f"127.0.0.1:{port}"})
        call(r, {"read": "/etc/passwd"})
        pending = r.xpending(keys.request_stream(TYPE), "worker")["pending"]
        say("\npending requests", str(pending))
        say("ending the worker", f"HDEL {KEY} pid")
        r.hdel(KEY, "pid")
    delete_keys(r)
    print("\nThat was all. Read README.md for what to try next.")


def call(r: redis.Redis, data: object, *, show_trace: bool = False) -> None:
    ref = client.send(r, TYPE, data, now=now())
    reply = client.wait(r, ref, timeout_seconds=15)
    if reply is None:
        raise DemoError("no reply came within 15 s")
    time.sleep(0.1)  # the worker's own messages are on their way through another pipe
    show(
        f"request {json.dumps(data)}: reply {reply['code']}",
        {k: v for k, v in reply.items() if k not in ("payload", "ref")},
    )
    if show_trace:
        show(f"HGETALL {keys.trace_key(ref)} (gone in {r.ttl(keys.trace_key(ref))} s)", r.hgetall(keys.trace_key(ref)))


@contextlib.contextmanager
def worker(url: str, key: bytes) -> Iterator[None]:
    state = ROOT / "demo" / ".state"  # the demo's own cache and pins: each run fetches anew
    env = {**os.environ, "REDIS_URL": url, "XDG_CACHE_HOME": f"{state}/cache", "XDG_STATE_HOME": f"{state}/state"}
    command = [str(Path(sys.executable).with_name("sandboxrun")), TYPE, ID]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stderr=subprocess.STDOUT, stdout=sys.stdout, env=env
    ) as process:
        try:
            assert process.stdin is not None
            process.stdin.write(b"worker-v0 " + key.hex().encode() + b"\n")
            process.stdin.close()
            yield
            code = process.wait(timeout=15)
            say("worker's exit code", str(code))
        finally:
            process.terminate()


@contextlib.contextmanager
def serve_scripts() -> Iterator[int]:
    """The repository's demo/worker.py at /sandboxrun/VERSION/demo/worker.py on loopback, as a raw host would have it."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = self.path.split("/")
            found = len(parts) == 5 and [parts[1], *parts[3:]] == ["sandboxrun", "demo", "worker.py"]
            body = (ROOT / "demo" / "worker.py").read_bytes() if found else b"404: Not Found"
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def check_ours(r: redis.Redis) -> None:
    for name in (keys.type_key(TYPE), KEY):
        if r.exists(name) and (r.type(name) != "hash" or r.hget(name, "madeBy") != MADE_BY["madeBy"]):
            raise DemoError(
                f"{name} is there already and was not made by this demo: remove it, or use another REDIS_URL"
            )
    if not r.exists(KEY) and any(r.exists(name) for name in OWN_KEYS[2:]):
        raise DemoError(
            f"{OWN_KEYS[2]} or {OWN_KEYS[3]} is there already and was not made by this demo: use another REDIS_URL"
        )
    if r.hexists(KEY, "pid"):
        raise DemoError("a demo worker runs already or was killed: end it with demo/clean.sh")


def clean(r: redis.Redis) -> None:
    if r.type(KEY) == "hash" and r.hget(KEY, "madeBy") == MADE_BY["madeBy"]:
        pid, host = r.hget(KEY, "pid"), r.hget(KEY, "pidHost")
        if r.hdel(KEY, "pid"):
            say("ending the worker", pid or "")
            # The supervisor removes what stands beside pid when its worker has ended.
            with contextlib.suppress(DemoError):
                wait_until(lambda: host is None or not r.hexists(KEY, "pidHost"), "the worker to end")
    delete_keys(r)


def delete_keys(r: redis.Redis) -> None:
    if any(r.type(name) == "hash" and r.hget(name, "madeBy") == MADE_BY["madeBy"] for name in OWN_KEYS[:2]):
        r.delete(*OWN_KEYS)


def wait_until(done: object, what: str) -> None:
    deadline = time.monotonic() + 15
    while not done():  # type: ignore[operator]
        if time.monotonic() > deadline:
            raise DemoError(f"waited 15 s for {what}")
        time.sleep(0.02)


def show(title: str, fields: dict[str, object]) -> None:
    print(f"\n{title}")
    for name, value in fields.items():
        text = value if isinstance(value, str) else json.dumps(value)
        print(f"  {name:<22} {text if len(text) <= 150 else text[:147] + '...'}", flush=True)


def say(what: str, detail: str) -> None:
    print(f"{what}: {detail}", flush=True)


main()
