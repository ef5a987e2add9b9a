"""sandboxrun drain."""

from __future__ import annotations

import time

from sandboxrun.cli.parser import Parser, connect_option
from sandboxrun.cli.redis import connected
from sandboxrun.errors import NotConfigured, StoreError, UsageError
from sandboxrun.fleet import agents
from sandboxrun.fleet.agents import Agent
from sandboxrun.log import escape
from sandboxrun.redis.connection import Connection
from sandboxrun.redis.lease import this_host

TIMEOUT_SECONDS = 30.0
LOOK_SECONDS = 0.1
_EPILOG = """\
examples:
  sandboxrun drain                 the agents of this host
  sandboxrun drain web-3           those of the host web-3

The agents hand their ids back, so that agents on other hosts run them, end their workers, and then end themselves. The order
goes through Redis, so it reaches any host. An agent that a service manager restarts comes back: stop the service instead.

exit codes:
  0 all have ended   75 one has not ended in time, or Redis is away   78 no agent of that host lives
"""


def main(args: list[str]) -> int:
    parser = _parser()
    options = parser.parse_args(args)
    if not 0 <= options.timeout <= 86400:
        raise UsageError(f"--timeout is {options.timeout:g}: expected seconds from 0 to 86400")
    with connected(options.redis) as connection:
        found = _of_host(connection, options.host)
        if not found:
            host = f"host {options.host[:80]!r}" if options.host else "this host"
            raise NotConfigured(f"no agent of {host} lives: sandboxrun ps shows where workers run")
        agents.ask_to_drain(connection, found)
        for agent in found.values():
            print(
                escape(f"agent {agent.pid} on {agent.name} drains: {agent.workers} workers of {', '.join(agent.types)}")
            )
        left = _wait(connection, found, options.timeout)
    for agent in left.values():
        print(escape(f"agent {agent.pid} on {agent.name} has not ended after {options.timeout:g} s"))
    return StoreError.exit_code if left else 0


def _of_host(connection: Connection, host: str | None) -> dict[str, Agent]:
    known, now = agents.read(connection)
    return {
        token: agent
        for token, agent in known.items()
        if agent.lives(now) and (agent.name == host if host else agent.host == this_host())
    }


def _wait(connection: Connection, found: dict[str, Agent], seconds: float) -> dict[str, Agent]:
    """Those that have not ended by then."""
    until = time.monotonic() + seconds
    while True:
        known, now = agents.read(connection)
        left = {token: agent for token, agent in found.items() if token in known and known[token].lives(now)}
        if not left or time.monotonic() >= until:
            return left
        time.sleep(LOOK_SECONDS)


def _parser() -> Parser:
    parser = Parser(
        prog="sandboxrun drain",
        description="Have agents hand over to others, end their workers, and end.",
        epilog=_EPILOG,
    )
    parser.add_argument("host", metavar="HOST", nargs="?", help="a host's name (default: this host)")
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=float,
        default=TIMEOUT_SECONDS,
        help=f"how long to wait (default: {TIMEOUT_SECONDS:g})",
    )
    connect_option(parser)
    return parser
