"""sandboxrun doctor."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from dataclasses import asdict

from sandboxrun.cli.fleet import known_here
from sandboxrun.cli.parser import Parser, connect_option
from sandboxrun.cli.redis import DEFAULT_URL
from sandboxrun.errors import SandboxError
from sandboxrun.log import escape
from sandboxrun.redis.acl import Owner
from sandboxrun.redis.connection import Connection

_EPILOG = """\
examples:
  sandboxrun doctor
  sandboxrun doctor --redis rediss://:PASSWORD@redis.example:6379
  sandboxrun doctor --json | jq '.findings[] | select(.level != "ok")'

Nothing is changed, but for a Redis user without rights that is made and removed. No password is shown.

exit codes:
  0 workers can run here   71 something fails; the line below it says what helps
"""


def main(args: list[str]) -> int:
    parser = Parser(
        prog="sandboxrun doctor",
        description="Look whether all is in order for workers to run here: kernel, Redis, folders, policy, versions, leftovers.",
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
    findings, area = [], ""
    for found in all_findings(connect, known_here(), users):
        findings.append(found)
        if options.json:
            continue
        if found.area != area:
            area = found.area
            print(area)
        print(f"  {_sign(found.level.value, colour)} {escape(found.text)}", flush=True)
        if found.do:
            print("        → " + "\n".join(map(escape, found.do.split("\n"))), flush=True)
    failed = sum(found.level == Level.FAILS for found in findings)
    if options.json:
        print(json.dumps({"ok": not failed, "findings": [asdict(found) for found in findings]}))
    else:
        notes = sum(found.level == Level.NOTE for found in findings)
        end = f"{failed} of {len(findings)} FAIL" if failed else "Workers can run here"
        print(f"\n{end}{f' (to note: {notes})' if notes else ''}.")
    return SandboxError.exit_code if failed else 0


def _sign(level: str, colour: bool) -> str:
    code = {"ok": "32", "note": "33", "FAILS": "31;1"}[level]
    return f"\x1b[{code}m{level:5}\x1b[0m" if colour else f"{level:5}"
