"""sandboxrun approve."""

from __future__ import annotations

from sandboxrun.cli.diff import look, show
from sandboxrun.cli.parser import worker_parser
from sandboxrun.log import Log


def main(args: list[str]) -> int:
    parser = worker_parser(
        "approve",
        description="Approve exactly the permissions and limits that a worker's hash asks for now, and the packages of its script. "
        "They apply to every version of the script that has no others.",
        example="  sandboxrun diff demo-worker 1 && sandboxrun approve demo-worker 1\n  sandboxrun approve demo-worker 1 --audit audit.log",
    )
    parser.add_argument(
        "--audit", metavar="FILE", action="append", default=[], help="append the decision to FILE as a line of JSON"
    )
    options = parser.parse_args(args)

    from sandboxrun.policy import approval
    from sandboxrun.policy.audit import Audit

    key = f"{options.type}:{options.id}:h"
    log = Log(debug=options.debug)
    with Audit(options.audit, worker=key, warn=lambda message: log.warning("audit", message)) as audit:
        asked, agreement, path = look(options)
        show(agreement, asked, key)
        audit.record("approval", "allowed", how="approve", grown=agreement.grown)
        approval.save(path, asked)
    print("approved")
    return 0
