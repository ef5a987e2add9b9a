"""sandboxrun scale."""

from __future__ import annotations

from sandboxrun.cli.known import check_configured
from sandboxrun.cli.mistakes import help_hint
from sandboxrun.cli.parser import Parser, type_parser
from sandboxrun.cli.redis import connected
from sandboxrun.cli.start import say_who_serves
from sandboxrun.config import keys
from sandboxrun.errors import UsageError
from sandboxrun.fleet import count as counting
from sandboxrun.fleet.count import COUNT_MAX
from sandboxrun.fleet.queues import Queues
from sandboxrun.redis.connection import Connection

_EPILOG = """\
examples:
  sandboxrun scale demo-worker 50
  sandboxrun scale demo-worker 0           end them all

scale writes count to demo-worker:h, which agents keep to: they add ids 1, 2, 3, …, the lowest that are free. If there are too
many, ids go that wait, then stopped ones, then running ones, the highest number first. A stopped worker counts.
"""


def main(args: list[str]) -> int:
    parser = _parser()
    options = parser.parse_args(args)
    type_ = keys.check_type(options.type)
    if not (options.count.isascii() and options.count.isdigit() and int(options.count[:9]) <= COUNT_MAX):
        # No number here is safe to paste: each may start or end many workers.
        raise UsageError(
            f"N is {options.count[:40]!r}: expected a number from 0 to {COUNT_MAX}", hint=help_hint(parser)
        )
    with connected(options.redis) as connection:
        if int(options.count) or not _has_orders(connection, type_):
            check_configured(connection, parser, args, type_)
        done = counting.scale(connection, type_, int(options.count))
        for words, ids in (("added", done.added), ("removed", done.removed)):
            if ids:
                print(f"{words} {_shown(ids)}")
        print(f"{type_} has count {done.count}")
        if done.count:
            say_who_serves(connection, type_)
    return 0


def _has_orders(connection: Connection, type_: str) -> bool:
    """Whether there is something to end, even if nothing says any more what these workers ran."""
    queues = Queues(type_)
    return bool(connection.call("EXISTS", keys.type_key(type_), queues.start, queues.started, queues.stopped))


def _shown(ids: tuple[str, ...]) -> str:
    return ", ".join(ids[:20]) + (f" and {len(ids) - 20} more" if len(ids) > 20 else "")


def _parser() -> Parser:
    parser = type_parser(
        "scale", description="Set how many workers of a type run on all hosts together.", epilog=_EPILOG
    )
    parser.add_argument("count", metavar="N")
    return parser
