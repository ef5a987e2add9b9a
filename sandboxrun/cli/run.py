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
    from sandboxrun.sandbox.supervisor.spawn import Birth

_INSPECT = {"--inspect": "127.0.0.1:9229", "--inspect-wait": "127.0.0.1:9229"}
_EPILOG = """\
examples:
  echo worker-v0 HEX | sandboxrun demo-worker 1       run the worker of the hash demo-worker:1:h
  sandboxrun demo-worker 1 --reload                   fetch its script again; accept a tag that moved
  sandboxrun demo-worker 1 --allow-import=example.com:8443
  sandboxrun demo-worker 1 --allow-net=127.0.0.1:8000 grant more than the hash does, for this run

other commands (sandboxrun COMMAND --help):
  sandboxrun init NAME                                a folder with a worker and a test that work as they are
  sandboxrun dev FOLDER|FILE|TYPE ID                  run a worker while it is written: again on save, with a prompt
  sandboxrun check                                    try on this machine whether the sandbox holds
  sandboxrun encrypt TYPE ID --key-file FILE          make the secrets of a worker from JSON on standard input
  sandboxrun cache [--clean]                          show or remove the scripts that were fetched
  sandboxrun plugins [NAME]                           the workers that come with sandboxrun, and how to set one up
  sandboxrun show TYPE ID                             the hash, what it means, and what is wrong with it
  sandboxrun set TYPE ID FIELD=VALUE …                change it, checked first
  sandboxrun perms TYPE ID [--net HOST:PORT …]        whether the worker may, and why
  sandboxrun trace REF                                what became of a request
  sandboxrun diff TYPE ID                             what the hash asks for beyond what was agreed to
  sandboxrun approve TYPE ID                          agree to exactly that
  sandboxrun audit FILE                               read an audit log
  sandboxrun call TYPE JSON                           send a request and print the reply
  sandboxrun info TYPE [--watch]                      what the workers of a type are doing
  sandboxrun ps [TYPE]                                which workers run, on all hosts
  sandboxrun stop TYPE ID                             end one gently, wherever it runs
  sandboxrun logs TYPE ID [-f]                        what a worker of this host has printed
  sandboxrun doctor                                   is all in order here: kernel, Redis, folders, policy
  sandboxrun completion bash|zsh|fish                 completion for a shell
  sandboxrun dead TYPE                                requests that were given up
  sandboxrun stream TYPE ACTION                       make, remove, trim or show the streams
  sandboxrun run TYPE ID                              the same as sandboxrun TYPE ID, for a type named like a command

exit codes: the worker's own, 128+n when signal n ended it, or
  64 command line   65 integrity (pinned content changed)   66 the hash was removed while the worker ran
  69 fetch   70 a defect of sandboxrun   71 the kernel cannot give the sandbox
  73 already running, or taken over by another run   75 Redis   77 the policy, or not agreed to
  78 hash, option, policy file or key

signals: each one that would end sandboxrun ends the worker with SIGTERM, and 5 s later, or by a second signal, with SIGKILL
"""


def _parser() -> Parser:
    import argparse

    from sandboxrun.cli.parser import Parser

    parser = Parser(
        prog="sandboxrun",
        usage="sandboxrun [options] TYPE ID",
        description="Run the worker that the Redis hash TYPE:ID:h names, confined by the kernel to what the hash grants.",
        epilog=_EPILOG,
    )
    parser.add_argument("type", metavar="TYPE", help="worker type, as in demo-worker")
    parser.add_argument("id", metavar="ID", help="worker id, as in 1")
    parser.add_argument(
        "--redis",
        metavar="URL",
        help="redis://, rediss:// or unix:// (default: REDIS_URL, else redis://127.0.0.1:6379)",
    )
    parser.add_argument(
        "--allow-import",
        metavar="HOST[:PORT],…",
        help="hosts that scripts may come from, instead of the default list; loopback always may",
    )
    parser.add_argument(
        "--reload",
        action="store_true",
        help="fetch the script again, and accept changed content under a pinned version",
    )
    parser.add_argument("--cached-only", action="store_true", help="never fetch")
    for kind in Kind:
        for verdict in Verdict:
            parser.add_argument(
                kind.flag(verdict),
                metavar="LIST",
                action="append",
                help=f"{verdict}, on top of the hash: {kind.expected}".replace("%", "%%"),
            )
    for limit in LIMITS.values():
        parser.add_argument(
            limit.flag,
            metavar="N",
            help=f"instead of the hash's {limit.field}: {limit.expected} default {limit.show(limit.default)}",
        )
    parser.add_argument(
        "--allow-degraded",
        metavar="FEATURE,…",
        default="",
        help="do without a kernel feature that sandboxrun check says is missing",
    )
    parser.add_argument(
        "--policy", metavar="FILE", help="the most that a hash may be granted, instead of the user's policy.toml"
    )
    parser.add_argument(
        "--yes", action="store_true", help="agree to it that the hash asks for more than at its last run"
    )
    parser.add_argument(
        "--audit",
        metavar="FILE",
        action="append",
        default=[],
        help='append each decision to FILE as a line of JSON; "journal": to the systemd journal',
    )
    parser.add_argument(
        "--no-log", action="store_true", help="do not keep what the worker prints (sandboxrun logs shows what is kept)"
    )
    for flag in _INSPECT:
        parser.add_argument(
            flag,
            metavar="[HOST:]PORT",
            help="let a debugger attach there (127.0.0.1:9229)" + " and wait for it" * flag.endswith("wait"),
        )
    parser.add_argument("--standby", type=int, help=argparse.SUPPRESS)  # of sandboxrun dev
    parser.add_argument(
        "--wait", action="store_true", help="wait for Redis and for the hash if they are not there, instead of ending"
    )
    parser.add_argument("--quiet", action="store_true", help="only warnings, denials and errors")
    parser.add_argument("--json-logs", action="store_true", help="our messages as one JSON object a line")
    parser.add_argument("--version", action="version", version=f"sandboxrun {__version__}")
    return parser


def main(args: list[str], born: Birth | None = None) -> int:
    """`born`: the child, if it is there already."""
    from sandboxrun.cli.parser import names

    # The value is optional, and follows a "=": or TYPE would be one.
    options = _parser().parse_args([f"{arg}={_INSPECT[arg]}" if arg in _INSPECT else arg for arg in args])
    timing.mark("options parsed")
    if options.reload and options.cached_only:
        raise UsageError("--reload and --cached-only contradict each other: give one")

    from sandboxrun.fetch.resolve import ImportList
    from sandboxrun.host.plan import RunOptions
    from sandboxrun.host.run import run
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
        ),
        Log(quiet=options.quiet, json=options.json_logs, debug=options.debug),
        born,
    )


def run_plainly(type_: str, id_: str, born: Birth | None) -> int:
    """Without an option. `born`: the child, which is there already."""
    from sandboxrun.host.plan import RunOptions
    from sandboxrun.host.run import run
    from sandboxrun.redis.store import DEFAULT_URL

    timing.mark("modules of a run imported")
    return run(RunOptions(type_, id_, os.environ.get("REDIS_URL") or DEFAULT_URL), Log(), born)


def _inspect(options: argparse.Namespace) -> Inspect | None:
    given = [(flag, value) for flag in _INSPECT if (value := getattr(options, flag[2:].replace("-", "_"))) is not None]
    if not given:
        return None
    if len(given) > 1:
        raise UsageError("--inspect and --inspect-wait are both given: --inspect-wait=HOST:PORT does both")
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
