"""The whole fault matrix: every cell of tests/faults/cells.py at least once, then a table of the outcomes.

    python bench/fault_matrix.py [--seed N] [--rounds N] [--only TEXT] [--side-by-side N]

`--rounds`: draw so many cells for each pair of fault and moment; without it every cell is played. `--only`: cells whose name
contains TEXT. Exit code 1 if a request was lost, answered twice or left pending, if a process ended that should live, or if a
fault had no effect.
"""

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

from faults.cells import drawn, sensible
from faults.player import play_cells, report
from faults.world import Outcome


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--only", default="")
    parser.add_argument("--side-by-side", type=int, default=6)
    options = parser.parse_args()
    cells = drawn(options.seed, options.rounds) if options.rounds else sensible()
    random.Random(options.seed).shuffle(cells)
    cells = [cell for cell in cells if options.only in str(cell)]
    begin = time.monotonic()

    def show(outcome: Outcome) -> None:
        print(f"{time.monotonic() - begin:6.1f} s  {outcome.cell}: {outcome.wrong() or 'well'}", flush=True)
        if outcome.wrong():
            print("\n".join(f"    {line}" for text in outcome.story for line in text.splitlines()), flush=True)

    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        outcomes = play_cells(cells, Path(folder), seed=options.seed, side_by_side=options.side_by_side, show=show)
    print(report(outcomes))
    return int(any(outcome.wrong() for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
