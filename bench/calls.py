"""What one service's call of another costs: in process, over Redis, and by HTTP and JSON between two uvicorn processes.

    pip install -e '.[bench,embedded]'; python bench/calls.py [--rounds N] [--calls N]

The caller measures each of its calls, one after another, with the same arguments and result. The workers run in the
sandbox, from the same file: one that serves both services, and two that serve one each. The HTTP apps have no
framework, and uvicorn has its fastest loop and parser. httpx calls them, and so does http.client on one connection.
The contenders take turns in each round. Of each round we take the 10th percentile, the median and the 99th
percentile, and print their medians over all rounds. A ratio is the median of the rounds' ratios of medians. On a
busy machine the 10th percentile is closest to the real cost, above all of Redis, where a call wakes three
processes. Only ratios are comparable between machines. Everything stays on loopback.
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
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sandboxrun import connect
from sandboxrun.redis import embedded
from sandboxrun.redis.connection import Connection

HERE, BIN = Path(__file__).parent, Path(sys.executable).parent
SCRIPT = HERE / "calls_worker.py"
SECONDS = 60
# type: (its services, whom it may call)
WORKERS = {"shop": ("order,price", ""), "order": ("order", "price"), "price": ("price", "")}


@contextlib.contextmanager
def running(*commands: list[str], env: dict[str, str]) -> Iterator[None]:
    null = subprocess.DEVNULL
    started = [subprocess.Popen(words, cwd=HERE, env=env, stdin=null, stdout=null, stderr=null) for words in commands]
    try:
        yield
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def post(port: int, data: dict[str, Any]) -> Any:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/", json.dumps(data).encode())
    with urllib.request.urlopen(request, timeout=SECONDS) as response:
        return json.load(response)


def wait_for(ask: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            ask()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def uvicorn(app: str, port: int) -> list[str]:
    words = ["-m", "uvicorn", f"calls_http:{app}", "--port", str(port), "--log-level", "error", "--no-access-log"]
    return [sys.executable, *words]


@contextlib.contextmanager
def contenders(folder: str) -> Iterator[dict[str, Callable[[int], list[float]]]]:
    """By name: a function that does so many calls, and says how long each took, in µs."""
    prices, orders = free_port(), free_port()
    with embedded.server() as url, contextlib.ExitStack() as stack:
        redis = Connection(url, name="bench")
        redis.open()
        for type_, (services, callees) in WORKERS.items():
            fields = ("url", str(SCRIPT), "version", "local", "services", services, "allowCall", callees)
            redis.call("HSET", f"{type_}:1:h", *fields)
        env = {**os.environ, "REDIS_URL": url, "HOME": folder, "PRICE_PORT": str(prices)}
        stack.enter_context(running(*[[str(BIN / "sandboxrun"), type_, "1"] for type_ in WORKERS], env=env))
        stack.enter_context(running(uvicorn("price", prices), uvicorn("order", orders), env=env))
        for port in (prices, orders):
            wait_for(lambda port=port: socket.create_connection(("127.0.0.1", port), 1).close())
        shop, order = connect("shop", url=url, timeout=SECONDS), connect("order", url=url, timeout=SECONDS)
        yield {
            "in process": lambda calls: shop.order.measure(calls=calls),
            "Redis": lambda calls: order.measure(calls=calls),
            "HTTP, http.client": lambda calls: post(orders, {"way": "http.client", "calls": calls}),
            "HTTP, httpx": lambda calls: post(orders, {"way": "httpx", "calls": calls}),
        }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--calls", type=int, default=1000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, contenders(folder) as found:
        parts: dict[str, list[list[float]]] = {name: [] for name in found}
        for measure in found.values():
            measure(100)
        for _ in range(options.rounds):
            for name, measure in found.items():
                times = sorted(measure(options.calls))
                parts[name].append([times[len(times) * part // 100] for part in (10, 50, 99)])
    print("| a call | p10 µs | p50 µs | p99 µs | × Redis |\n|---|---|---|---|---|")
    for name, rounds in parts.items():
        ratio = statistics.median(a[1] / b[1] for a, b in zip(rounds, parts["Redis"], strict=True))
        tenth, middle, tail = (f"{statistics.median(values):.1f}" for values in zip(*rounds, strict=True))
        print(f"| {name} | {tenth} | {middle} | {tail} | ×{ratio:.2f} |")


if __name__ == "__main__":
    main()
