"""sandboxrun dead."""

from __future__ import annotations

import json

from sandboxrun import keys
from sandboxrun.cli.parser import type_parser
from sandboxrun.cli.redis import connected, pairs, show_entry, text
from sandboxrun.errors import ConfigError, UsageError
from sandboxrun.log import escape

PAGE = 500


def main(args: list[str]) -> int:
    parser = type_parser(
        "dead",
        description="Look at the requests that were given up: those that ended their worker maxDeliveries times.",
        epilog="examples:\n  sandboxrun dead demo-worker                       list them\n"
        "  sandboxrun dead demo-worker show ID\n  sandboxrun dead demo-worker requeue ID …|all      send them once more, as new requests\n"
        "  sandboxrun dead demo-worker drop ID …|all",
    )
    parser.add_argument("action", metavar="list|show|requeue|drop", nargs="?", default="list")
    parser.add_argument("ids", metavar="ID", nargs="*", help="as list shows it; all for every one")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(args)
    stream = keys.dead_stream(keys.check_type(options.type))
    if options.action not in ("list", "show", "requeue", "drop"):
        raise UsageError(f"{options.action[:80]!r} is not list, show, requeue or drop; see sandboxrun dead --help")
    if (options.action == "list") == bool(options.ids):
        raise UsageError(
            f"{options.action} takes {'no' if options.action == 'list' else 'one or more'} ID; see sandboxrun dead --help"
        )
    with connected(options.redis) as connection:
        found = _letters(
            connection, stream, None if options.action == "list" or options.ids == ["all"] else options.ids
        )
        if options.action in ("list", "show"):
            _print(found, whole=options.action == "show", as_json=options.json)
            return 0
        for xid, fields in found:
            if options.action == "requeue":
                _requeue(connection, options.type, stream, xid, fields)
            else:
                connection.call("XDEL", stream, xid)
        print(f"{'sent once more' if options.action == 'requeue' else 'removed'}: {len(found)}")
    return 0


def _letters(connection, stream: str, ids: list[str] | None) -> list[tuple[str, dict[str, str]]]:  # type: ignore[no-untyped-def]
    """Those of the ids, or all."""
    found: list[tuple[str, dict[str, str]]] = []
    for xid in ids or ():
        rows = connection.call("XRANGE", stream, xid, xid)
        if not rows:
            raise ConfigError(f"{stream} has no entry {xid[:40]!r}: see sandboxrun dead TYPE")
        found.append((text(rows[0][0]), pairs(rows[0][1])))
    start = "-"
    while ids is None:
        rows = connection.call("XRANGE", stream, start, "+", "COUNT", PAGE)
        found += [(text(xid), pairs(fields)) for xid, fields in rows]
        if len(rows) < PAGE:
            break
        start = f"({text(rows[-1][0])}"
    return found


def _requeue(connection, type_: str, stream: str, xid: str, fields: dict[str, str]) -> None:  # type: ignore[no-untyped-def]
    """As a new request, under the same ref; and out of the stream, in the same moment. The deadline is gone by now."""
    prefix = "request."
    words = [
        word
        for name, value in fields.items()
        if name.startswith(prefix) and name != f"{prefix}deadline"
        for word in (name.removeprefix(prefix), value)
    ]
    connection.pipeline([("MULTI",)])
    connection.pipeline([("XADD", keys.request_stream(type_), "*", *words), ("XDEL", stream, xid)])
    connection.call("EXEC")


def _print(found: list[tuple[str, dict[str, str]]], *, whole: bool, as_json: bool) -> None:
    if as_json:
        print(json.dumps([{"id": xid, **fields} for xid, fields in found]))
        return
    for xid, fields in found:
        if whole:
            show_entry(xid, fields)
        else:
            print(
                escape(
                    f"{xid}  {fields.get('time', '')}  {fields.get('deliveries', '')}×  {fields.get('ref', '')}  {fields.get('request.data', '')[:80]}"
                )
            )
