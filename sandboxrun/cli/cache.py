"""sandboxrun cache."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Iterator

from sandboxrun.cli.looking import to_json
from sandboxrun.cli.parser import Parser
from sandboxrun.errors import AlreadyRunningError, IntegrityError, UsageError
from sandboxrun.fleet.units import size
from sandboxrun.log import Log, escape

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sandboxrun.fetch.cache import Entry
    from sandboxrun.host.folders import Folders
    from sandboxrun.host.inventory import Holding, Kind, Removed

DIGEST_LEAST = 8
HINTED_MOST = 5  # entries in one command
_EPILOG = """\
examples:
  sandboxrun cache
  sandboxrun cache --json | jq '.environments[].packages'
  sandboxrun cache --clean

exit codes:
  0 done   64 there is no such digest   65 something is damaged   73 a running worker uses it
"""


def main(args: list[str]) -> int:
    parser = Parser(
        prog="sandboxrun cache",
        description="List the fetched scripts, the files that belong to them, and the environments of their packages: digest, size, "
        "date, and the workers that use them.",
        epilog=_EPILOG,
    )
    acts = parser.add_mutually_exclusive_group()
    acts.add_argument(
        "--clean",
        action="store_true",
        help="remove everything that no running worker uses, and keep the pinned digests of tags and commits",
    )
    acts.add_argument(
        "--remove",
        metavar="DIGEST",
        action="append",
        default=[],
        help="remove what has this digest, or one that begins so",
    )
    acts.add_argument("--verify", action="store_true", help="read everything, and name what is damaged")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(args)

    from sandboxrun.host import inventory
    from sandboxrun.host.folders import Folders

    folders = Folders.of_user()
    if options.clean:
        return _tell(inventory.clean(folders), folders, options)
    if options.remove:
        return _tell(inventory.remove(folders, _chosen(options.remove, folders)), folders, options)
    if options.verify:
        return _verify(folders, options)
    return _list(folders, options)


def _list(folders: Folders, options: argparse.Namespace) -> int:
    from sandboxrun.fetch.cache import Cache
    from sandboxrun.host.inventory import Kind, holdings

    cache = Cache(folders.cache, folders.state)
    pins = cache.entries()
    pinned = {pin.pin.sha256 for pin in pins}
    entries = [entry for entry in holdings(folders) if entry.name not in pinned or entry.kind is not Kind.SCRIPT]
    if options.json:
        rows = {key: [_json(entry) for entry in entries if entry.kind is kind] for kind, key in _keys()}
        print(to_json({"scripts": [*map(_pin_json, pins)], **rows}))
        return 0
    for pin in pins:
        size_text = "cleaned" if pin.size is None else f"{pin.size} B"
        print(escape(f"{pin.pin.sha256[:12]}  {size_text:>9}  {pin.pin.fetched}  {pin.version}  {pin.url}"))
    for entry in entries:
        if entry.kind in (Kind.FILES, Kind.ENVIRONMENT):
            print(escape(f"{entry.name[:12]}  {size(entry.size):>9}  {entry.made}  {', '.join(_about(entry))}"))
    for kind, noun in ((Kind.SCRIPT, "file without a pin"), (Kind.WHEEL, "wheel")):
        sizes = [entry.size for entry in entries if entry.kind is kind]
        if sizes:
            print(f"{_count(len(sizes), noun)}, {size(sum(sizes))}")
    print(f"{len(pins)} pinned, scripts in {cache.blobs}, pins in {cache.pins}", file=sys.stderr)
    return 0


def _about(entry: Holding) -> Iterator[str]:
    from sandboxrun.host.inventory import Kind

    if entry.packages:
        yield f"packages {' + '.join(entry.packages)}"
    yield (
        _count(entry.files, "file")
        if entry.kind is Kind.FILES
        else f"{entry.kind.noun} of {_count(entry.files, 'file')}"
    )
    users = [user.worker.replace(":", " ") + " (runs)" * user.runs for user in entry.users]
    yield f"used by {' and '.join(users)}" if users else "not used by a last run"


def _keys() -> Iterator[tuple[Kind, str]]:
    """Of --json, beside "scripts", which are pinned."""
    from sandboxrun.host.inventory import Kind

    yield from zip(Kind, ("files", "trees", "environments", "wheels"), strict=True)


def _pin_json(entry: Entry) -> dict[str, Any]:
    return {
        "url": entry.url,
        "version": entry.version,
        "sha256": entry.pin.sha256,
        "fetched": entry.pin.fetched,
        "bytes": entry.size,
    }


def _json(entry: Holding) -> dict[str, Any]:
    return {
        "digest": entry.name,
        "path": entry.path,
        "files": entry.files,
        "bytes": entry.size,
        "made": entry.made,
        "packages": list(entry.packages),
        "workers": [{"worker": user.worker, "runs": user.runs} for user in entry.users],
    }


def _chosen(digests: list[str], folders: Folders) -> list[Holding]:
    """What --remove means. Raises UsageError, AlreadyRunningError."""
    from sandboxrun.host.inventory import holdings

    entries = holdings(folders)
    chosen = []
    for text in digests:
        digest = text.removeprefix("sha256:").lower()
        if not re.fullmatch(rf"[0-9a-f]{{{DIGEST_LEAST},64}}", digest):
            raise UsageError(
                f"--remove is {text[:80]!r}: expected {DIGEST_LEAST} to 64 hexadecimal digits", hint="sandboxrun cache"
            )
        found = [entry for entry in entries if entry.name.startswith(digest)]
        if not found:
            raise UsageError(f"nothing in {folders.cache} has the digest {digest}", hint="sandboxrun cache")
        if len({entry.name for entry in found}) > 1:
            raise UsageError(
                f"{len(found)} entries of {folders.cache} have a digest that begins with {digest}: expected more of it",
                hint="sandboxrun cache --json",
            )
        for entry in found:
            if entry.running:
                first = entry.running.partition(",")[0]
                raise AlreadyRunningError(
                    f"the {entry.kind.noun} {entry.path} is used by {entry.running}, which runs",
                    hint=f"sandboxrun stop {first}",
                )
        chosen += found
    return chosen


def _tell(removed: Removed, folders: Folders, options: argparse.Namespace) -> int:
    if options.json:
        counts = {kind.noun: number for kind, number in removed.counts.items()}
        kept = [{"path": path, "reason": reason} for path, reason in removed.kept]
        print(to_json({"removed": counts, "bytes": removed.size, "kept": kept}))
        return 0
    counts = {kind.noun: number for kind, number in removed.counts.items() if number or kind.noun == "script"}
    words = ", ".join(_count(number, noun) for noun, number in counts.items())
    print(escape(f"removed {words}, {removed.size} bytes, from {folders.cache}"))
    for path, reason in removed.kept:
        Log().warning("cache", f"{path} was kept: {reason}")
    return 0


def _verify(folders: Folders, options: argparse.Namespace) -> int:
    from sandboxrun.host.inventory import holdings
    from sandboxrun.host.verification import faults

    damaged, number = faults(folders), len(holdings(folders))
    if options.json:
        print(
            to_json(
                {
                    "entries": number,
                    "damaged": [{"kind": entry.kind.noun, **_json(entry), "fault": fault} for entry, fault in damaged],
                }
            )
        )
        return IntegrityError.exit_code if damaged else 0
    for entry, fault in damaged:
        print(escape(f"{entry.kind.noun} {entry.path} {fault}"), flush=True)
    if damaged:
        names = [entry.name for entry, _ in damaged]
        remove = " ".join(f"--remove {shlex.quote(name)}" for name in names)
        raise IntegrityError(
            f"{len(damaged)} of {_count(number, 'entry')} in {folders.cache} are damaged, and are never run",
            hint=f"sandboxrun cache {remove if len(names) <= HINTED_MOST else '--clean'}",
        )
    print(escape(f"{_count(number, 'entry')} in {folders.cache}: all as they were made"))
    return 0


def _count(number: int, noun: str) -> str:
    if number == 1:
        return f"1 {noun}"
    first, _, rest = noun.partition(" ")
    plural = first[:-1] + "ies" if first.endswith("y") else first + "s"
    return f"{number} {plural} {rest}".rstrip()
