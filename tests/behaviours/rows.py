"""The table of handler behaviours: a name, what the handler does, and what must become of the request.

The same files are imported by the worker, which runs the rows, and by the test, which reads what to expect.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

PLAIN, THREADS, ASYNC = "plain", "threads", "async"
MODES = (PLAIN, THREADS, ASYNC)
OK, BAD, FAILED = 200, 400, 500
ANSWERED = (OK, FAILED)  # what the encoder of results makes of it is tested elsewhere; here, that there is one answer


@dataclass(frozen=True)
class Row:
    """`code`: of the reply, or several that may be. `says`: a part of `err.message`. `group`: the rows of one process.

    `ends`: the worker ends by it, and the request becomes a dead letter. `leaves`: the worker ends in order by it, after
    the reply. `modes`: where it can be tried; `reason`: why not in the others.
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
    """Decorator: the function's name is the row's."""

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
