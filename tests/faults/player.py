"""Plays cells in several worlds at once, and reports the outcomes."""

from __future__ import annotations

import itertools
import random
import threading
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from faults.cells import Cell
from faults.world import Outcome, Play, World

TAKEOVER_MILLIS = 900
LONG_PART = 50  # one cell in 50 has the times of production
LONG_TAKEOVER_MILLIS, LONG_SECONDS, LONG_HOLD_SECONDS = 15_000, 6.0, 8.0

_numbers = itertools.count()


def long_ones(cells: Sequence[Cell], seed: int) -> set[Cell]:
    """The cells with a handler of six seconds and a fault of eight."""
    fit = [cell for cell in cells if cell.who in ("redis", "network") and cell.when in ("in a handler", "renewing")]
    return set(random.Random(seed).sample(fit, min(len(fit), max(1, len(cells) // LONG_PART))))


def play_cells(
    cells: Sequence[Cell],
    folder: Path,
    *,
    seed: int,
    side_by_side: int,
    show: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """Play each cell in a world of its kind and transport. A world is thrown away after a failure."""
    groups: dict[tuple[str, str, bool], list[Cell]] = {}
    long = long_ones(cells, seed)
    for cell in cells:
        groups.setdefault((cell.kind, cell.transport, cell in long), []).append(cell)
    waiting = deque(sorted(groups.items(), key=lambda item: (not item[0][2], -len(item[1]))))
    outcomes: list[Outcome] = []

    def play() -> None:
        while True:
            try:
                (kind, transport, is_long), group = waiting.popleft()
            except IndexError:
                return
            outcomes.extend(_play_group(kind, transport, deque(group), folder, seed, show, is_long))

    threads = [threading.Thread(target=play) for _ in range(side_by_side)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def _play_group(
    kind: str,
    transport: str,
    cells: deque[Cell],
    folder: Path,
    seed: int,
    show: Callable[[Outcome], None],
    is_long: bool,
) -> list[Outcome]:
    outcomes: list[Outcome] = []
    lengths = {"seconds": LONG_SECONDS, "hold": LONG_HOLD_SECONDS} if is_long else {}
    takeover = LONG_TAKEOVER_MILLIS if is_long else TAKEOVER_MILLIS
    while cells:
        number = next(_numbers)
        outcome = Outcome(cells[0])
        try:
            # One world in five has a hostile neighbour.
            with World(
                kind, transport, folder / f"world{number}", takeover_millis=takeover, hostile=number % 5 == 0
            ) as world:
                while cells and not outcome.wrong():
                    outcome = Play(world, cells[0], seed, **lengths)()
                    cells.popleft()
                    outcomes.append(outcome)
                    show(outcome)
        except Exception:
            outcome = Outcome(cells.popleft(), without_effect=1, story=[traceback.format_exc()])
            outcomes.append(outcome)
            show(outcome)
    return outcomes


COLUMNS = ("sent", "lost", "twice", "failed", "pending", "ended", "starved", "without_effect", "forgotten")


def report(outcomes: Sequence[Outcome]) -> str:
    """A table with a row for each fault, summed over its cells."""
    rows: dict[str, list[int]] = {}
    for outcome in sorted(outcomes, key=lambda one: one.cell):
        row = rows.setdefault(f"{outcome.cell.who}, {outcome.cell.what}", [0] * (len(COLUMNS) + 1))
        for at, value in enumerate((1, *(getattr(outcome, name) for name in COLUMNS))):
            row[at] += value
    lines = ["| fault | cells | " + " | ".join(COLUMNS).replace("_", " ") + " |", "|" + "---|" * (len(COLUMNS) + 2)]
    lines += [f"| {name} | " + " | ".join(map(str, row)) + " |" for name, row in rows.items()]
    total = [sum(column) for column in zip(*rows.values(), strict=True)]
    return "\n".join([*lines, "| all | " + " | ".join(map(str, total)) + " |"])
