"""The calls that the handler of a request has made, as a tree with their times.

Nothing is searched: a caller names each of its calls in the trace of its own request (protocol/calling.py), and the trace of
the call has its times, its reply, its own calls, and what services have noted.
"""

from __future__ import annotations

from sandboxrun.config import keys
from sandboxrun.describe.requests import READ_MAX_BYTES, parse_millis, read_trace
from sandboxrun.describe.timeline import cut, noted, object_of
from sandboxrun.protocol.calling import NOTE, PATH_MAX
from sandboxrun.redis.connection import Connection
from sandboxrun.redis.replies import TooManyBytes, Within

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    from sandboxrun.describe.paint import Paint

    Json = dict[str, Any]

_SHOWN_BY_TREE = ("caller", "callerRef", "method", "traceparent", "parentSpan")
CALLS_MAX = 300  # shown of one request, those of its calls included


def calls_of(connection: Connection, ref: str, trace: Mapping[str, str], notes: list[str]) -> list[Json]:
    """The tree below a request, as values of JSON. `trace`: the request's. Times are in milliseconds since 1970."""
    found: list[Json] = []
    seen = {ref}
    waiting = [(found, trace, 0)]
    try:
        with Within(connection, READ_MAX_BYTES):
            while waiting:
                calls, own, depth = waiting.pop(0)
                for inner, callee in _named(own):
                    if inner in seen or depth == PATH_MAX:
                        continue
                    if len(seen) > CALLS_MAX:
                        notes.append(f"only {CALLS_MAX} calls are shown")
                        return found
                    seen.add(inner)
                    fields = read_trace(connection, keys.trace_key(inner), notes)
                    calls.append(_call(inner, callee, fields))
                    waiting.append((calls[-1]["calls"], fields, depth + 1))
                calls.sort(key=lambda call: (call["created"] is None, call["created"]))
    except TooManyBytes:
        notes.append(f"the traces of the calls have more than {READ_MAX_BYTES >> 20} MiB: not all are shown")
    return found


def _named(trace: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for name, callee in trace.items():
        ref = name.removeprefix(NOTE)
        if ref != name and keys.is_ref(ref):
            yield ref, callee


def _call(ref: str, callee: str, trace: Mapping[str, str]) -> Json:
    type_, _, method = callee.partition(" ")
    story = object_of(trace.get(keys.trace_field(type_))) or {}
    reply = story.get("res")
    reply = reply if isinstance(reply, dict) else {}
    error = reply.get("err")
    return {
        "ref": ref,
        "type": cut(type_),
        "method": cut(method) or None,
        "code": reply.get("code") if isinstance(reply.get("code"), int) else None,
        "error": cut(str(error.get("message"))) if isinstance(error, dict) else None,
        "created": parse_millis(trace.get("created", "")),
        "received": parse_millis(str(story.get("received", ""))),
        "completed": parse_millis(str(story.get("completed", ""))),
        "known": bool(trace),
        "trace": {name: text for name, text in noted(trace).items() if name not in _SHOWN_BY_TREE},
        "calls": [],
    }


def lines(found: Json, paint: Paint) -> list[str]:
    """The tree of a timeline for people: when each call was made, how long it took, and who called whom."""
    if not found["calls"]:
        return []
    start = found["events"][0]["at"] if found["events"] else None
    return [f"  {paint('calls', 'head')}", *_rows(found["calls"], start, 1, paint)]


def _rows(calls: list[Json], start: int | None, depth: int, paint: Paint) -> Iterator[str]:
    for call in calls:
        since = "" if start is None or call["created"] is None else f"+{call['created'] - start} ms"
        ends = call["created"], call["completed"]
        took = "" if None in ends else f"{ends[1] - ends[0]} ms"
        name = " ".join(filter(None, (call["type"], call["method"])))
        code = call["code"]
        good = code == 200
        outcome = f"code {code}" if code is not None else "no reply yet" if call["known"] else "its trace has expired"
        outcome += f": {call['error']}" if call["error"] and not good else ""
        head = f"  {since:>12} {took:>9}  {'  ' * (depth - 1)}{paint(name, 'head')}"
        yield f"{head}  {paint(outcome, 'good' if good else 'odd' if code is None else 'bad')}  {paint(call['ref'], 'faint')}"
        for field, text in call["trace"].items():
            yield f"{'':27}{'  ' * depth}{paint(f'{field[:40]} {text}', 'faint')}"
        yield from _rows(call["calls"], start, depth + 1, paint)
