"""Whatever a handler does, its request is answered once or becomes a dead letter, and the worker goes on.

The table is in tests/behaviours: more than three hundred kinds, each in a plain, a threaded and an async worker, in the
real sandbox. Rows of one group share a process, and each is followed by a ping to that same process.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from runner import Runner

FOLDER = Path(__file__).parents[1] / "behaviours"
sys.path.insert(0, str(FOLDER))
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import rows

TABLE = rows.load()
GROUPS = sorted({row.group for row in TABLE.values()} - {"ends", "leaves"})
PROGRAMS = "/bin/echo,/bin/true,/bin/false,/bin/sleep"
SECONDS = 20  # for one answer


def chosen(group: str, mode: str) -> list[rows.Row]:
    return [row for row in TABLE.values() if row.group == group and mode in row.modes]


def test_the_table_has_three_hundred_kinds_for_each_way_of_working() -> None:
    for mode in rows.MODES:
        assert len([row for row in TABLE.values() if mode in row.modes]) >= 300


class World:
    """One worker hash, and a client by hand."""

    def __init__(self, r: redis.Redis, run: Runner, mode: str, **fields: str) -> None:
        self.r, self.run = r, run
        r.hset("b:1:h", mapping={"url": str(FOLDER), "version": "local", "mode": mode, "allowRedis": "began", **fields})

    def send(self, **data: Any) -> str:
        ref = os.urandom(8).hex()
        self.r.xadd("b:req:x", {"ref": ref, "type": "b", "data": json.dumps(data)})
        return ref

    def answer(self, ref: str) -> dict[str, Any] | None:
        found = self.r.brpop([f"res:{ref}"], timeout=SECONDS)
        reply: dict[str, Any] | None = json.loads(found[1]) if found is not None else None
        return reply

    def ping(self) -> int | None:
        """The worker's pid. A row may have left an alarm that interrupts a request after it."""
        for _ in range(3):
            reply = self.answer(self.send(ping=True))
            if reply is None or reply["code"] == 200:
                return reply["pid"] if reply is not None else None
        return None

    def began(self, name: str) -> int:
        return self.r.lrange("began", 0, -1).count(name)  # type: ignore[union-attr]

    @contextlib.contextmanager
    def worker(self) -> Iterator[subprocess.Popen[bytes]]:
        """Its output goes to a file: nobody reads along."""
        with (self.run.home / "output").open("ab") as output:
            process = subprocess.Popen(
                self.run.command("b", "1"),
                env=self.run.env,
                cwd=self.run.home,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def output(self) -> str:
        return (self.run.home / "output").read_text("utf-8", "replace")

    def replies(self) -> dict[str, int]:
        """How many were written for each ref."""
        counts: dict[str, int] = {}
        for _, fields in self.r.xrange("b:res:x"):  # type: ignore[union-attr]
            counts[fields["ref"]] = counts.get(fields["ref"], 0) + 1
        return counts


def wrong(row: rows.Row, reply: dict[str, Any] | None) -> str:
    if reply is None:
        return f"{row.name}: no reply"
    message = reply.get("err", {}).get("message", "") if isinstance(reply.get("err"), dict) else ""
    if reply["code"] not in row.codes:
        return f"{row.name}: {reply['code']} instead of {row.code}: {message[:200]}"
    if row.says not in message:
        return f"{row.name}: {message[:200]!r} does not say {row.says!r}"
    if reply["code"] != 200 and not message:
        return f"{row.name}: an error without a message"
    return ""


@pytest.mark.parametrize("mode", rows.MODES)
@pytest.mark.parametrize("group", GROUPS)
def test_each_is_answered_once_and_the_same_worker_goes_on(r: redis.Redis, run: Runner, group: str, mode: str) -> None:
    programs = {"allowRun": PROGRAMS} if group == "processes" else {}
    world = World(r, run, mode, limitMemory="700M", responseStreamLimit="0", **programs)
    faults: list[str] = []
    refs: dict[str, str] = {}
    with world.worker() as process:
        pid = world.ping()
        assert pid is not None, world.output()
        for row in chosen(group, mode):
            refs[row.name] = world.send(row=row.name)
            fault = wrong(row, world.answer(refs[row.name]))
            now = world.ping() if process.poll() is None else None
            if now != pid:
                fault += f"; {row.name}: the worker is gone: {world.output()[-1500:]}"
            if world.began(row.name) != 1 and group != "alarms":
                fault += f"; {row.name}: ran {world.began(row.name)} times"
            if fault:
                faults.append(fault)
            if now != pid:
                break
        assert not faults, "\n".join(faults)
        process.terminate()
        code = process.wait(30)
    counts = world.replies()
    assert [name for name, ref in refs.items() if counts.get(ref) != 1] == []
    assert r.xpending("b:req:x", "worker")["pending"] == 0
    assert r.xlen("b:dead:x") == 0
    # 1: a stream that a row has broken fails at Python's own end. An alarm may come when Python has given up its handlers.
    ends = (0, 1, *[128 + signal.SIGALRM] * (group == "alarms"))
    assert code in ends, world.output()[-1500:]


@pytest.mark.parametrize("mode", rows.MODES)
def test_what_ends_the_worker_becomes_a_dead_letter_and_the_next_one_goes_on(
    r: redis.Redis, run: Runner, mode: str
) -> None:
    world = World(r, run, mode, maxDeliveries="1", takeoverMillis="400")
    faults: list[str] = []
    last = ""
    for row in [*chosen("ends", mode), None]:
        with world.worker() as process:
            if last:
                reply = world.answer(last)
                if reply is None or reply["code"] != 500 or "given up after 1 deliver" not in reply["err"]["message"]:
                    faults.append(f"before {row}: {reply}")
            if world.ping() is None:
                faults.append(f"before {row}: no ping: {world.output()[-1500:]}")
                break
            if row is None:
                process.terminate()
                assert process.wait(30) == 0
                break
            last = world.send(row=row.name)
            process.wait(30)
            if world.began(row.name) != 1:
                faults.append(f"{row.name}: ran {world.began(row.name)} times")
    assert not faults, "\n".join(faults)
    dead = [fields["ref"] for _, fields in r.xrange("b:dead:x")]  # type: ignore[union-attr]
    assert len(dead) == len({*dead}) == len(chosen("ends", mode))
    assert r.xpending("b:req:x", "worker")["pending"] == 0


@pytest.mark.parametrize("mode", rows.MODES)
def test_a_signal_to_itself_ends_the_worker_in_order(r: redis.Redis, run: Runner, mode: str) -> None:
    world = World(r, run, mode)
    for row in chosen("leaves", mode):
        with world.worker() as process:
            assert world.ping() is not None
            assert wrong(row, world.answer(world.send(row=row.name))) == ""
            assert process.wait(30) == 0, world.output()
        assert world.began(row.name) == 1
    assert r.xpending("b:req:x", "worker")["pending"] == 0
