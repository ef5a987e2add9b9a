"""sandboxrun init."""

from __future__ import annotations

import os
import shlex

from sandboxrun.cli.parser import Parser
from sandboxrun.log import escape


def main(args: list[str]) -> int:
    parser = Parser(
        prog="sandboxrun init",
        description="Make a folder with a worker, its spec, tests, a README and a VS Code configuration, ready to use.",
        epilog="examples:\n  sandboxrun init greeter && sandboxrun dev greeter\n"
        "  sandboxrun init --package sizes      a worker of two files, with a package and its lock",
    )
    parser.add_argument(
        "--package", action="store_true", help="with a second file, a package from the index, and its lock"
    )
    parser.add_argument("name", metavar="NAME", help="a new or empty folder")
    options = parser.parse_args(args)

    from sandboxrun.dev import scaffold

    made = scaffold.make(options.name, scaffold.PACKAGE_FILES if options.package else scaffold.FILES)
    more, fault = scaffold.lock(options.name, os.environ) if options.package else ([], None)
    for path in (*made, *more):
        print(escape(path))
    if fault is not None:
        print(escape(f"its package is not locked, because {fault}"))
        for line in fault.hint:
            print(escape(f"first: {line}"))
        print(escape(f"later: sandboxrun lock {shlex.quote(options.name)}"))
    name = shlex.quote(options.name)
    tested = f"sandboxrun test {name} && " if fault is None else ""
    print(escape(f"next: {tested}sandboxrun dev {name}"))
    return 0
