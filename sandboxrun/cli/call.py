"""sandboxrun call."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Sequence

from sandboxrun.cli.parser import Parser, type_parser
from sandboxrun.config import keys
from sandboxrun.errors import NotConfigured, UsageError
from sandboxrun.log import escape
from sandboxrun.protocol.call import CallError, NotSent
from sandboxrun.protocol.request import is_method

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

    from sandboxrun.client import Client

COUNT_MOST = 10_000_000
_EPILOG = """\
examples:
  sandboxrun call demo-worker '{"name":"you"}'
  sandboxrun call demo-worker name=you times=3 --timeout 5
  sandboxrun call shop --method order.place item=tea       call a method of a service; METHOD alone if the service has the type's name
  sandboxrun call demo-worker name=you -n 10000            measure how long replies take
  sandboxrun call demo-worker name=you --json | jq .seconds

exit codes:
  0 code 200   65 refused (400, 404)   70 the handler failed (500)   75 no reply in time, expired (504), or Redis away
  78 Redis knows no such type
"""


def main(args: list[str]) -> int:
    parser = _parser()
    options = parser.parse_args(args)
    if not 1 <= options.n <= COUNT_MOST:
        raise UsageError(f"-n is {options.n}: expected 1 to {COUNT_MOST}")
    options.timeout = _timeout(options.timeout)
    if options.method is not None and not is_method(options.method):
        raise UsageError(
            f"--method is {options.method[:80]!r}: expected METHOD or SERVICE.METHOD, such as quote or price.quote"
        )
    data = parse_data(options.data, options.type)
    _check_known(parser, options, args)

    from sandboxrun.client import Client

    with Client(options.redis) as client:
        return _many(client, options, data) if options.n > 1 else _one(client, options, data)


def _parser() -> Parser:
    parser = type_parser(
        "call",
        description="Send a request to the workers of a type, and print the reply as JSON.",
        epilog=_EPILOG,
    )
    parser.add_argument(
        "data", metavar="JSON|KEY=VALUE", nargs="*", help="one JSON text, or fields; a VALUE that is not JSON is text"
    )
    parser.add_argument("--method", metavar="METHOD", help="the method to call, of a service: METHOD or SERVICE.METHOD")
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        default="10",
        help="how long to wait for the reply (default: 10); none: no limit",
    )
    parser.add_argument(
        "--trace", action="store_true", help="print the trace of the request, req:REF:h, on standard error"
    )
    parser.add_argument(
        "-n", metavar="N", type=int, default=1, help="send N requests, many at once, and print a summary"
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object with the outcome, also if the call fails"
    )
    return parser


def _check_known(parser: Parser, options: argparse.Namespace, args: Sequence[str]) -> None:
    """Raise NotConfigured if Redis knows no such type: nobody would answer, and the request would stay there."""
    from sandboxrun.cli.known import types_instead_of
    from sandboxrun.cli.redis import DEFAULT_URL

    type_ = keys.check_type(options.type)
    url = options.redis or os.environ.get("REDIS_URL") or DEFAULT_URL
    unknown = types_instead_of(url, type_)
    if unknown is None:
        return
    from sandboxrun.cli.mistakes import again_hint, nearest

    shown, types = unknown
    near = nearest(type_, types)
    message = (
        f"Redis at {shown} knows no worker type {type_}: there is no {keys.type_key(type_)}, no "
        f"{keys.worker_key(type_, 'ID')} and no stream {keys.request_stream(type_)}"
    )
    if near is None:
        raise NotConfigured(message, hint="sandboxrun ps --all")
    meant = list(args)
    meant[meant.index(type_)] = near
    raise NotConfigured(f"{message}; did you mean {near}?", hint=again_hint(parser, meant))


def _timeout(text: str) -> float | None:
    try:
        seconds = None if text == "none" else float(text)
    except ValueError:
        seconds = 0.0
    if seconds is not None and not seconds > 0:  # NaN, too
        raise UsageError(f"--timeout is {text[:80]!r}: expected seconds above 0, or none for no limit")
    return seconds


def parse_data(words: list[str], type_: str = "TYPE") -> Any:
    """The data of a request from a command line or a prompt. Raises UsageError. `type_`: of the workers, for a hint."""
    if len(words) == 1 and "=" not in words[0].partition("{")[0].partition("[")[0].partition('"')[0]:
        try:
            return json.loads(words[0])
        except ValueError as error:
            raise UsageError(
                f"the data is neither JSON ({error}) nor KEY=VALUE", hint=_data_hint(type_, words)
            ) from None
    fields = {}
    for word in words:
        name, separator, value = word.partition("=")
        if not separator:
            raise UsageError(f"{word[:80]!r} is not KEY=VALUE", hint=_data_hint(type_, words))
        try:
            fields[name] = json.loads(value)
        except ValueError:
            fields[name] = value
    return fields


def _data_hint(type_: str, words: Sequence[str]) -> str:
    """The call with each word as a field, if that is what it can be."""
    given = [word if "=" in word else f"KEY={word}" for word in words]
    if any(word[0] in "{[\"'" for word in words if word):
        given = ['{"KEY": "VALUE"}']
    return f"sandboxrun call {shlex.quote(type_)} {shlex.join(given)}"


def _one(client: Client, options: argparse.Namespace, data: Any) -> int:
    began = time.perf_counter()
    failure: CallError | None = None
    try:
        reply: dict[str, Any] | None = client.call(options.type, data, timeout=options.timeout, method=options.method)
    except CallError as error:
        reply, failure = error.reply, error
        if reply is None and not options.json:
            raise
    seconds = time.perf_counter() - began
    code = failure.exit_code if failure is not None else 0
    if options.json:
        outcome = {"ok": failure is None, "exit_code": code, "seconds": round(seconds, 6), "reply": reply}
        print(
            json.dumps(
                {**outcome, "error": str(failure) if failure else None, "hint": list(failure.hint) if failure else []}
            )
        )
    else:
        text = json.dumps(reply, ensure_ascii=False)
        print(text if text.isprintable() else json.dumps(reply))  # a reply must not drive the terminal
    if options.trace and reply is not None:
        _show_trace(options.redis, str(reply.get("ref")))
    return code


def _show_trace(url: str | None, ref: str) -> None:
    from sandboxrun.cli.redis import connected, pairs

    with connected(url) as connection:
        for name, value in pairs(connection.call("HGETALL", keys.trace_key(ref))).items():
            print(escape(f"  {name:<22} {value}"), file=sys.stderr)


def _many(client: Client, options: argparse.Namespace, data: Any) -> int:
    times: list[float] = []
    problems: dict[str, int] = {}
    unsent = 0
    began = time.perf_counter()
    items = [data] * options.n
    for _, outcome, seconds in client.call_many(options.type, items, timeout=options.timeout, method=options.method):
        times.append(seconds)
        if isinstance(outcome, CallError):
            unsent += isinstance(outcome, NotSent)
            if unsent == options.n:
                raise outcome
            text = escape(f"{type(outcome).__name__}: {outcome}")
            problems[text] = problems.get(text, 0) + 1
    _summary(times, problems, time.perf_counter() - began, as_json=options.json)
    return 70 if problems else 0


def _summary(times: list[float], problems: dict[str, int], seconds: float, *, as_json: bool) -> None:
    times.sort()
    millis = {name: times[min(len(times) - 1, int(len(times) * part))] * 1e3 for name, part in _PARTS.items()}
    answered = len(times) - sum(problems.values())
    worst = sorted(problems.items(), key=lambda item: -item[1])
    if as_json:
        shown = {"sent": len(times), "answered": answered, "seconds": round(seconds, 3)}
        errors = [{"error": text, "count": count} for text, count in worst]
        rounded = {name: round(value, 3) for name, value in millis.items()}
        print(json.dumps({**shown, "per_second": round(len(times) / seconds, 1), "millis": rounded, "errors": errors}))
        return
    print(f"{answered} of {len(times)} answered in {seconds:.2f} s, {len(times) / seconds:.0f} a second")
    print(f"ms: {', '.join(f'{name} {value:.2f}' for name, value in millis.items())}")
    for text, count in worst[:5]:
        print(f"{count} × {text}", file=sys.stderr)


_PARTS = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "most": 1.0}
