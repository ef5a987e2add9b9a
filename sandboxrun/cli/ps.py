"""sandboxrun ps."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Collection
from typing import Any

from sandboxrun.cli.fleet import known_here
from sandboxrun.cli.mistakes import with_redis
from sandboxrun.cli.parser import Parser, connect_option
from sandboxrun.cli.redis import connected
from sandboxrun.config import keys
from sandboxrun.fleet import agents
from sandboxrun.fleet import workers as fleet
from sandboxrun.fleet.agents import Agent
from sandboxrun.fleet.units import age, size
from sandboxrun.fleet.workers import State, Worker
from sandboxrun.host import statuses, usage
from sandboxrun.host.folders import Folders
from sandboxrun.log import escape, shown_hint
from sandboxrun.records import never
from sandboxrun.redis.connection import Connection
from sandboxrun.redis.lease import LEASE_SECONDS, this_host
from sandboxrun.redis.replies import ReplyError

_EPILOG = f"""\
examples:
  sandboxrun ps                        all running workers of this Redis, on every host
  sandboxrun ps demo-worker --all      also those that do not run
  sandboxrun ps --here                 on this host only
  sandboxrun ps --json | jq -r '.[] | select(.state == "stale") | .key'

states:
  running    the process exists; on another host: it renewed its pid within the last {LEASE_SECONDS} s
  ending     its pid was removed, and it has a few seconds to finish
  stale      the process is gone, but its pid is left: sandboxrun stop TYPE ID or the next start removes the pid
  unknown    sandboxrun did not set the pid (there is no pidHost), and no process of this host has it
  waiting    an agent has it and starts it again: after a while, or once its hash or the policy has changed
  failing    the same, after {fleet.FAILING} restarts or more
  stuck      an agent of this host says so: a handler takes longer than limitHandler
  stopped    it has a hash, and does not run (--all)

Memory and CPU time are known on this host only. PENDING counts the requests that the worker has begun.
"""
_HEAD = ("TYPE ID", "HOST", "PID", "STATE", "SINCE", "MEMORY", "CPU", "VERSION", "PENDING")
_HEAD_ENDS = ("RESTARTS", "LAST END")  # if agents run some of them
_CELL_MAX_CHARS = 40
AGENTS_SHOWN = 50


def main(args: list[str]) -> int:
    parser = Parser(prog="sandboxrun ps", description="List the workers that run, on all hosts.", epilog=_EPILOG)
    parser.add_argument("type", metavar="TYPE", nargs="?", help="only workers of this type")
    parser.add_argument("-a", "--all", action="store_true", help="also workers that do not run")
    parser.add_argument("--here", action="store_true", help="only workers on this host")
    parser.add_argument("--json", action="store_true", help="print JSON")
    connect_option(parser)
    options = parser.parse_args(args)
    if options.type is not None:
        keys.check_type(options.type)
    with connected(options.redis) as connection:
        found = fleet.find(connection, options.type, known=known_here(), everything=options.all)
        workers = fleet.read(connection, found.workers)
        known, clock = _agents(connection)
        shown = connection.address.shown
    workers = [
        w for w in workers if (options.all or w.shown_state != "stopped") and (_is_here(w, known) or not options.here)
    ]
    stuck = _stuck_here()
    rows = [row(worker, used, stuck) for used in [usage.by_session()] for worker in workers]
    if options.json:
        print(json.dumps(rows))
    elif rows:
        with_ends = any(row["agent"] is not None or row["restarts"] for row in rows)
        head = _HEAD + _HEAD_ENDS * with_ends
        print("\n".join(map(escape, table([head, *(cells(row)[: len(head)] for row in rows)]))))
    else:
        of, here = f" of type {options.type}" if options.type else "", " on this host" if options.here else ""
        print(escape(f"no worker{of} {'is known to' if options.all else 'runs by'} {shown}{here}"))
        if not options.all:
            print(shown_hint(with_redis((_all_hint(options.type),), args)))
    if not options.json:
        for line in agent_lines(known, clock):
            print(escape(line))
    for text, hint in [*notes(workers), *([(found.cut, ())] if found.cut else [])]:
        print(escape(f"note: {text}"), file=sys.stderr)
        shown = shown_hint(with_redis(hint, args))
        if shown:
            print(shown, file=sys.stderr)
    return 0


def _stuck_here() -> set[tuple[str, str, int | None]]:
    """Type, id and pid of the workers that this user's agents of this host call stuck, which Redis does not know."""
    found = (status for _, status in statuses.read_all(Folders.of_user().agents) if not isinstance(status, str))
    return {(w.type, w.id, w.pid) for status in found for w in status.workers if w.state == "stuck"}


def _agents(connection: Connection) -> tuple[dict[str, Agent], int]:
    with contextlib.suppress(ReplyError):  # this login may not read them
        return agents.read(connection)
    return {}, 0


def _is_here(worker: Worker, known: dict[str, Agent]) -> bool:
    agent = known.get(worker.kept.agent) if worker.kept is not None else None
    return worker.here or (agent is not None and agent.host == this_host())


def agent_lines(known: dict[str, Agent], clock: int) -> list[str]:
    """A line for each agent, those of this host first. `clock`: Redis's, in seconds."""
    ordered = sorted(known.values(), key=lambda agent: (agent.host != this_host(), agent.name, agent.pid))
    lines = []
    for agent in ordered[:AGENTS_SHOWN]:
        types = ", ".join(agent.types[:8]) + (" …" if len(agent.types) > 8 else "")
        does = f"{agent.workers} of at most {agent.most} workers of {types}"
        if not agent.lives(clock):
            does = f"gone: not seen for {age(clock - agent.seen)}"
        elif agent.draining:
            does = f"draining, {agent.workers} workers left"
        lines.append(f"agent {agent.name} (process {agent.pid}): {does}")
    more = len(ordered) - AGENTS_SHOWN
    return [*lines, *([f"and {more} more agents"] if more > 0 else [])]


def _all_hint(type_: str | None) -> str:
    return f"sandboxrun ps {type_} --all" if type_ else "sandboxrun ps --all"


def row(
    worker: Worker, used: dict[int, usage.Usage], stuck: Collection[tuple[str, str, int | None]] = ()
) -> dict[str, Any]:
    """For --json: bytes, seconds, Unix times. `stuck`: as `_stuck_here` returns them."""
    held = worker.held
    alive_here = worker.here and worker.state == State.RUNNING and worker.pid is not None
    mine = used.get(worker.pid or 0) if alive_here else None
    since = _number(held["pidSince"])
    if alive_here and held["pidStarted"]:
        since = int(time.time() - usage.age_seconds(int(held["pidStarted"])))
    return {
        "type": worker.type,
        "id": worker.id,
        "key": worker.key,
        "host": held["pidName"],
        "here": worker.here,
        "pid": worker.pid if held["pid"] is None or worker.pid is not None else held["pid"],
        "state": "stuck" if alive_here and (worker.type, worker.id, worker.pid) in stuck else worker.shown_state,
        "since": since,
        "seen": _number(held["pidSeen"]),
        "memory": mine.memory if mine else None,
        "cpu": round(mine.cpu, 2) if mine else None,
        "processes": mine.processes if mine else None,
        "version": held["pidVersion"] or worker.version or None,
        "next_version": worker.version or None,
        "pending": worker.pending,
        "agent": (worker.kept.agent or None) if worker.kept is not None else None,
        "restarts": worker.kept.restarts if worker.kept is not None else 0,
        "last_exit": worker.kept.exit if worker.kept is not None else None,
        "last_end": (worker.kept.end or None) if worker.kept is not None else None,
        "stopped": worker.kept.stopped if worker.kept is not None else None,
    }


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """One row of the table."""
    here = "this host" if row["here"] else "?" if row["pid"] is not None else ""
    version = row["version"] or ""
    if row["next_version"] not in (None, version):
        version += f" (next {row['next_version']})"
    state, since = row["state"], row["since"]
    return (
        f"{row['type']} {row['id']}",
        row["host"] or here,
        _or_nothing(row["pid"]),
        state,
        age(time.time() - since) if since is not None and state != State.STOPPED else "",
        size(row["memory"]) if row["memory"] is not None else "",
        f"{row['cpu']:.1f} s" if row["cpu"] is not None else "",
        version,
        _or_nothing(row["pending"]),
        str(row["restarts"] or ""),
        row["last_end"] or "",
    )


def table(rows: list[tuple[str, ...]]) -> list[str]:
    """Lines with columns of equal width. Cells are escaped, and then cut if they are too long."""
    cut = [[_cut(escape(cell)) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cut, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cut]


def notes(workers: list[Worker]) -> list[tuple[str, tuple[str, ...]]]:
    """What is not as it should be, each with its hint."""
    return [note for worker in workers if (note := _note(worker))]


def _note(worker: Worker) -> tuple[str, tuple[str, ...]] | None:
    match worker.state:
        case State.STALE if worker.here:
            return f"{worker.name} is stale: its process is gone", (_stop_hint(worker),)
        case State.STALE:
            return (
                f"{worker.name} is stale: its host has not renewed the pid for {LEASE_SECONDS} s, because the worker was killed or "
                "has no connection to Redis",
                (_stop_hint(worker),),
            )
        case State.UNKNOWN:
            return (
                f"{worker.name} has a pid that is no process of this host, and that sandboxrun did not set",
                (_stop_hint(worker),),
            )
        case State.UNREADABLE:
            return f"{worker.key} is no hash, or its fields are too long to be read", ()
        case State.RUNNING | State.ENDING | State.STOPPED:
            return None
        case _:
            raise never(worker.state)


def _stop_hint(worker: Worker) -> str:
    return f"sandboxrun stop {worker.name}"


def _cut(text: str) -> str:
    return text if len(text) <= _CELL_MAX_CHARS else text[: _CELL_MAX_CHARS - 1] + "…"


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 13 else None


def _or_nothing(value: Any) -> str:
    return "" if value is None else str(value)
