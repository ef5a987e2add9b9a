"""A status of an agent, for what shows one."""

from __future__ import annotations

from sandboxrun.fleet.status import AgentStatus, Denied, TypeStatus, WorkerStatus
from sandboxrun.health import Health, Histogram
from sandboxrun.healthpage import BOUNDS
from sandboxrun.records import replace


def histogram(*values: float) -> Histogram:
    counts = [0] * (len(BOUNDS) + 1)
    for value in values:
        counts[next((n for n, bound in enumerate(BOUNDS) if value <= bound), len(BOUNDS))] += 1
    return Histogram(tuple(counts), sum(values))


HEALTH = Health(True, 100.5, 99.0, 12, ((200, 10), (500, 2)), histogram(0.001, 0.2), histogram(0.01), 7)
WORKER = WorkerStatus(
    "greeter", "1", "running", 42, 1.5e9, "v1", 3, (("failed", 3),), 1, "exit code 1", None, HEALTH,
    (Denied("net", "evil.example:443", "evil.example:443", 2),), 1 << 20, 0.5, 2.0,
)  # fmt: skip
STATUS = AgentStatus(
    "a1", "host", "0.1", "redis://127.0.0.1:6379", True, 1.4e9, False, 200,
    (TypeStatus("greeter", 2, (WORKER, replace(WORKER, id="2", health=None)), 1, 5, 1, 0.1, 0.5, 0),),
)  # fmt: skip


def with_workers(*workers: WorkerStatus) -> AgentStatus:
    """STATUS with these workers of the one type."""
    return replace(STATUS, types=(replace(STATUS.types[0], workers=workers),))


def busy(handled: int = 0, *, clock: float, now: float) -> AgentStatus:
    """Fifty workers of three types: one is stuck, one crashes, one was refused something. `handled`: by each so far."""

    def worker(type_: str, number: int, per_request: float, **changes: object) -> WorkerStatus:
        count = 4000 + 37 * number + handled * (3 + number % 4)
        slow = count // 90
        values = (*[per_request] * (count - slow), *[per_request * 11] * slow)
        health = replace(HEALTH, handled=count, handling_since=0.0, codes=((200, count),), handler=_fast(values))
        made = replace(
            WORKER, type=type_, id=str(number), pid=4200 + number, since=now - 9000 - 61 * number, version="v1.4.2",
            restarts=0, restarts_by=(), last_exit=None, last_reason="", health=health, denials=(),
            memory=(11 << 20) + number * 70_000, cpu=41.0 + number * 3.7, lease_age=1.0,
        )  # fmt: skip
        return replace(made, **changes)

    def _fast(values: tuple[float, ...]) -> Histogram:
        return histogram(*values[:1], *values[-1:]) if len(values) < 2 else _scaled(values)

    def _scaled(values: tuple[float, ...]) -> Histogram:
        few, many = histogram(values[-1]), histogram(values[0])
        share = sum(value == values[-1] for value in values)
        counts = (a * (len(values) - share) + b * share for a, b in zip(many.counts, few.counts, strict=True))
        return Histogram(tuple(counts), sum(values))

    greeters = [worker("greeter", n, 0.0008) for n in range(1, 31)]
    images = [worker("thumbnail", n, 0.04) for n in range(1, 17)]
    bots = [worker("bot", n, 0.004) for n in range(1, 5)]
    hanging = replace(images[4].health or HEALTH, handling_since=clock - 95)
    images[4] = replace(
        images[4],
        state="stuck",
        health=hanging,
        restarts=1,
        restarts_by=(("stuck", 1),),
        last_exit=137,
        last_reason="stuck for 60 s",
    )
    bots[2] = replace(
        bots[2], state="failing", pid=None, since=None, health=None, memory=None, cpu=None, restarts=7, restarts_by=(("failed", 7),),
        last_exit=1, last_reason="KeyError: 'chat_id'", next_start=now + 21,
    )  # fmt: skip
    greeters[11] = replace(
        greeters[11], denials=(Denied("net", "telemetry.example:443", "telemetry.example:443", 14),),
        health=replace(greeters[11].health or HEALTH, codes=((200, 4000), (500, 14))),
    )  # fmt: skip
    types = (
        TypeStatus("bot", 4, tuple(bots), 0, 2, 1, 0.4, 0.1, 3),
        TypeStatus("greeter", 30, tuple(greeters), 0, 0, 3, None, 0.002, 0),
        TypeStatus("thumbnail", 16, tuple(images), 0, 41, 16, 2.4, 95.0, 0),
    )
    return AgentStatus(
        "web-1", "web-1.example", "0.1.0", "redis://redis.example:6379", True, now - 260_000, False, 200, types
    )
