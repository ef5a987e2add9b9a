"""sandboxrun TYPE ID."""

from __future__ import annotations

import os

from sandboxrun import __version__, timing
from sandboxrun.config.limits import LIMITS
from sandboxrun.config.permissions import Kind, Permissions, Verdict
from sandboxrun.errors import UsageError
from sandboxrun.log import Log

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from sandboxrun.cli.parser import Parser
    from sandboxrun.config.debugger import Inspect
    from sandboxrun.sandbox.supervisor.spawn import Spawned

_INSPECT = {"--inspect": "127.0.0.1:9229", "--inspect-wait": "127.0.0.1:9229"}
_EPILOG = """\
examples:
  sandboxrun demo-worker 1                            run the worker of the hash demo-worker:1:h
  sandboxrun demo-worker 1 < demo.key                 run it with the key of its secrets
  sandboxrun demo-worker 1 --reload                   fetch its script again; accept a tag that moved
  sandboxrun demo-worker 1 --allow-import=example.com:8443
  sandboxrun demo-worker 1 --allow-net=127.0.0.1:8000 grant more than the hash does, for this run

exit codes: the worker's own, 128+n if signal n ended it, or
  64 the command line is wrong   65 a pinned version has different content   66 the hash was removed while the worker ran
  69 the script cannot be fetched   70 a defect of sandboxrun   71 this host lacks what the sandbox needs
  73 the worker runs already, or another run took it over   75 Redis is away, or refuses a command
  77 the policy does not allow it, or it needs approval   78 a field, an option, the policy file or the key is wrong

signals: if a signal would end sandboxrun, it sends the worker SIGTERM, and SIGKILL 5 s later or at a second signal
"""


def _parser() -> Parser:
    import argparse

    from sandboxrun.cli.parser import Parser, connect_option

    parser = Parser(
        prog="sandboxrun",
        usage="sandboxrun [options] TYPE ID",
        description="Run the worker that the Redis hash TYPE:ID:h describes, or TYPE:h if there is no TYPE:ID:h. "
        "The kernel confines the worker to what the hash grants.",
        epilog=_EPILOG,
    )
    parser.add_argument("type", metavar="TYPE", help="worker type, as in demo-worker")
    parser.add_argument("id", metavar="ID", help="worker id, as in 1")
    parser.add_argument("--version", action="version", version=f"sandboxrun {__version__}")
    parser.add_argument("--standby", metavar="N", type=int, help=argparse.SUPPRESS)  # of sandboxrun dev
    where = parser.add_argument_group("Redis and script")
    connect_option(where)
    where.add_argument(
        "--wait", action="store_true", help="if Redis or the hash is missing, wait for it instead of ending"
    )
    where.add_argument(
        "--allow-import",
        metavar="HOST[:PORT],…",
        help="the hosts that scripts may come from; replaces the default list; loopback is always allowed",
    )
    where.add_argument(
        "--reload", action="store_true", help="fetch the script again, and accept changed content of a pinned version"
    )
    where.add_argument("--cached-only", action="store_true", help="never fetch")
    _grant_options(parser)
    _policy_options(parser)
    _test_options(parser)
    _output_options(parser)
    return parser


def _grant_options(parser: Parser) -> None:
    grants = parser.add_argument_group("permissions, in addition to those of the hash")
    for kind in Kind:
        for verdict in Verdict:
            grants.add_argument(
                kind.flag(verdict),
                metavar="LIST",
                action="append",
                help=f"{verdict}: {kind.expected}".replace("%", "%%"),
            )
    limits = parser.add_argument_group("limits, instead of those of the hash")
    for limit in LIMITS.values():
        default = limit.show(limit.default) if limit.default else "none"
        if limit.name == "output":
            default += " a second on a terminal, else none"
        limits.add_argument(limit.flag, metavar="N", help=f"{limit.expected.rstrip(',')} (default: {default})")


def _policy_options(parser: Parser) -> None:
    policy = parser.add_argument_group("the operator's policy")
    policy.add_argument(
        "--policy",
        metavar="FILE",
        help="a policy file, which bounds what a hash may be granted, instead of the user's policy.toml",
    )
    policy.add_argument(
        "--yes", action="store_true", help="approve the permissions that the hash has added since the last run"
    )
    policy.add_argument(
        "--audit",
        metavar="FILE",
        action="append",
        default=[],
        help='append each decision to FILE as a line of JSON; FILE "journal" is the systemd journal',
    )
    policy.add_argument(
        "--allow-degraded",
        metavar="FEATURE,…",
        default="",
        help="run without a feature that sandboxrun check reports as missing, or redis-acl, or redis-password",
    )


def _test_options(parser: Parser) -> None:
    tests = parser.add_argument_group("tests")
    tests.add_argument("--clock", metavar="TIME", help="stop the worker's clock at TIME, as in 2026-01-31T12:00:00Z")
    tests.add_argument(
        "--seed", metavar="N", type=int, help="seed the worker's random numbers, at its start and for each request"
    )


def _output_options(parser: Parser) -> None:
    debugger = parser.add_argument_group("debugger")
    for flag in _INSPECT:
        debugger.add_argument(
            flag,
            metavar="[HOST:]PORT",
            help="let a debugger attach there (default: 127.0.0.1:9229)" + ", and wait for it" * flag.endswith("wait"),
        )
    output = parser.add_argument_group("output")
    output.add_argument("--quiet", action="store_true", help="print only warnings, denials and errors")
    output.add_argument(
        "--json-logs", action="store_true", help="print the messages of sandboxrun as JSON, one object a line"
    )
    output.add_argument("--no-log", action="store_true", help="do not keep what the worker prints for sandboxrun logs")


def main(args: list[str], spawned: Spawned | None = None) -> int:
    """`spawned`: the child, if it was spawned already."""
    from sandboxrun.cli.parser import names

    # The value is optional, and follows a "=": or TYPE would be one.
    options = _parser().parse_args([f"{arg}={_INSPECT[arg]}" if arg in _INSPECT else arg for arg in args])
    timing.mark("options parsed")
    if options.reload and options.cached_only:
        raise UsageError("--reload and --cached-only contradict each other")

    from sandboxrun.fetch.resolve import ImportList
    from sandboxrun.host.run import run
    from sandboxrun.host.runplan import RunOptions
    from sandboxrun.redis.store import DEFAULT_URL

    timing.mark("modules of a run imported")
    return run(
        RunOptions(
            type=options.type,
            id=options.id,
            redis_url=options.redis or os.environ.get("REDIS_URL") or DEFAULT_URL,
            allowed=None if options.allow_import is None else ImportList.parse(options.allow_import),
            extra=_extra(options),
            limits={
                limit.name: limit.read(text, limit.flag)
                for limit in LIMITS.values()
                if (text := getattr(options, f"limit_{limit.name}")) is not None
            },
            degraded=names(options.allow_degraded),
            reload=options.reload,
            cached_only=options.cached_only,
            policy=options.policy,
            yes=options.yes,
            audit=tuple(options.audit),
            inspect=_inspect(options),
            output_log=not options.no_log,
            wait=options.wait,
            standby=options.standby,
            clock=_clock(options.clock),
            seed=_seed(options.seed),
        ),
        Log(quiet=options.quiet, json=options.json_logs, debug=options.debug),
        spawned,
    )


def run_plainly(type_: str, id_: str, spawned: Spawned | None) -> int:
    """A run without options. `spawned`: the child, which was spawned already."""
    from sandboxrun.host.run import run
    from sandboxrun.host.runplan import RunOptions
    from sandboxrun.redis.store import DEFAULT_URL

    timing.mark("modules of a run imported")
    return run(RunOptions(type_, id_, os.environ.get("REDIS_URL") or DEFAULT_URL), Log(), spawned)


def _clock(text: str | None) -> float | None:
    """Raises ConfigError, UsageError."""
    if text is None:
        return None
    import importlib.util

    from sandboxrun.errors import ConfigError
    from sandboxrun.moment import EXPECTED, seconds

    if importlib.util.find_spec("time_machine") is None:
        raise ConfigError("--clock needs the package time-machine", hint="pip install 'sandboxrun[dev]'")
    moment = seconds(text)
    if moment is None:
        raise UsageError(f"--clock is {text[:80]!r}: expected {EXPECTED}")
    return moment


def _seed(seed: int | None) -> int | None:
    """Raises UsageError."""
    if seed is not None and not 0 <= seed < 1 << 32:  # numpy takes no other
        raise UsageError(f"--seed is {seed}: expected a whole number from 0 to {(1 << 32) - 1}")
    return seed


def _inspect(options: argparse.Namespace) -> Inspect | None:
    given = [(flag, value) for flag in _INSPECT if (value := getattr(options, flag[2:].replace("-", "_"))) is not None]
    if not given:
        return None
    if len(given) > 1:
        raise UsageError("--inspect and --inspect-wait are both given: --inspect-wait does both")
    from sandboxrun.config.debugger import Inspect

    return Inspect.parse(*given[0], given[0][0])


def _extra(options: argparse.Namespace) -> Permissions:
    """The permissions given on the command line."""
    lists = [
        (verdict, kind, text, kind.flag(verdict))
        for kind in Kind
        for verdict in Verdict
        for text in getattr(options, f"{verdict}_{kind}") or ()
    ]
    return Permissions.parse(lists)
