"""Chaos for postgres-sync: workers and supervisors killed, PostgreSQL crashed and cut off, Redis restarted, poison among rows.

    python tests/tools/postgres_chaos.py [ENTRIES] [--seed N]

Afterwards each good entry must be one row and one effect, each poison one a dead letter, and nothing may be pending.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "support"))

import postgres
import psutil
import psycopg
import redis
import servers
from arena import wait_for
from runner import Runner
from syncing import GROUP, ORDERS, STREAM, Syncing
from tcp_relay import Relay

POISON = (
    b'{"item": "a\\u0000b"}',
    b'{"item": "x", "n": NaN}',
    b"{",
    b'{"n": 1}',
    b'{"item": "x", "n": 3000000000}',
    b"\xff",
)
SETTINGS = ("appendonly yes", "appendfsync always")
WORKERS, CHUNK, POISON_EACH = 3, 200, 97
PAUSE_SECONDS = (0.1, 0.8)


class Chaos:
    """`done` counts what was done to whom."""

    def __init__(self, syncing: Syncing, server: servers.Own, relay: Relay, seed: int) -> None:
        self._syncing, self._server, self._relay = syncing, server, relay
        self._random = random.Random(seed)
        self.done: Counter[str] = Counter()
        self._runs: dict[str, subprocess.Popen[bytes]] = {}
        self.good = self.bad = 0

    def run(self, entries: int) -> None:
        acts: list[Callable[[], None]] = [
            self._kill_worker, self._kill_worker, self._kill_supervisor, self._cut, self._crash_postgres, self._restart_redis,
        ]  # fmt: skip
        while self.good + self.bad < entries:
            self._add(min(CHUNK, entries - self.good - self.bad))
            self._keep_running()
            time.sleep(self._random.uniform(*PAUSE_SECONDS))
            self._random.choice(acts)()
        self._settle()

    def _add(self, count: int) -> None:
        pipe = self._syncing.r.pipeline(transaction=True)
        for number in range(self.good + self.bad, self.good + self.bad + count):
            if number % POISON_EACH == POISON_EACH - 1:
                pipe.xadd(STREAM, {"type": "order", "data": self._random.choice(POISON)})
                self.bad += 1
            else:
                data = {"item": f"i{number % 50}", "price": number / 4, "n": number, "at": 1767225600000 + number}
                pipe.xadd(STREAM, {"type": "order", "data": json.dumps(data)})
                self.good += 1
        pipe.execute()

    def _keep_running(self) -> None:
        for id_ in map(str, range(1, WORKERS + 1)):
            if id_ not in self._runs or self._runs[id_].poll() is not None:
                log = (self._syncing.run.home / f"log-{id_}").open("ab")
                with self._syncing.key.open("rb") as key, log:
                    self._runs[id_] = subprocess.Popen(
                        self._syncing.run.command(GROUP, id_, "--yes"), env=self._syncing.run.env,
                        cwd=self._syncing.run.home, stdin=key, stdout=log, stderr=log,
                    )  # fmt: skip

    def _any(self) -> psutil.Process:
        return psutil.Process(self._random.choice(list(self._runs.values())).pid)

    def _kill_worker(self) -> None:
        with contextlib.suppress(psutil.Error):
            for child in self._any().children():
                child.kill()
                self.done["workers killed"] += 1

    def _kill_supervisor(self) -> None:
        with contextlib.suppress(psutil.Error):
            process = self._any()
            process.kill()
            self.done["supervisors killed"] += 1

    def _cut(self) -> None:
        self._relay.cut()
        with contextlib.suppress(psycopg.Error):  # the relay keeps its own side open
            self._syncing.database.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'writer'",
                role=postgres.SUPERUSER,
            )
        self.done["connections cut"] += 1

    def _crash_postgres(self) -> None:
        server = self._syncing.database.server
        server.crash()
        time.sleep(self._random.uniform(0, 0.5))
        server.start()
        self.done["crashes of PostgreSQL"] += 1

    def _restart_redis(self) -> None:
        self._server.kill()
        time.sleep(self._random.uniform(0, 0.5))
        self._server.start()
        wait_for(self._redis_is_back, 30, "Redis to be back")
        self.done["kills of Redis"] += 1

    def _redis_is_back(self) -> bool:
        with contextlib.suppress(redis.RedisError):
            return bool(self._syncing.r.ping())
        return False

    def _settle(self) -> None:
        deadline = time.monotonic() + 180
        while not self._syncing.is_done():
            self._keep_running()
            time.sleep(0.2)
            if time.monotonic() > deadline:
                raise AssertionError("not all entries were stored: " + self._syncing.said()[-2000:])
        for process in self._runs.values():
            process.send_signal(signal.SIGTERM)
        for process in self._runs.values():
            process.wait(20)

    def faults(self) -> list[str]:
        """What is not exactly as it must be."""
        syncing = self._syncing
        [(rows, distinct)] = syncing.rows("SELECT count(*), count(DISTINCT n) FROM orders")
        [(effects, total)] = syncing.rows("SELECT sum(orders), sum(total) FROM per_item")
        [(sum_,)] = syncing.rows("SELECT sum(n) FROM orders")
        letters = [fields["xid"] for fields in syncing.dead()]
        pending = syncing.r.xpending(STREAM, GROUP)["pending"]
        found = {
            "rows": (rows, self.good), "different rows": (distinct, self.good), "effects": (effects, self.good),
            "total": (total, sum_), "dead letters": (len(letters), self.bad),
            "different dead letters": (len({*letters}), self.bad), "pending": (pending, 0),
        }  # fmt: skip
        return [f"{name}: {have}, expected {wanted}" for name, (have, wanted) in found.items() if have != wanted]


def play(entries: int, seed: int, home: Path) -> Chaos:
    """Raises AssertionError."""
    server, database_server = servers.Own(*SETTINGS), postgres.Server()
    with server, database_server, database_server.database() as database, Relay(database_server.port) as relay:
        r = redis.Redis.from_url(server.url, decode_responses=True)
        with r:
            syncing = Syncing(Runner(server.url, home), r, database, ORDERS)
            for id_ in range(1, WORKERS + 1):
                syncing.add_worker(
                    str(id_), url=database.url("writer", port=relay.port), allowNet=f"127.0.0.1:{relay.port}"
                )
            chaos = Chaos(syncing, server, relay, seed)
            chaos.run(entries)
            faults = chaos.faults()
            assert not faults, faults
            return chaos


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("entries", nargs="?", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chaos") as folder:
        began = time.monotonic()
        chaos = play(options.entries, options.seed, Path(folder))
        print(
            f"{chaos.good} rows, {chaos.good} effects, {chaos.bad} dead letters, 0 pending; {time.monotonic() - began:.0f} s"
        )
        print(", ".join(f"{count} {what}" for what, count in sorted(chaos.done.items())))


if __name__ == "__main__":
    main()
