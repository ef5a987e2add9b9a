"""Agents and what they leave undone: those that are gone, ids that wait for one, workers that keep ending."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator, Sequence

from sandboxrun.config import keys
from sandboxrun.describe.doctor.finding import Finding, note, ok
from sandboxrun.errors import ConfigError
from sandboxrun.fleet import agents as fleet_agents
from sandboxrun.fleet.agents import Agent
from sandboxrun.fleet.units import age
from sandboxrun.fleet.workers import Worker
from sandboxrun.redis.connection import Connection
from sandboxrun.redis.replies import ReplyError

SHOWN_MAX = 5
TYPES_MAX = 1000  # whose queues are looked at


def agents(connection: Connection, workers: Sequence[Worker]) -> Iterator[Finding]:
    """`workers`: all that were found. Nothing is said where no agent ever was and nothing waits for one."""
    try:
        known, clock = fleet_agents.read(connection)
    except ReplyError:  # this login may not read them
        return
    living = [agent for agent in known.values() if agent.lives(clock)]
    faults = [
        *_gone([agent for agent in known.values() if agent not in living], clock),
        *_waiting(connection, living, workers),
        *_failing(workers),
    ]
    yield from faults
    if living and not faults:
        hosts = len({agent.host for agent in living})
        plural = "s" * (len(living) != 1)
        yield ok(
            "agents", f"{len(living)} agent{plural} on {hosts} host{'s' * (hosts != 1)}, and no worker waits for one"
        )


def _gone(gone: Sequence[Agent], clock: int) -> Iterator[Finding]:
    for agent in gone[:SHOWN_MAX]:
        where = f"{agent.name} (process {agent.pid})"
        yield note(
            "agents",
            f"the agent on {where} is gone: not seen for {age(clock - agent.seen)}; another one takes its workers",
        )


def _waiting(connection: Connection, living: Sequence[Agent], workers: Sequence[Worker]) -> Iterator[Finding]:
    served = {type_ for agent in living if not agent.draining for type_ in agent.types}
    types = sorted({type_ for agent in living for type_ in agent.types} | {worker.type for worker in workers})[
        :TYPES_MAX
    ]
    replies = connection.pipeline([("LLEN", keys.start_queue(type_)) for type_ in types]) if types else []
    for type_, count in zip(types, replies, strict=True):
        if not isinstance(count, int) or not count:
            continue
        with contextlib.suppress(ConfigError):
            keys.check_type(type_)
            ids = f"{count} worker{'s' * (count != 1)} of {type_} wait{'s' * (count == 1)}"
            if type_ in served:
                yield note("agents", f"{ids} for an agent with room: scale less, or start one on another host")
            else:
                yield note(
                    "agents",
                    f"{ids}, and no agent runs workers of this type",
                    hint=f"sandboxrun agent {shlex.quote(type_)}",
                )


def _failing(workers: Sequence[Worker]) -> Iterator[Finding]:
    failing = [worker for worker in workers if worker.shown_state == "failing"]
    for worker in failing[:SHOWN_MAX]:
        assert worker.kept is not None
        text = f"{worker.name} keeps ending, after {worker.kept.restarts} restarts: {worker.kept.end[:200] or 'nobody knows why'}"
        yield note("agents", text, hint=f"sandboxrun logs {worker.name} -n 50")
    if len(failing) > SHOWN_MAX:
        yield note("agents", f"and {len(failing) - SHOWN_MAX} more workers keep ending", hint="sandboxrun ps")
