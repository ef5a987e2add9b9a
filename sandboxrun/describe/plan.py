"""A plan as people may see it: without the tokens of URLs, and as text. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from sandboxrun.config.limits import LIMITS
from sandboxrun.describe.fields import mask
from sandboxrun.describe.paint import Paint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Json = dict[str, Any]


def masked(plan: Json) -> Json:
    """A plain plan without secrets in the URL of its script."""
    worker = {**plan["worker"], "url": mask(plan["worker"]["url"])}
    return {**plan, "worker": worker, "script": {**plan["script"], "origin": mask(plan["script"]["origin"])}}


def text(plan: Json, paint: Paint) -> str:
    """Of a plain plan; its script's source is left out."""
    return "\n\n".join(map("\n".join, (part for part in map(list, _parts(plan, paint)) if part)))


def _parts(plan: Json, paint: Paint) -> Iterator[Iterator[str]]:
    worker, script, policy = plan["worker"], plan["script"], plan["policy"]
    inspect = plan["inspect"]
    yield _rows(
        f"{worker['type']} {worker['id']}",
        {
            "version": worker["version"],
            "url": worker["url"],
            "stands on": plan["stands_on"],
            "secrets": "yes" if worker["has_secrets"] else "no",
            "debugger": "" if inspect is None else inspect["address"] + ", waited for" * inspect["wait"],
            "without": plan["degraded"],
        },
        paint,
    )
    size = len(script["source"].encode("utf-8"))
    yield _rows(
        "script",
        {
            "comes from": script["origin"],
            "sha256": script["sha256"],
            "size": f"{size} bytes",
            "imports from": script["folder"] or "",
            "files": [f"{path} sha256 {digest}" for path, digest in script["files"].items()],
        },
        paint,
    )
    packages = plan["packages"]
    if packages is not None:
        rows = {"declared": packages["declared"], "lock": packages["lock"] or ""}
        installed = [f"{name} {version}" for name, version in packages["installed"].items()]
        yield _rows("packages", {**rows, "installed": installed, "folder": packages["folder"] or ""}, paint)
    yield _rows("environment", {"prefix": plan["environment"]["prefix"], "variables": plan["env"]}, paint)
    for verdict, head in (("allow", "allowed"), ("deny", "denied")):
        yield _rows(head, {**worker["permissions"][verdict]}, paint)
    kernel = {name: policy[name] for name in ("read", "write", "devices", "execute")}
    yield _rows("the kernel is told", {"connect": policy["net"]["allow"].get("net", ()), **kernel}, paint)
    given = {
        name: limit.default if plan["limits"][name] is None else plan["limits"][name] for name, limit in LIMITS.items()
    }
    yield _rows("limits", {name: LIMITS[name].show(most) if most else "none" for name, most in given.items()}, paint)
    yield _rows("request loop", {name: str(value) for name, value in worker["loop"].items()}, paint, width=22)


def _rows(head: str, values: Json, paint: Paint, width: int = 14) -> Iterator[str]:
    """A head and a line for each value, and for each entry of a list; nothing if there is no value."""
    lines = []
    for name, value in values.items():
        for number, line in enumerate([value] if isinstance(value, str) else value):
            if line:
                lines.append(paint.row(name if number == 0 else "", line, width=width))
    if lines:
        yield paint(head, "head")
        yield from lines
