"""sandboxrun stream."""

from __future__ import annotations

import collections
import itertools
import json
import sys

from sandboxrun.cli.mistakes import check_action
from sandboxrun.cli.parser import type_parser
from sandboxrun.cli.redis import connected, pairs, show_entry, text
from sandboxrun.config import keys
from sandboxrun.errors import ConfigError, UsageError
from sandboxrun.protocol import GROUP
from sandboxrun.redis import streams
from sandboxrun.redis.pages import ENTRY_MAX_BYTES, entries
from sandboxrun.redis.replies import ReplyError

COUNT_MOST = 10_000  # unanswered requests that are counted
SHOW_MAX_BYTES = 64 * 1024 * 1024
ACTIONS = {
    "create": "make the request stream and its consumer group",
    "delete": "remove both streams with all their entries",
    "trim": "keep the newest N answered requests and the newest N responses, and remove the older ones",
    "repair": "make the streams usable again if somebody has added an entry with an id ahead of the clock",
    "requests": "show the newest N requests",
    "responses": "show the newest N responses",
}


def main(args: list[str]) -> int:
    parser = type_parser(
        "stream",
        description="Create, delete, trim, repair or show the streams of a type of worker.",
        epilog="actions:\n"
        + "\n".join(f"  {name:<10} {what}" for name, what in ACTIONS.items())
        + "\n\nexamples:\n  sandboxrun stream demo-worker responses -n 3\n  sandboxrun stream demo-worker trim -n 1000",
    )
    parser.add_argument("action", metavar="|".join(ACTIONS))
    parser.add_argument("-n", metavar="N", type=int, default=10, help="how many to show or to keep (default: 10)")
    parser.add_argument("--force", action="store_true", help="delete the streams even if requests are unanswered")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(args)
    keys.check_type(options.type)
    check_action(parser, args, options.action, ACTIONS)
    if options.n < 0:
        raise UsageError(f"-n is {options.n}: expected 0 or more")
    with connected(options.redis) as connection:
        requests, responses = keys.request_stream(options.type), keys.response_stream(options.type)
        if options.action == "create":
            print(_create(connection, requests))
        elif options.action == "delete":
            if not options.force and (count := unanswered(connection, requests)):
                raise ConfigError(
                    f"{requests} has {count} unanswered request{'s' * (count != 1)}",
                    hint=f"sandboxrun stream {options.type} delete --force",
                )
            print(f"removed: {connection.call('DEL', requests, responses)}")
        elif options.action == "repair":
            _repair(connection, requests, responses)
        elif options.action == "trim":
            removed = trim(connection, requests, options.n) + _trim_responses(connection, responses, options.n)
            print(f"removed: {removed} entries")
        else:
            _show(connection, requests if options.action == "requests" else responses, options.n, options.json)
    return 0


def _create(connection, stream: str) -> str:  # type: ignore[no-untyped-def]
    reply = connection.pipeline([("XGROUP", "CREATE", stream, GROUP, "0", "MKSTREAM")])[0]
    if isinstance(reply, ReplyError) and not str(reply).startswith("BUSYGROUP"):
        raise reply
    return f"{stream} with group {GROUP} {'was there' if isinstance(reply, ReplyError) else 'is made'}"


def _repair(connection, *names: str) -> None:  # type: ignore[no-untyped-def]
    for stream in names:
        found = streams.examine(connection, stream)
        for fault in found:
            print(f"{stream} {fault.text}")
        if any(streams.can_be_repaired(fault.kind) for fault in found):
            moved = streams.repair(connection, stream)
            print(f"{stream} is repaired: {moved} of its entries {'has' if moved == 1 else 'have'} a new id")
        elif connection.call("EXISTS", stream):
            print(f"{stream} has nothing to repair")


def _floor(connection, stream: str) -> bytes | None:  # type: ignore[no-untyped-def]
    """The oldest entry that some group has pending, or the last that all were given; None without a group."""
    groups = connection.pipeline([("XINFO", "GROUPS", stream)])[0]
    if isinstance(groups, ReplyError) or not groups:
        return None
    floors: list[bytes] = []
    for group in groups:
        found = {text(name): value for name, value in zip(group[::2], group[1::2], strict=True)}
        row = connection.call("XPENDING", stream, found["name"])
        floors.append(row[1] if row[0] else found["last-delivered-id"])
    return min(floors, key=lambda xid: [int(part) for part in text(xid).split("-")])


def unanswered(connection, stream: str) -> int:  # type: ignore[no-untyped-def]
    """How many entries are pending or not delivered yet."""
    floor = _floor(connection, stream)
    if floor is None:
        return int(connection.call("XLEN", stream))
    pending = int(connection.call("XPENDING", stream, GROUP)[0])
    last = next(g for g in map(_group, connection.call("XINFO", "GROUPS", stream)) if g["name"] == GROUP)[
        "last-delivered-id"
    ]
    return pending + sum(1 for _ in itertools.islice(entries(connection, stream, start=f"({last}"), COUNT_MOST))


def _group(flat) -> dict[str, str]:  # type: ignore[no-untyped-def]
    return pairs(flat)


def _trim_responses(connection, stream: str, keep: int) -> int:  # type: ignore[no-untyped-def]
    """As `trim`, if some group reads them."""
    if _floor(connection, stream) is None:
        return int(connection.call("XTRIM", stream, "MAXLEN", keep))
    return trim(connection, stream, keep, answered=False)


def trim(connection, stream: str, keep: int, *, answered: bool = True) -> int:  # type: ignore[no-untyped-def]
    """Remove entries beyond the newest `keep`; never one that a group still needs. How many were removed. `answered`: of
    requests, also the last one that was given, if it is answered."""
    floor = _floor(connection, stream)
    if floor is None:
        return 0
    bound = floor
    # Page by page: `keep` may be large.
    last = collections.deque(itertools.islice(entries(connection, stream, newest_first=True), keep), maxlen=1)
    if last:
        bound = min(floor, last[0].xid.encode(), key=lambda xid: [int(part) for part in text(xid).split("-")])
    removed = int(connection.call("XTRIM", stream, "MINID", bound))
    if answered and bound == floor and not connection.call("XPENDING", stream, GROUP)[0] and not keep:
        removed += int(connection.call("XDEL", stream, floor))  # the last one given is answered as well
    return removed


def _show(connection, stream: str, count: int, as_json: bool) -> None:  # type: ignore[no-untyped-def]
    newest: list[tuple[str, dict[str, str]]] = []
    size = 0
    for entry in itertools.islice(entries(connection, stream, newest_first=True), count):
        size += entry.size if entry.fields is not None else 0
        if size > SHOW_MAX_BYTES:
            mib = SHOW_MAX_BYTES >> 20
            print(f"note: only the newest {len(newest)}: the others have more than {mib} MiB together", file=sys.stderr)
            break
        large = {"note": f"more than {ENTRY_MAX_BYTES >> 20} MiB, so not read"}
        newest.append((entry.xid, entry.text() if entry.fields is not None else large))
    oldest_first = newest[::-1]
    if as_json:
        print(json.dumps([{"id": xid, **fields} for xid, fields in oldest_first]))
        return
    for xid, fields in oldest_first:
        show_entry(xid, fields)
    if not newest and count:
        there = connection.call("EXISTS", stream)
        print(f"{stream} is empty" if there else f"{stream} does not exist")
