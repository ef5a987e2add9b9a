"""sandboxrun info."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from sandboxrun.cli.parser import type_parser
from sandboxrun.cli.redis import connected, record, text
from sandboxrun.config import keys
from sandboxrun.errors import ConfigError
from sandboxrun.fleet.backlog import source_of
from sandboxrun.fleet.units import duration
from sandboxrun.host import statuses
from sandboxrun.host.folders import Folders
from sandboxrun.log import escape
from sandboxrun.redis import streams
from sandboxrun.redis.pages import ENTRY_MAX_BYTES, ask_all
from sandboxrun.redis.replies import ReplyError

SAMPLE_SECONDS = 0.5
PENDING_SHOWN = 10
CONSUMERS_SHOWN = WORKERS_SHOWN = 100


def main(args: list[str]) -> int:
    parser = type_parser(
        "info",
        description="Show what the workers of a type do: requests, consumers, pending requests and their age, rates.",
        epilog="examples:\n  sandboxrun info demo-worker\n  sandboxrun info demo-worker --watch\n"
        "  sandboxrun info demo-worker --json | jq .group.lag",
    )
    parser.add_argument(
        "--watch", metavar="SECONDS", nargs="?", type=float, const=2.0, help="repeat every 2 s, or every SECONDS"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, one object a line")
    options = parser.parse_args(args)
    keys.check_type(options.type)
    with connected(options.redis) as connection:
        before = look(connection, options.type)
        if before["requests"] is None:
            raise ConfigError(
                f"{escape(before['stream'])[:80]} does not exist: no worker of type {options.type} has run yet",
                hint=f"sandboxrun stream {options.type} create"
                if before["stream"] == keys.request_stream(options.type)
                else "",
            )
        while True:
            time.sleep(options.watch if options.watch and options.watch > 0 else SAMPLE_SECONDS)
            found = look(connection, options.type)
            rates(before, found)
            if options.watch is not None and not options.json and sys.stdout.isatty():
                print("\x1b[H\x1b[2J", end="")
            print(json.dumps(found) if options.json else escape_lines(show(found)), flush=True)
            if options.watch is None:
                return 0
            before = found


def look(connection: Any, type_: str) -> dict[str, Any]:
    """All figures at this moment."""
    responses, dead = keys.response_stream(type_), keys.dead_stream(type_)
    stream, reading = source_of(connection, type_)
    commands = [
        ("XINFO", "STREAM", stream), ("XINFO", "GROUPS", stream), ("XINFO", "CONSUMERS", stream, reading),
        ("XPENDING", stream, reading, "-", "+", PENDING_SHOWN), ("XLEN", responses), ("XLEN", dead), ("XLEN", stream),
    ]  # fmt: skip
    seconds, micros = map(int, connection.call("TIME"))
    now = seconds * 1000 + micros // 1000
    replies = ask_all(connection, commands)
    whole, groups, consumers, oldest, length, letters, count = replies
    notes = [
        f"{' '.join(map(str, command))}: more than {ENTRY_MAX_BYTES >> 20} MiB, so not read"
        for command, reply in zip(commands, replies, strict=True)
        if reply is None
    ]
    found: dict[str, Any] = {
        "type": type_, "stream": stream, "reading": reading, "at": time.time(), "requests": None, "added": None, "responses": _number(length),
        "dead": _number(letters), "group": None, "consumers": [], "pending": [], "notes": notes,
    }  # fmt: skip
    if whole is None:  # it has the first and the last entry in it, whatever their size
        found["requests"] = _number(count)
    elif not isinstance(whole, ReplyError):
        about = {text(name): value for name, value in zip(whole[::2], whole[1::2], strict=True)}
        found["requests"], found["added"] = about["length"], about.get("entries-added")
    if isinstance(groups, list):
        ours = next((group for group in map(record, groups) if group["name"] == reading), None)
        if ours is not None:
            found["group"] = {name.replace("-", "_"): value for name, value in ours.items()}
    if isinstance(consumers, list):
        found["consumers"] = [record(consumer) for consumer in consumers[:CONSUMERS_SHOWN]]
        if len(consumers) > CONSUMERS_SHOWN:
            notes.append(f"and {len(consumers) - CONSUMERS_SHOWN} further consumers")
        _add_health(connection, type_, found["consumers"])
    if isinstance(oldest, list):
        names = ("id", "consumer", "idle", "deliveries")
        found["pending"] = [dict(zip(names, (text(x), text(c), idle, n), strict=True)) for x, c, idle, n in oldest]
        for row in found["pending"]:
            row["age"] = _since(row["id"], now)
    found["workers"] = here(type_)
    found["faults"] = [
        {"stream": stream, "kind": fault.kind, "text": fault.text} for fault in streams.examine(connection, stream)
    ]
    return found


def _add_health(connection: Any, type_: str, consumers: list[dict[str, Any]]) -> None:
    """To the consumers that are workers on this host: what they have in hand, and since when, and what they answered."""
    from sandboxrun.host.pages import health_of
    from sandboxrun.redis.lease import this_host

    named = [consumer for consumer in consumers if _is_id(consumer["name"])]
    commands = [("HMGET", keys.worker_key(type_, consumer["name"]), "pid", "pidHost") for consumer in named]
    for consumer, reply in zip(named, ask_all(connection, commands) if commands else (), strict=True):
        pid, host = reply if isinstance(reply, list) else (None, None)
        if pid is None or host != this_host().encode() or not pid.isdigit() or len(pid) > 10:
            continue
        health = health_of(int(pid))
        if health is not None:
            since = time.monotonic() - health.handling_since if health.handling_since else None
            consumer["handling_seconds"] = None if since is None else round(since, 1)
            consumer["codes"] = {str(code): count for code, count in health.codes}


def rates(before: dict[str, Any], found: dict[str, Any]) -> None:
    """Requests a second that came and were answered since `before`; None if Redis is older than 7 and does not count."""
    seconds = found["at"] - before["at"]
    found["per_second"] = {"came": None, "answered": None}
    if found["added"] is not None and before["added"] is not None:
        found["per_second"]["came"] = round((found["added"] - before["added"]) / seconds, 1)
        done = [_done(part) for part in (before, found)]
        if None not in done:
            found["per_second"]["answered"] = round((done[1] - done[0]) / seconds, 1)


def _done(found: dict[str, Any]) -> Any:
    group = found["group"] or {}
    read = group.get("entries_read")
    return None if read is None else read - group["pending"]


def show(found: dict[str, Any]) -> list[str]:
    group, rate = found["group"] or {}, found["per_second"]
    lines = [
        f"{found['type']}: {found['requests']} requests in the stream, {found['responses']} responses, {found['dead']} dead letters",
        f"group {found['reading']}: {group.get('pending', 'none')} pending, {_or(group.get('lag'), 'unknown')} not delivered yet",
        f"a second: {_or(rate['came'], 'unknown')} came, {_or(rate['answered'], 'unknown')} were answered",
    ]
    for consumer in found["consumers"]:
        lines.append(
            f"  consumer {consumer['name']:<20} pending {consumer['pending']:<6} seen {_age(consumer['idle'])} ago"
            + _health(consumer)
        )
    for row in found["pending"]:
        lines.append(
            f"  pending {row['id']:<21} sent {_age(row['age'])} ago, with {row['consumer']} for {_age(row['idle'])}, "
            f"delivery {row['deliveries']}"
        )
    lines += [f"  worker {_worker(row)}" for row in found["workers"]]
    lines += [f"fault: {fault['stream']} {fault['text']}" for fault in found["faults"]]
    named = (keys.request_stream(found["type"]), keys.response_stream(found["type"]))  # which `repair` looks at
    if any(fault["stream"] in named and streams.can_be_repaired(fault["kind"]) for fault in found["faults"]):
        lines.append(f"repair it with: sandboxrun stream {found['type']} repair")
    lines += [f"note: {note}" for note in found["notes"]]
    return lines


def _is_id(name: str) -> bool:
    try:
        return keys.check_id(name) == name
    except ConfigError:
        return False


def _health(consumer: dict[str, Any]) -> str:
    """What follows the line of a consumer that is a worker on this host."""
    parts = []
    if consumer.get("handling_seconds") is not None:
        parts.append(f"handling for {_age(consumer['handling_seconds'] * 1000)}")
    if consumer.get("codes"):
        parts.append("answered " + ", ".join(f"{count} with {code}" for code, count in consumer["codes"].items()))
    return "".join(f", {part}" for part in parts)


def escape_lines(lines: list[str]) -> str:
    return "\n".join(map(escape, lines))


def here(type_: str) -> list[dict[str, Any]]:
    """What the workers of this host's agents say of themselves, without Redis."""
    clock, found = time.monotonic(), list[dict[str, Any]]()
    for _, status in statuses.read_all(Folders.of_user().agents):
        workers = () if isinstance(status, str) else status.workers
        for worker in workers:
            health = worker.health
            if worker.type != type_ or health is None or len(found) == WORKERS_SHOWN:
                continue
            busy = health.handling_since
            found.append(
                {
                    "id": worker.id, "state": worker.state, "handled": health.handled,
                    "codes": {str(code): count for code, count in health.codes},
                    "handling": round(clock - busy, 1) if busy else None,
                    "p50": health.handler.quantile(0.5), "p99": health.handler.quantile(0.99),
                }
            )  # fmt: skip
    return found


def _worker(row: dict[str, Any]) -> str:
    codes = ", ".join(f"{count} with {code}" for code, count in row["codes"].items())
    words = [f"{row['id']} is {row['state']}", f"has handled {row['handled']}{f' ({codes})' if codes else ''}"]
    words += [f"p50 {duration(row['p50'])}", f"p99 {duration(row['p99'])}"] if row["p50"] is not None else []
    return ", ".join([*words, *([f"and one for {row['handling']:.0f} s now"] if row["handling"] is not None else [])])


def _since(xid: str, now: int) -> int:
    """Milliseconds since an entry was added, by its id. `now`: Redis's clock."""
    millis = xid.partition("-")[0]
    return max(0, now - int(millis)) if millis.isascii() and millis.isdigit() and len(millis) < 16 else 0


def _age(millis: int) -> str:
    if millis > 10**10:
        return "ever (handed back)"
    seconds = millis / 1000
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _or(value: Any, other: str) -> Any:
    return other if value is None else value


def _number(reply: Any) -> int | None:
    return None if isinstance(reply, ReplyError) else reply
