"""Streams that somebody who may only add to them has made unusable, or has emptied."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sandboxrun.config import keys
from sandboxrun.describe.doctor.finding import Finding, fails, note
from sandboxrun.fleet.workers import Worker
from sandboxrun.redis.connection import Connection
from sandboxrun.redis.streams import can_be_repaired, examine

TYPES_MAX = 100


def streams(connection: Connection, workers: Sequence[Worker]) -> Iterator[Finding]:
    """Yield the faults of these types' streams."""
    for type_ in sorted({worker.type for worker in workers})[:TYPES_MAX]:
        for stream in (keys.request_stream(type_), keys.response_stream(type_)):
            for fault in examine(connection, stream):
                if can_be_repaired(fault.kind):
                    yield fails("streams", f"{stream} {fault.text}", hint=f"sandboxrun stream {type_} repair")
                else:
                    yield note("streams", f"{stream} {fault.text}")
