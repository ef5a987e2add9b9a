"""A change of a hash: which fields are wanted, what the hash is afterwards, and how to show it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from sandboxrun.config.fields import SECRET_FIELDS, too_long, value_limit
from sandboxrun.config.permissions import Verdict
from sandboxrun.config.worker import WorkerConfig
from sandboxrun.describe.fields import MASKED, is_secret, resembles, shown, spellings
from sandboxrun.describe.words import lines
from sandboxrun.errors import UsageError
from sandboxrun.records import record, replace
from sandboxrun.redis.hashes import Hashes, Stored
from sandboxrun.redis.lease import AGENT_FIELDS, PID_FIELDS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

NAME_MAX_CHARS = 128


@record
class Change:
    """Fields to write and to remove, and the hashes before and afterwards."""

    put: Mapping[str, str]
    remove: tuple[str, ...]
    before: Hashes
    after: Hashes
    warnings: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        return sorted([*self.put, *self.remove])


def parse(
    words: Iterable[str], delete: Iterable[str], *, worker: str, key: str, again: Callable[[str, str], str]
) -> dict[str, str | None]:
    """The wanted value of each field, or None if the field is to be removed. Raises UsageError.

    `worker`: TYPE and ID, or TYPE, as it is typed. `key`: of its hash. `again`: the command line with one word in place of
    another, or of none.
    """
    wanted: dict[str, str | None] = {}
    given = [(*word.partition("="), False) for word in words] + [(name, "=", "", True) for name in delete]
    for name, equals, value, gone in given:
        if not equals:
            raise UsageError(
                f"{name[:80]!r} is not FIELD=VALUE",
                hint=again(name, f"{name}=VALUE" if _is_name(name) else "FIELD=VALUE"),
            )
        if not _is_name(name):
            raise UsageError(
                f"{name[:80]!r} is not the name of a field: expected up to {NAME_MAX_CHARS} printable characters"
            )
        if any(other in wanted for other in spellings(name)):
            raise UsageError(f"field {name} is given twice")
        _check_settable(name, worker, value, gone=gone)
        wanted[name] = None if gone else _text(name, value, key)
    if not wanted:
        raise UsageError("there is nothing to set", hint=again("", "FIELD=VALUE"))
    return wanted


def _is_name(name: str) -> bool:
    return 0 < len(name) <= NAME_MAX_CHARS and name.isprintable() and " " not in name


def _check_settable(name: str, worker: str, value: str, *, gone: bool) -> None:
    one = " " in worker
    if name in ("count", "workerCount") and not one and not gone:
        number = value if value.isascii() and value.isdigit() and len(value) < 8 else "1"
        raise UsageError(
            f"field {name} says how many workers of the type shall run, and scale writes it",
            hint=f"sandboxrun scale {worker} {number}",
        )
    if name in (*PID_FIELDS, *AGENT_FIELDS):
        raise UsageError(
            f"field {name} belongs to the running worker",
            hint=f"sandboxrun stop {worker}" if one else f"sandboxrun stop {worker} --all",
        )
    if name in SECRET_FIELDS and not gone:
        raise UsageError(
            f"field {name} holds encrypted secrets, and set does not encrypt",
            hint=f"""echo '{{"NAME":"VALUE"}}' | sandboxrun encrypt {worker if one else f"{worker} ID"} --key-file FILE --write""",
        )


def _text(name: str, value: str, key: str) -> str:
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise UsageError(f"the value of {name} is not UTF-8 text") from None
    if size > value_limit(name):
        raise UsageError(too_long(name, key, size))
    return value


def plan(hashes: Hashes, wanted: Mapping[str, str | None]) -> Change:
    """An empty value removes the field; if the type's hash has the field, it is left empty instead, because an empty field wins
    over the type's. A field with two names is written under those that are set."""
    put: dict[str, str] = {}
    remove: list[str] = []
    warnings: list[str] = []
    for name, value in wanted.items():
        here = [spelling for spelling in spellings(name) if spelling.encode() in hashes.own.names]
        above = any(hashes.shared.fields.get(spelling.encode()) for spelling in spellings(name))
        if value or (value == "" and above):
            put.update(dict.fromkeys(here or [name], value))
        else:
            remove += here
            if not here:
                warnings.append(f"{hashes.own.key} has no field {name}")
        meant = resembles(name) if value else None
        if meant is not None:
            warnings.append(
                f"sandboxrun does not read field {name}: did you mean {meant}? The field is kept for the script"
            )
    put = {name: value for name, value in put.items() if hashes.own.fields.get(name.encode()) != value.encode()}
    return Change(put, tuple(remove), hashes, _after(hashes, put, remove), tuple(warnings))


def _after(hashes: Hashes, put: Mapping[str, str], remove: Iterable[str]) -> Hashes:
    gone = {name.encode() for name in (*put, *remove)}
    fields = {name: value for name, value in hashes.own.fields.items() if name not in gone}
    fields |= {name.encode(): value.encode() for name, value in put.items()}
    long = {name: size for name, size in hashes.own.long.items() if name not in gone}
    count = hashes.own.count - len(gone & set(hashes.own.names)) + len(put)
    kind = hashes.own.kind if hashes.own.kind not in ("hash", "none") else "hash" if fields or long else "none"
    return replace(hashes, own=Stored(hashes.own.key, kind, count, fields, long))


def rows(change: Change) -> list[dict[str, Any]]:
    """Old and new value of each changed field, as they may be shown; None for no value. `from`: the type's hash, if its value
    counts afterwards."""
    found = []
    for name in change.names:
        shared = change.before.shared.fields.get(name.encode())
        old, new = (_value(hashes.own, name) for hashes in (change.before, change.after))
        source = change.before.shared.key if new is None and shared else None
        if source:
            new = shown(name, shared)
        found.append({"field": name, "old": old, "new": new, "from": source, "secret": is_secret(name)})
    return found


def _value(stored: Stored, name: str) -> str | None:
    raw = name.encode()
    if raw not in stored.fields and raw not in stored.long:
        return None
    return MASKED if is_secret(name) else shown(name, stored.fields.get(raw), stored.long.get(raw, 0))


def in_words(before: WorkerConfig | None, after: WorkerConfig) -> dict[str, list[str]]:
    """What the worker may and may not do now, and what has ended."""
    old = [(line.verdict, line.words) for line in lines(before.asked)] if before is not None else []
    new = [(line.verdict, line.words) for line in lines(after.asked)]

    def only(verdict: Verdict, here: list[tuple[Verdict, str]], there: list[tuple[Verdict, str]]) -> list[str]:
        return [words for said, words in here if said is verdict and (said, words) not in there]

    found = {
        "may now": only(Verdict.ALLOW, new, old),
        "may no longer": only(Verdict.ALLOW, old, new),
        "must not": only(Verdict.DENY, new, old),
        "no longer forbidden": only(Verdict.DENY, old, new),
    }
    return {name: words for name, words in found.items() if words}


def missing(hashes: Hashes) -> list[str]:
    """The fields that neither hash has, and without which no worker runs."""
    stored = (hashes.own.fields, hashes.shared.fields)
    return [
        name
        for name in ("url", "version")
        if not any(fields.get(spelling.encode()) for fields in stored for spelling in spellings(name))
    ]


def moves(before: WorkerConfig | None, after: WorkerConfig) -> bool:
    """Whether the hash names other code than before."""
    return before is None or (before.url, before.version, before.sha256) != (after.url, after.version, after.sha256)
