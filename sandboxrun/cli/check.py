"""sandboxrun check."""

from __future__ import annotations

import json
import os
import sys

from sandboxrun.cli.parser import Parser, names
from sandboxrun.errors import SandboxError

_EPILOG = """\
Each line names a protection, and how the worker was refused. "no": this machine lacks it, or refuses the attempt to everybody.

examples:
  sandboxrun check
  sandboxrun check --json | jq .holds
  sandboxrun check --seccomp-profile >seccomp.json    then: docker run --security-opt seccomp=seccomp.json …

exit codes:
  0 every protection that a worker relies on works   71 one does not
"""


def main(args: list[str]) -> int:
    parser = Parser(
        prog="sandboxrun check",
        description="Try every protection of the sandbox on this machine, in a temporary worker. Needs no Redis.",
        epilog=_EPILOG,
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--allow-degraded",
        metavar="FEATURE,…",
        default="",
        help="leave out these features, as a run with this option does",
    )
    parser.add_argument(
        "--seccomp-profile",
        action="store_true",
        help="print the seccomp profile for a container, and try nothing: Docker's default, and pidfd_getfd",
    )
    options = parser.parse_args(args)

    from sandboxrun.sandbox.selftest.check import check, seccomp_profile

    if options.seccomp_profile:
        sys.stdout.buffer.write(seccomp_profile())
        sys.stdout.flush()
        return 0

    report = check(degraded=names(options.allow_degraded))
    if options.json:
        print(json.dumps(report.as_json()))
    else:
        print(report.text(colour=sys.stdout.isatty() and not os.environ.get("NO_COLOR")))
    return 0 if report.holds else SandboxError.exit_code
