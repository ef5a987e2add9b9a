"""sandboxrun call."""

from __future__ import annotations

import json
import sys
import time

from sandboxrun.cli.parser import type_parser
from sandboxrun.errors import UsageError
from sandboxrun.log import escape
from sandboxrun.protocol.call import CallError, NotSent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

COUNT_MOST = 10_000_000


def main(args: list[str]) -> int:
    parser = type_parser(
        "call",
        description="Send a request to the workers of a type and print the reply's JSON. Exit code 0 for code 200.",
        epilog='examples:\n  sandboxrun call demo-worker \'{"name":"you"}\'\n  sandboxrun call demo-worker name=you times=3 --timeout 5\n'
        "  sandboxrun call demo-worker name=you -n 10000       how long replies take\n\n"
        "exit codes: 65 refused (400)   70 the handler failed (500)   75 no reply in time, or expired (504), or Redis away",
    )
    parser.add_argument(
        "data", metavar="JSON|KEY=VALUE", nargs="*", help="one JSON text, or fields; a value is JSON or text"
    )
    parser.add_argument("--timeout", metavar="SECONDS", default="10", help="for the reply (10); none: no limit")
    parser.add_argument("--trace", action="store_true", help="print the request's hash req:REF:h, too")
    parser.add_argument("-n", metavar="N", type=int, default=1, help="send N, many at once, and print a summary")
    options = parser.parse_args(args)
    if not 1 <= options.n <= COUNT_MOST:
        raise UsageError(f"-n is {options.n}: expected 1 to {COUNT_MOST}; see sandboxrun call --help")
    options.timeout = _timeout(options.timeout)
    data = parse_data(options.data)

    from sandboxrun.client import Client

    with Client(options.redis) as client:
        if options.n > 1:
            return _many(client, options, data)
        try:
            reply, code = client.call(options.type, data, timeout=options.timeout), 0
        except CallError as error:
            if error.reply is None:
                raise
            reply, code = error.reply, error.exit_code
        text = json.dumps(reply, ensure_ascii=False)
        print(text if text.isprintable() else json.dumps(reply))  # a reply must not drive the terminal
        if options.trace:
            _show_trace(options.redis, str(reply.get("ref")))
        return code


def _timeout(text: str) -> float | None:
    try:
        seconds = None if text == "none" else float(text)
    except ValueError:
        seconds = 0.0
    if seconds is not None and not seconds > 0:  # NaN, too
        raise UsageError(
            f"--timeout is {text[:80]!r}: expected seconds above 0, or none for no limit; see sandboxrun call --help"
        )
    return seconds


def parse_data(words: list[str]) -> Any:
    if len(words) == 1 and "=" not in words[0].partition("{")[0].partition("[")[0].partition('"')[0]:
        try:
            return json.loads(words[0])
        except ValueError as error:
            raise UsageError(f"the data is neither JSON ({error}) nor KEY=VALUE; see sandboxrun call --help") from None
    found = {}
    for word in words:
        name, separator, value = word.partition("=")
        if not separator:
            raise UsageError(f"{word[:80]!r} is not KEY=VALUE; see sandboxrun call --help")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def _show_trace(url: str | None, ref: str) -> None:
    from sandboxrun.cli.redis import connected, pairs
    from sandboxrun.config import keys

    with connected(url) as connection:
        for name, value in pairs(connection.call("HGETALL", keys.trace_key(ref))).items():
            print(escape(f"  {name:<22} {value}"), file=sys.stderr)


def _many(client, options, data) -> int:  # type: ignore[no-untyped-def]  # of the function above
    times: list[float] = []
    problems: dict[str, int] = {}
    unsent = 0
    began = time.perf_counter()
    for _, outcome, seconds in client.call_many(options.type, [data] * options.n, timeout=options.timeout):
        times.append(seconds)
        if isinstance(outcome, CallError):
            unsent += isinstance(outcome, NotSent)
            if unsent == options.n:
                raise outcome
            text = escape(f"{type(outcome).__name__}: {outcome}")
            problems[text] = problems.get(text, 0) + 1
    whole = time.perf_counter() - began
    times.sort()
    shown = [f"{name} {times[min(len(times) - 1, int(len(times) * part))] * 1e3:.2f}" for name, part in _PARTS]
    print(
        f"{len(times) - sum(problems.values())} of {len(times)} answered in {whole:.2f} s, {len(times) / whole:.0f} a second"
    )
    print(f"ms: {', '.join(shown)}")
    for text, count in sorted(problems.items(), key=lambda item: -item[1])[:5]:
        print(f"{count} × {text}", file=sys.stderr)
    return 70 if problems else 0


_PARTS = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("most", 1.0))
