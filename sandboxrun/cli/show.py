"""sandboxrun show."""

from __future__ import annotations

from sandboxrun.cli.looking import examined, painter, redis_shown, to_json
from sandboxrun.cli.parser import worker_parser


def main(args: list[str]) -> int:
    parser = worker_parser(
        "show",
        description="Show a worker's hash and what it means: code, permissions in words, the operator's policy, whether it runs, "
        "and what is wrong. Secrets are never shown. Exit code 0, whatever is wrong with it.",
        example="  sandboxrun show demo-worker 1\n  sandboxrun show demo-worker 1 --json | jq .faults",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(args)
    hashes, found = examined(options)

    from sandboxrun.describe.report import last_run, report
    from sandboxrun.describe.show import text
    from sandboxrun.host.folders import Folders

    last = last_run(Folders.of_user().runs, options.type, options.id)
    made = report(hashes, found, redis=redis_shown(options), last=last)
    print(to_json(made) if options.json else text(made, painter()))
    return 0
