"""All that the operator's ceiling refuses of a hash. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from sandboxrun.config.permissions import Permissions
from sandboxrun.config.worker import Asked, WorkerConfig
from sandboxrun.errors import PolicyError
from sandboxrun.policy.ceiling import Ceiling
from sandboxrun.records import replace


def beyond(ceiling: Ceiling) -> list[PolicyError]:
    """All that the ceiling refuses of what the hash asks, where `Ceiling.check` raises the first."""
    found = []
    for worker in _aspects(ceiling.worker):
        try:
            replace(ceiling, worker=worker).check({})
        except PolicyError as error:
            found.append(error)
    return found


def _aspects(worker: WorkerConfig) -> Iterator[WorkerConfig]:
    """The worker with each of the things that it asks for alone, in the order in which they are checked."""
    asked = worker.asked
    bare = replace(worker, asked=Asked(lists=asked.lists), sha256=None)
    for kind, targets in asked.permissions.allow.items():
        for target in targets:
            yield replace(bare, asked=replace(bare.asked, permissions=Permissions({kind: (target,)})))
    yield replace(bare, sha256=worker.sha256)
    yield replace(bare, asked=replace(bare.asked, inspect=asked.inspect))
    for name, value in asked.limits.items():
        yield replace(bare, asked=replace(bare.asked, limits={name: value}))
