"""What became of a request, from its facts: events in time, durations, and its state. Pure."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping

from sandboxrun.describe.fields import mask
from sandboxrun.describe.paint import Paint
from sandboxrun.describe.requests import Facts, parse_millis
from sandboxrun.protocol.calling import NOTE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Json = dict[str, Any]

TEXT_MAX_CHARS = 300
HANDED_BACK_MILLIS = 10**10  # more silence than any consumer's: free to take at once
_OWN = ("ref", "type", "requestData", "created", "progress")  # fields of a trace that are said otherwise
_STYLES = {"answered": "good", "dead": "bad", "failed": "bad", "being handled": "odd", "waiting": "odd"}


def timeline(facts: Facts) -> Json | None:
    """As values of JSON, with times in milliseconds since 1970; None if nothing is known."""
    stories = dict(_told(facts.trace))
    reply = None if _stale(facts) else _reply(facts, stories)
    events = sorted(_events(facts, stories), key=lambda event: event["at"])
    if not (facts.trace or facts.entry or facts.response or facts.dead or facts.reply):
        return None
    for event in events:
        event["since_first"] = event["at"] - events[0]["at"]
    return {
        "ref": facts.ref,
        "type": facts.type,
        "outcome": _outcome(facts, reply),
        "code": reply.get("code") if reply else None,
        "events": events,
        "durations": {} if _stale(facts) else _durations(events),
        "pending": _pending(facts),
        "deadline": _deadline(facts),
        "progress": cut(facts.trace["progress"]) if "progress" in facts.trace else None,
        "request": cut(_request(facts)),
        "reply": cut(json.dumps(reply, ensure_ascii=False)) if reply else None,
        "trace": noted(facts.trace),
        "kept_millis": {"trace": facts.trace_millis, "reply": facts.reply_millis},
        "notes": [cut(note) for note in facts.notes],
    }


def _told(trace: Mapping[str, str]) -> Iterator[tuple[str, Json]]:
    """Fields of the trace, such as demoWorkerTrace, that say when a service received the request and how it answered."""
    for name, text in trace.items():
        if name.endswith("Trace"):
            found = object_of(text)
            if found is not None and ("received" in found or "completed" in found):
                yield name, found


def noted(trace: Mapping[str, str]) -> Json:
    """The fields of a trace that services have added."""
    stories = {name for name, _ in _told(trace)}
    names = (name for name in trace if name not in _OWN and name not in stories and not name.startswith(NOTE))
    return {name: cut(trace[name]) for name in names}


def object_of(text: str | None) -> Json | None:
    try:
        found = json.loads(text or "")
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _reply(facts: Facts, stories: dict[str, Json]) -> Json | None:
    """The reply, from the first place that still has it."""
    texts = (facts.reply, facts.response.fields.get("res") if facts.response is not None else None)
    found = next((one for one in map(object_of, texts) if one is not None), None)
    if found is None:
        results = [story.get("res") for story in stories.values()]
        found = next((one for one in results if isinstance(one, dict) and one.get("ref") == facts.ref), None)
    if found is None and facts.response is not None:
        code = facts.response.fields.get("code", "")
        return {"code": int(code) if code.isascii() and code.isdigit() and len(code) < 10 else None}
    return found


def _stale(facts: Facts) -> bool:
    """Whether the response belongs to an earlier try, because a dead letter was sent again."""
    last = facts.again or facts.entry
    return last is not None and facts.response is not None and facts.response.millis < last.millis


def _events(facts: Facts, stories: dict[str, Json]) -> Iterator[Json]:
    created = parse_millis(facts.trace.get("created", ""))
    sent = facts.entry.fields.get("time", "") if facts.entry is not None else ""
    if created is None:
        created = parse_millis(sent)
    if created is not None:
        yield _event(created, "created", "by the client", "client")
    if facts.entry is not None:
        yield _event(facts.entry.millis, "queued", f"as {facts.entry.xid}", "redis")
    elif facts.response is not None and (queued := _xid_millis(facts.response.fields.get("xid", ""))) is not None:
        yield _event(queued, "queued", f"as {facts.response.fields['xid'][:40]}, which is trimmed by now", "redis")
    for name, story in stories.items() if facts.dead is None else ():  # what gives a request up does not begin it
        for key, event in (("received", "begun"), ("completed", "completed")):
            at = parse_millis(str(story.get(key, "")))
            if at is not None:
                yield _event(at, event, f"says {name}", "worker")
    if facts.dead is not None:
        fields = facts.dead.fields
        detail = f"by {fields.get('consumer', '?')} after {fields.get('deliveries', '?')} deliveries: {fields.get('reason', '')}"
        yield _event(facts.dead.millis, "given up", detail, "redis")
    if facts.again is not None:
        yield _event(facts.again.millis, "sent once more", f"as {facts.again.xid}", "redis")
    if facts.response is not None:
        yield _event(facts.response.millis, "replied", f"code {facts.response.fields.get('code', '?')}", "redis")


def _event(at: int, name: str, detail: str, clock: str) -> Json:
    return {"at": at, "time": iso(at), "event": name, "detail": cut(detail), "clock": clock}


def iso(millis: int) -> str:
    """ISO 8601 in UTC; the number itself if it is beyond the calendar."""
    try:
        return time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(millis // 1000)) + f"{millis % 1000:03d}Z"
    except (ValueError, OverflowError, OSError):
        return str(millis)


def _xid_millis(xid: str) -> int | None:
    first = xid.partition("-")[0]
    return int(first) if first.isascii() and first.isdigit() and len(first) < 19 else None


def _durations(events: list[Json]) -> dict[str, int]:
    """In milliseconds, if both ends are known. Clocks of several hosts may make one negative."""
    at = {event["event"]: event["at"] for event in reversed(events)}
    parts = (
        ("waiting", "queued", "begun"),
        ("handling", "begun", "completed"),
        ("replying", "completed", "replied"),
        ("all", "created" if "created" in at else "queued", "replied"),
    )
    return {name: at[end] - at[start] for name, start, end in parts if start in at and end in at}


def _outcome(facts: Facts, reply: Json | None) -> str:
    if facts.pending is not None and reply is None:
        return "waiting" if facts.pending[1] >= HANDED_BACK_MILLIS else "being handled"
    if facts.dead is not None and facts.again is None:
        return "dead"
    if reply is not None:
        return "answered" if reply.get("code") == 200 else "failed"
    if facts.entry is None:
        return "unknown"
    return "done" if facts.delivered else "waiting"


def _pending(facts: Facts) -> Json | None:
    if facts.pending is None:
        return None
    consumer, silent, deliveries = facts.pending
    free = silent >= HANDED_BACK_MILLIS
    return {
        "consumer": consumer[:200],
        "deliveries": deliveries,
        "idle_millis": None if free else silent,
        "handed_back": free,
    }


def _deadline(facts: Facts) -> Json | None:
    """The time after which no worker begins the request."""
    last = facts.again or facts.entry
    text = last.fields.get("deadline", "") if last is not None else ""
    if not (text.isascii() and text.isdigit() and len(text) <= 16):
        return None
    return {"at": int(text), "time": iso(int(text)), "passed": int(text) < facts.now}


def _request(facts: Facts) -> str | None:
    if "requestData" in facts.trace:
        return facts.trace["requestData"]
    for letter, name in ((facts.entry, "data"), (facts.dead, "request.data")):
        if letter is not None and name in letter.fields:
            return letter.fields[name]
    return None


def cut(text: str | None) -> Any:
    if text is None:
        return None
    text = mask(text[: 4 * TEXT_MAX_CHARS])
    return text if len(text) <= TEXT_MAX_CHARS else text[:TEXT_MAX_CHARS] + "..."


def text(found: Json, paint: Paint) -> str:
    """For people."""
    code = "" if found["code"] is None else f", code {found['code']}"
    head = f"{found['ref']}: request of {found['type'] or 'an unknown type'}"
    lines = [f"{paint(head, 'head')}, {paint(found['outcome'] + code, _STYLES.get(found['outcome'], ''))}"]
    for event in found["events"]:
        since = f"+{event['since_first']} ms" if event["since_first"] else ""
        lines.append(
            f"  {event['time']}  {since:>12}  {paint(event['event'], 'head')}  {paint(event['detail'], 'faint')}"
        )
    took = ", ".join(f"{name} {millis} ms" for name, millis in found["durations"].items())
    due = found["deadline"]
    until = f"{due['time']}, {'passed' if due['passed'] else 'not passed'}" if due is not None else ""
    rows = [
        ("took", took),
        ("state", _state(found)),
        ("deadline", until),
        ("progress", found["progress"]),
        ("request", found["request"]),
    ]
    rows += [("reply", found["reply"]), *found["trace"].items(), ("kept", _kept(found["kept_millis"]))]
    lines += [paint.row(name[:40], value) for name, value in rows if value]
    lines += [paint.row("note", note, "odd") for note in found["notes"]]
    return "\n".join(lines)


def _state(found: Json) -> str:
    pending, type_ = found["pending"], found["type"]
    if pending is not None and found["reply"] is not None:
        return f"answered, but never acknowledged by consumer {pending['consumer']}: another will be given it again"
    if pending is not None:
        if pending["handed_back"]:
            return "handed back by its worker, free for any other to take"
        times = f"{pending['deliveries']} time{'s' * (pending['deliveries'] != 1)}"
        return f"delivered {times}, now to consumer {pending['consumer']}, whose last sign of life for it is {pending['idle_millis']} ms old"
    if found["outcome"] == "waiting":
        return f"in the stream, and not delivered to any worker yet: see sandboxrun info {type_}"
    if found["outcome"] == "dead":
        return f"given up: see sandboxrun dead {type_}"
    if found["outcome"] == "done":
        return "acknowledged by a worker; its reply was taken or has expired, and its record was trimmed"
    if found["outcome"] == "unknown":
        return "neither its entry nor a reply is left: they have expired or were trimmed, or it was never sent"
    return ""


def _kept(millis: dict[str, int | None]) -> str:
    names = {"trace": "req:REF:h", "reply": "the reply, not taken yet,"}
    parts = [
        f"{names[name]} {'for good' if left < 0 else f'for {left / 1000:.0f} s more'}"
        for name, left in millis.items()
        if left is not None
    ]
    return ", ".join(parts)
