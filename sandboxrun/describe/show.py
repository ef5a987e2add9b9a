"""A report as text. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sandboxrun.config.permissions import Verdict
from sandboxrun.describe import contents
from sandboxrun.describe.paint import Paint
from sandboxrun.log import pastable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Json = dict[str, Any]

_KINDS = {
    "tag": "a tag, pinned once fetched",
    "commit": "a commit, pinned once fetched",
    "branch": "counts as a branch: its code may change",
    "local": "as it is on disk",
}
_FIELD_CHARS = 22


def text(found: Json, paint: Paint) -> str:
    parts = [
        [paint(found["worker"].replace(":", " "), "head"), *_state(found, paint)],
        _code(found["code"], paint),
        may(found, paint) if found["code"] else [],
        _limits(found["limits"], paint) if found["code"] else [],
        _policy(found, paint),
        _faults(found, paint),
        _fields(found, paint),
    ]
    return "\n\n".join(filter(None, map("\n".join, parts)))


def _state(found: Json, paint: Paint) -> Iterator[str]:
    if found["key"] not in found["hashes"]:
        yield paint.row("hash", f"{found['hashes'][0]}, because {found['key']} does not exist")
    yield paint.row("runs now", *running(found["running"]))
    last = found["last_run"]
    if last is None:
        yield paint.row("last run", "none is recorded here")
    else:
        same = "the same code as now" if last["same_code"] else "other code than now"
        yield paint.row("last run", f"{last['time']}, sha256 {last['sha256'][:12]}, {same}")
        for name in last["degraded"]:
            yield paint.row("", f"without {name}", "odd")


def running(found: Json | None) -> tuple[str, str]:
    """Whether a worker runs, and the style of that text."""
    if found is None:
        return "no", ""
    where = "" if found["here"] else f" on another host ({found['host']})"
    seen = "" if found["seen_seconds_ago"] is None else f", seen {max(0, found['seen_seconds_ago'])} s ago"
    if not found["alive"]:
        return (
            f"no: process {found['pid']}{where} is gone{seen}, and field pid was left behind, which blocks nothing",
            "odd",
        )
    return f"yes, as process {found['pid']}{where}{seen}", "good"


def _code(code: Json | None, paint: Paint) -> Iterator[str]:
    if code is None:
        return
    yield paint("code", "head")
    yield paint.row("version", code["version"], note=_KINDS[code["kind"]])
    yield paint.row("url", code["url"])
    if code["resolved"] and code["resolved"] != code["url"]:
        yield paint.row("comes from", code["resolved"])
    if code["sha256"]:
        fetched = f"fetched {code['fetched']}" if code["fetched"] else ""
        kept = "" if code["here"] else "; removed from the cache"
        yield paint.row("sha256", code["sha256"], note=fetched + kept)
    elif code["kind"] != "local":
        yield paint.row("sha256", "not fetched here yet", "odd")
    if code["contents"] is not None:
        yield from contents.rows(code["contents"], paint)
    if code["sha256_required"] and code["sha256_required"] != code["sha256"]:
        yield paint.row("must be", code["sha256_required"])
    if code["services"]:
        yield paint.row("serves", ", ".join(code["services"]), note="of its script's services")


def may(found: Json, paint: Paint) -> Iterator[str]:
    """What is granted and denied, in words."""
    for verdict, head in ((Verdict.ALLOW, "may"), (Verdict.DENY, "may not")):
        listed = [line for kind in found[verdict].values() for line in kind]
        if verdict is Verdict.ALLOW or listed:
            yield paint(head, "head")
        for line in listed:
            yield f"  {paint(line['words'])}  {paint('(' + _field(line['where'], found['key']) + ')', 'faint')}"
        if verdict is Verdict.ALLOW and not listed:
            yield f"  {paint('nothing but what every worker has')}"


def _field(where: str, key: str) -> str:
    return where.removesuffix(f" of {key}").removeprefix("field ")


def serves(names: Sequence[str], paint: Paint) -> Iterator[str]:
    """Which of the script's services; nothing if the hash does not say."""
    if names:
        yield paint("serves, of its script's services", "head")
        yield f"  {paint(', '.join(names))}"


def always(found: Json, paint: Paint) -> Iterator[str]:
    yield paint("every worker has", "head")
    for line in found["always"]:
        yield f"  {paint(line, 'faint')}"


def _limits(limits: Json, paint: Paint) -> Iterator[str]:
    yield paint("limits", "head")
    usual = [f"{name} {limit['shown']}" for name, limit in limits.items() if limit["set_by"] == "default"]
    for name, limit in limits.items():
        if limit["set_by"] != "default":
            yield paint.row(name, limit["shown"], note=limit["set_by"])
    if usual:
        yield paint.row("default", ", ".join(usual))


def _policy(found: Json, paint: Paint) -> Iterator[str]:
    policy, agreed = found["policy"], found["agreed"]
    if policy is None:
        return
    yield paint("the operator's policy", "head")
    for kind, bounds in policy["allows"].items():
        for bound in bounds:
            yield paint.row(kind, ", ".join(bound["entries"]) or "nothing", note=bound["where"])
    for line in policy["requires"]:
        yield paint.row("requires", line)
    if policy["shares_memory"]:
        yield paint.row("memory", "an agent may fork the worker from a process that it shares pages with")
    if policy["within"]:
        yield paint.row("the hash", "lies within it", "good")
    else:
        yield paint.row("the hash", f"is beyond it in {len(policy['refused'])} (see below)", "bad")
    for line in agreed["grown"]:
        yield paint.row("not approved", line, "odd")
    if agreed["grown"]:
        yield paint.row("", f"approve with: sandboxrun approve {found['worker'].replace(':', ' ')}")


def _faults(found: Json, paint: Paint) -> Iterator[str]:
    faults = found["faults"]
    if not faults:
        return
    name = found["worker"].replace(":", " ")
    yield paint(f"sandboxrun {name} would end with exit code {faults[0]['exit_code']}", "head")
    for number, fault in enumerate(faults):
        yield f"  {paint('error' if number == 0 else 'then', 'bad')}: {paint(fault['error'])}"
    hint = pastable(tuple(faults[0]["hint"] or [f"sandboxrun set {name} FIELD=VALUE --dry-run"]))
    if not hint:
        return
    if len(hint) == 1:
        yield f"  hint: {paint(hint[0])}"
    else:
        yield "  hint:"
        yield from map(paint, hint)


def _fields(found: Json, paint: Paint) -> Iterator[str]:
    if found["fields"]:
        yield paint("fields", "head")
    for name, one in found["fields"].items():
        notes = [*([one["from"]] if one["from"] != found["key"] else []), *(["the script's own"] if one["own"] else [])]
        style = "odd" if one["secret"] else ""
        shown = name if len(name) <= 80 else name[:77] + "..."
        yield paint.row(shown, one["value"], style, note=", ".join(notes), width=_FIELD_CHARS)
