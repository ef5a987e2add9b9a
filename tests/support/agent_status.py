"""A status of an agent, for what shows one."""

from __future__ import annotations

from sandboxrun.fleet.status import BOUNDS, AgentStatus, Denied, Health, Histogram, TypeStatus, WorkerStatus
from sandboxrun.records import replace


def histogram(*values: float) -> Histogram:
    counts = [0] * (len(BOUNDS) + 1)
    for value in values:
        counts[next((n for n, bound in enumerate(BOUNDS) if value <= bound), len(BOUNDS))] += 1
    return Histogram(tuple(counts), sum(values))


HEALTH = Health(True, 100.5, 99.0, 12, ((200, 10), (500, 2)), histogram(0.001, 0.2), histogram(0.01), 7)
WORKER = WorkerStatus(
    "greeter", "1", "running", 42, 1.5e9, "v1", 3, (("exit", 3),), 1, "exit code 1", None, HEALTH,
    (Denied("net", "evil.example:443", "evil.example:443", 2),), 1 << 20, 0.5, 2.0,
)  # fmt: skip
STATUS = AgentStatus(
    "a1", "host", "0.1", "redis://127.0.0.1:6379", True, 1.4e9, False, 200,
    (TypeStatus("greeter", 2, (WORKER, replace(WORKER, id="2", health=None)), 1, 5, 1, 0.1, 0.5, 0),),
)  # fmt: skip


def with_workers(*workers: WorkerStatus) -> AgentStatus:
    """STATUS with these workers of the one type."""
    return replace(STATUS, types=(replace(STATUS.types[0], workers=workers),))
