"""What the commands that show or change one worker's hash share."""

from __future__ import annotations

import argparse
import json
import os
import sys

from sandboxrun.cli.redis import DEFAULT_URL, connected
from sandboxrun.errors import NotConfigured, SandboxrunError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sandboxrun.describe.paint import Paint
    from sandboxrun.host.neighbours import Ask
    from sandboxrun.host.plan import Preparation
    from sandboxrun.host.runplan import RunOptions
    from sandboxrun.redis.connection import Connection
    from sandboxrun.redis.hashes import Hashes

NAMES_MAX_BYTES = 1024 * 1024  # of queues, which have ids


def run_options(options: argparse.Namespace) -> RunOptions:
    """The options of the run that would follow."""
    from sandboxrun.config import keys
    from sandboxrun.host.runplan import RunOptions

    keys.worker_key(keys.check_type(options.type), keys.check_id(options.id))
    url = options.redis or os.environ.get("REDIS_URL") or DEFAULT_URL
    return RunOptions(options.type, options.id, url, policy=options.policy)


def examined(options: argparse.Namespace) -> tuple[Hashes, Preparation]:
    """Both hashes, and what a run would make of them. Raises NotConfigured if there are none."""
    from sandboxrun.host.examine import examine
    from sandboxrun.host.folders import Folders
    from sandboxrun.redis.hashes import read

    run = run_options(options)
    with connected(options.redis) as connection:
        hashes = read(connection, options.type, options.id)
        if (hashes.own.kind, hashes.shared.kind) == ("none", "none"):
            raise NotConfigured(
                f"{hashes.own.key} does not exist",
                hint=f"sandboxrun set {options.type} {options.id} url=URL version=VERSION",
            )
        return hashes, examine(hashes, run, Folders.of_user(), asking(connection))


def asking(connection: Connection) -> Ask:
    """For Preparation.check_names."""
    return lambda commands: connection.pipeline_within(commands, NAMES_MAX_BYTES, reopen=True)


def first_fault(found: Preparation) -> SandboxrunError:
    """The error that sandboxrun TYPE ID would end with."""
    from sandboxrun.describe.fields import mask, masked_hint

    fault = found.faults[0]
    return type(fault)(mask(str(fault)), hint=masked_hint(fault.hint))


def redis_shown(options: argparse.Namespace) -> str:
    """Where Redis is, without a password."""
    from sandboxrun.redis.address import parse_url

    return parse_url(run_options(options).redis_url).shown


def to_json(value: Any) -> str:
    """In ASCII, without control characters: json leaves DEL as it is."""
    return json.dumps(value).replace("\x7f", "\\u007f")


def painter() -> Paint:
    """In colours on a terminal, unless NO_COLOR is set (no-color.org)."""
    from sandboxrun.describe.paint import Paint

    return Paint(sys.stdout.isatty() and not os.environ.get("NO_COLOR"))
