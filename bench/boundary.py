"""What the boundary costs: the same operations in a plain Python and in the sandbox, interleaved, as ratios.

    .venv/bin/python bench/boundary.py [ROUNDS]

Only ratios carry to another machine. `start` is from launch to the script's first line, with what the supervisor does
(but no Redis); the other rows are per operation, measured inside the worker.
"""

import json
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

CONFINE = Path(__file__).parent.parent / "tests" / "kernel" / "confine.py"

WORK = """
import os, socket, sys, time
started = time.monotonic()
port = {port}
def timed(function, count):
    begin = time.perf_counter()
    for _ in range(count):
        function()
    return (time.perf_counter() - begin) / count * 1e6
def connect():
    s = socket.socket()
    s.connect(("127.0.0.1", port))
    s.close()
peer = socket.create_connection(("127.0.0.1", port))
peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
def round_trip():
    peer.send(b"x" * 64)
    peer.recv(64)
open("file", "w").close()
def open_close():
    os.close(os.open("file", os.O_RDONLY))
result = {{"connect": timed(connect, 500), "64-byte round trip": timed(round_trip, 2000), "open and close": timed(open_close, 5000),
          "getppid": timed(os.getppid, 20000)}}
print(started, *result.values())
"""
ROWS = ("start", "connect", "64-byte round trip", "open and close", "getppid")


def echo(server: socket.socket) -> None:
    def serve(peer: socket.socket) -> None:
        with peer:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while data := peer.recv(64):
                peer.send(data)

    while True:
        peer, _ = server.accept()
        threading.Thread(target=serve, args=(peer,), daemon=True).start()


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as server, tempfile.TemporaryDirectory() as folder:
        threading.Thread(target=echo, args=(server,), daemon=True).start()
        port = server.getsockname()[1]
        script = Path(folder, "script.py")
        script.write_text(WORK.format(port=port))
        scratch = Path(folder, "scratch")
        scratch.mkdir()
        spec = {"script": str(script), "scratch": str(scratch), "allow": {"net": f"127.0.0.1:{port}"}}
        commands = {
            "plain": [sys.executable, "-I", str(script)],
            "confined": [sys.executable, str(CONFINE), json.dumps(spec)],
        }
        found: dict[str, list[list[float]]] = {name: [] for name in commands}
        for _ in range(rounds):
            for name, command in commands.items():
                begin = time.monotonic()
                output = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=True).stdout
                started, *rest = map(float, output.split())
                found[name].append([(started - begin) * 1e6, *rest])
    medians = {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in found.items()}
    print(f"{'medians of ' + str(rounds) + ' runs':<22}{'plain µs':>12}{'confined µs':>14}{'ratio':>8}")
    for row, plain, confined in zip(ROWS, medians["plain"], medians["confined"], strict=True):
        print(f"{row:<22}{plain:>12.2f}{confined:>14.2f}{confined / plain:>8.2f}")


main()
