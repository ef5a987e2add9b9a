"""sandboxrun set."""

from __future__ import annotations

import argparse
from typing import Any

from sandboxrun.cli.looking import first_fault, painter, run_options, to_json
from sandboxrun.cli.parser import worker_parser
from sandboxrun.cli.redis import connected
from sandboxrun.describe.change import Change, in_words, moves, parse, plan, rows
from sandboxrun.describe.paint import Paint
from sandboxrun.errors import SandboxError, SandboxrunError, UsageError
from sandboxrun.log import Log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sandboxrun.host.plan import Preparation

_EXAMPLE = """\
  sandboxrun set demo-worker 1 url=https://raw.githubusercontent.com/OWNER/REPO/main/worker.py version=v1.2.0
  sandboxrun set demo-worker 1 allowNet=api.telegram.org:443 --dry-run
  sandboxrun set demo-worker 1 allowNet=               nothing there; what TYPE:h has there does not count either
  sandboxrun set demo-worker 1 --delete allowNet       what TYPE:h has there counts, if it has it

Nothing is written unless sandboxrun TYPE ID would take the hash as it would be then, and can have its script.
exit codes: those of sandboxrun TYPE ID; 75 also where somebody else changed the hash meanwhile"""


def main(args: list[str]) -> int:
    parser = worker_parser(
        "set",
        description="Change fields of a worker's hash: checked as a run does it, against the operator's policy too, shown, and "
        "written all or nothing.",
        example=_EXAMPLE,
    )
    parser.add_argument("fields", metavar="FIELD=VALUE", nargs="*")
    parser.add_argument("--delete", metavar="FIELD", action="append", default=[], help="remove it from TYPE:ID:h")
    parser.add_argument("--dry-run", action="store_true", help="check and show; write nothing")
    for flag in ("--cached-only", "--reload"):
        parser.add_argument(
            flag, action="store_true", help="as sandboxrun TYPE ID takes it, for a changed url or version"
        )
    parser.add_argument("--allow-import", metavar="HOST[:PORT],…", help="as sandboxrun TYPE ID takes it")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_intermixed_args(args)
    if options.reload and options.cached_only:
        raise UsageError("--reload and --cached-only contradict each other: give one")
    wanted = parse(options.fields, options.delete, type_=options.type, id_=options.id)
    run_options(options)  # checks TYPE and ID

    from sandboxrun.redis import hashes

    with connected(options.redis) as connection:
        change = plan(hashes.read(connection, options.type, options.id), wanted)
        before, after = _examined(options, change)
        if change.names and after.faults:
            raise _refused(after)
        for warning in change.warnings:
            Log().warning("field", warning)
        if change.names:
            _look_at_redis(options)
        if change.names and not options.dry_run:
            hashes.write(connection, change.before, change.put, list(change.remove))
    made = _result(options, change, before, after)
    print(to_json(made) if options.json else _text(made, painter()))
    return 0


def _look_at_redis(options: argparse.Namespace) -> None:
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
        log.warning("redis", f"{error}; sandboxrun {options.type} {options.id} is refused", hint=error.hint)


def _refused(after: Preparation) -> SandboxrunError:
    found = first_fault(after)
    return type(found)(f"{found} (nothing was written)", found.hint)


def _examined(options: argparse.Namespace, change: Change) -> tuple[Preparation, Preparation]:
    """The hash before and after, as a run would find it."""
    from sandboxrun.describe.bring import bringer
    from sandboxrun.fetch.resolve import ImportList
    from sandboxrun.host.examine import examine
    from sandboxrun.host.folders import Folders
    from sandboxrun.records import replace

    folders, run = Folders.of_user(), run_options(options)
    if options.allow_import is not None:
        run = replace(run, allowed=ImportList.parse(options.allow_import))
    before = examine(change.before, run, folders)
    get = bringer(
        folders,
        needed=lambda config: bool(change.names) and moves(before.config, config),
        keep=not options.dry_run,
        reload=options.reload,
        cached_only=options.cached_only,
        warn=lambda message: Log().warning("fetch", message),
    )
    return before, examine(change.after, run, folders, get)


def _result(options: argparse.Namespace, change: Change, before: Preparation, after: Preparation) -> dict[str, Any]:
    from sandboxrun.describe.report import running

    name, following = f"{options.type} {options.id}", []
    found = running(change.before)
    written = bool(change.names) and not options.dry_run
    if after.agreement is not None and after.agreement.grown and change.names:
        following.append(f"the next start asks for agreement: sandboxrun approve {name}")
    if found is not None and found["alive"] and written:
        following.append(
            f"process {found['pid']} goes on with what it had: sandboxrun stop {name}, then start it again"
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


def _text(made: dict[str, Any], paint: Paint) -> str:
    lines = [paint(made["key"], "head")]
    for row in made["changes"]:
        for sign, value, style in (("-", row["old"], "bad"), ("+", row["new"], "good")):
            note = f"  (of {row['from']})" if sign == "+" and row["from"] else ""
            note += "  (changed)" if row["secret"] and row["old"] == row["new"] else ""
            if value is not None:
                lines.append(paint(f"{sign} {row['field']:<20} {value or '(empty)'}{note}", style))
    for name, words in made["words"].items():
        lines += [f"  {paint(name)}: {paint(text)}" for text in words]
    said = "written" if made["written"] else "not written: --dry-run" if made["changes"] else "nothing to change"
    return "\n".join([*lines, paint(said), *(f"next: {paint(text)}" for text in made["next"])])
