"""What many workers cost that one agent runs, beside Deno where that has an equal.

    pip install -e '.[bench-startup]'
    python bench/fleet.py order [--rounds N]     # order to first reply, beside Deno's launch to its first reply
    python bench/fleet.py start [--workers N]    # N workers ordered at once: until all of them read
    python bench/fleet.py idle [--workers N] [--seconds N] [--starts N] [--shared]
                                                 # N idle workers: memory, commands, connections, threads, files
    python bench/fleet.py outage [--workers N] [--rounds N]
                                                 # Redis killed under load, and back with its data 2 s later

`--starts`: the number of workers that are started and ended before. `--shared`: the workers are forked (share-memory).

`order` is the return of LPUSH to TYPE:start:q. Each worker has a Redis user, a pinned and cached script from a URL, the default
policy and an audit log. In `order`, a figure is the median over the rounds, followed by the median of its ratio to Deno in the
same round; only ratios are comparable between machines. `PSS` is the proportional share of memory of the agent
and of all its workers.
"""

import argparse
import contextlib
import os
import random
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import redis
from startup import BASE, MIB, OURS, SECONDS, Bench, raw_host

from sandboxrun.client import CallError, Client
from sandboxrun.errors import StoreError
from sandboxrun.redis import embedded

TYPE = "cached"


class Fleet:
    """The supervising process, and orders for it."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.r = bench, bench.r
        (self.made,) = (made for made in bench.contenders if made.type == TYPE)
        self.r.hset(f"{TYPE}:h", mapping=self.made.fields)

    @contextlib.contextmanager
    def serving(self):
        program = Path(sys.executable).with_name("sandboxrun")
        audit = f"{self.made.env['HOME']}/audit.log"
        command = [program, "agent", TYPE, "--most", "400", "--audit", audit]
        env = {**self.made.env, "REDIS_URL": self.bench.url}
        devnull = subprocess.DEVNULL
        with (
            open(self.bench.folder / "agent", "wb") as said,
            subprocess.Popen(command, env=env, stdin=devnull, stdout=devnull, stderr=said) as process,
        ):
            try:
                self.pid = process.pid
                deadline = time.monotonic() + SECONDS
                while len(self.processes()) < 3:  # two spares
                    if process.poll() is not None or time.monotonic() > deadline:
                        sys.exit(f"the agent does not serve: {(self.bench.folder / 'agent').read_text()}")
                    time.sleep(0.05)
                time.sleep(0.3)
                yield
            finally:
                process.kill()

    def end(self, *ids: str) -> None:
        """For good, as for an agent that finds them in the queue no more."""
        for id_ in ids:
            self.r.lrem(f"{TYPE}:started:q", 1, id_)
        while any(self.r.hexists(f"{TYPE}:{id_}:h", "pidToken") for id_ in ids):
            time.sleep(0.01)

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
        ref = self.bench.prepare(self.made, limit=0)
        begin = time.monotonic_ns()
        self.order("1")
        self.bench.reply("the agent", ref)
        replied = time.monotonic_ns()
        self.end("1")
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
            fleet.end(*map(str, range(1, workers + 1)))
    print(f"{workers} ordered at once, until all read: {seconds:.2f} s")


def idle(fleet: Fleet, workers: int, seconds: int, starts: int, *, shared: bool) -> None:
    if shared:
        with open(f"{fleet.made.env['HOME']}/.config/sandboxrun/policy.toml", "a") as policy:
            policy.write("share-memory = true\n")
    with fleet.serving():
        for first in range(1000, 1000 + starts, 40):
            ids = [*map(str, range(first, min(first + 40, 1000 + starts)))]
            fleet.order(*ids)
            fleet.reading(len(ids))
            fleet.end(*ids)
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
        if starts:
            print(f"after {starts} starts")
        print(f"{workers} idle workers and {len(pids) - 1 - workers} spares")
        print(f"PSS, MiB           {sum(pss):8.1f}  the agent {pss[0]:.1f}, a worker {sum(pss) / workers:.2f}")
        print(f"commands/s, worker {commands / seconds / workers:8.2f}")
        print(f"CPU, share of one  {cpu / os.sysconf('SC_CLK_TCK') / seconds:8.2%}")
        names = [client["name"] for client in fleet.r.client_list()]
        print(f"connections        {len(names) - 2:8}  of the agent {names.count('sandboxrun')}")
        print(f"threads            {threads:8}\ndescriptors        {files:8}")


def outage(fleet: Fleet, kill: Callable[[], None], start: Callable[[], None], workers: int, rounds: int) -> None:
    """Calls with a time-out of 20 s while Redis is away for 2 s, again and again."""
    ids = [*map(str, range(1, workers + 1))]
    done = threading.Event()
    seconds: list[float] = []
    errors: list[str] = []

    def calls() -> None:
        with Client(fleet.bench.url) as client:
            while not done.is_set():
                begin = time.monotonic()
                try:
                    assert client.call(TYPE, {"text": "hi"}, timeout=20)["text"] == "hi"
                except (CallError, StoreError) as error:
                    errors.append(str(error))
                seconds.append(time.monotonic() - begin)
                time.sleep(0.01)

    with fleet.serving():
        fleet.order(*ids)
        fleet.reading(workers)
        began = [fleet.r.hmget(f"{TYPE}:{id_}:h", "pid", "pidToken") for id_ in ids]
        callers = [threading.Thread(target=calls) for _ in range(4)]
        for caller in callers:
            caller.start()
        for _ in range(rounds):
            time.sleep(3)
            kill()
            time.sleep(2)
            start()
        time.sleep(3)
        done.set()
        for caller in callers:
            caller.join()
        ended = sum(
            fleet.r.hmget(f"{TYPE}:{id_}:h", "pid", "pidToken") != was for id_, was in zip(ids, began, strict=True)
        )
    print(f"{rounds} times without Redis for 2 s, {workers} workers")
    print(f"calls {len(seconds)}, errors {len(errors)} {errors[:1]}, the longest took {max(seconds):.1f} s")
    print(f"workers that ended {ended}")


@contextlib.contextmanager
def lasting(folder: Path) -> Iterator[tuple[str, Callable[[], None], Callable[[], None]]]:
    """A Redis that has lost nothing when it is started again: its URL, and what kills and starts it."""
    password = secrets.token_hex(16)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    settings = folder / "redis.conf"
    settings.write_text(
        f"bind 127.0.0.1\nport {port}\nrequirepass {password}\ndir {folder}\n"
        'save ""\nappendonly yes\nappendfsync always\nlogfile redis.log\n'
    )
    settings.chmod(0o600)
    running: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        running.append(subprocess.Popen([embedded.find_server(), settings]))
        with redis.Redis(port=port, password=password) as client:
            deadline = time.monotonic() + SECONDS
            while time.monotonic() < deadline:
                with contextlib.suppress(redis.RedisError):
                    client.ping()
                    return
                time.sleep(0.02)
        sys.exit("Redis does not start")

    def kill() -> None:
        running[-1].kill()
        running.pop().wait()

    start()
    try:
        yield f"redis://:{password}@127.0.0.1:{port}", kill, start
    finally:
        kill()


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
            command.add_argument("--starts", type=int, default=0, metavar="N")
            command.add_argument("--shared", action="store_true")
    away = commands.add_parser("outage")
    away.add_argument("--workers", type=int, default=20, metavar="N")
    away.add_argument("--rounds", type=int, default=3, metavar="N")
    options = vars(parser.parse_args())
    command = options.pop("command")
    with (
        tempfile.TemporaryDirectory(prefix="sandboxrun-bench-") as folder,
        contextlib.ExitStack() as held,
        raw_host() as host,
    ):
        if command == "outage":
            url, options["kill"], options["start"] = held.enter_context(lasting(Path(folder)))
        else:
            url = held.enter_context(embedded.server())
        host.files["/bench/worker/v1.0.0/worker.py"] = OURS
        bench = Bench(url, Path(folder), host.url)
        policy = Path(folder) / "home/.config/sandboxrun/policy.toml"
        policy.parent.mkdir(parents=True)
        policy.write_text('[worker."*"]\nallow-net = ["127.0.0.1"]\n')
        policy.chmod(0o600)
        {"order": order, "start": start, "idle": idle, "outage": outage}[command](Fleet(bench), **options)


if __name__ == "__main__":
    main()
