"""The cost of the boundary compared with plain Python and other sandboxes: all contenders in turn, by rounds.

    pip install -e '.[bench]'; apt-get install bubblewrap      # the peers; a missing one is left out, with a line
    python bench/sandbox.py [ROUNDS]

A figure is the median over the rounds, followed by the median of its ratio to plain Python in the same round. Only ratios
are comparable between machines. Everything stays on loopback.
"""

import contextlib
import importlib.util
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "kernel"))
import confine

from sandboxrun.sandbox.compile.features import Features

# Each script writes its figures to the file `result` in its scratch folder.
TRIVIAL = """
import time
started = time.monotonic()
with open({scratch!r} + "/result", "w") as file:
    file.write(repr([started]))
"""
# All of them import what our bootstrap imports before the clock starts.
OPERATIONS = """
import ctypes, marshal, os, resource, signal, socket, sys, threading, time, types
os.chdir({scratch!r})
def timed(function, count):
    begin = time.perf_counter()
    for _ in range(count):
        function()
    return (time.perf_counter() - begin) / count * 1e6
def connect():
    s = socket.socket()
    s.connect(("127.0.0.1", {quiet}))  # where nobody accepts, so nobody is woken
    s.close()
peer = socket.create_connection(("127.0.0.1", {port}))
peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
def round_trip():
    peer.send(b"x" * 64)
    peer.recv(64)
open("file", "w").close()
def open_close():
    os.close(os.open("file", os.O_RDONLY))
found = [timed(connect, 300), timed(round_trip, 1000), timed(open_close, 2000), timed(os.getppid, 20000)]
begin = time.perf_counter()
for name in {modules!r}.split():
    __import__(name)
found.append((time.perf_counter() - begin) * 1e3)
with open("result", "w") as file:
    file.write(repr(found))
"""
MODULES = """argparse array ast asyncio base64 bisect bz2 calendar cmath cmd code codecs colorsys configparser contextvars csv
dataclasses datetime decimal difflib dis email fileinput fnmatch fractions getopt gettext glob graphlib gzip hashlib heapq
hmac html http.client inspect json locale logging lzma mimetypes numbers pathlib pickle pprint shlex sqlite3 statistics
tarfile zipfile"""
START = ("start, a process of its own", "ms")
WARM = ("start, warm supervisor", "ms")
ROWS = [("connect", "µs"), ("64-byte send + recv", "µs"), ("open + close", "µs"), ("getppid", "µs"),
        (f"import of {len(MODULES.split())} modules", "ms")]  # fmt: skip
SANDLOCK = "import json, sys; from sandlock import Sandbox; sys.exit(Sandbox(**json.loads(sys.argv[1])).run(sys.argv[2:]).exit_code)"


def echo(server: socket.socket) -> None:
    def serve(peer: socket.socket) -> None:
        with peer:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while data := peer.recv(64):
                peer.send(data)

    while True:
        peer, _ = server.accept()
        threading.Thread(target=serve, args=(peer,), daemon=True).start()


def empty(server: socket.socket) -> None:
    """Empty the queue of a listener: a full one does not answer."""
    server.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            server.accept()[0].close()


births: list[float] = []


def timed_child(key: str, kernel: Features, make: type = confine.Child) -> confine.Child:
    births.append(time.monotonic())  # confine.py makes the policy first, which is no part of the start
    return make(key, kernel)


confine.Child = timed_child


class Bench:
    """The ways to run a script: as a command, and from a running process."""

    def __init__(self, folder: Path, port: int, quiet: int) -> None:
        self.scratch = folder / "scratch"
        self.scratch.mkdir()
        self.filters = folder / "filters"  # kept between runs, as sandboxrun does
        self.scripts = {name: folder / f"{name}.py" for name in ("trivial", "operations")}
        for name, text in (("trivial", TRIVIAL), ("operations", OPERATIONS)):
            self.scripts[name].write_text(
                text.format(scratch=str(self.scratch), port=port, quiet=quiet, modules=MODULES)
            )
        self.env = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": str(self.scratch), "TMPDIR": str(self.scratch)}
        self.net = [f"127.0.0.1:{port}", f"127.0.0.1:{quiet}"]
        self.folder = folder

    def plain(self, script: Path) -> list[str]:
        return [sys.executable, "-I", str(script)]

    def ours(self, script: Path) -> list[str]:
        return [sys.executable, confine.__file__, json.dumps(self.spec(script))]

    def spec(self, script: Path) -> dict:
        return {
            "script": str(script),
            "scratch": str(self.scratch),
            "allow": {"net": ",".join(self.net)},
            "filters": str(self.filters),
        }

    def bwrap(self, script: Path) -> list[str]:
        """Everything is readable, one folder is writable, and all namespaces but that of the network are its own."""
        options = "--unshare-all --share-net --die-with-parent --ro-bind / / --dev /dev --proc /proc".split()
        return ["bwrap", *options, "--bind", str(self.scratch), str(self.scratch), *self.plain(script)]

    def sandlock_options(self) -> dict[str, list[str]]:
        readable = [sys.base_prefix, sys.prefix, "/usr", "/lib", "/lib64", "/etc", "/dev", "/proc", str(self.folder)]
        return {"fs_readable": [path for path in readable if os.path.exists(path)], "fs_writable": [str(self.scratch)], "net_allow": [f"tcp://{net}" for net in self.net]}  # fmt: skip

    def sandlock(self, script: Path) -> list[str]:
        return [sys.executable, "-c", SANDLOCK, json.dumps(self.sandlock_options()), *self.plain(script)]

    def command(self, command: list[str]) -> Callable[[], None]:
        def run() -> None:
            if subprocess.run(
                command, cwd=self.scratch, env=self.env, stdin=subprocess.DEVNULL, check=False
            ).returncode:
                raise RuntimeError(" ".join(command))

        return run

    def warm_ours(self) -> None:
        """The supervisor in this process, from spawn to reap of the child."""
        assert confine.main(self.spec(self.scripts["trivial"])) == 0

    def take(self, run: Callable[[], None]) -> tuple[float, list[float]]:
        """The start of the script and its figures. A failed run is reported and repeated, three times at most."""
        result = self.scratch / "result"
        for _ in range(3):
            result.unlink(missing_ok=True)
            births.clear()
            begin = time.monotonic()
            try:
                run()
                return births[0] if births else begin, json.loads(result.read_text())
            except (RuntimeError, FileNotFoundError) as error:
                print(f"failed, taken again: {str(error)[:150]}", file=sys.stderr)
        sys.exit("error: failed three times")


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 25
    server, quiet = (socket.create_server(("127.0.0.1", 0), backlog=4096) for _ in range(2))
    with server, quiet, tempfile.TemporaryDirectory() as name:
        threading.Thread(target=echo, args=(server,), daemon=True).start()
        bench = Bench(Path(name), server.getsockname()[1], quiet.getsockname()[1])
        contenders = {"plain": bench.plain, "sandboxrun": bench.ours}
        warm = {"plain": bench.command(bench.plain(bench.scripts["trivial"])), "sandboxrun": bench.warm_ours}
        if shutil.which("bwrap"):
            contenders["bwrap"] = bench.bwrap
        else:
            print("bwrap is not installed (Debian: apt-get install bubblewrap): left out")
        if importlib.util.find_spec("sandlock"):
            from sandlock import Sandbox

            contenders["sandlock"] = bench.sandlock
            sandbox = Sandbox(**bench.sandlock_options())
            warm["sandlock"] = lambda: sandbox.run(bench.plain(bench.scripts["trivial"])) and None
        else:
            print("sandlock is not installed (pip install '.[bench]'): left out")
        found: dict[tuple[str, str], dict[str, list[float]]] = {row: {} for row in (START, WARM, *ROWS)}
        for turn in range(-1, rounds):  # the first is not counted
            for name, command in contenders.items():
                values = []
                for row, run in ((START, bench.command(command(bench.scripts["trivial"]))), (WARM, warm.get(name))):
                    if run is not None:
                        begin, (started,) = bench.take(run)
                        values.append((row, (started - begin) * 1e3))
                values += zip(ROWS, bench.take(bench.command(command(bench.scripts["operations"])))[1], strict=True)
                empty(quiet)
                for row, value in values if turn >= 0 else ():
                    found[row].setdefault(name, []).append(value)
    print(f"{'medians of ' + str(rounds) + ' rounds':<32}" + "".join(f"{name:>18}" for name in contenders))
    for (row, unit), columns in found.items():
        line = f"{row + ', ' + unit:<32}"
        for name in contenders:
            values = columns.get(name)
            ratio = statistics.median(a / b for a, b in zip(values, columns["plain"], strict=True)) if values else 0
            line += f"{statistics.median(values):>10.2f} ×{ratio:<6.2f}" if values else f"{'-':>18}"
        print(line)


main()
