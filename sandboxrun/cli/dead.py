"""sandboxrun dead."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import sys
from collections.abc import Iterable, Iterator

from sandboxrun.cli.mistakes import again_hint, check_action
from sandboxrun.cli.parser import Parser, type_parser
from sandboxrun.cli.redis import connected, show_entry
from sandboxrun.config import keys
from sandboxrun.errors import ConfigError, UsageError
from sandboxrun.log import escape
from sandboxrun.redis.connection import Connection
from sandboxrun.redis.pages import ENTRY_MAX_BYTES, Entry, entries, one

ACTIONS = ("list", "show", "requeue", "drop")
LIST_MOST = 1000  # letters, unless -n says otherwise
LIST_MAX_BYTES = 1024 * 1024 * 1024  # read for one list, page by page
_ID = re.compile(r"\d{1,20}(-\d{1,20})?")  # of an entry of a stream
_TOO_LARGE = f"more than {ENTRY_MAX_BYTES >> 20} MiB, so not read"


def main(args: list[str]) -> int:
    parser = _parser()
    options = parser.parse_args(args)
    stream = keys.dead_stream(keys.check_type(options.type))
    check_action(parser, args, options.action, ACTIONS)
    if options.action == "list" and options.ids:
        raise UsageError("list takes no ID", hint=f"sandboxrun dead {options.type} show {shlex.join(options.ids)}")
    if options.action != "list" and not options.ids:
        raise UsageError(f"{options.action} needs the ID of a letter, or all", hint=again_hint(parser, [*args, "ID"]))
    if options.n < 1:
        raise UsageError(f"-n is {options.n}: expected 1 or more")
    everything = options.action == "list" or options.ids == ["all"]
    with connected(options.redis) as connection:
        if options.action in ("list", "show"):
            whole = options.action == "show"
            start = f"({options.after}" if options.after else "-"
            letters = (
                _page(connection, options.type, stream, start, options.n)
                if everything
                else _letters(connection, options.type, stream, options.ids)
            )
            if _print(options.type, letters, whole=whole, as_json=options.json) == 0 and not options.json:
                later = f" after {options.after}" if options.after else ": no request was given up"
                print(escape(f"{stream} has no letters{later}"))
            return 0
        change = _requeue if options.action == "requeue" else _drop
        print(change(connection, options.type, stream, None if everything else options.ids))
    return 0


def _parser() -> Parser:
    parser = type_parser(
        "dead",
        description="List, show, resend or drop dead letters: requests that were given up, for example because they ended "
        "their worker maxDeliveries times.",
        epilog="examples:\n  sandboxrun dead demo-worker                       list them, the oldest first\n"
        "  sandboxrun dead demo-worker -n 20 --after ID      list the next 20\n"
        "  sandboxrun dead demo-worker show ID\n"
        "  sandboxrun dead demo-worker requeue ID …|all      send them again, as new requests\n"
        "  sandboxrun dead demo-worker drop ID …|all\n\n"
        f"A letter of more than {ENTRY_MAX_BYTES >> 20} MiB is never read: list names it, and drop removes it.",
    )
    parser.add_argument("action", metavar="|".join(ACTIONS), nargs="?", default="list", help="default: list")
    parser.add_argument("ids", metavar="ID", nargs="*", help="the ID of a letter, as list shows it; all: every letter")
    parser.add_argument("-n", metavar="N", type=int, default=LIST_MOST, help=f"how many to list (default: {LIST_MOST})")
    parser.add_argument("--after", metavar="ID", help="list the letters that are newer than this one")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _page(connection: Connection, type_: str, stream: str, start: str, most: int) -> Iterator[Entry]:
    """At most `most` letters and LIST_MAX_BYTES; prints a note on standard error if there are more."""
    last, count, size = "", 0, 0
    for letter in entries(connection, stream, start=start):
        if count >= most or size > LIST_MAX_BYTES:
            print(
                escape(
                    f"note: there are more: sandboxrun dead {type_} --after {last}{f' -n {most}' if most != LIST_MOST else ''}"
                ),
                file=sys.stderr,
            )
            return
        yield letter
        last, count, size = letter.xid, count + 1, size + letter.size


def _letters(connection: Connection, type_: str, stream: str, ids: Iterable[str]) -> Iterator[Entry]:
    """The letters with these ids. Raises ConfigError for an id that is not there."""
    for xid in ids:
        letter = one(connection, stream, xid) if _ID.fullmatch(xid) else None
        if letter is None:
            raise ConfigError(f"{stream} has no letter {xid[:40]!r}", hint=f"sandboxrun dead {type_}")
        yield letter


def _all(connection: Connection, stream: str) -> Iterator[Entry]:
    """The letters that the stream has now, without those that arrive during the iteration."""
    return itertools.islice(entries(connection, stream), int(connection.call("XLEN", stream)))


def _checked(connection: Connection, type_: str, stream: str, ids: list[str]) -> list[str]:
    """The whole ids of letters that are all there."""
    return [letter.xid for letter in _letters(connection, type_, stream, ids)]


def _drop(connection: Connection, type_: str, stream: str, ids: list[str] | None) -> str:
    if ids is None:
        return f"removed: {connection.call('XTRIM', stream, 'MAXLEN', 0)}"
    return f"removed: {connection.call('XDEL', stream, *_checked(connection, type_, stream, ids))}"


def _requeue(connection: Connection, type_: str, stream: str, ids: list[str] | None) -> str:
    """Send them as new requests with the same refs and no deadline, and remove them from the stream in one transaction."""
    letters = (
        _all(connection, stream)
        if ids is None
        else _letters(connection, type_, stream, _checked(connection, type_, stream, ids))
    )
    sent = 0
    for letter in letters:
        if letter.fields is None:
            print(f"note: {letter.xid} has {_TOO_LARGE}: it stays where it is", file=sys.stderr)
            continue
        prefix = b"request."
        pairs = list(zip(letter.fields[::2], letter.fields[1::2], strict=True))
        other = dict(pairs).get(b"emitted")
        if other is not None:  # to where a worker's letter says, nothing is sent with the operator's login
            print(
                escape(
                    f"note: {letter.xid} is a request that {type_} emitted to {other.decode('utf-8', 'replace')[:80]}, so it is not "
                    f"resent to {type_}. It stays a dead letter; `sandboxrun dead {type_} show {letter.xid}` prints its fields."
                ),
                file=sys.stderr,
            )
            continue
        words = [
            word
            for name, value in pairs
            if name.startswith(prefix) and name != b"request.deadline"
            for word in (name.removeprefix(prefix), value)
        ]
        connection.pipeline([("MULTI",)])
        connection.pipeline([("XADD", keys.request_stream(type_), "*", *words), ("XDEL", stream, letter.xid)])
        connection.call("EXEC")
        sent += 1
    return f"sent once more: {sent}"


def _print(type_: str, letters: Iterable[Entry], *, whole: bool, as_json: bool) -> int:
    """How many were printed: as they come, so that only one page is in memory."""
    number = -1
    for number, letter in enumerate(letters):
        fields = letter.text()
        if as_json:
            shown = (
                {"id": letter.xid, **fields} if letter.fields is not None else {"id": letter.xid, "note": _TOO_LARGE}
            )
            print(", " if number else "[", json.dumps(shown), sep="", end="")
        elif letter.fields is None:
            print(f"{letter.xid}  {_TOO_LARGE}: sandboxrun dead {type_} drop {letter.xid} removes it")
        elif whole:
            show_entry(letter.xid, fields)
        else:
            print(
                escape(
                    f"{letter.xid}  {fields.get('time', '')}  {fields.get('deliveries', '')}×  {fields.get('ref', '')}  {fields.get('request.data', '')[:80]}"
                )
            )
    if as_json:
        print("]" if number >= 0 else "[]")
    return number + 1
