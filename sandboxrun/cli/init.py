"""sandboxrun init."""

from __future__ import annotations

from sandboxrun.cli.parser import Parser
from sandboxrun.log import escape


def main(args: list[str]) -> int:
    parser = Parser(
        prog="sandboxrun init",
        description="Make a folder with a worker, a test, a README and a VS Code configuration, ready to use.",
        epilog="example:\n  sandboxrun init greeter && sandboxrun dev greeter",
    )
    parser.add_argument("name", metavar="NAME", help="a new or empty folder")
    options = parser.parse_args(args)

    from sandboxrun.dev.scaffold import make

    for path in make(options.name):
        print(escape(path))
    print(escape(f"next: sandboxrun dev {options.name}"))
    return 0
