"""sandboxrun doctor."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from dataclasses import asdict, replace

from sandboxrun.cli.fleet import known_here
from sandboxrun.cli.mistakes import with_redis
from sandboxrun.cli.parser import Parser, connect_option
from sandboxrun.cli.redis import DEFAULT_URL
from sandboxrun.errors import SandboxError
from sandboxrun.log import escape, pastable
from sandboxrun.redis.acl import Owner
from sandboxrun.redis.connection import Connection

INDENT = 8
MIN_COLUMNS = 40
_EPILOG = """\
examples:
  sandboxrun doctor
  sandboxrun doctor --redis rediss://:PASSWORD@redis.example:6379
  sandboxrun doctor --json | jq '.findings[] | select(.level != "ok")'

Nothing is changed, except that a Redis user without rights is made and removed. No password is printed.

exit codes:
  0 workers can run here   71 a check fails
"""


def main(args: list[str]) -> int:
    parser = Parser(
        prog="sandboxrun doctor",
        description="Check whether workers can run here: kernel, Redis, folders, policy and versions; find leftovers of killed runs.",
        epilog=_EPILOG,
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    connect_option(parser)
    options = parser.parse_args(args)

    from sandboxrun.describe.doctor import all_findings
    from sandboxrun.describe.doctor.finding import Level
    from sandboxrun.redis.store import PROBE, Store

    url = options.redis or os.environ.get("REDIS_URL") or DEFAULT_URL

    def connect() -> Connection:
        connection = Connection(url, name="sandboxrun-doctor", protocol=2)
        connection.ask_first = PROBE
        connection.open()
        return connection

    def users(asking: Owner) -> list[str]:
        with contextlib.closing(Store(url)) as store:
            return store.leftover(asking)

    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    findings, area = [], ""
    for found in all_findings(connect, known_here(), users):
        finding = replace(found, hint=with_redis(found.hint, args))
        findings.append(finding)
        if options.json:
            continue
        if finding.area != area:
            area = finding.area
            print(area)
        print(f"  {_sign(finding.level.value, colour)} {_wrapped(escape(finding.text), width)}", flush=True)
        hint = pastable(finding.hint)
        if hint:
            print(_hint_shown(hint), flush=True)
    failed = sum(finding.level == Level.FAILS for finding in findings)
    if options.json:
        print(json.dumps({"ok": not failed, "findings": [asdict(found) for found in findings]}))
    else:
        notes = sum(finding.level == Level.NOTE for finding in findings)
        end = f"{failed} of {len(findings)} FAIL" if failed else "Workers can run here"
        print(f"\n{end}{f' (to note: {notes})' if notes else ''}.")
    return SandboxError.exit_code if failed else 0


def _wrapped(text: str, width: int) -> str:
    """On a terminal of so many columns, broken between words, and below each other. 0: not broken, for a pipe."""
    if not width:
        return text
    import textwrap

    room = max(MIN_COLUMNS, width) - INDENT
    return f"\n{' ' * INDENT}".join(textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False))


def _hint_shown(hint: tuple[str, ...]) -> str:
    """One line is indented; several stand at the left margin, as they are to be pasted."""
    head = f"{' ' * INDENT}hint:"
    return f"{head} {hint[0]}" if len(hint) == 1 else "\n".join([head, *hint])


def _sign(level: str, colour: bool) -> str:
    code = {"ok": "32", "note": "33", "FAILS": "31;1"}[level]
    return f"\x1b[{code}m{level:5}\x1b[0m" if colour else f"{level:5}"
