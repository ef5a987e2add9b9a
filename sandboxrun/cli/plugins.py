"""sandboxrun plugins."""

from __future__ import annotations

from sandboxrun.cli.parser import Parser
from sandboxrun.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sandboxrun.describe.paint import Paint
    from sandboxrun.host.plugins import Plugin

_EPILOG = """\
examples:
  sandboxrun plugins                   each with its digest, and the permissions that it asks for
  sandboxrun plugins http-get          the commands that set it up
  sandboxrun plugins --json | jq -r '.[] | "\\(.sha256)  \\(.name)"'

A plugin is an ordinary worker: its hash grants permissions, the policy bounds them, and the digest pins the script.
"""


def main(args: list[str]) -> int:
    parser = Parser(
        prog="sandboxrun plugins",
        description="List the workers that come with sandboxrun, or show how to set one up. Changes nothing.",
        epilog=_EPILOG,
    )
    parser.add_argument("name", metavar="NAME", nargs="?", help="show the commands that set up this worker")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(args)

    from sandboxrun.cli.looking import painter, to_json
    from sandboxrun.host import plugins

    known = plugins.find()
    if options.name is not None:
        known = [_named(options.name, known)]
    if options.json:
        rows = [_row(plugin) for plugin in known]
        print(to_json(rows if options.name is None else rows[0]))
    elif options.name is not None:
        print(_setup(known[0], painter()))
    elif known:
        print(_list(known, painter()))
    else:
        print("no plugins are installed: this installation was made without the wheel's data files")
    return 0


def _named(name: str, known: list[Plugin]) -> Plugin:
    """Raises UsageError, with the nearest name."""
    for plugin in known:
        if plugin.name == name:
            return plugin
    import difflib
    import shlex

    near = difflib.get_close_matches(name, [plugin.name for plugin in known], 1)
    raise UsageError(
        f"there is no plugin {name[:80]!r}",
        hint=f"sandboxrun plugins {shlex.quote(near[0])}" if near else "sandboxrun plugins",
    )


def _row(plugin: Plugin) -> dict[str, Any]:
    """For --json."""
    return {
        "name": plugin.name,
        "description": plugin.description,
        "sha256": plugin.sha256,
        "grants": dict(plugin.grants),
        "fields": plugin.fields,
        "commands": list(_commands(plugin)),
    }


def _list(known: list[Plugin], paint: Paint) -> str:
    parts = []
    for plugin in known:
        rows = [("asks for", ", ".join(f"{field}={value}" for field, value in plugin.grants.items()) or "nothing")]
        rows += [(field, plugin.fields[field]) for field in ("url", "version")]
        rows.append(("sha256", f"sha256:{plugin.sha256}"))
        lines = [f"{paint(plugin.name, 'head')}  {paint(plugin.description)}"]
        parts.append("\n".join([*lines, *(paint.row(name, text, width=9) for name, text in rows)]))
    return "\n\n".join([*parts, "sandboxrun plugins NAME shows how to set one up"])


def _setup(plugin: Plugin, paint: Paint) -> str:
    write, start, ask = map(paint, _commands(plugin))
    readme = paint(f"{plugin.folder}/README.md")
    return "\n".join(
        [
            f"{paint(plugin.name, 'head')}  {paint(plugin.description)}",
            "",
            "1. Write its hash. Change the grants to what you need:",
            "",
            f"  {write}",
            "",
            "2. Start it. Ctrl-C ends it:",
            "",
            f"  {start}",
            "",
            "3. Send it a request, from another terminal:",
            "",
            f"  {ask}",
            "",
            f"Requests and replies are described in {readme}",
        ]
    )


def _commands(plugin: Plugin) -> tuple[str, str, str]:
    """That write the hash, start the worker and send it a request; for a shell."""
    import json
    import shlex

    fields = [f"{field}={value}" for field, value in plugin.fields.items()]
    return (
        shlex.join(["sandboxrun", "set", plugin.name, "1", *fields]),
        shlex.join(["sandboxrun", plugin.name, "1"]),
        shlex.join(["sandboxrun", "call", plugin.name, json.dumps(plugin.example)]),
    )
