"""sandboxrun start."""

from __future__ import annotations

from sandboxrun.cli.known import check_configured
from sandboxrun.cli.parser import Parser, type_parser
from sandboxrun.cli.redis import connected
from sandboxrun.config import keys
from sandboxrun.errors import NotConfigured
from sandboxrun.fleet import agents, desired
from sandboxrun.fleet.agents import Agent
from sandboxrun.log import escape
from sandboxrun.redis.connection import Connection

_EPILOG = """\
examples:
  sandboxrun start demo-worker 1 2 3       also ones that were stopped, or that wait for their restart
  sandboxrun start demo-worker             all that were stopped

start only gives the order: it pushes the ids to demo-worker:start:q, and any agent that serves the type runs them. Fields come
from demo-worker:h, and from the worker's own hash if it has one. If demo-worker:h has a count, a new id raises it.
"""


def main(args: list[str]) -> int:
    parser = _parser()
    options = parser.parse_args(args)
    type_ = keys.check_type(options.type)
    ids = [keys.check_id(id_) for id_ in options.ids]
    with connected(options.redis) as connection:
        if not ids:
            ids = list(desired.stopped(connection, type_))
            if not ids:
                raise NotConfigured(
                    f"no worker of type {type_} was stopped, and no ID is given", hint=f"sandboxrun start {type_} 1"
                )
        check_configured(connection, parser, args, type_, ids)
        done = desired.start(connection, type_, ids)
        for id_ in done.running:
            print(f"{type_} {id_} runs already")
        for id_ in done.ordered:
            print(f"{type_} {id_} is ordered")
        if done.ordered:
            say_who_serves(connection, type_)
    return 0


def _parser() -> Parser:
    parser = type_parser(
        "start", description="Order that workers run, and that agents keep them running.", epilog=_EPILOG
    )
    parser.add_argument("ids", metavar="ID", nargs="*")
    return parser


def serving(connection: Connection, type_: str) -> list[Agent]:
    """The living agents that serve a type and take orders."""
    known, now = agents.read(connection)
    return [each for each in known.values() if type_ in each.types and each.lives(now) and not each.draining]


def say_who_serves(connection: Connection, type_: str) -> None:
    """Print which agents carry the order out, or how to start one."""
    found = serving(connection, type_)
    if not found:
        print(f"no agent serves {type_} yet: sandboxrun agent {type_}")
    elif all(each.workers >= each.most for each in found):
        print(escape(f"the agents on {_names(found)} have no room: sandboxrun agent {type_} on another host"))
    else:
        print(escape(f"agents on {_names(found)} serve {type_}"))


def _names(found: list[Agent]) -> str:
    names = sorted({each.name for each in found})
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
