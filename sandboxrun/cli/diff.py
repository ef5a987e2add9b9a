"""sandboxrun diff."""

from __future__ import annotations

import argparse
import json

from sandboxrun.cli.parser import worker_parser
from sandboxrun.cli.redis import connected
from sandboxrun.config.worker import Asked
from sandboxrun.log import escape


def main(args: list[str]) -> int:
    parser = worker_parser(
        "diff",
        description="Show what a worker's hash asks for beyond what it was allowed last. Changes nothing, and runs nothing.",
        example="  sandboxrun diff demo-worker 1\n  sandboxrun diff demo-worker 1 --json | jq .grown",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(args)
    asked, before, _ = look(options)
    if options.json:
        from sandboxrun.policy.approval import growth

        grown = growth(before, asked) if before is not None else None
        print(json.dumps({"recorded": before is not None, "grown": grown}))
    else:
        show(before, asked, f"{options.type}:{options.id}:h")
    return 0


def look(options: argparse.Namespace) -> tuple[Asked, Asked | None, str]:
    """What the hash asks for now, within the ceiling; what was agreed to; and where that is recorded."""
    from sandboxrun.config import keys
    from sandboxrun.config.worker import parse_worker
    from sandboxrun.host.folders import Folders
    from sandboxrun.policy import approval
    from sandboxrun.redis.hashes import read

    keys.worker_key(keys.check_type(options.type), keys.check_id(options.id))
    with connected(options.redis) as connection:
        hashes = read(connection, options.type, options.id)
    for stored in (hashes.shared, hashes.own):
        stored.check()
    config = parse_worker(options.type, options.id, hashes.shared.fields, hashes.own.fields)
    folders = Folders.of_user()
    config = folders.ceiling(config, options.policy).check({})
    path = approval.record_path(folders.approved, options.type, options.id)
    return config.asked, approval.load(path), path


def show(before: Asked | None, asked: Asked, key: str) -> None:
    from sandboxrun.policy.approval import growth

    if before is None:
        print(f"{key} was never run or approved; it asks for:")
    lines = growth(before or Asked(), asked)
    for line in lines:
        print(escape(f"  + {line}"))
    if not lines:
        print("  nothing" if before is None else f"{key} asks for nothing more than it was allowed")
