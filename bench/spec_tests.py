"""What a test without code takes: `sandboxrun test`, beside Tavern doing the same over HTTP.

    python -m venv .venv-tavern && .venv-tavern/bin/pip install tavern 'pytest<9'
    python bench/spec_tests.py --tavern .venv-tavern/bin/pytest [--rounds N] [--tests N]

Both send N requests to a program that greets, and compare the replies. sandboxrun starts a Redis and the worker in its
sandbox, compares all keys before and after each request, and ends both. Tavern, a plugin of pytest, asks a server of
the standard library that runs already. Each round measures both, whole processes, with one test and with N: the
difference is the cost of a test, and the rest that of a folder. Medians over all rounds. Compare only the ratios
between machines.
"""

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

WORKER = """\
from sandboxrun import worker
@worker.handler
def handle(request):
    return {"text": f"Hello, {request.data['name']}!"}
worker.run()
"""
SERVER = """\
import http.server, json, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *_): pass
    def do_POST(self):
        data = json.loads(self.rfile.read(int(self.headers["content-length"])))
        body = json.dumps({"text": f"Hello, {data['name']}!"}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
STAGE = """\
---
test_name: greets {number}
stages:
  - name: greets
    request: {{url: "http://127.0.0.1:{port}/", method: POST, json: {{name: "n{number}"}}}}
    response: {{status_code: 200, json: {{text: "Hello, n{number}!"}}}}
"""


def folder(at: Path, count: int) -> Path:
    path = at / f"greets{count}"
    path.mkdir()
    (path / "worker.py").write_text(WORKER)
    tests = [
        {"name": f"greets {number}", "request": {"name": f"n{number}"}, "reply": {"text": f"Hello, n{number}!"}}
        for number in range(count)
    ]
    (path / "spec.json").write_text(json.dumps({"type": path.name, "tests": tests}))
    return path


@contextlib.contextmanager
def server() -> Iterator[int]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = int(sock.getsockname()[1])
    with subprocess.Popen([sys.executable, "-c", SERVER, str(port)]) as process:
        try:
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    yield port
                    return
                time.sleep(0.02)
        finally:
            process.terminate()


def seconds(words: list[str], at: Path) -> float:
    began = time.perf_counter()
    done = subprocess.run(words, cwd=at, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{words}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tavern", required=True, metavar="FILE", help="pytest of an environment with tavern")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tests", type=int, default=100)
    options = parser.parse_args()
    ours = str(Path(sys.executable).with_name("sandboxrun"))
    tavern = os.path.abspath(options.tavern)
    counts = (1, options.tests)
    taken: dict[tuple[str, int], list[float]] = {}
    with tempfile.TemporaryDirectory() as name, server() as port:
        at = Path(name)
        for count in counts:
            folder(at, count)
            text = "".join(STAGE.format(number=number, port=port) for number in range(count))
            (at / f"test_{count}.tavern.yaml").write_text(text)
        for _ in range(options.rounds):
            for count in counts:
                taken.setdefault(("ours", count), []).append(seconds([ours, "test", f"greets{count}"], at))
                words = [tavern, "-q", "-p", "no:cacheprovider", f"test_{count}.tavern.yaml"]
                taken.setdefault(("tavern", count), []).append(seconds(words, at))
    median = {key: statistics.median(values) for key, values in taken.items()}
    each, whole = {}, {}
    for who in ("ours", "tavern"):
        each[who] = (median[who, options.tests] - median[who, 1]) / (options.tests - 1) * 1000
        whole[who] = median[who, 1]
        print(f"{who:8} {each[who]:8.2f} ms a test   {whole[who]:6.2f} s a folder with one test")
    print(f"ratio    {each['ours'] / each['tavern']:8.2f}             {whole['ours'] / whole['tavern']:6.2f}")


if __name__ == "__main__":
    main()
