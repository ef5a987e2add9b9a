"""Make one small mistake at a time in the examples' workers: the tests in their spec.json must notice it.

    python tests/tools/mutate_workers.py [WORKER...]

Prints how many mutants of each operator the written tests catch, and how many together with the generated ones.
Exits with 1 if a mutant survives that is not listed below. About a minute on two cores.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests/support"))

from mutants import OPERATORS, Mutant, mutants  # noqa: E402
from spec_runs import catchers, run_tests  # noqa: E402

PREFIXES = {"counter": "count:", "cart": "basket:", "notify": "told:"}
BESIDE = {"notify": [ROOT / "examples/price"]}
# (worker, line, operator): why no request can tell the mutant from the worker.
EQUIVALENT = {
    ("cart", "redis.lrem(recent, 0, item)", "off by one"): "the list never has an item twice",
    ("cart", "cart.clear()", "TTL added"): "the key that would expire is removed with the reply",
    (
        "notify",
        "is_news = cents <= wish.cents and",
        "off by one",
    ): "every number above the price says that none was mailed",
}


def judged(name: str, mutant: Mutant) -> tuple[int, int]:
    return catchers(run_tests(ROOT / "examples" / name, mutant.source, BESIDE.get(name, [])))


def main(names: Sequence[str]) -> int:
    every = []
    for name in names:
        source = (ROOT / "examples" / name / "worker.py").read_text()
        if any(catchers(run_tests(ROOT / "examples" / name, source, BESIDE.get(name, [])))):
            print(f"the tests of {name} fail without a mutation")
            return 2
        every += [(name, mutant) for mutant in mutants(source, PREFIXES[name])]
    # The threads live until all is done: each worker ends with the thread that has started it.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        verdicts = list(pool.map(lambda pair: judged(*pair), every))
    counts: Counter[tuple[str, str]] = Counter()
    survived = 0
    for (name, mutant), (written, made) in zip(every, verdicts, strict=True):
        counts[mutant.operator, "all"] += 1
        counts[mutant.operator, "written"] += bool(written)
        counts[mutant.operator, "generated"] += bool(written or made)
        if written:
            continue
        equivalent = reason(name, mutant)
        counts[mutant.operator, "equivalent"] += bool(equivalent and not made)
        word = "caught by generated tests" if made else "equivalent" if equivalent else "survived"
        survived += word == "survived"
        why = f" ({equivalent})" if word == "equivalent" else ""
        print(f"{word}: {name}:{mutant.line} {mutant.operator}: {mutant.what}{why}")
    print_table(counts)
    return 1 if survived else 0


def reason(name: str, mutant: Mutant) -> str:
    """Why it is equivalent; "" if it is not."""
    line = (ROOT / "examples" / name / "worker.py").read_text().splitlines()[mutant.line - 1].strip()
    return next(
        (
            why
            for (worker, code, operator), why in EQUIVALENT.items()
            if (worker, operator) == (name, mutant.operator) and line.startswith(code)
        ),
        "",
    )


def print_table(counts: Counter[tuple[str, str]]) -> None:
    columns = ("all", "written", "generated", "equivalent")
    print(f"{'operator':22}{''.join(f'{column:>12}' for column in columns)}")
    for operator in OPERATORS:
        print(f"{operator:22}{''.join(f'{counts[operator, column]:12}' for column in columns)}")
    totals = [sum(counts[operator, column] for operator in OPERATORS) for column in columns]
    print(f"{'together':22}{''.join(f'{total:12}' for total in totals)}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or list(PREFIXES)))
