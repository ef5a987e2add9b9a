"""What a worker tried and was refused, and the smallest set of grants that would have allowed it. Pure.

A worker can write such an event or line itself: what is learned is to be read before it is pasted.
"""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from sandboxrun.config.covers import covered
from sandboxrun.config.permissions import KINDS

# The worker's own traceback ends with a denial as text (sandbox/child/refusals.py), which is all that leaves the sandbox.
_LINE = re.compile(r'Requires [a-z]+ access to ".*"; grant it with: --allow-([a-z]+)=(.+) \(field [A-Za-z]+ of [^ ]+\)')
LEARNED_MAX = 200


class Learned:
    """Denials, one by one."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], Any] = {}
        self.without_grant = 0  # refusals that no grant would allow

    def event(self, fields: Mapping[str, object]) -> None:
        """The fields of a log event `denied`, as Denial.fields gives them; one that no grant would allow teaches nothing."""
        kind, grant = fields.get("kind"), fields.get("grant")
        if isinstance(kind, str) and isinstance(grant, str):
            self._add(kind, grant)
        elif isinstance(kind, str) and grant is None:
            self.without_grant += 1

    def line(self, text: str) -> None:
        """A line that the worker printed; only the denial after its traceback teaches something."""
        found = _LINE.fullmatch(text.strip())
        if found is not None:
            # It is quoted where a shell needs that. Of a file whose name imitates such a line, an end without its quote is found.
            with contextlib.suppress(ValueError):
                [grant] = shlex.split(found[2])
                self._add(found[1], grant)

    def _add(self, kind: str, grant: str) -> None:
        if len(self._found) >= LEARNED_MAX or kind not in KINDS or "," in grant:  # a path that no list can hold
            return
        try:
            target = KINDS[kind].parse(grant)
        except ValueError:
            return
        self._found[kind, str(target)] = target

    def grants(self, before: Mapping[str, Iterable[Any]] | None = None) -> dict[str, tuple[str, ...]]:
        """By kind, what to add to what is allowed `before`: nothing that another entry covers."""
        lists: dict[str, list[Any]] = {}
        for (kind, _), target in self._found.items():
            lists.setdefault(kind, []).append(target)
        smallest = {}
        for kind, targets in lists.items():
            allowed = tuple((before or {}).get(kind, ()))
            needed = [
                target
                for target in targets
                if not covered(kind, (*allowed, *(other for other in targets if other != target)), target)
            ]
            if needed:
                smallest[kind] = tuple(sorted(map(str, needed)))
        return dict(sorted(smallest.items()))


def as_flags(grants: Mapping[str, Iterable[str]]) -> str:
    return " ".join(shlex.quote(f"{KINDS[kind].flag()}={','.join(targets)}") for kind, targets in grants.items())


def as_set(
    type_: str, id_: str, grants: Mapping[str, Iterable[str]], fields: Mapping[str, str], *, url: str | None
) -> str:
    """A command that keeps what the `fields` of the hash allow already; `url`: of a hash that there may not be yet."""
    words = ["sandboxrun", "set", type_, id_]
    if url is not None:
        words += [f"url={url}", "version=local"]
    for kind, targets in grants.items():
        field = KINDS[kind].field()
        before = [entry.strip() for entry in fields.get(field, "").split(",") if entry.strip()]
        words.append(f"{field}={','.join((*before, *targets))}")
    return shlex.join(words)
