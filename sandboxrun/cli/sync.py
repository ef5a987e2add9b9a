"""sandboxrun sync."""

from __future__ import annotations

import argparse
import sys
import time

from sandboxrun.cli.mistakes import check_action, help_hint
from sandboxrun.cli.parser import Parser, connect_option
from sandboxrun.errors import ConfigError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandboxrun.redis.connection import Connection
    from sandboxrun.sync.model import Table

ACTIONS = {
    "plan": "print the SQL that makes the tables, and that grants a role what the worker needs",
    "backfill": "have the hashes stored that were there before: their keys are added to the table's stream",
    "schema": "print the JSON Schema of sync.json, for editors",
}
_EPILOG = (
    "actions:\n"
    + "\n".join(f"  {name:<10} {text}" for name, text in ACTIONS.items())
    + """

examples:
  sandboxrun sync plan shop --postgres-role writer | psql shop
  sandboxrun sync backfill shop carts
  sandboxrun sync schema > sync.schema.json

FOLDER has a sync.json. plan and schema connect to nothing.
"""
)
SCAN_COUNT = 1000
LAG_MOST = 10_000  # entries that wait for the worker, beyond which the backfill pauses
PAUSE_SECONDS = 0.2


def main(args: list[str]) -> int:
    parser = _parser()
    options = parser.parse_args(args)
    check_action(parser, args, options.action, ACTIONS)
    _check(parser, options)
    if options.action == "schema":
        from sandboxrun.sync import model

        print(model.schema_text().rstrip())
        return 0
    if options.action == "plan":
        return _plan(options)
    return _backfill(options)


def _parser() -> Parser:
    parser = Parser(
        prog="sandboxrun sync",
        description="Prepare PostgreSQL for the tables of a sync.json, which the plugin postgres-sync keeps up to date.",
        epilog=_EPILOG,
    )
    parser.add_argument("action", metavar="|".join(ACTIONS))
    parser.add_argument("folder", metavar="FOLDER", nargs="?", help="where the sync.json is")
    parser.add_argument("table", metavar="TABLE", nargs="?", help="backfill: one of its tables")
    parser.add_argument(
        "--postgres-role", metavar="ROLE", help="plan: the worker's role, which is granted what it needs"
    )
    connect_option(parser)
    return parser


def _check(parser: Parser, options: argparse.Namespace) -> None:
    """Raises UsageError."""
    action, hint = options.action, help_hint(parser)
    if options.folder is None and action != "schema":
        raise UsageError(f"sync {action} needs the folder of a sync.json", hint=hint)
    if options.folder is not None and action == "schema":
        raise UsageError("sync schema has no folder: it is the same for all", hint="sandboxrun sync schema")
    if (options.table is None) == (action == "backfill"):
        raise UsageError("a TABLE is for backfill, which needs one", hint=hint)
    if options.postgres_role is not None and action != "plan":
        raise UsageError("--postgres-role is for plan", hint=hint)


def _plan(options: argparse.Namespace) -> int:
    from sandboxrun.sync import model, sql

    for table in model.load(options.folder).values():
        statements = sql.create(table)
        if options.postgres_role is not None:
            statements += sql.grants(table, options.postgres_role)
        print("\n".join(statements))
    return 0


def _backfill(options: argparse.Namespace) -> int:
    from sandboxrun.cli.redis import connected
    from sandboxrun.redis.replies import raise_errors
    from sandboxrun.sync import model

    table = _named(model.load(options.folder), options.table)
    if table.hash is None:
        print(
            f"{table.name} has the entries of {table.stream}, and the worker begins with the first: nothing is to be done"
        )
        return 0
    with connected(options.redis) as connection:
        count = 0
        for keys in _scan(connection, table.hash):
            raise_errors(connection.pipeline([("XADD", table.stream, "*", "key", key) for key in keys]))
            count += len(keys)
            print(f"\r{count} keys", end="", file=sys.stderr, flush=True) if sys.stderr.isatty() else None
            _wait(connection, table.stream)
    print(f"added {count} keys of {table.hash} to {table.stream}; the worker stores them")
    return 0


def _named(tables: dict[str, Table], name: str) -> Table:
    """Raises ConfigError, with the nearest name."""
    from sandboxrun.nearnames import expected, quoted

    if name not in tables:
        raise ConfigError(f"sync.json has no table {quoted(name)}{expected(name, tables)}")
    return tables[name]


def _scan(connection: Connection, pattern: str) -> Iterator[list[bytes]]:
    """Keys of hashes, some of them perhaps twice."""
    cursor = b"0"
    while True:
        cursor, keys = connection.call("SCAN", cursor, "MATCH", pattern, "COUNT", SCAN_COUNT, "TYPE", "hash")
        if keys:
            yield keys
        if cursor == b"0":
            return


def _wait(connection: Connection, stream: str) -> None:
    """Until the groups that read the stream have caught up: Redis would fill with what the worker has not stored yet."""
    said = False
    while True:
        groups = [dict(zip(each[::2], each[1::2], strict=True)) for each in connection.call("XINFO", "GROUPS", stream)]
        if all((group.get(b"lag") or 0) < LAG_MOST for group in groups):
            return
        if not said:
            said = True
            print(f"waiting until a worker has read what {stream} has", file=sys.stderr, flush=True)
        time.sleep(PAUSE_SECONDS)
