"""What many workers cost that one process supervises (host/pool.py), beside Deno where that has an equal.

    pip install -e '.[bench-startup]'
    python bench/fleet.py order [--rounds N]     # from the order to the first reply, and Deno's launch to its first reply
    python bench/fleet.py start [--workers N]    # N workers ordered at once: until all of them read
    python bench/fleet.py idle [--workers N] [--seconds N]    # N idle workers: memory, commands, connections, threads, files

`order` is the return of LPUSH to TYPE:start:q. Each worker has a Redis user, a pinned and cached script from a URL, the default
policy and an audit log. In `order`, a figure is the median over the rounds, followed by the median of its ratio to Deno in the
same round; only ratios are comparable between machines. `PSS` is the proportional share of memory of the supervising process
and of all its workers.
"""

import argparse
import contextlib
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import redis
from startup import BASE, MIB, OURS, SECONDS, Bench, raw_host

from sandboxrun.redis import embedded

TYPE = "cached"


def serve(url: str) -> None:
    """The process that supervises: takes ids from TYPE:start:q. Says when it is ready, and how often it has started one."""
    from sandboxrun.host.pool import Pool, PoolEvents
    from sandboxrun.host.runplan import RunOptions
    from sandboxrun.log import Log

    class Events(PoolEvents):
        def ended(self, running, ended):
            if ended.error is not None:
                print(f"{running.key}: {ended.error}", file=sys.stderr)

    pool, on = Pool(Log(), redis_url=url), Events()
    audit = (os.path.join(os.environ["HOME"], "audit.log"),)
    r = redis.Redis.from_url(url, decode_responses=True, socket_timeout=None)
    while pool.spares.waiting < 2:
        time.sleep(0.01)
    print("ready", flush=True)
    while True:
        id_ = r.blmove(f"{TYPE}:start:q", f"{TYPE}:started:q", 0, "RIGHT", "LEFT")
        pool.start(RunOptions(TYPE, id_, url, audit=audit), on=on)


class Fleet:
    """The supervising process, and orders for it."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.r = bench, bench.r
        (self.made,) = (made for made in bench.contenders if made.type == TYPE)
        self.r.hset(f"{TYPE}:h", mapping=self.made.fields)

    @contextlib.contextmanager
    def serving(self):
        command = [sys.executable, __file__, "serve", self.bench.url]
        with subprocess.Popen(command, env=self.made.env, stdout=subprocess.PIPE) as process:
            try:
                process.stdout.readline()
                self.pid = process.pid
                yield
            finally:
                process.kill()

    def order(self, *ids: str) -> None:
        self.r.lpush(f"{TYPE}:start:q", *ids)

    def reading(self, count: int) -> None:
        """Wait until so many workers have read the stream."""
        found: set[str] = set()
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            found |= {client["id"] for client in self.r.client_list() if client["cmd"] == "xreadgroup"}
            if len(found) >= count:
                return
            time.sleep(0.005)
        sys.exit(f"{count} workers do not read within {SECONDS} s")

    def processes(self) -> list[int]:
        """The supervising one first."""
        children = []
        for tid in os.listdir(f"/proc/{self.pid}/task"):
            children += Path(f"/proc/{self.pid}/task/{tid}/children").read_text().split()
        return [self.pid, *map(int, children)]

    def timed(self) -> tuple[int, int]:
        """Order and first reply, in ns of CLOCK_MONOTONIC."""
        ref = self.bench.prepare(self.made, limit=1)
        begin = time.monotonic_ns()
        self.order("1")
        self.bench.reply("the pool", ref)
        replied = time.monotonic_ns()
        while self.r.hexists(f"{TYPE}:1:h", "pid"):
            time.sleep(0.01)
        time.sleep(0.3)  # until there are two spares again
        return begin, replied


def order(fleet: Fleet, rounds: int) -> None:
    base = next((made for made in fleet.bench.contenders if made.name == BASE), None)
    mine: list[float] = []
    theirs: list[float] = []

    def ours() -> None:
        begin, replied = fleet.timed()
        mine.append((replied - begin) / 1e6)

    def deno() -> None:
        begin, replied, _ = fleet.bench.timed(base)
        theirs.append((replied - begin) / 1e6)

    turns = [ours, *([deno] if base else [])]
    with fleet.serving():
        for turn in turns * 2:  # caches, bytecode, what was agreed to
            turn()
        del mine[:], theirs[:]
        for number in range(rounds):
            for turn in random.Random(number).sample(turns, len(turns)):
                turn()
    print(f"medians of {rounds} rounds, ms")
    print(f"order to first reply       {statistics.median(mine):8.1f}")
    if theirs:
        ratio = statistics.median(a / b for a, b in zip(mine, theirs, strict=True))
        print(f"{BASE}: launch to first reply {statistics.median(theirs):7.1f}  ratio {ratio:.2f}")


def start(fleet: Fleet, workers: int) -> None:
    with fleet.serving():
        for _ in range(2):  # the first time fills caches
            time.sleep(1)
            begin = time.monotonic()
            fleet.order(*map(str, range(1, workers + 1)))
            fleet.reading(workers)
            seconds = time.monotonic() - begin
            for number in range(1, workers + 1):
                fleet.r.hdel(f"{TYPE}:{number}:h", "pid")
            while any(fleet.r.hexists(f"{TYPE}:{number}:h", "pidToken") for number in range(1, workers + 1)):
                time.sleep(0.05)
    print(f"{workers} ordered at once, until all read: {seconds:.2f} s")


def idle(fleet: Fleet, workers: int, seconds: int) -> None:
    with fleet.serving():
        fleet.order(*map(str, range(1, workers + 1)))
        fleet.reading(workers)
        time.sleep(8)  # idle connections are closed
        commands = fleet.r.info("stats")["total_commands_processed"]
        cpu = sum(map(ticks, fleet.processes()))
        time.sleep(seconds)
        cpu = sum(map(ticks, fleet.processes())) - cpu
        commands = fleet.r.info("stats")["total_commands_processed"] - commands - 1
        pids = fleet.processes()
        pss = [rolled(pid) / MIB for pid in pids]
        status = Path(f"/proc/{fleet.pid}/status").read_text()
        threads = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("Threads"))
        files = len(os.listdir(f"/proc/{fleet.pid}/fd"))
        print(f"{workers} idle workers and {len(pids) - 1 - workers} spares")
        print(
            f"PSS, MiB           {sum(pss):8.1f}  the supervising process {pss[0]:.1f}, a worker {sum(pss) / workers:.2f}"
        )
        print(f"commands/s, worker {commands / seconds / workers:8.2f}")
        print(f"CPU, share of one  {cpu / os.sysconf('SC_CLK_TCK') / seconds:8.2%}")
        names = [client["name"] for client in fleet.r.client_list()]
        print(f"connections        {len(names) - 2:8}  of the supervising process {names.count('sandboxrun')}")
        print(f"threads            {threads:8}\ndescriptors        {files:8}")


def rolled(pid: int) -> int:
    """PSS in KiB."""
    with open(f"/proc/{pid}/smaps_rollup") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Pss:"))


def ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def main() -> None:
    parser = argparse.ArgumentParser(description="What many workers of one process cost.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("order").add_argument("--rounds", type=int, default=40, metavar="N")
    for name in ("start", "idle"):
        command = commands.add_parser(name)
        command.add_argument("--workers", type=int, default=50, metavar="N")
        if name == "idle":
            command.add_argument("--seconds", type=int, default=20, metavar="N")
    commands.add_parser("serve").add_argument("url")
    options = vars(parser.parse_args())
    command = options.pop("command")
    if command == "serve":
        serve(options["url"])
        return
    with (
        tempfile.TemporaryDirectory(prefix="sandboxrun-bench-") as folder,
        embedded.server() as url,
        raw_host() as host,
    ):
        host.files["/bench/worker/v1.0.0/worker.py"] = OURS
        bench = Bench(url, Path(folder), host.url)
        policy = Path(folder) / "home/.config/sandboxrun/policy.toml"
        policy.parent.mkdir(parents=True)
        policy.write_text('[worker."*"]\nallow-net = ["127.0.0.1"]\n')
        policy.chmod(0o600)
        {"order": order, "start": start, "idle": idle}[command](Fleet(bench), **options)


if __name__ == "__main__":
    main()
