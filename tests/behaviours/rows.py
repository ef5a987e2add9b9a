"""The table of handler behaviours: a name, the handler, and the expected fate of the request.

The worker imports the same files to run the rows, and the test to read what to expect.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

PLAIN, THREADS, ASYNC = "plain", "threads", "async"
MODES = (PLAIN, THREADS, ASYNC)
OK, BAD, FAILED = 200, 400, 500
ANSWERED = (OK, FAILED)  # other tests show what the encoder does with it; here there must be one answer


@dataclass(frozen=True)
class Row:
    """`code`: of the reply, or the possible ones. `says`: a part of `err.message`. `group`: the rows that share a process.

    `ends`: it ends the worker, and the request becomes a dead letter. `leaves`: it ends the worker in order, after the
    reply. `modes`: where it can run; `reason`: why not in the others.
    """

    name: str
    run: Callable[[Any], Any]
    code: int | tuple[int, ...] = FAILED
    says: str = ""
    group: str = "values"
    ends: bool = False
    leaves: bool = False
    modes: tuple[str, ...] = MODES
    reason: str = ""

    @property
    def codes(self) -> tuple[int, ...]:
        return self.code if isinstance(self.code, tuple) else (self.code,)


ROWS: dict[str, Row] = {}


def add(name: str, run: Callable[[Any], Any], code: int | tuple[int, ...] = FAILED, **more: Any) -> None:
    assert name not in ROWS, name
    assert bool(more.get("reason")) == (more.get("modes", MODES) != MODES), name
    ROWS[name] = Row(name, run, code, **more)


def row(code: int | tuple[int, ...] = FAILED, **more: Any) -> Callable[[Callable[[Any], Any]], Callable[[Any], Any]]:
    """Decorator: the name of the function names the row."""

    def decorate(run: Callable[[Any], Any]) -> Callable[[Any], Any]:
        add(run.__name__.replace("_", " "), run, code, **more)
        return run

    return decorate


def raising(error: BaseException | type[BaseException]) -> Any:
    raise error


def load() -> dict[str, Row]:
    import rows_asyncio  # noqa: F401
    import rows_ends  # noqa: F401
    import rows_processes  # noqa: F401
    import rows_raise  # noqa: F401
    import rows_results  # noqa: F401
    import rows_state  # noqa: F401

    return ROWS
