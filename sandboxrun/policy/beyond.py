"""Everything in a hash that the operator's ceiling refuses. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from sandboxrun.config.permissions import Permissions
from sandboxrun.config.worker import Asked, WorkerConfig
from sandboxrun.errors import PolicyError
from sandboxrun.policy.ceiling import Ceiling
from sandboxrun.records import replace


def beyond(ceiling: Ceiling) -> list[PolicyError]:
    """Every refusal of the ceiling; `Ceiling.check` raises the first."""
    refusals = []
    for worker in _aspects(ceiling.worker):
        try:
            replace(ceiling, worker=worker).check({})
        except PolicyError as error:
            refusals.append(error)
    return refusals


def _aspects(worker: WorkerConfig) -> Iterator[WorkerConfig]:
    """The worker with each single thing that it asks for, in the order of the checks."""
    asked = worker.asked
    bare = replace(worker, asked=Asked(lists=asked.lists), sha256=None)
    for kind, targets in asked.permissions.allow.items():
        for target in targets:
            yield replace(bare, asked=replace(bare.asked, permissions=Permissions({kind: (target,)})))
    yield replace(bare, sha256=worker.sha256)
    yield replace(bare, asked=replace(bare.asked, inspect=asked.inspect))
    for name, value in asked.limits.items():
        yield replace(bare, asked=replace(bare.asked, limits={name: value}))
