"""sandboxrun set."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from typing import Any

from sandboxrun.cli.looking import asking, first_fault, painter, run_options, to_json
from sandboxrun.cli.mistakes import again_hint
from sandboxrun.cli.parser import Parser, worker_parser
from sandboxrun.cli.redis import connected
from sandboxrun.config import keys
from sandboxrun.describe.change import Change, in_words, missing, moves, parse, plan, rows
from sandboxrun.describe.paint import Paint
from sandboxrun.errors import NotConfigured, SandboxError, SandboxrunError, UsageError
from sandboxrun.log import Log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sandboxrun.config.worker import WorkerConfig
    from sandboxrun.host.neighbours import Ask
    from sandboxrun.host.plan import Preparation
    from sandboxrun.redis.connection import Connection
    from sandboxrun.redis.hashes import Hashes

TYPES_MAX = 16  # of allowCall, that are looked for

_EXAMPLE = """\
  sandboxrun set demo-worker 1 url=https://raw.githubusercontent.com/OWNER/REPO/main/worker.py version=v1.2.0
  sandboxrun set demo-worker version=v1.3.0            for all workers of the type: writes demo-worker:h
  sandboxrun set demo-worker 1 allowNet=api.telegram.org:443 --dry-run
  sandboxrun set demo-worker 1 allowNet=               grant nothing, whatever demo-worker:h grants
  sandboxrun set demo-worker 1 --delete allowNet       grant what demo-worker:h grants

Nothing is written unless sandboxrun TYPE ID would accept the changed hash and can fetch its script.
exit codes: those of sandboxrun TYPE ID; 75 also if somebody else changed the hash meanwhile"""


def main(args: list[str]) -> int:
    parser = _parser()
    options = parser.parse_args(args)
    if options.id is not None and "=" in options.id:
        options.fields.insert(0, options.id)
        options.id = None
    if options.reload and options.cached_only:
        raise UsageError("--reload and --cached-only contradict each other")
    by_type = options.id is None
    name = options.type if by_type else f"{options.type} {options.id}"
    key = keys.type_key(options.type) if by_type else keys.worker_key(options.type, str(options.id))
    if by_type:
        from sandboxrun.describe.defaults import ANY_ID

        options.id = ANY_ID
    run_options(options)  # checks TYPE and ID

    def again(typed: str, meant: str) -> str:
        place = len(args) - 1 - args[::-1].index(typed) if typed in args else len(args)
        return again_hint(parser, [*args[:place], meant, *args[place + 1 :]])

    wanted = parse(options.fields, options.delete, worker=name, key=key, again=again)

    with connected(options.redis) as connection, _of_the_type(options.type, by_type):
        change = plan(_read(connection, options, by_type), wanted)
        before, after = _examined(options, change, by_type, asking(connection))
        if change.names and after.faults:
            raise _refused(parser, args, change, after)
        for warning in change.warnings:
            Log().warning("field", warning)
        if change.names and after.config is not None:
            _look_at_types(options, after.config)
        if change.names:
            _look_at_redis(options, name)
        if change.names and not options.dry_run:
            _write(connection, change, by_type)
    result = _result(change, before, after, name, written=bool(change.names) and not options.dry_run)
    print(to_json(result) if options.json else _text(result, painter()))
    return 0


def _parser() -> Parser:
    parser = worker_parser(
        "set",
        description="Change fields of a worker's hash or, without ID, of the hash that all workers of the type share. The changed "
        "hash is checked as by a run, against the operator's policy too. All changes are written, or none.",
        example=_EXAMPLE,
        or_type=True,
    )
    parser.add_argument("fields", metavar="FIELD=VALUE", nargs="*")
    parser.add_argument("--delete", metavar="FIELD", action="append", default=[], help="remove a field from the hash")
    parser.add_argument("--dry-run", action="store_true", help="check and show the change, and write nothing")
    parser.add_argument("--cached-only", action="store_true", help="never fetch")
    parser.add_argument(
        "--reload", action="store_true", help="fetch the script again, and accept changed content of a pinned version"
    )
    parser.add_argument("--allow-import", metavar="HOST[:PORT],…", help="the hosts that scripts may come from")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _look_at_redis(options: argparse.Namespace, name: str) -> None:
    """Say in advance if a run would be refused because Redis requires no password; at a terminal, ask as a run does."""
    from sandboxrun.host.open_redis import check_open_redis

    log, url = Log(), run_options(options).redis_url
    try:
        check_open_redis(
            url,
            options.type,
            options.id,
            policy=options.policy,
            ask=not options.dry_run,
            say=lambda message: log.info("policy", message),
        )
    except SandboxError as error:
        log.warning("redis", f"{error}; sandboxrun {name} is refused", hint=error.hint)


def _look_at_types(options: argparse.Namespace, config: WorkerConfig) -> None:
    """Say which types of allowCall have no worker yet: one may be misspelt."""
    from sandboxrun.cli.known import types_instead_of
    from sandboxrun.cli.mistakes import nearest, question
    from sandboxrun.config.permissions import Kind

    url = run_options(options).redis_url
    for type_ in config.asked.permissions.allow.get(Kind.CALL, ())[:TYPES_MAX]:
        unknown = types_instead_of(url, type_)
        if unknown is not None:
            near = nearest(type_, set(unknown[1]) - {config.type})
            Log().warning("call", f"Redis knows no worker type {type_}{question(near)}")


@contextlib.contextmanager
def _of_the_type(type_: str, by_type: bool) -> Iterator[None]:
    """Errors in the block name the hash of the type instead of that of the worker that stood for all of them."""
    try:
        yield
    except SandboxrunError as error:
        if not by_type:
            raise
        from sandboxrun.describe.defaults import ANY_ID

        def named(text: str) -> str:
            return text.replace(keys.worker_key(type_, ANY_ID), keys.type_key(type_)).replace(
                f"{type_} {ANY_ID}", type_
            )

        raise type(error)(named(str(error)), hint=tuple(map(named, error.hint))) from error


def _read(connection: Connection, options: argparse.Namespace, by_type: bool) -> Hashes:
    from sandboxrun.describe import defaults
    from sandboxrun.redis import hashes

    return defaults.read(connection, options.type) if by_type else hashes.read(connection, options.type, options.id)


def _write(connection: Connection, change: Change, by_type: bool) -> None:
    from sandboxrun.describe import defaults
    from sandboxrun.redis import hashes

    if by_type:
        defaults.write(connection, change)
    else:
        hashes.write(connection, change.before, change.put, list(change.remove))


def _refused(parser: Parser, args: list[str], change: Change, after: Preparation) -> SandboxrunError:
    """The first fault. Its hint would repair a stored hash, so it is kept unless it sets what this command sets."""
    fault = first_fault(after)
    hint = fault.hint
    if isinstance(fault, NotConfigured):
        absent = missing(change.after)
        return type(fault)(
            f"{change.before.own.key} would have no {' and no '.join(absent)}, so nothing was written",
            hint=again_hint(parser, [*args, *(f"{name}={name.upper()}" for name in absent)]),
        )
    if any(line.startswith("sandboxrun set ") for line in hint) and any(
        f"field {name} of" in str(fault) for name in change.put
    ):
        hint = ()
    return type(fault)(f"{fault} (nothing was written)", hint=hint)


def _examined(options: argparse.Namespace, change: Change, by_type: bool, ask: Ask) -> tuple[Preparation, Preparation]:
    """The hash before and after, as a run would find it."""
    from sandboxrun.describe import defaults
    from sandboxrun.describe.bring import bringer
    from sandboxrun.fetch.resolve import ImportList
    from sandboxrun.host.examine import examine
    from sandboxrun.host.folders import Folders
    from sandboxrun.records import replace

    folders, run = Folders.of_user(), run_options(options)
    if options.allow_import is not None:
        run = replace(run, allowed=ImportList.parse(options.allow_import))
    look = defaults.examined if by_type else examine
    before = look(change.before, run, folders, ask)
    get = bringer(
        folders,
        needed=lambda config: bool(change.names) and moves(before.config, config),
        keep=not options.dry_run,
        reload=options.reload,
        cached_only=options.cached_only,
        warn=lambda message: Log().warning("fetch", message),
    )
    return before, look(change.after, run, folders, ask, get)


def _result(change: Change, before: Preparation, after: Preparation, name: str, *, written: bool) -> dict[str, Any]:
    from sandboxrun.describe.report import running

    following = []
    holder = running(change.before)
    if after.agreement is not None and after.agreement.grown and change.names:
        following.append(f"the next start asks for approval of what was added: sandboxrun approve {name}")
    if holder is not None and holder["alive"] and written:
        following.append(
            f"process {holder['pid']} goes on with what it had: sandboxrun stop {name}, then start it again"
        )
    words = in_words(before.config, after.config) if after.config is not None and change.names else {}
    return {
        "key": change.before.own.key,
        "written": written,
        "changes": rows(change),
        "words": words,
        "sha256": after.artifact.sha256 if after.artifact is not None else None,
        "next": following,
    }


def _text(result: dict[str, Any], paint: Paint) -> str:
    lines = [paint(result["key"], "head")]
    for row in result["changes"]:
        for sign, value, style in (("-", row["old"], "bad"), ("+", row["new"], "good")):
            note = f"  (of {row['from']})" if sign == "+" and row["from"] else ""
            note += "  (changed)" if row["secret"] and row["old"] == row["new"] else ""
            if value is not None:
                lines.append(paint(f"{sign} {row['field']:<20} {value or '(empty)'}{note}", style))
    for name, words in result["words"].items():
        lines += [f"  {paint(name)}: {paint(text)}" for text in words]
    end = "written" if result["written"] else "not written: --dry-run" if result["changes"] else "nothing to change"
    return "\n".join([*lines, paint(end), *(f"next: {paint(text)}" for text in result["next"])])
