"""Remove each row from the table of the filter, and each condition from each row: a test must fail every time.

    python tests/tools/mutate.py [FIRST [LAST]]

Prints the survivors and a summary; exits with 1 if there is a survivor. About five minutes on two cores. The harness of the tests
(confine.py) makes the mutations, never the code.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyseccomp  # noqa: F401 - loaded once, for all
import pytest

from sandboxrun.sandbox.compile import seccomp

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import arena  # noqa: F401 - it removes its compiled filters at the end of this process, which copies of it never reach

TESTS = ["tests/kernel/test_table.py"]


def mutants() -> list[tuple[str, str]]:
    """(description, argument of confine.py) of each mutant."""
    found = []
    for number, rule in enumerate(seccomp.rules()):
        text = f"{rule.name} ({', '.join(arg.text for arg in rule.args)})" if rule.args else rule.name
        found.append((f"row {number} {text}", f"{number}"))
        found += [
            (f"row {number} {text} without {arg.text!r}", f"{number}:{place}") for place, arg in enumerate(rule.args)
        ]
    return found


def start(mutant: str) -> int:
    """Run the tests in a copy of this process, which has loaded what they need; its pid."""
    pid = os.fork()
    if pid == 0:
        code = 3
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.environ["SANDBOXRUN_TESTS_MUTATE"] = mutant
            code = pytest.main(["-q", "-x", "-p", "no:xdist", *TESTS])
        finally:
            os._exit(code)
    return pid


def survivors(mutants: Sequence[tuple[str, str]]) -> Iterator[str]:
    """The description of each mutant that no test noticed. As many run at a time as there are processors."""
    running: dict[int, str] = {}
    waiting = list(reversed(mutants))
    while waiting or running:
        while waiting and len(running) < (os.cpu_count() or 1):
            text, mutant = waiting.pop()
            running[start(mutant)] = text
        pid, status = os.wait()
        text, code = running.pop(pid), os.waitstatus_to_exitcode(status)
        if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            raise RuntimeError(f"{text}: pytest ended with {code}")
        if code == pytest.ExitCode.OK:
            yield text


def main() -> int:
    os.chdir(Path(__file__).parents[2])
    if not list(survivors([("nothing", "")])):
        print("the tests fail without a mutation")
        return 2
    first, last = (int(word) if word else None for word in [*sys.argv[1:], "", ""][:2])
    every, survived = mutants()[first:last], 0
    for text in survivors(every):
        print("survived:", text, flush=True)
        survived += 1
    rows = sum(":" not in what for _, what in every)
    print(f"{rows} rows and {len(every) - rows} conditions taken out, {survived} survived")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
