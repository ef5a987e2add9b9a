"""sandboxrun ps."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from sandboxrun.cli.fleet import age, known_here, size
from sandboxrun.cli.parser import Parser, connect_option
from sandboxrun.cli.redis import connected
from sandboxrun.config import keys
from sandboxrun.fleet import workers as fleet
from sandboxrun.fleet.workers import State, Worker
from sandboxrun.host import usage
from sandboxrun.log import escape
from sandboxrun.records import never
from sandboxrun.redis.lease import LEASE_SECONDS

_EPILOG = f"""\
examples:
  sandboxrun ps                        all that runs by this Redis, on every host
  sandboxrun ps demo-worker --all      and what does not run
  sandboxrun ps --here                 on this host only
  sandboxrun ps --json | jq -r '.[] | select(.state == "stale") | .key'

states:
  running    the process is there; on another host: it was seen within {LEASE_SECONDS} s
  ending     its pid was removed, and it has a few seconds to finish
  stale      the process is gone and has left its pid: sandboxrun stop TYPE ID clears it, and so does the next start
  unknown    a pid without pidHost, set by a worker without sandboxrun, that is no process of this host

memory and CPU time are known on this host only; pending: requests that it has begun
"""
_HEAD = ("TYPE ID", "HOST", "PID", "STATE", "SINCE", "MEMORY", "CPU", "VERSION", "PENDING")
_CELL_MAX_CHARS = 40


def main(args: list[str]) -> int:
    parser = Parser(prog="sandboxrun ps", description="Show which workers run, on all hosts.", epilog=_EPILOG)
    parser.add_argument("type", metavar="TYPE", nargs="?", help="only of this type")
    parser.add_argument("-a", "--all", action="store_true", help="also the workers that do not run")
    parser.add_argument("--here", action="store_true", help="only those on this host")
    parser.add_argument("--json", action="store_true", help="print JSON")
    connect_option(parser)
    options = parser.parse_args(args)
    if options.type is not None:
        keys.check_type(options.type)
    with connected(options.redis) as connection:
        found = fleet.find(connection, options.type, known=known_here())
        workers = fleet.read(connection, found.workers)
        shown = connection.address.shown
    workers = [w for w in workers if (options.all or w.state != State.STOPPED) and (w.here or not options.here)]
    rows = [row(worker, used) for used in [usage.by_session()] for worker in workers]
    if options.json:
        print(json.dumps(rows))
    elif rows:
        print("\n".join(map(escape, table([_HEAD, *map(cells, rows)]))))
    else:
        of, where = f" of type {options.type}" if options.type else "", " on this host" if options.here else ""
        hint = (
            ""
            if options.all
            else f"; sandboxrun ps{f' {options.type}' * bool(options.type)} --all shows those that do not run"
        )
        print(escape(f"no worker{of} {'is known' if options.all else 'runs'}{where} by {shown}{hint}"))
    for line in [*(hints(workers)), *([found.cut] if found.cut else [])]:
        print(escape(f"note: {line}"), file=sys.stderr)
    return 0


def row(worker: Worker, used: dict[int, usage.Usage]) -> dict[str, Any]:
    """For --json: bytes, seconds, Unix times."""
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
        "state": worker.state.value,
        "since": since,
        "seen": _number(held["pidSeen"]),
        "memory": mine.memory if mine else None,
        "cpu": round(mine.cpu, 2) if mine else None,
        "processes": mine.processes if mine else None,
        "version": held["pidVersion"] or worker.version or None,
        "next_version": worker.version or None,
        "pending": worker.pending,
    }


def cells(found: dict[str, Any]) -> tuple[str, ...]:
    """One row of the table."""
    here = "this host" if found["here"] else "?" if found["pid"] is not None else ""
    version = found["version"] or ""
    if found["next_version"] not in (None, version):
        version += f" (next {found['next_version']})"
    state, since = found["state"], found["since"]
    return (
        f"{found['type']} {found['id']}",
        found["host"] or here,
        _or_nothing(found["pid"]),
        state,
        age(time.time() - since) if since is not None and state != State.STOPPED else "",
        size(found["memory"]) if found["memory"] is not None else "",
        f"{found['cpu']:.1f} s" if found["cpu"] is not None else "",
        version,
        _or_nothing(found["pending"]),
    )


def table(rows: list[tuple[str, ...]]) -> list[str]:
    """Lines with columns of equal width. What is too long is cut; escapes come first, for they are longer."""
    cut = [[_cut(escape(cell)) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cut, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cut]


def hints(workers: list[Worker]) -> list[str]:
    """What to do about those that are not as they should be."""
    return [hint for worker in workers if (hint := _hint(worker))]


def _hint(worker: Worker) -> str:
    match worker.state:
        case State.STALE:
            where = (
                "its process is gone"
                if worker.here
                else f"its host has not renewed it for {LEASE_SECONDS} s, so it was killed, or is cut off from Redis"
            )
            return f"{worker.name} is stale: {where}; sandboxrun stop {worker.name} clears it, and so does a start"
        case State.UNKNOWN:
            return (
                f"{worker.name} has a pid that is no process of this host, set by a worker without sandboxrun: "
                f"sandboxrun stop {worker.name} clears it"
            )
        case State.UNREADABLE:
            return f"{worker.key} is no hash, or has fields too long to be read: look with HSTRLEN, or DEL {worker.key}"
        case State.RUNNING | State.ENDING | State.STOPPED:
            return ""
        case _:
            raise never(worker.state)


def _cut(text: str) -> str:
    return text if len(text) <= _CELL_MAX_CHARS else text[: _CELL_MAX_CHARS - 1] + "…"


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 13 else None


def _or_nothing(value: Any) -> str:
    return "" if value is None else str(value)
