"""Under each fault and at each moment, every request is answered once, and no process ends that should live.

FAULT_SEED draws a part of the fault matrix; bench/fault_matrix.py plays all of it.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from faults.cells import KINDS, TRANSPORTS, WHAT, WHEN, WHO, Cell, drawn, every, excluded, sensible
from faults.partition import can_make_containers, play_partition
from faults.player import play_cells, report

SEED = int(os.environ.get("FAULT_SEED", "1"))
ROUNDS = int(os.environ.get("FAULT_ROUNDS", "1"))


def test_each_cell_is_sensible_or_has_a_reason() -> None:
    cells = list(every())
    assert len(cells) == len(WHO) * len(WHAT) * len(WHEN) * len(KINDS) * len(TRANSPORTS)
    reasons = [excluded(cell) for cell in cells]
    assert all(reason is None or len(reason) > 20 for reason in reasons)
    assert reasons.count(None) == len(sensible()) > 700
    for values, name in ((WHO, "who"), (WHAT, "what"), (WHEN, "when"), (KINDS, "kind"), (TRANSPORTS, "transport")):
        left = {getattr(cell, name) for cell in sensible()}
        assert left == set(values)


@pytest.mark.timeout(400)  # dozens of plays, of which each has a limit of its own
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_lost_nor_answered_twice_and_no_worker_ends(kind: str, tmp_path: Path) -> None:
    cells = [cell for cell in drawn(SEED, ROUNDS) if cell.kind == kind]
    outcomes = play_cells(cells, tmp_path, seed=SEED, side_by_side=3)
    print(report(outcomes))
    assert len(outcomes) == len(cells) > 15
    assert not [
        f"{outcome.cell}: {outcome.wrong()}\n" + "\n".join(outcome.story) for outcome in outcomes if outcome.wrong()
    ]


def test_two_runs_of_one_worker_with_equal_pids_are_one_after_a_partition(tmp_path: Path) -> None:
    if not can_make_containers():
        pytest.skip("no pid namespaces for this user")
    outcome = play_partition(Cell("network", "cut", "reading", "plain", "tcp"), tmp_path / "world", SEED)
    assert not outcome.wrong(), "\n".join(outcome.story)
    assert outcome.sent > 20
