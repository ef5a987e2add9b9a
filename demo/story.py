"""The demo's story: a hash, a policy, a worker that answers and is refused, and the way back."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import redis

from sandboxrun import client
from sandboxrun.config import keys
from sandboxrun.config.secrets import encrypt
from sandboxrun.errors import SandboxrunError
from sandboxrun.protocol.request import now

ROOT = Path(__file__).resolve().parent.parent
# The demo's own policy, cache and pins. A folder below the one that DEMO_STATE names, because it is removed as a whole.
STATE = Path(os.environ["DEMO_STATE"]) / "demo-state" if os.environ.get("DEMO_STATE") else ROOT / "demo" / ".state"
BIN = Path(sys.executable).parent
TYPE, ID = os.environ.get("WORKER_TYPE") or "demo-worker", "1"
KEY, TYPE_KEY = keys.worker_key(TYPE, ID), keys.type_key(TYPE)
MADE_BY = {
    "madeBy": "sandboxrun demo"
}  # in the type's hash, so that no keys of somebody else are overwritten or removed
STREAMS = (keys.request_stream(TYPE), keys.response_stream(TYPE), keys.dead_stream(TYPE))
SECONDS = 15
POLICY_FILE = STATE / "config" / "sandboxrun" / "policy.toml"
DEBUGGER_PORT = 9229
POLICY = f'[worker."{TYPE}"]\ninspect = true   # its hash may ask for a debugger\n'


class DemoError(SandboxrunError):
    pass


def original_hash(port: int) -> dict[str, str]:
    """The hash as README shows it, or as WORKER_URL, WORKER_VERSION and WORKER_DENO_OPTIONS change it.

    `port`: of the loopback server that stands for a raw host if there is no WORKER_URL.
    """
    version = os.environ.get("WORKER_VERSION") or "main"
    return {
        "type": TYPE,
        "url": os.environ.get("WORKER_URL") or f"http://127.0.0.1:{port}/sandboxrun/demo/{version}/demo/worker.py",
        "version": version,
        "requestStream": keys.request_stream(TYPE),
        "responseStream": keys.response_stream(TYPE),
        "consumerId": ID,
        "requestLimit": "1",
        "denoOptions": os.environ.get("WORKER_DENO_OPTIONS") or _debugger_option(),
    }


def _debugger_option() -> str:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", DEBUGGER_PORT))
        except OSError:
            say("port 9229", "in use on this machine, so the debugger takes another")
            return "--inspect=127.0.0.1:0"
    return f"--inspect=127.0.0.1:{DEBUGGER_PORT}"


class Story:
    """Everything that the demo does with the Redis at `url`. `port`: of the server for scripts."""

    def __init__(self, r: redis.Redis, url: str, port: int) -> None:
        self.r, self._port = r, port
        self._env = {**os.environ, "REDIS_URL": url}
        self.key = f"worker-v0 {secrets.token_hex(32)}\n"

    def make_hash(self) -> None:
        fields = original_hash(self._port)
        self.r.delete(KEY, TYPE_KEY)
        self.r.hset(TYPE_KEY, mapping={"xreadGroupBlockMillis": "1000", **MADE_BY})
        self.r.hset(KEY, mapping=fields)
        self.redish(KEY)

    def refuse_debugger(self) -> None:
        """A hash may not ask for a debugger, which can run code in the worker, until the operator's policy allows it."""
        if "--inspect" not in (self.r.hget(KEY, "denoOptions") or ""):
            return
        say("\nrefused", "a debugger, which the default policy does not allow")
        typed(f"sandboxrun {TYPE} {ID}")
        done = subprocess.run([BIN / "sandboxrun", TYPE, ID], env=self._env, stdin=subprocess.DEVNULL, stderr=1)
        if done.returncode != 77:
            raise DemoError(
                f"the worker ended with exit code {done.returncode}, where the policy should have refused it"
            )
        POLICY_FILE.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with POLICY_FILE.open("a") as file:
            file.write(f"\n{POLICY}" if file.tell() else POLICY)
        POLICY_FILE.chmod(0o600)
        typed(f"cat {shlex.quote(os.path.relpath(POLICY_FILE))}")
        print(POLICY_FILE.read_text(), end="", flush=True)

    def answer_once(self) -> None:
        """One run with the hash as it is: the worker ends after requestLimit requests."""
        typed(f"sandboxrun {TYPE} {ID}")
        with self._worker() as process:
            self._call(process, {"name": "world"}, show_trace=True)
            if self.r.hget(KEY, "requestLimit") == "1":
                self._ended(process)
            else:
                self._stop(process)

    def add_secret(self) -> None:
        """Change the hash: no limit and no debugger, but a secret that only the worker with its key can read."""
        key = bytes.fromhex(self.key.split()[1])
        secret = encrypt({"greeting": "Good morning"}, key, worker_key=KEY, type_=TYPE, algorithm="aes-256-gcm")
        self.r.hdel(KEY, "requestLimit", "denoOptions")
        self.r.hset(KEY, mapping=secret)
        typed(f"redis-cli HDEL {KEY} requestLimit denoOptions", f"redis-cli HSET {KEY} {' '.join(secret)} …")

    def refuse_grants(self) -> None:
        """A run with the secret, in which the worker tries to connect and to read without a grant."""
        typed(f"echo worker-v0 HEX | sandboxrun {TYPE} {ID}")
        with self._worker(self.key) as process:
            self._call(process, {"name": "world"})
            self._call(process, {"greet": "nobody"})
            say("\nrefused", "a connection and a file that the hash does not grant")
            # The demo's own HTTP server: it listens, so only the sandbox can be what refuses.
            self._call(process, {"connect": f"127.0.0.1:{self._port}"})
            self._call(process, {"read": "/etc/passwd"})
            pending = self.r.xpending(keys.request_stream(TYPE), "worker")["pending"]
            say("\npending requests", str(pending))
            self._stop(process)

    def keep_running(self, log: Path, key_file: Path) -> None:
        """Start the worker once more, in the background. It outlives the demo."""
        key_file.write_text(self.key)
        key_file.chmod(0o600)
        with key_file.open("rb") as stdin, log.open("wb") as out:
            process = subprocess.Popen(
                [BIN / "sandboxrun", TYPE, ID],
                stdin=stdin,
                stdout=out,
                stderr=out,
                env=self._env,
                start_new_session=True,
            )
        try:
            self._started(process)
        except DemoError as error:
            process.terminate()
            raise DemoError(f"{error}: {log.read_text(errors='replace').strip()}") from error

    def redish(self, *words: str) -> None:
        typed(f"redish {shlex.join(words)}")
        subprocess.run([BIN / "redish", *words], env=self._env, stderr=1, check=True)

    @contextlib.contextmanager
    def _worker(self, key: str | None = None) -> Iterator[subprocess.Popen[bytes]]:
        stdin = subprocess.PIPE if key is not None else subprocess.DEVNULL
        with subprocess.Popen([BIN / "sandboxrun", TYPE, ID], stdin=stdin, stderr=1, env=self._env) as process:
            try:
                if key is not None:
                    assert process.stdin is not None
                    with contextlib.suppress(BrokenPipeError):  # it has ended, which is seen below
                        process.stdin.write(key.encode())
                        process.stdin.close()
                self._started(process)
                yield process
            finally:
                process.terminate()

    def _started(self, process: subprocess.Popen[bytes]) -> None:
        wait_until(lambda: self.r.hget(KEY, "pid") is not None, "the worker to start", process)

    def _call(self, process: subprocess.Popen[bytes], data: object, *, show_trace: bool = False) -> None:
        ref = client.send(self.r, TYPE, data, now=now())
        reply = None

        def replied() -> bool:
            nonlocal reply
            reply = client.wait(self.r, ref, timeout_seconds=0.2)
            return reply is not None

        wait_until(replied, f"the reply to {json.dumps(data)}", process)
        assert reply is not None
        time.sleep(0.1)  # the worker's own messages are on their way through another pipe
        title = f"request {json.dumps(data)}: reply {reply['code']}"
        show(title, {name: value for name, value in reply.items() if name not in ("payload", "ref")})
        if show_trace:
            self.redish(keys.trace_key(ref))

    def _stop(self, process: subprocess.Popen[bytes]) -> None:
        typed(f"redis-cli HDEL {KEY} pid")
        self.r.hdel(KEY, "pid")
        self._ended(process)

    def _ended(self, process: subprocess.Popen[bytes]) -> None:
        try:
            say("worker's exit code", str(process.wait(timeout=SECONDS)))
        except subprocess.TimeoutExpired:
            raise DemoError(f"the worker did not end within {SECONDS} s") from None


def is_ours(r: redis.Redis) -> bool:
    return r.type(TYPE_KEY) == "hash" and r.hget(TYPE_KEY, "madeBy") == MADE_BY["madeBy"]


def check_ours(r: redis.Redis) -> None:
    """Raise DemoError if keys of somebody else, or a worker that runs, are in the way."""
    if is_ours(r):
        if r.hexists(KEY, "pid"):
            raise DemoError("a demo worker runs already or was killed", hint="demo/clean.sh")
        return
    others = [name for name in (TYPE_KEY, KEY, *STREAMS) if r.exists(name)]
    if others:
        raise DemoError(f"{others[0]} was not made by this demo", hint="WORKER_TYPE=NAME demo/run.sh")


def delete_keys(r: redis.Redis) -> None:
    if is_ours(r):
        r.delete(KEY, TYPE_KEY, *STREAMS)


def end_worker(r: redis.Redis) -> None:
    if is_ours(r) and r.type(KEY) == "hash":
        pid, host = r.hget(KEY, "pid"), r.hget(KEY, "pidHost")
        if r.hdel(KEY, "pid"):
            say("ending the worker", pid or "")
            # The supervisor removes what stands beside pid when its worker has ended.
            with contextlib.suppress(DemoError):
                wait_until(lambda: host is None or not r.hexists(KEY, "pidHost"), "the worker to end")


def wait_until(done: Callable[[], bool], purpose: str, process: subprocess.Popen[bytes] | None = None) -> None:
    """Raises DemoError after SECONDS, and at once if the process has ended."""
    deadline = time.monotonic() + SECONDS
    while True:
        ended = process is not None and process.poll() is not None  # before the last look
        if done():
            return
        if ended:
            assert process is not None
            raise DemoError(f"the worker ended with exit code {process.returncode} while the demo waited for {purpose}")
        if time.monotonic() > deadline:
            raise DemoError(f"waited {SECONDS} s for {purpose}")
        time.sleep(0.02)


def show(title: str, fields: dict[str, object]) -> None:
    print(f"\n{title}")
    for name, value in fields.items():
        text = value if isinstance(value, str) else json.dumps(value)
        print(f"  {name:<22} {text if len(text) <= 150 else text[:147] + '...'}", flush=True)


def typed(*commands: str) -> None:
    print("\n" + "\n".join(f"$ {command}" for command in commands), flush=True)


def say(name: str, detail: str) -> None:
    print(f"{name}: {detail}", flush=True)
