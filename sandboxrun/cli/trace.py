"""sandboxrun trace."""

from __future__ import annotations

from sandboxrun.cli.looking import painter, to_json
from sandboxrun.cli.parser import Parser, connect_option
from sandboxrun.cli.redis import connected
from sandboxrun.config import keys
from sandboxrun.errors import ConfigError


def main(args: list[str]) -> int:
    parser = Parser(
        prog="sandboxrun trace",
        description="Show what became of a request, as a timeline: created, queued, begun, completed, replied, its state now, "
        "and the calls that its handler has made. Traces expire after two minutes, replies earlier.",
        epilog="examples:\n  sandboxrun trace 0d1b2c3d4e5f\n  sandboxrun trace r1 --type demo-worker --json | jq .durations",
    )
    parser.add_argument("ref", metavar="REF", help="the ref of the request, as in its reply")
    parser.add_argument(
        "--type", metavar="TYPE", help="type of its workers (default: what the trace says, else all types are searched)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    connect_option(parser)
    options = parser.parse_args(args)

    from sandboxrun.describe.calls import calls_of, lines
    from sandboxrun.describe.requests import check_ref, gather
    from sandboxrun.describe.timeline import cut, text, timeline

    ref = check_ref(options.ref)
    if options.type is not None:
        keys.check_type(options.type)
    with connected(options.redis) as connection:
        facts = gather(connection, ref, options.type)
        notes: list[str] = []
        calls = calls_of(connection, ref, facts.trace, notes)
    found = timeline(facts)
    if found is None:
        raise ConfigError(
            f"Redis has no trace, no reply and no entry of request {ref}{''.join(f'; {note}' for note in facts.notes)[:500]}",
            hint=f"sandboxrun stream {options.type or 'TYPE'} responses",
        )
    found["calls"], found["notes"] = calls, [*found["notes"], *map(cut, notes)]
    print(to_json(found) if options.json else "\n".join([text(found, painter()), *lines(found, painter())]))
    return 0
