"""Runs in the worker's process, for tests: a clock that stands still, and random numbers that are always the same."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def stop_clock(moment: float) -> None:
    """Let `time` and `datetime` have this time from now on, in seconds since 1970.

    `time.monotonic`, libraries in C and the kernel keep the real time.
    """
    import time_machine

    time_machine.travel(moment, tick=False).start()


def seeder(seed: int) -> Callable[[], None]:
    """A function that seeds `random` and numpy. From now on `uuid.uuid4` takes its numbers from `random`."""
    import random
    import uuid

    setattr(uuid, "uuid4", lambda: uuid.UUID(int=random.getrandbits(128), version=4))  # noqa: B010

    def reseed() -> None:
        random.seed(seed)
        numpy = sys.modules.get("numpy")
        if numpy is not None:
            numpy.random.seed(seed)

    return reseed
