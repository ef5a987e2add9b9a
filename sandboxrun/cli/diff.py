"""sandboxrun diff."""

from __future__ import annotations

import argparse
import json

from sandboxrun.cli.looking import asking, run_options
from sandboxrun.cli.parser import worker_parser
from sandboxrun.cli.redis import connected
from sandboxrun.config.worker import Asked
from sandboxrun.describe import contents
from sandboxrun.errors import PolicyError, SandboxrunError
from sandboxrun.log import Log, escape

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sandboxrun.host.plan import Preparation
    from sandboxrun.host.runplan import Agreement


def main(args: list[str]) -> int:
    parser = worker_parser(
        "diff",
        description="List the permissions and limits that a worker's hash has added since they were approved, and the packages that "
        "its script has added. Changes nothing.",
        example="  sandboxrun diff demo-worker 1\n  sandboxrun diff demo-worker 1 --json | jq .grown",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(args)
    asked, agreement, _ = look(options)
    if options.json:
        recorded = agreement.how != "first"
        grown, script = agreement.grown if recorded else None, contents.as_json(asked.contents, agreement.before)
        print(json.dumps({"recorded": recorded, "grown": grown, "script": script}))
    else:
        show(agreement, asked, f"{options.type}:{options.id}:h")
    return 0


def look(options: argparse.Namespace) -> tuple[Asked, Agreement, str]:
    """What the hash and its script ask for now, within the ceiling; what of it was approved; and the file that records this."""
    from sandboxrun.host.folders import Folders
    from sandboxrun.host.plan import Preparation
    from sandboxrun.redis.hashes import read

    found = Preparation(run_options(options), Folders.of_user())
    with connected(options.redis) as connection:
        found.parse_stored(read(connection, options.type, options.id))
        found.bound()
        found.check_names(asking(connection))
    _read_script(found)
    found.approve(ask=False)
    assert found.config is not None and found.agreement is not None
    return found.config.asked, found.agreement, found.approved


def _read_script(found: Preparation) -> None:
    """What the script brings along, if it was fetched here. A warning says if that is not known. Raises PolicyError."""
    from sandboxrun.fetch.cache import Cache
    from sandboxrun.fetch.cached import from_cache

    try:
        found.resolve()
        cache = Cache(found.folders.cache, found.folders.state)
        found.fetch(from_cache(cache))
        found.gather(cache, fetch=False)
    except PolicyError:
        raise
    except SandboxrunError as error:
        Log().warning("script", f"the packages of the script are not known here: {error}", hint=error.hint)
        return
    assert found.config is not None  # where it was bound
    if found.artifact is None:
        Log().warning(
            "script", f"the script of {found.config.key} was not fetched here yet, so its packages are not known"
        )
    elif found.gathered is not None and found.gathered.lacks_lock:
        Log().warning("script", f"the lock of {found.config.key} is not here yet, so its packages are not known")


def show(agreement: Agreement, asked: Asked, key: str) -> None:
    from sandboxrun.policy.approval import growth

    recorded = agreement.how != "first"
    lines = agreement.grown if recorded else growth(Asked(), asked)
    if not recorded:
        print(f"{key} was never run or approved; it asks for:")
    for line in lines:
        print(escape(f"  + {line}"))
    for line in contents.file_changes(asked.contents, agreement.before):
        print(escape(f"  {line}"))
    if not lines:
        print(f"{key} asks for nothing more than it was allowed" if recorded else "  nothing")
