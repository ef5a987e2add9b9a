"""Effects under kill -9: are emits and changes of state there once for each request that was answered 200?

    python tests/tools/effects_killed.py [REQUESTS] [SEED]

Each kind of worker (one thread, threads, async) runs three times at once; one after another is killed, and the connections of
the third are cut, until all requests are answered. Then every request must have one reply, each 200 one emit and one change,
and each other reply none. Prints a line for each kind, and ends with 1 if an effect is missing or there twice.
"""

from __future__ import annotations

import collections
import contextlib
import json
import random
import sys
import tempfile
import time
from pathlib import Path

import redis

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from effect_workers import KINDS, Plain, emitted
from proxy import Proxy
from servers import Own

USERS = 20


def main() -> int:
    requests = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else int(time.time())
    chance = random.Random(seed)
    faults = 0
    for kind, code in KINDS.items():
        with tempfile.TemporaryDirectory() as folder, Own("maxclients 10000") as server:
            faults += play(kind, code, requests, chance, Path(folder), server)
    print(f"seed {seed}: {'every effect once' if not faults else f'{faults} faults'}")
    return int(faults > 0)


def play(kind: str, code: str, requests: int, chance: random.Random, folder: Path, server: Own) -> int:
    began = time.monotonic()
    kills = cuts = sent = 0
    with (
        redis.Redis.from_url(server.url, decode_responses=True, socket_timeout=40) as r,
        Proxy(("127.0.0.1", server.port)) as proxy,
    ):
        urls = [server.url, server.url, f"redis://127.0.0.1:{proxy.port}"]
        fields = {"maxDeliveries": "1000", "requestStreamLimit": "0"}
        workers = [Plain(r, url, folder, code, str(number), **fields) for number, url in enumerate(urls)]
        try:
            while r.xlen("t:res:x") < requests:
                if time.monotonic() - began > 60 + requests / 10:
                    break
                if sent < requests and sent - r.xlen("t:res:x") < 500:
                    sent += send_some(r, sent, min(200, requests - sent), chance)
                time.sleep(chance.random() * 0.2)
                if chance.random() < 0.3:
                    cuts += proxy.cut() > 0
                worker = chance.choice(workers)
                worker.kill()
                worker.again()
                kills += 1
        finally:
            for worker in workers:
                worker.kill()
                worker.process.wait()
        faults = judge(r, requests)
    print(
        f"{kind}: {requests} requests, {kills} kills, {cuts} cuts, {time.monotonic() - began:.0f} s: {len(faults)} faults"
    )
    for fault in faults[:10]:
        print(f"  {fault}")
    return len(faults)


def send_some(r: redis.Redis, first: int, count: int, chance: random.Random) -> int:
    with r.pipeline(transaction=False) as pipe:
        for n in range(first, first + count):
            data = {"n": n, "user": f"u{chance.randrange(USERS)}", "fail": 500 if n % 50 == 7 else 0}
            pipe.xadd("t:req:x", {"ref": f"r{n}", "type": "t", "data": json.dumps(data)})
        pipe.execute()
    return count


def judge(r: redis.Redis, requests: int) -> list[str]:
    """What is wrong, a line each."""
    asked = {fields["ref"]: json.loads(fields["data"]) for _, fields in r.xrange("t:req:x")}
    codes: dict[str, list[int]] = collections.defaultdict(list)
    for _, fields in r.xrange("t:res:x"):
        codes[fields["ref"]].append(int(fields["code"]))
    sent = collections.Counter(data["n"] for data in emitted(r))
    faults = []
    totals: collections.Counter[str] = collections.Counter()
    for n in range(requests):
        ref = f"r{n}"
        expected = [500 if n % 50 == 7 else 200]
        if codes[ref] != expected:
            faults.append(f"{ref} is answered {codes[ref]}, expected {expected}")
        if sent[n] != codes[ref].count(200):
            faults.append(f"{ref} is answered {codes[ref]} and has {sent[n]} emits")
        with contextlib.suppress(KeyError):
            totals[asked[ref]["user"]] += codes[ref].count(200)
    for user, total in totals.items():
        written = r.hget(f"count:{user}:h", "total")
        if int(written or 0) != total:
            faults.append(f"the state of {user} is {written}, expected {total}")
    return faults


if __name__ == "__main__":
    sys.exit(main())
