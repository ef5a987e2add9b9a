"""From save to ready: the time from saving a file to the first answer of the new code, of `sandboxrun dev` and `deno run --watch`.

    pip install -e '.[bench,dev]'; python bench/reload.py [ROUNDS]

One caller asks each of them without a pause: ours over a Redis of its own, deno over HTTP on loopback. The edit is the same,
one number in a handler of one line, and the clock starts before the file is written. The contenders take turns. Without an
installed deno it is left out, with a line. Only ratios are comparable between machines.
"""

import contextlib
import http.client
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from sandboxrun import client
from sandboxrun.protocol.call import CallError
from sandboxrun.redis import embedded

PYTHON = """\
from sandboxrun import worker

@worker.handler
def handle(request):
    return {{"version": {version}}}

worker.run()
"""
JAVASCRIPT = """\
Deno.serve({{ hostname: "127.0.0.1", port: {port}, onListen() {{}} }}, () => new Response("{version}"));
"""
BIN = Path(sys.executable).parent
SECONDS = 30
PAUSE = 0.5  # between rounds, so that the watchers are idle

Contender = tuple[Callable[[int], None], Callable[[], int | None]]  # save a version; ask which version answers


@contextlib.contextmanager
def process(command: list[str], folder: Path, env: dict[str, str]) -> Iterator[None]:
    null = subprocess.DEVNULL
    with subprocess.Popen(command, cwd=folder, env=env, stdin=null, stdout=null, stderr=null) as started:
        try:
            yield
        finally:
            started.terminate()


@contextlib.contextmanager
def ours(folder: Path, env: dict[str, str]) -> Iterator[Contender]:
    script = folder / "worker.py"

    def save(version: int) -> None:
        script.write_text(PYTHON.format(version=version))

    save(0)
    with (
        embedded.server() as url,
        client.Client(url) as c,
        process([str(BIN / "sandboxrun"), "dev", str(script)], folder, env | {"REDIS_URL": url}),
    ):

        def ask() -> int | None:
            with contextlib.suppress(CallError):
                return int(c.call(folder.name, {}, timeout=SECONDS)["version"])
            return None

        yield save, ask


@contextlib.contextmanager
def deno(folder: Path, env: dict[str, str], program: str) -> Iterator[Contender]:
    script = folder / "worker.js"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def save(version: int) -> None:
        script.write_text(JAVASCRIPT.format(version=version, port=port))

    def ask() -> int | None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
        with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("GET", "/")
            return int(connection.getresponse().read())
        return None

    save(0)
    with process([program, "run", "--watch", f"--allow-net=127.0.0.1:{port}", str(script)], folder, env):
        yield save, ask


def until(ask: Callable[[], int | None], version: int) -> None:
    end = time.monotonic() + SECONDS
    while ask() != version:
        if time.monotonic() > end:
            raise SystemExit(f"version {version} did not answer within {SECONDS} s")


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    with tempfile.TemporaryDirectory() as home, contextlib.ExitStack() as stack:
        env = {"PATH": os.environ["PATH"], "HOME": home, "LANG": "C.UTF-8", "DENO_NO_UPDATE_CHECK": "1"}
        contenders: dict[str, Contender] = {}
        folders = [Path(home, name) for name in ("reload", "deno")]
        for folder in folders:
            folder.mkdir()
        contenders["sandboxrun dev"] = stack.enter_context(ours(folders[0], env))
        program = str(BIN / "deno") if (BIN / "deno").exists() else shutil.which("deno")
        if program is None:
            print("deno is left out: pip install deno")
        else:
            contenders["deno run --watch"] = stack.enter_context(deno(folders[1], env, program))
        for _, ask in contenders.values():
            until(ask, 0)
        times: dict[str, list[float]] = {name: [] for name in contenders}
        for version in range(1, rounds + 1):
            for name, (save, ask) in contenders.items():
                time.sleep(PAUSE)
                began = time.perf_counter()
                save(version)
                until(ask, version)
                times[name].append((time.perf_counter() - began) * 1000)
        print(f"from save to the first answer of the new code, ms; {rounds} rounds")
        for name, found in times.items():
            print(
                f"  {name:<18} median {statistics.median(found):6.1f}   least {min(found):6.1f}   most {max(found):6.1f}"
            )
        if len(times) == 2:
            ratios = [a / b for a, b in zip(*times.values(), strict=True)]
            print(f"  median of the ratios {statistics.median(ratios):.2f}")


main()
