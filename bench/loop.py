"""The request loop compared with other workers on Redis and with the limit of the wire: all contenders in turn, by rounds.

    pip install -e '.[bench-loop]'     # the peers; a missing one is left out, with a line (arq: bench-loop-arq)
    python bench/loop.py [--rounds N] [--only NAME,…] [--requests N] [--soak N]

Ours runs inside the sandbox and keeps all its promises. The references promise nothing: redis-py request by request, redis-py
pipelined, hiredis with two batches of 100 in flight, and the bytes of a whole backlog without any work in Python.
A figure is the median over the rounds. Only ratios are comparable between machines. Everything stays on loopback.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sandboxrun import client
from sandboxrun.redis import embedded
from sandboxrun.redis.connection import Connection, pack

HERE = Path(__file__).parent
STREAM, RESPONSES = "bench:req:x", "bench:res:x"
PLAIN = "from sandboxrun import worker\nworker.handler(lambda request: {'text': request.data['text']})\nworker.run()\n"
ASYNC = "from sandboxrun import worker\n@worker.handler\nasync def handle(request):\n    return {'text': request.data['text']}\nworker.run()\n"
REFERENCES = ("one-by-one", "pipelined", "bare")
# name: (module, requests of a backlog; those of slower ones are fewer)
PEERS = {
    "faststream": ("faststream", 5000), "taskiq": ("taskiq_redis", 3000), "arq": ("arq", 3000), "dramatiq": ("dramatiq", 3000),
    "huey": ("huey", 3000), "rq": ("rq", 300), "celery": ("celery", 1500), "streaq": ("streaq", 1500),
}  # fmt: skip
WAIT_SECONDS = 120


class Bench:
    """One Redis, one folder, and the command and environment of each contender."""

    def __init__(self, url: str, folder: Path, requests: int) -> None:
        self.url, self.folder, self.requests = url, folder, requests
        self.redis = Connection(url, name="bench")
        self.redis.open()
        for name, code in (("plain", PLAIN), ("async", ASYNC)):
            (folder / name).mkdir()
            (folder / name / "worker.py").write_text(code)
        self.env = {**os.environ, "REDIS_URL": url, "HOME": str(folder), "BENCH_DONE": str(folder / "done")}

    def reset(self, kind: str) -> None:
        self.redis.call("FLUSHALL")
        (self.folder / "done").write_bytes(b"")
        for number in range(1, 5):
            self.redis.call("HSET", f"bench:{number}:h", "url", str(self.folder / kind), "version", "local")
        self.redis.call("XGROUP", "CREATE", STREAM, "worker", "0", "MKSTREAM")

    def enqueue(self, count: int) -> None:
        """Requests as a client sends them, without their traces."""
        for begin in range(0, count, 1000):
            numbers = range(begin, min(count, begin + 1000))
            # Known ids, so that the replay can acknowledge entries that it has not read.
            self.redis.send(
                b"".join(
                    pack(
                        "XADD", STREAM, f"1-{n + 1}", "ref", f"r{n}", "type", "bench", "data", f'{{"text":"hello {n}"}}'
                    )
                    for n in numbers
                )
            )
            self.redis.read_many(len(numbers))

    def answered(self) -> int:
        if not self.redis.call("EXISTS", RESPONSES):
            return 0
        found = self.redis.call("XINFO", "STREAM", RESPONSES)
        return int(dict(zip(found[::2], found[1::2], strict=True))[b"entries-added"])

    def done(self) -> int:
        return (self.folder / "done").stat().st_size

    @contextlib.contextmanager
    def running(self, commands):  # type: ignore[no-untyped-def]
        processes = [
            subprocess.Popen(command, env=self.env, cwd=HERE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            for command in commands
        ]
        try:
            yield processes
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                try:
                    process.wait(15)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    def backlog(self, commands, count: int, progress) -> dict[str, float]:  # type: ignore[no-untyped-def]
        """Start workers on a backlog: time to the first reply, replies a second from then on, memory."""
        begin = time.perf_counter()
        with self.running(commands) as processes:
            first = at = None
            while (number := progress()) < count:
                if number and first is None:
                    first, at = number, time.perf_counter()
                if time.perf_counter() - begin > WAIT_SECONDS or all(p.poll() is not None for p in processes):
                    raise RuntimeError(f"{number} of {count} after {time.perf_counter() - begin:.0f} s")
                time.sleep(0.001)
            end = time.perf_counter()
            memory = sum(memory_of(process.pid) for process in processes)
        if first is None or at is None:
            return {"memory": memory}
        return {"start": (at - begin) * 1e3, "throughput": (count - first) / (end - at), "memory": memory}

    def round_trips(self, commands, count: int) -> dict[str, float]:  # type: ignore[no-untyped-def]
        """One request after another with nothing else to do, on a bare connection."""
        times = []
        with self.running(commands):
            for number in range(count + 50):
                begin = time.perf_counter()
                self.redis.send(
                    pack("XADD", STREAM, "*", "ref", f"q{number}", "type", "bench", "data", '{"text":"hi"}')
                    + pack("BRPOP", f"res:q{number}", 20)
                )
                _, found = self.redis.read_many(2)
                times.append((time.perf_counter() - begin) * 1e3)
                if found is None:
                    raise RuntimeError("no reply")
            loaded = self.loaded(count * 10)
        times = sorted(times[50:])
        return {"p50": times[len(times) // 2], "p99": times[len(times) * 99 // 100], **loaded}

    def loaded(self, count: int) -> dict[str, float]:
        """As many in flight at once as the client allows."""
        with client.Client(self.url) as caller:
            items = [{"text": "hi"}] * count
            times = sorted(seconds * 1e3 for _, _, seconds in caller.call_many("bench", items, timeout=60))
        return {"p50 loaded": times[count // 2], "p99 loaded": times[count * 99 // 100]}


def memory_of(pid: int) -> float:
    """Resident MiB of a process and its children."""
    total = 0.0
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                total += int(line.split()[1]) / 1024
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += sum(memory_of(int(child)) for child in (task / "children").read_text().split())
    return total


def measure(bench: Bench, name: str) -> dict[str, float]:
    """All figures of one contender in one round."""
    if name == "replay":
        return replay(bench)
    if name in PEERS:
        return measure_peer(bench, name)
    kind = "async" if name == "ours-async" else "plain"

    def commands(count: int) -> list[list[str]]:
        if name in REFERENCES:
            return [[sys.executable, str(HERE / "loop_references.py"), name, str(n + 1)] for n in range(count)]
        program = str(Path(sys.executable).with_name("sandboxrun"))
        return [[program, "bench", str(n + 1), "--quiet"] for n in range(count)]

    count = bench.requests if name in ("bare", "ours", "ours-async") else bench.requests // 5
    bench.reset(kind)
    bench.enqueue(count)
    found = bench.backlog(commands(1), count, bench.answered)
    bench.reset(kind)
    bench.enqueue(count)
    found["throughput of 4"] = bench.backlog(commands(4), count, bench.answered).get("throughput", 0)
    bench.reset(kind)
    return {**found, **bench.round_trips(commands(1), 1000)}


def replay(bench: Bench) -> dict[str, float]:
    """The limit of Redis for our commands: all bytes are prepared, and no reply is parsed."""
    from sandboxrun.config.fields import parse_loop
    from sandboxrun.worker.rendering import EXEC, MULTI, Entry, Renderer, acknowledge
    from sandboxrun.worker.streams import read_command

    loop = parse_loop({}, "bench", "1")
    render = Renderer(loop, "bench", "bench:dead:x")
    bench.reset("plain")
    bench.enqueue(bench.requests)
    chunks = []
    for begin in range(0, bench.requests, 100):
        entries = [
            Entry(b"1-%d" % (n + 1), {b"type": b"bench"}) for n in range(begin, min(bench.requests, begin + 100))
        ]
        for number, entry in enumerate(entries, begin):
            entry.ref = f"r{number}"
            stamp = "2026-01-01T00:00:00.000Z"
            body = f'{{"text":"hello {number}","ref":"r{number}","source":"bench","code":200,"time":"{stamp}"}}'
            render.reply(entry, 200, body, stamp, stamp)
        writes = b"".join([entry.commands for entry in entries])
        xids = [entry.xid for entry in entries]
        chunks.append(read_command("bench:1:h", loop, 100, 0) + MULTI + writes + acknowledge(loop, xids) + EXEC)
    data = [b"".join(chunks[i : i + 20]) for i in range(0, len(chunks), 20)]
    sender = subprocess.Popen(
        [sys.executable, str(HERE / "loop_references.py"), "replay", "1"], env=bench.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )  # fmt: skip
    assert sender.stdin is not None
    assert sender.stdout is not None
    sender.stdin.write(b"".join(b"%d\n%b" % (len(part), part) for part in data))
    sender.stdin.close()
    seconds = float(sender.stdout.read())
    sender.wait()
    return {"throughput": bench.requests / seconds}


def measure_peer(bench: Bench, name: str) -> dict[str, float]:
    count = PEERS[name][1]

    def peer(*words: str) -> list[str]:
        return [sys.executable, str(HERE / "loop_peers.py"), name, *words]

    found: dict[str, float] = {}
    for workers, key in ((1, "throughput"), (4, "throughput of 4")):
        bench.reset("plain")
        subprocess.run(peer("enqueue", str(count)), env=bench.env, cwd=HERE, check=True, stdout=subprocess.DEVNULL)
        one = bench.backlog([peer("worker")] * workers, count, bench.done)
        found[key] = one.pop("throughput", 0)
        found = {**one, **found} if workers == 4 else {**found, **one}
    bench.reset("plain")
    with bench.running([peer("worker")]):
        done = subprocess.run(
            peer("rtt", "200"), env=bench.env, cwd=HERE, check=True, capture_output=True, timeout=WAIT_SECONDS
        )
    times = sorted(json.loads(done.stdout.splitlines()[-1]))
    return {**found, "p50": times[len(times) // 2], "p99": times[len(times) * 99 // 100]}


def soak(bench: Bench, count: int) -> None:
    """Many requests at full speed, with the memory of the worker on the way."""
    bench.reset("plain")
    with bench.running([[str(Path(sys.executable).with_name("sandboxrun")), "bench", "1", "--quiet"]]) as (process,):
        begin, sent, shown = time.perf_counter(), 0, 0
        while (number := bench.answered()) < count:
            if sent < count and sent - number < 20_000:
                bench.redis.send(
                    b"".join(pack("XADD", STREAM, "*", "ref", f"s{n}", "type", "bench", "data", '{"text":"x"}') for n in range(sent, sent + 5000))
                )  # fmt: skip
                bench.redis.read_many(5000)
                sent += 5000
            if number >= shown:
                used = dict(
                    line.split(":", 1)
                    for line in bench.redis.call("INFO", "memory").decode().splitlines()
                    if ":" in line
                )
                print(
                    f"{number:>10} answered, {number / (time.perf_counter() - begin):,.0f} a second, supervisor and worker "
                    f"{memory_of(process.pid):.1f} MiB, Redis {used['used_memory_human']}, stream {bench.redis.call('XLEN', STREAM)}",
                    flush=True,
                )
                shown += count // 10
            time.sleep(0.005)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=50_000)
    parser.add_argument("--only", default="")
    parser.add_argument("--soak", type=int, default=0)
    options = parser.parse_args()
    names = ["ours", "ours-async", *REFERENCES, "replay"]
    for name, (module, _) in PEERS.items():
        if importlib.util.find_spec(module) is not None:
            names.append(name)
        else:
            print(f"{name} is left out: {module} is not installed")
    if options.only:
        names = [name for name in names if name in options.only.split(",")]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, embedded.server() as url:
        bench = Bench(url, Path(folder), options.requests)
        if options.soak:
            soak(bench, options.soak)
            return
        for number in range(options.rounds):
            for name in names:
                try:
                    found[name].append(measure(bench, name))
                except (RuntimeError, OSError, subprocess.SubprocessError) as error:
                    print(f"{name}: {error}", file=sys.stderr)
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
    columns = {
        "throughput": "backlog/s",
        "throughput of 4": "with 4",
        "p50": "p50 ms",
        "p99": "p99 ms",
        "p50 loaded": "loaded",
        "p99 loaded": "p99 loaded",
        "start": "start ms",
        "memory": "MiB",
    }
    print("| | " + " | ".join(columns.values()) + " |\n|" + "---|" * (len(columns) + 1))
    for name, rounds in found.items():
        cells = []
        for column in columns:
            values = [one[column] for one in rounds if column in one]
            middle = statistics.median(values) if values else None
            cells.append(
                ""
                if middle is None
                else f"{middle:,.0f}"
                if middle >= 100
                else f"{middle:.2f}"
                if middle < 10
                else f"{middle:.1f}"
            )
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
