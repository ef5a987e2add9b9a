"""Make the table of docs/packages.md: popular packages, each locked, installed and asked in a confined worker.

    python docs/record_packages.py [NAME…]        (with the extra `test`; it downloads some 500 MB)

With names, only these are tried, and nothing is written.
"""

from __future__ import annotations

import datetime
import os
import platform
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests" / "support")]

import machine  # noqa: E402

machine.leave_behind()

import redis  # noqa: E402
from packaged import try_package  # noqa: E402
from popular_packages import PACKAGES, Package  # noqa: E402
from raw_host import raw_host  # noqa: E402
from runner import Runner  # noqa: E402

from sandboxrun.redis import embedded  # noqa: E402

PAGE = HERE / "packages.md"
BEGIN, END = "<!-- begin: made by record_packages.py -->", "<!-- end -->"


def row(package: Package, run: Runner, r: redis.Redis, folder: Path) -> str:
    grants = (
        ", ".join(f"`{field}={value.format(http='PORT', free='PORT')}`" for field, value in package.grants) or "none"
    )
    with raw_host() as http:
        try:
            result = try_package(package, run, r, http, folder)
        except AssertionError as error:
            print(f"{package.requirement}: {str(error)[-2000:]}", file=sys.stderr)
            return f"| `{package.requirement}` | | | | {grants} | **fails** | | |"
    size = f"{result.size / 2**20:.1f}"
    times = f"{result.first_seconds:.1f} | {result.second_seconds:.2f}"
    return f"| `{package.requirement}` | {result.version} | {result.packages} | {size} | {grants} | works | {times} |"


def main() -> None:
    chosen = [package for package in PACKAGES if package.requirement in sys.argv[1:]] or PACKAGES
    rows = []
    with tempfile.TemporaryDirectory() as temporary, embedded.server() as url, redis.Redis.from_url(url) as r:
        for number, package in enumerate(chosen):
            home = Path(temporary, str(number))  # of its own, so that the first run downloads all
            home.mkdir()
            rows.append(row(package, Runner(url, home), r, home / "worker"))
            print(rows[-1], flush=True)
    if chosen is not PACKAGES:
        return
    today = datetime.date.today().isoformat()
    cpus = len(os.sched_getaffinity(0))
    table = [
        BEGIN,
        f"{today}, Python {platform.python_version()}, Linux {platform.release()}, {cpus} CPUs.",
        "",
        "| package | version | packages | MiB | grants | result | first run, s | next run, s |",
        "|---|---|---|---|---|---|---|---|",
        *rows,
        END,
    ]
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(before + "\n".join(table) + rest.partition(END)[2])


if __name__ == "__main__":
    main()
