"""sandboxrun diff."""

from __future__ import annotations

import argparse
import json

from sandboxrun.cli.looking import run_options
from sandboxrun.cli.parser import worker_parser
from sandboxrun.cli.redis import connected
from sandboxrun.config.worker import Asked
from sandboxrun.log import escape

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sandboxrun.host.plan import Agreement


def main(args: list[str]) -> int:
    parser = worker_parser(
        "diff",
        description="List the permissions and limits that a worker's hash has added since they were approved. Changes nothing.",
        example="  sandboxrun diff demo-worker 1\n  sandboxrun diff demo-worker 1 --json | jq .grown",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(args)
    asked, agreement, _ = look(options)
    if options.json:
        recorded = agreement.how != "first"
        print(json.dumps({"recorded": recorded, "grown": agreement.grown if recorded else None}))
    else:
        show(agreement, asked, f"{options.type}:{options.id}:h")
    return 0


def look(options: argparse.Namespace) -> tuple[Asked, Agreement, str]:
    """What the hash asks for now, within the ceiling; what of it was approved; and the file that records this."""
    from sandboxrun.host.folders import Folders
    from sandboxrun.host.plan import Preparation
    from sandboxrun.redis.hashes import read

    found = Preparation(run_options(options), Folders.of_user())
    with connected(options.redis) as connection:
        found.parse_stored(read(connection, options.type, options.id))
    found.bound()
    found.approve(ask=False)
    assert found.config is not None and found.agreement is not None
    return found.config.asked, found.agreement, found.approved


def show(agreement: Agreement, asked: Asked, key: str) -> None:
    from sandboxrun.policy.approval import growth

    recorded = agreement.how != "first"
    lines = agreement.grown if recorded else growth(Asked(), asked)
    if not recorded:
        print(f"{key} was never run or approved; it asks for:")
    for line in lines:
        print(escape(f"  + {line}"))
    if not lines:
        print(f"{key} asks for nothing more than it was allowed" if recorded else "  nothing")
