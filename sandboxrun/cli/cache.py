"""sandboxrun cache."""

from __future__ import annotations

import json
import sys

from sandboxrun.cli.parser import Parser
from sandboxrun.log import escape


def main(args: list[str]) -> int:
    parser = Parser(
        prog="sandboxrun cache",
        description="List the fetched scripts: digest, size, date, version and URL.",
        epilog="examples:\n  sandboxrun cache\n  sandboxrun cache --clean",
    )
    parser.add_argument(
        "--clean", action="store_true", help="remove the scripts, and keep the pinned digests of tags and commits"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(args)

    from sandboxrun.fetch.cache import Cache
    from sandboxrun.host.folders import Folders

    folders = Folders.of_user()
    cache = Cache(folders.cache, folders.state)
    if options.clean:
        count, size = cache.clean()
        print(f"removed {count} scripts, {size} bytes, from {cache.blobs}")
        return 0
    entries = cache.entries()
    if options.json:
        print(
            json.dumps(
                [
                    {
                        "url": e.url,
                        "version": e.version,
                        "sha256": e.pin.sha256,
                        "fetched": e.pin.fetched,
                        "bytes": e.size,
                    }
                    for e in entries
                ]
            )
        )
        return 0
    for e in entries:
        size_text = "cleaned" if e.size is None else f"{e.size} B"
        print(escape(f"{e.pin.sha256[:12]}  {size_text:>9}  {e.pin.fetched}  {e.version}  {e.url}"))
    print(f"{len(entries)} pinned, scripts in {cache.blobs}, pins in {cache.pins}", file=sys.stderr)
    return 0
