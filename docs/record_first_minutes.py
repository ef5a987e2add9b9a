"""Make docs/first-minutes.md: what a newcomer types from `pip install` to the first answer, and what is printed.

    python docs/record_first_minutes.py [--installed] [FILE]        (with the extra `test`)

It happens in a network of its own, where Debian's Redis runs as its package configures it, and where a server with a
certificate answers for raw.githubusercontent.com. With `--installed`, the environment of this Python is used instead of a
new one, so that no package index is needed.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pexpect

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(HERE), str(ROOT / "tests" / "support")]

import certificates  # noqa: E402
from raw_host import RawHost  # noqa: E402
from record_walk import SECONDS, Walk  # noqa: E402

NAMESPACE = ROOT / "tests" / "kernel" / "namespace.py"
HOST = "raw.githubusercontent.com"
PATH = "/OWNER/greeter/v1.0.0/worker.py"
PATHS = (PATH, PATH.replace("v1", "refs/tags/v1"))  # GitHub answers at both
REDIS_CONF = "/etc/redis/redis.conf"
SCRIPT = '''\
"""Greets whoever asks."""

from sandboxrun import worker


@worker.handler
def handle(request):
    return {"text": f"Hello, {request.data['name']}!"}


worker.run()
'''
HEAD = """\
<!-- Made by docs/record_first_minutes.py: change it there. -->
# The first minutes

From `pip install` to the first reply, with Debian's Redis: first a worker at a URL, then a worker in a folder.
[record_first_minutes.py](record_first_minutes.py) typed every command and recorded every line; a test repeats that.
"""
INSTALL = ("python3 -m venv env", ". env/bin/activate", "pip install --quiet ./sandboxrun")


def install(home: Path) -> Path:
    """Run INSTALL in an empty folder; the folder of the commands that it brings."""
    (home / "sandboxrun").symlink_to(ROOT)
    env = {**os.environ, "HOME": str(home), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    subprocess.run(["sh", "-ec", "\n".join(INSTALL)], cwd=home, env=env, check=True, timeout=300)
    return home / "env" / "bin"


class Terminal:
    """One command at a terminal of its own."""

    def __init__(self, walk: Walk, command: str) -> None:
        self._walk, self._shown = walk, f"$ {command}\n"
        self._spawned = pexpect.spawn(
            "sh", ["-c", f"exec {command}"], cwd=str(walk.home), env=walk.env, encoding="utf-8", timeout=SECONDS,
            dimensions=(50, 200),
        )  # fmt: skip

    def until(self, text: str) -> None:
        self._spawned.expect_exact(text)
        self._shown += self._spawned.before + text

    def type(self, line: str) -> None:
        self._spawned.sendline(line)

    def end(self, code: int = 0) -> None:
        """Wait for the end, and put on the page what was shown."""
        self._spawned.expect(pexpect.EOF)
        self._shown += self._spawned.before
        self._spawned.close()
        self._walk.show(self._shown)
        if self._spawned.exitstatus != code:
            raise RuntimeError(f"ended with {self._spawned.exitstatus}: {self._shown}")


def from_a_url(walk: Walk) -> None:
    walk.say(f"## A worker at a URL\n\n`https://{HOST}{PATH}` is this script:")
    walk.show(SCRIPT, "python")
    walk.say(
        "A Redis hash names the script and its version.\n"
        "Debian's Redis requires no password, so `set` asks once whether you accept that:"
    )
    terminal = Terminal(
        walk, f"sandboxrun set greeter 1 url=https://{HOST}/OWNER/greeter/main/worker.py version=v1.0.0"
    )
    terminal.until("[y/N] ")
    terminal.type("y")
    terminal.end()
    run_and_ask(walk, "greeter")
    walk.say("The hash stays in Redis:")
    walk.run("redish greeter:1:h")


def from_a_folder(walk: Walk) -> None:
    walk.say("## A worker in a folder\n\n`init` makes a folder with a worker that is ready to run:")
    walk.run("sandboxrun init mine")
    walk.say(
        "`spec.json` says what a request and a reply are, and has tests, which need no code.\n"
        "`test` runs them against the worker, in its sandbox, on a Redis of its own:"
    )
    walk.run("cat mine/spec.json", "sandboxrun test mine --verbose")
    walk.say("A hash in your Redis names the folder:")
    walk.run("sandboxrun set mine 1 url=$HOME/mine version=local")
    run_and_ask(walk, "mine")
    walk.say(
        "While you edit the worker, `sandboxrun dev mine` restarts it and runs its tests on each save:\n"
        "[the next page](walk.md) shows that."
    )


def run_and_ask(walk: Walk, type_: str) -> None:
    """The worker in one terminal, a request and its end in another."""
    terminal = Terminal(walk, f"sandboxrun {type_} 1")
    terminal.until("process ")
    walk.say(f"`sandboxrun {type_} 1` runs it. While it runs, type in another terminal:")
    walk.run(f"sandboxrun call {type_} name=world", f"sandboxrun stop {type_} 1")
    walk.say("This is what the first terminal shows:")
    terminal.end()


def inside(page: Path, home: Path, folder: Path, commands: Path) -> None:
    """The part that happens in the network of its own."""
    walk = Walk(home, HEAD)
    walk.env |= {"PATH": f"{commands}:{os.environ['PATH']}", "SSL_CERT_FILE": str(folder / "authority.crt")}
    walk.say("## Install\n\nInstall from a copy of the repository; this takes about ten seconds:")
    walk.show("\n".join(f"$ {command}" for command in INSTALL))
    walk.run("sandboxrun --version")
    with debian_redis(folder), raw_host(folder):
        from_a_url(walk)
        from_a_folder(walk)
    page.write_text(walk.page())


@contextlib.contextmanager
def debian_redis(folder: Path) -> Iterator[None]:
    """As its package configures it, but for files and the background."""
    changed = ["--daemonize", "no", "--dir", str(folder), "--logfile", "", "--pidfile", str(folder / "pid")]
    command = ["redis-server", *([REDIS_CONF] if os.access(REDIS_CONF, os.R_OK) else []), *changed]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + SECONDS
            while True:
                try:
                    socket.create_connection(("127.0.0.1", 6379), 5).close()
                    break
                except OSError:
                    if process.poll() is not None or time.monotonic() > deadline:
                        raise RuntimeError("redis-server did not start") from None
                    time.sleep(0.02)
            yield
        finally:
            process.kill()


@contextlib.contextmanager
def raw_host(folder: Path) -> Iterator[None]:
    """HTTPS for HOST, at port 443 of 127.0.0.1, to which the namespace's name server resolves it."""

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.crt", folder / "server.key")
    with contextlib.closing(RawHost(443, context)) as host:
        host.files = dict.fromkeys(PATHS, SCRIPT)
        yield


def main() -> int:
    words = [word for word in sys.argv[1:] if not word.startswith("--")]
    if "--inside" in sys.argv:
        inside(*map(Path, words))
        return 0
    page = Path(words[0]) if words else HERE / "first-minutes.md"
    with tempfile.TemporaryDirectory() as name:
        top = Path(name).resolve()
        home, folder = top / "me", top / "servers"
        home.mkdir()
        folder.mkdir()
        certificates.make(folder, f"DNS:{HOST}")
        commands = Path(sys.executable).parent if "--installed" in sys.argv else install(home)
        again = [sys.executable, __file__, "--inside", *map(str, (page.resolve(), home, folder, commands))]
        spec = json.dumps({"dns": {HOST: [["127.0.0.1"]]}, "low_ports": True})
        return subprocess.run([sys.executable, NAMESPACE, folder / "report", spec, *again]).returncode


if __name__ == "__main__":
    sys.exit(main())
