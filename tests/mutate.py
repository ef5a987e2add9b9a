"""Take each row out of the filter's table, and each condition out of each row, and see a test fail every time.

    python tests/mutate.py [FIRST [LAST]]

Prints what survived, and a summary; exits with 1 if anything did. A few minutes on two cores. The mutations are made in the
tests' own harness (confine.py), never in the code.
"""

from __future__ import annotations

import concurrent.futures
import os
import subprocess
import sys
from pathlib import Path

from sandboxrun.sandbox import seccomp

TESTS = ["tests/kernel/test_table.py"]


def mutants() -> list[tuple[str, str]]:
    """(description, what confine.py is told)."""
    found = []
    for number, rule in enumerate(seccomp.rules()):
        text = f"{rule.name} ({', '.join(arg.text for arg in rule.args)})" if rule.args else rule.name
        found.append((f"row {number} {text}", f"{number}"))
        found += [
            (f"row {number} {text} without {arg.text!r}", f"{number}:{place}") for place, arg in enumerate(rule.args)
        ]
    return found


def survives(mutant: tuple[str, str]) -> bool:
    env = os.environ | {"SANDBOXRUN_TESTS_MUTATE": mutant[1]}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:xdist", *TESTS]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise RuntimeError(
            f"{mutant[0]}: pytest ended with {done.returncode}: {done.stdout[-500:]}{done.stderr[-500:]}"
        )
    return done.returncode == 0


def main() -> int:
    os.chdir(Path(__file__).parent.parent)
    if survives(("nothing", "")) is not True:
        print("the tests fail without a mutation")
        return 2
    first, last = (int(word) if word else None for word in [*sys.argv[1:], "", ""][:2])
    every = mutants()[first:last]
    with concurrent.futures.ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        survived = [mutant[0] for mutant, lives in zip(every, pool.map(survives, every), strict=True) if lives]
    for text in survived:
        print("survived:", text)
    rows = sum(":" not in what for _, what in every)
    print(f"{rows} rows and {len(every) - rows} conditions taken out, {len(survived)} survived")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
