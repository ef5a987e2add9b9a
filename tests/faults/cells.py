"""The fault matrix as data: every sensible cell, and the reason why each other cell is not."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass

WHO = ("worker", "supervisor", "redis", "network", "administrator")
WHAT = (
    "SIGKILL",
    "SIGSTOP",
    "cut",
    "half-open",
    "slow",
    "full disk",
    "full memory",
    "ACL LOAD",
    "restart with AOF",
    "restart empty",
    "promotion of a replica",
)
WHEN = ("idle", "reading", "in a handler", "renewing", "answering", "ending")
KINDS = ("plain", "threads", "async")
TRANSPORTS = ("tcp", "tls", "unix")

# The faults, by what they befall.
_HAPPENS = {
    "worker": {"SIGKILL", "SIGSTOP"},
    "supervisor": {"SIGKILL", "SIGSTOP"},
    "redis": {"SIGSTOP", "slow", "full disk", "full memory", "restart with AOF", "restart empty", "promotion of a replica"},
    "network": {"cut", "half-open", "slow"},
    "administrator": {"ACL LOAD"},
}  # fmt: skip
_WHY_NOT = {
    ("redis", "SIGKILL"): "a server that was killed is started again: restart with AOF, restart empty, promotion",
    ("worker", "slow"): "a slow handler is no fault: takeoverMillis and renewals, in every cell of `renewing`",
    (
        "worker",
        "full disk",
    ): "a worker's output and scratch folder are no part of a request: tests/redis/test_behaviours.py",
    ("worker", "full memory"): "a handler's MemoryError is a behaviour: tests/redis/test_behaviours.py",
    ("supervisor", "slow"): "a stopped supervisor is the extreme of a slow one: SIGSTOP",
    ("supervisor", "full disk"): "the supervisor writes nothing while a worker runs but its log, which may be lost",
    ("supervisor", "full memory"): "the kernel kills it: SIGKILL",
}


@dataclass(frozen=True, order=True)
class Cell:
    who: str
    what: str
    when: str
    kind: str
    transport: str

    def __str__(self) -> str:
        return f"{self.who}, {self.what}, {self.when}, {self.kind} by {self.transport}"


def excluded(cell: Cell) -> str | None:
    """Why the cell makes no sense, or None if it does."""
    if cell.what not in _HAPPENS[cell.who]:
        reason = _WHY_NOT.get((cell.who, cell.what))
        return reason or f"{cell.what} does not happen to {cell.who}"
    if cell.transport == "unix" and cell.what == "half-open":
        return "the kernel ends both sides of a Unix socket at once"
    if cell.when == "ending" and cell.what == "restart empty":
        return "the order to end was in the hash that is gone: the worker ends because of that"
    return None


def every() -> Iterator[Cell]:
    """The whole product, sensible or not."""
    return (Cell(*values) for values in itertools.product(WHO, WHAT, WHEN, KINDS, TRANSPORTS))


def sensible() -> list[Cell]:
    return [cell for cell in every() if excluded(cell) is None]


def drawn(seed: int, rounds: int) -> list[Cell]:
    """Each pair of fault and moment `rounds` times, in random order, with kinds and transports in turn."""
    chance = random.Random(seed)
    columns: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in sensible():
        columns.setdefault((cell.who, cell.what, cell.when), []).append(cell)
    found = [cell for column in columns.values() for cell in chance.sample(column, min(rounds, len(column)))]
    chance.shuffle(found)
    return found
