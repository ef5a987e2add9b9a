"""A change of a worker's own hash: what is asked for, what it makes of the hash, and how to show it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sandboxrun.config import keys
from sandboxrun.config.fields import SECRET_FIELDS, too_long, value_limit
from sandboxrun.config.permissions import Verdict
from sandboxrun.config.worker import WorkerConfig
from sandboxrun.describe.fields import MASKED, is_secret, resembles, shown, spellings
from sandboxrun.describe.words import lines
from sandboxrun.errors import UsageError
from sandboxrun.records import record, replace
from sandboxrun.redis.hashes import Hashes, Stored
from sandboxrun.redis.lease import PID_FIELDS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

NAME_MAX_CHARS = 128


@record
class Change:
    """What is written and removed, and the hashes afterwards."""

    put: Mapping[str, str]
    remove: tuple[str, ...]
    before: Hashes
    after: Hashes
    warnings: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        return sorted([*self.put, *self.remove])


def parse(words: Iterable[str], delete: Iterable[str], *, type_: str, id_: str) -> dict[str, str | None]:
    """By field, the value that is asked for, or None where the field is to be removed. Raises UsageError."""
    found: dict[str, str | None] = {}
    given = [(*word.partition("="), False) for word in words] + [(name, "=", "", True) for name in delete]
    for name, equals, value, gone in given:
        if not equals:
            raise UsageError(f"{name[:80]!r} is not FIELD=VALUE; see sandboxrun set --help")
        if not name or len(name) > NAME_MAX_CHARS or not name.isprintable() or " " in name:
            raise UsageError(
                f"{name[:80]!r} is not the name of a field: expected up to {NAME_MAX_CHARS} printable characters"
            )
        if any(other in found for other in spellings(name)):
            raise UsageError(f"field {name} is given twice: give it once")
        _check_ours(name, f"{type_} {id_}", gone=gone)
        found[name] = None if gone else _text(name, value, keys.worker_key(type_, id_))
    if not found:
        raise UsageError("there is nothing to set: give FIELD=VALUE, or --delete FIELD; see sandboxrun set --help")
    return found


def _check_ours(name: str, worker: str, *, gone: bool) -> None:
    if name in PID_FIELDS:
        raise UsageError(f"field {name} is the running worker's own: to end the worker, sandboxrun stop {worker}")
    if name in SECRET_FIELDS and not gone:
        raise UsageError(
            f"field {name} holds what is encrypted: make it with sandboxrun encrypt {worker} --key-file FILE"
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
    """An empty value means that the worker is to have nothing there: the field is removed, and where its type's hash has one,
    is left empty instead, so that this one does not count. A field with two names is written under those that are there."""
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
                f"field {name} is none that sandboxrun reads, and {meant} is: it is kept for the script, which may want it"
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
    """Old and new of each field that changes, as they may be shown; None where there is none. `from` is the type's hash where
    that counts afterwards."""
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
    """What the worker may and may not do now, and what no longer holds."""
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


def moves(before: WorkerConfig | None, after: WorkerConfig) -> bool:
    """Whether other code is meant than before."""
    return before is None or (before.url, before.version, before.sha256) != (after.url, after.version, after.sha256)
