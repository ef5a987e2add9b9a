"""sandboxrun spec."""

from __future__ import annotations

import argparse
import os

from sandboxrun.cli.mistakes import check_action, help_hint
from sandboxrun.cli.parser import Parser, connect_option
from sandboxrun.errors import SpecError, StoreError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sandboxrun.spec.model import Spec

ACTIONS = {
    "show": "print readable documentation of a worker",
    "types": "print a Python module with the types of its requests, replies and methods",
    "asyncapi": "print an AsyncAPI 3 document",
    "import": "read an AsyncAPI 3 document in JSON, and print a spec.json",
    "schema": "print the JSON Schema of spec.json, for editors",
}
_EPILOG = (
    "actions:\n"
    + "\n".join(f"  {name:<10} {what}" for name, what in ACTIONS.items())
    + """

examples:
  sandboxrun spec show price                        the folder price, else the type price in Redis
  sandboxrun spec show price --markdown > price.md
  sandboxrun spec types price > price_types.py
  sandboxrun spec asyncapi price > price.asyncapi.json
  sandboxrun spec import price.asyncapi.json > spec.json
  sandboxrun spec schema > spec.schema.json

A TYPE is looked up in Redis: its spec.json is read beside its script, or in the cache if the script has a URL.
"""
)


def main(args: list[str]) -> int:
    parser = Parser(
        prog="sandboxrun spec", description="Print what a worker's spec.json says, in other forms.", epilog=_EPILOG
    )
    parser.add_argument("action", metavar="|".join(ACTIONS))
    parser.add_argument("source", metavar="FOLDER|FILE|TYPE", nargs="?", help="where the spec.json is")
    forms = parser.add_mutually_exclusive_group()
    forms.add_argument("--json", action="store_true", help="show: print the interface as JSON, without the tests")
    forms.add_argument("--markdown", action="store_true", help="show: print Markdown")
    connect_option(parser)
    options = parser.parse_args(args)
    check_action(parser, args, options.action, ACTIONS)
    _check(parser, options)
    try:
        print(_output(options))
    except RecursionError:
        raise SpecError(f"{options.source} is nested too deep") from None
    return 0


def _check(parser: Parser, options: argparse.Namespace) -> None:
    """Raise UsageError for words that the action does not take."""
    action, source = options.action, options.source
    if (options.json or options.markdown) and action != "show":
        raise UsageError(f"spec {action} has one form: --json and --markdown are for spec show", hint=help_hint(parser))
    if action == "schema" and source is not None:
        raise UsageError(f"spec schema takes no FOLDER, but was given {source[:80]!r}", hint="sandboxrun spec schema")
    if action != "schema" and source is None:
        needed = "a FILE" if action == "import" else "a FOLDER, a FILE or a TYPE"
        raise UsageError(f"spec {action} needs {needed}", hint=help_hint(parser))


def _output(options: argparse.Namespace) -> str:
    from sandboxrun.spec import model

    if options.action == "schema":
        return model.schema_text().rstrip()
    if options.action == "import":
        from sandboxrun.spec import interface
        from sandboxrun.spec.asyncapi_import import spec_of

        return _json(spec_of(interface.read(options.source), options.source))
    spec = _spec(options)
    if options.action == "asyncapi":
        from sandboxrun.spec.asyncapi import document

        return _json(document(spec))
    if options.action == "types":
        from sandboxrun.spec.stubs import module

        return module(spec).rstrip()
    from sandboxrun.spec import page

    if options.json:
        return _json(page.interface(spec))
    return page.markdown(spec) if options.markdown else page.text(spec)


def _json(value: object) -> str:
    """As a file has it, without a character that could drive the terminal."""
    import json

    text = json.dumps(value, indent=2, ensure_ascii=False)
    return "".join(char if char == "\n" or char.isprintable() else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    """As JSON: in UTF-16."""
    data = char.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{data[at : at + 4]}" for at in range(0, len(data), 4))


def _spec(options: argparse.Namespace) -> Spec:
    """Of a folder or a file, else of a type. Raises SpecError."""
    from sandboxrun.config import keys
    from sandboxrun.spec import model

    source = options.source
    if os.path.exists(source) or not keys.is_type(source):
        return model.load(source)
    from sandboxrun.cli.redis import connected
    from sandboxrun.cli.spec_source import spec_of_type
    from sandboxrun.host.folders import Folders

    try:
        with connected(options.redis) as connection:
            return spec_of_type(connection, source, Folders.of_user(), action=options.action)
    except StoreError as error:
        raise StoreError(f"there is no file or folder {source}, and {error}", hint=error.hint) from None
