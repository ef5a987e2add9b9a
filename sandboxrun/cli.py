"""The command line: parses, calls, prints, exits. The only place that does the last two."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from sandboxrun import __version__
from sandboxrun.errors import ConfigError, SandboxError, SandboxrunError, UsageError
from sandboxrun.limits import LIMITS
from sandboxrun.log import Log, escape
from sandboxrun.permissions import KINDS, VERDICTS, Permissions

_RUN_EPILOG = """\
examples:
  echo worker-v0 HEX | sandboxrun demo-worker 1       run the worker of the hash demo-worker:1:h
  sandboxrun demo-worker 1 --reload                   fetch its script again; accept a tag that moved
  sandboxrun demo-worker 1 --allow-import=example.com:8443
  sandboxrun demo-worker 1 --allow-net=127.0.0.1:8000 grant more than the hash does, for this run

other commands (sandboxrun COMMAND --help):
  sandboxrun check                                    try on this machine whether the sandbox holds
  sandboxrun encrypt TYPE ID --key-file FILE          make the secrets of a worker from JSON on standard input
  sandboxrun cache [--clean]                          show or remove the scripts that were fetched
  sandboxrun run TYPE ID                              the same as sandboxrun TYPE ID, for a type named like a command

exit codes: the worker's own, 128+n when signal n ended it, or
  64 command line   65 integrity (pinned content changed)   69 fetch   70 a defect of sandboxrun
  71 the kernel cannot give the sandbox   73 already running   75 Redis   78 hash, option or key
"""


_CHECK_EPILOG = """\
each line is a protection, with how the worker was refused; "no" is what this machine lacks or refuses to everybody

exit codes:
  0 all that a worker relies on holds   71 something does not
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The entry point: exits with the code that `_main` returns."""
    _open_standard_descriptors()
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args
    try:
        code = _main(args)
        if sys.stdout is not None:
            sys.stdout.flush()
    except SandboxrunError as error:
        if debug:
            import traceback

            traceback.print_exc()
        Log(json="--json-logs" in args).error("error", str(error), exit_code=error.exit_code)
        code = error.exit_code
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python complains once more while it shuts down
        code = 141
    except Exception as error:
        if debug:
            raise
        Log(json="--json-logs" in args).error(
            "defect",
            f"{type(error).__name__}: {error} (a defect of sandboxrun: run it again with --debug and report what it prints)",
        )
        code = SandboxrunError.exit_code
    sys.exit(code)


def _open_standard_descriptors() -> None:
    """Started with one closed (`<&-`), a socket or file of ours would get its number, and the worker with it."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, so this one


def _main(args: list[str]) -> int:
    commands = {"run": _run, "check": _check, "encrypt": _encrypt, "cache": _cache}
    if args and args[0] in commands:
        return commands[args[0]](args[1:])
    return _run(args)


def _run(args: list[str]) -> int:
    parser = _Parser(
        prog="sandboxrun",
        usage="sandboxrun [options] TYPE ID",
        description="Run the worker that the Redis hash TYPE:ID:h names, confined by the kernel to what the hash grants.",
        epilog=_RUN_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
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
    for kind in KINDS.values():
        for verdict in VERDICTS:
            parser.add_argument(
                kind.flag(verdict),
                metavar="LIST",
                action="append",
                help=f"{verdict}, on top of the hash: {kind.expected}",
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
    parser.add_argument("--quiet", action="store_true", help="only warnings, denials and errors")
    parser.add_argument("--json-logs", action="store_true", help="our messages as one JSON object a line")
    parser.add_argument("--debug", action="store_true", help="say more; show tracebacks")
    parser.add_argument("--version", action="version", version=f"sandboxrun {__version__}")
    options = parser.parse_args(args)
    if options.reload and options.cached_only:
        raise UsageError("--reload and --cached-only contradict each other: give one")

    from sandboxrun.fetch.resolve import ImportList
    from sandboxrun.run import RunOptions, run
    from sandboxrun.store import DEFAULT_URL

    return run(
        RunOptions(
            type=options.type,
            id=options.id,
            redis_url=options.redis or os.environ.get("REDIS_URL") or DEFAULT_URL,
            allowed=ImportList.default() if options.allow_import is None else ImportList.parse(options.allow_import),
            extra=_extra(options),
            limits={
                limit.name: limit.read(text, limit.flag)
                for limit in LIMITS.values()
                if (text := getattr(options, f"limit_{limit.name}")) is not None
            },
            degraded=_names(options.allow_degraded),
            reload=options.reload,
            cached_only=options.cached_only,
        ),
        Log(quiet=options.quiet, json=options.json_logs, debug=options.debug),
    )


def _check(args: list[str]) -> int:
    parser = _Parser(
        prog="sandboxrun check",
        description="Try every protection of the sandbox on this machine, in a throw-away worker. Needs no Redis.",
        epilog=_CHECK_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--allow-degraded", metavar="FEATURE,…", default="", help="as sandboxrun TYPE ID takes it")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    options = parser.parse_args(args)

    from sandboxrun.sandbox.check import check

    report = check(degraded=_names(options.allow_degraded))
    if options.json:
        print(json.dumps(report.as_json()))
    else:
        print(report.text(colour=sys.stdout.isatty() and not os.environ.get("NO_COLOR")))
    return 0 if report.holds else SandboxError.exit_code


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _extra(options: argparse.Namespace) -> Permissions:
    """The permissions given on the command line."""
    lists = [
        (verdict, kind.name, text, kind.flag(verdict))
        for kind in KINDS.values()
        for verdict in VERDICTS
        for text in getattr(options, f"{verdict}_{kind.name}") or ()
    ]
    return Permissions.parse(lists)


def _encrypt(args: list[str]) -> int:
    parser = _Parser(
        prog="sandboxrun encrypt",
        description="Encrypt the JSON object on standard input for one worker. Prints a Redis command: pipe it into redis-cli.",
        epilog='example:\n  echo \'{"token":"t"}\' | sandboxrun encrypt demo-worker 1 --key-file demo.key | redis-cli\n'
        "  sandboxrun demo-worker 1 < demo.key",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("type", metavar="TYPE")
    parser.add_argument("id", metavar="ID")
    parser.add_argument(
        "--key-file",
        metavar="FILE",
        required=True,
        help="the line worker-v0 HEX; made, for you alone to read, if it does not exist",
    )
    parser.add_argument(
        "--alg",
        metavar="ALG",
        default="aes-256-gcm",
        help="aes-256-gcm (default), or as openssl enc has it: aes-128-cbc, aes-192-cbc, aes-256-cbc",
    )
    parser.add_argument("--json", action="store_true", help="print the fields as a JSON object instead")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    options = parser.parse_args(args)

    from sandboxrun import keys, secrets

    worker_key = keys.worker_key(keys.check_type(options.type), keys.check_id(options.id))
    if options.alg not in secrets.ALGORITHMS:
        raise UsageError(f"--alg is {options.alg!r}: expected one of {', '.join(secrets.ALGORITHMS)}")
    try:
        plain = json.loads(sys.stdin.buffer.read(1024 * 1024))
    except ValueError:
        plain = None
    if not isinstance(plain, dict):
        raise ConfigError(
            'standard input is not a JSON object: give the secrets as one, as in echo \'{"token":"t"}\' | sandboxrun encrypt …'
        )
    key = _key_from_file(options.key_file, options.alg)
    fields = secrets.encrypt(plain, key, worker_key=worker_key, type_=options.type, algorithm=options.alg)
    if options.json:
        print(json.dumps(fields))
    else:
        print("HSET", worker_key, *(word for pair in fields.items() for word in pair))
    return 0


def _key_from_file(path: str, algorithm: str) -> bytes:
    from sandboxrun import secrets

    try:
        # O_EXCL: a key that is there is used, never overwritten.
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        try:
            with open(path, "rb") as file:
                return secrets.parse_key_line(file.read(secrets.KEY_LINE_MAX_BYTES))
        except SandboxrunError as error:
            raise ConfigError(
                f"{path} does not hold a key: expected the line worker-v0 HEX; remove it to have one made"
            ) from error
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be made: {error.strerror}") from error
    with open(fd, "wb") as file:
        key = os.urandom(secrets.key_bytes(algorithm))
        file.write(b"worker-v0 " + key.hex().encode() + b"\n")
    return key


def _cache(args: list[str]) -> int:
    parser = _Parser(
        prog="sandboxrun cache",
        description="Show the scripts that were fetched: digest, size, when, version and URL. Pins outlive --clean.",
        epilog="examples:\n  sandboxrun cache\n  sandboxrun cache --clean",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--clean", action="store_true", help="remove the scripts; what a tag or commit must contain stays pinned"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    options = parser.parse_args(args)

    from sandboxrun.fetch.cache import Cache
    from sandboxrun.run import Folders

    folders = Folders.of_user()
    cache = Cache(folders.cache, folders.state)
    if options.clean:
        count, size = cache.clean()
        print(f"removed {count} scripts, {size} bytes, from {cache.blobs}")
        return 0
    entries = cache.entries()
    if options.json:
        print(
            json.dumps(
                [
                    {
                        "url": e.url,
                        "version": e.version,
                        "sha256": e.pin.sha256,
                        "fetched": e.pin.fetched,
                        "bytes": e.size,
                    }
                    for e in entries
                ]
            )
        )
        return 0
    for e in entries:
        size_text = "cleaned" if e.size is None else f"{e.size} B"
        print(escape(f"{e.pin.sha256[:12]}  {size_text:>9}  {e.pin.fetched}  {e.version}  {e.url}"))
    print(f"{len(entries)} pinned, scripts in {cache.blobs}, pins in {cache.pins}", file=sys.stderr)
    return 0
