"""sandboxrun redish; the command redish is the same."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator

from sandboxrun.cli.parser import Parser, connect_option
from sandboxrun.cli.redis import connected
from sandboxrun.errors import ConfigError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sandboxrun.redis.connection import Connection

LIMIT = 100
_EPILOG = """\
examples:
  redish demo-worker:1:h                  the hash of a worker
  sandboxrun redish demo-worker:1:h       the same
  redish demo-worker:1:h version pid      two of its fields
  redish 'demo-worker:*:h'                the hashes of all workers of this type
  redish demo-worker:res:x -n 3           the newest three replies
  redish 'res:*' --redis redis://default:PASSWORD@127.0.0.1

A hash is shown as FIELD VALUE, a sorted set as MEMBER SCORE, a list as INDEX VALUE, a set as MEMBER, and a stream as
ID TIME with its fields below, the newest entry first. Numbers of 13 digits are milliseconds since 1970 and are shown as
times. A character that could drive the terminal is shown as an escape.
"""


def main(args: list[str]) -> int:
    parser = Parser(
        prog="sandboxrun redish",
        description="Print keys of Redis in a readable form, a field and its value on each line. Nothing is changed.",
        epilog=_EPILOG,
    )
    parser.add_argument("key", metavar="KEY|PATTERN", help="a pattern has *, ? or [ in it; quote it for the shell")
    parser.add_argument("fields", metavar="FIELD", nargs="*", help="print only these fields")
    parser.add_argument(
        "-n",
        metavar="N",
        type=int,
        default=LIMIT,
        help=f"print at most N keys, and N fields or entries of each (default: {LIMIT})",
    )
    connect_option(parser)
    options = parser.parse_args(args)
    if options.n < 1:
        raise UsageError(f"-n is {options.n}: expected 1 or more")

    from sandboxrun.describe.keyspace import is_pattern

    key, fields = os.fsencode(options.key), [os.fsencode(field) for field in options.fields]
    with connected(options.redis) as connection:
        if is_pattern(key):
            _print_matching(connection, key, fields, options.n)
        else:
            _print_one(connection, key, fields, options.n)
    return 0


def _print_one(connection: Connection, key: bytes, fields: list[bytes], limit: int) -> None:
    from sandboxrun.describe import keyspace

    kind = keyspace.kind_of(connection, key)
    if kind == "none":
        raise ConfigError(f"there is no key '{keyspace.shown(key)}'", hint=_near_hint(connection, key))
    if fields and kind not in keyspace.WITH_FIELDS:
        raise ConfigError(
            f"{keyspace.shown(key)} is a {kind}, which has no fields",
            hint=_show_hint(key),
        )
    count = _print(keyspace.lines(connection, key, kind, fields, limit))
    if fields and not count:
        names = " or ".join(map(keyspace.shown, fields))
        raise ConfigError(f"{keyspace.shown(key)} has no field {names}", hint=_show_hint(key))


def _near_hint(connection: Connection, key: bytes) -> str:
    from sandboxrun.describe.keyspace import resembling

    near = resembling(connection, key)
    return _show_hint(near) if near is not None else ""


def _show_hint(key: bytes) -> str:
    """The command that shows a key. Somebody else may have named it like an option, such as --redis."""
    word = shlex.quote(os.fsdecode(key))
    return f"sandboxrun redish {f'-- {word}' if key.startswith(b'-') else word}"


def _print_matching(connection: Connection, pattern: bytes, fields: list[bytes], limit: int) -> None:
    """Each key and its content, indented. A key without the wanted fields is left out."""
    from sandboxrun.describe import keyspace

    matches = keyspace.matching(connection, pattern, limit)
    if not matches.names:
        raise ConfigError(f"no key matches '{keyspace.shown(pattern)}'{f' ({matches.rest})' if matches.rest else ''}")
    printed = 0
    for key in matches.names:
        kind = keyspace.kind_of(connection, key)
        if kind == "none" or (fields and kind not in keyspace.WITH_FIELDS):  # it is gone by now
            continue
        printed += _print(keyspace.lines(connection, key, kind, fields, limit), keyspace.shown(key))
    if fields and not printed:
        names = " or ".join(map(keyspace.shown, fields))
        raise ConfigError(f"no key that matches '{keyspace.shown(pattern)}' has a field {names}")
    if matches.rest:
        sys.stdout.flush()
        print(f"note: {matches.rest}; these are {len(matches.names)} of them", file=sys.stderr)


def _print(lines: Iterator[str], title: str | None = None) -> int:
    """How many lines were printed. `title` stands above them if there are any."""
    from sandboxrun.describe import keyspace

    count = 0
    for line in lines:
        if isinstance(line, keyspace.Note):
            sys.stdout.flush()  # it stands below the lines, also where both are one file
            print(f"note: {line}", file=sys.stderr)
            continue
        if title is not None and count == 0:
            print(title)
        print(line if title is None else f"  {line}")
        count += 1
    return count
