"""sandboxrun show."""

from __future__ import annotations

from sandboxrun.cli.looking import examined, first_fault, painter, redis_shown, to_json
from sandboxrun.cli.parser import worker_parser

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sandboxrun.host.plan import Preparation


def main(args: list[str]) -> int:
    parser = worker_parser(
        "show",
        description="Show a worker's hash and what it means: code, permissions in words, the operator's policy, whether the worker "
        "runs, and what is wrong. Secrets are never shown. The exit code is 0 even if the hash is wrong.",
        example="  sandboxrun show demo-worker 1\n  sandboxrun show demo-worker 1 --json | jq .faults\n"
        "  sandboxrun show demo-worker 1 --plan",
    )
    parser.add_argument(
        "--plan",
        action="store_true",
        help="print the plan of a run, with every path; if there is no plan, the error that would end the run",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(args)
    hashes, found = examined(options)
    if options.plan:
        return _plan(found, as_json=options.json)

    from sandboxrun.describe.report import last_run, report
    from sandboxrun.describe.show import text
    from sandboxrun.host.folders import Folders

    last = last_run(Folders.of_user().runs, options.type, options.id)
    made = report(hashes, found, redis=redis_shown(options), last=last)
    print(to_json(made) if options.json else text(made, painter()))
    return 0


def _plan(found: Preparation, *, as_json: bool) -> int:
    from sandboxrun.describe.plan import masked, text
    from sandboxrun.host.plain import to_plain

    if found.faults:
        raise first_fault(found)
    plan = masked(to_plain(found.plan()))
    print(to_json(plan) if as_json else text(plan, painter()))
    return 0
