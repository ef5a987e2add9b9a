"""The operator approves permissions that were added to a hash since its last run, and packages that were added to its script.
Decisions, the record, and the question.

The record of a worker lies outside Redis and has the permissions and limits of its hash at the last start or approval, and the
files and packages of its script. A hash that asks for less makes the record smaller, so a permission that was removed and comes
back needs approval again, and so does a package. The script is not part of the record, because its digest is pinned elsewhere. `~data` is recorded as it is written: it means the worker's
own folder on every host, wherever that lies, so one approval means the same on each.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterable, Iterator, Mapping

from sandboxrun.config import keys
from sandboxrun.config.covers import covered, covers
from sandboxrun.config.limits import LIMITS
from sandboxrun.config.permissions import (
    KINDS,
    IPNetwork,
    Kind,
    NetTarget,
    Permissions,
    RedisTarget,
    Verdict,
    is_own_data,
)
from sandboxrun.config.worker import Asked
from sandboxrun.errors import ConfigError, PolicyError
from sandboxrun.files import write_whole
from sandboxrun.log import PLAIN, escape
from sandboxrun.plainjson import dumps, loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sandboxrun.config.contents import Contents
    from sandboxrun.config.debugger import Inspect

RECORD_MAX_BYTES = 16 * 1024 * 1024
QUESTION_MAX_LINES = 40  # nobody sees a line that has scrolled away
QUESTION_MAX_CHARS = 4000
ANSWER_MAX_BYTES = 256
YES = (b"y", b"yes")


def growth(before: Asked, now: Asked) -> tuple[str, ...]:
    """What `now` asks for and `before` did not, a line for each; empty if there is no such thing."""
    return (
        *_grown_permissions(before.permissions.implied, now.permissions.implied),
        *_grown_limits(before.limits, now.limits),
        *_grown_inspect(before, now),
        *_grown_contents(before, now),
    )


def record_path(folder: str, type_: str, id_: str) -> str:
    return os.path.join(folder, f"{type_}:{id_}.json")


def load(path: str) -> Asked | None:
    """The last approval; None if there was none. Raises ConfigError for a damaged record, which must not count as none."""
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o022:
                raise ValueError("others can write it")
            data = file.read(RECORD_MAX_BYTES + 1)
        return _from_json(data)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        import shlex

        raise ConfigError(
            f"the record {path} of what a worker was allowed is damaged ({str(error)[:100]}); without it, the next run counts as "
            "the first",
            hint=f"rm {shlex.quote(path)}",
        ) from error


def save(path: str, asked: Asked) -> None:
    """Write the record atomically, readable for this user alone. Raises ConfigError."""
    permissions = asked.permissions
    record = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **{
            str(verdict): {kind: [str(target) for target in targets] for kind, targets in lists.items() if targets}
            for verdict, lists in ((Verdict.ALLOW, permissions.allow), (Verdict.DENY, permissions.deny))
        },
        "limits": dict(asked.limits),
        **({"inspect": str(asked.inspect)} if asked.inspect is not None else {}),
        **({"contents": _plain(asked.contents)} if asked.contents is not None else {}),
    }
    folder = os.path.dirname(path)
    _note_writer(path, permissions)  # before the record: none is without it
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        write_whole(path, dumps(record).encode())
    except OSError as error:
        raise ConfigError(f"the approval cannot be recorded in {folder}: {error.strerror}") from error


def written(permissions: Permissions) -> list[RedisTarget]:
    """The keys that `allowRedis` lets a worker write: its entries, less those that `denyRedis` takes back."""
    denied = permissions.deny.get(Kind.REDIS, ())
    allowed: tuple[RedisTarget, ...] = permissions.allow.get(Kind.REDIS, ())
    return [target for target in allowed if target.access in ("rw", "w") and target not in denied]


def has_writers(folder: str, type_: str) -> bool:
    """Whether a record of `folder` may grant to write hashes of this type. False for most starts, at the cost of two stat(2)."""
    return any(os.path.exists(place) for place in _writers(folder, type_))


def writers(folder: str, type_: str) -> list[tuple[str, str]]:
    """Type and id of the workers whose records may grant that: the record says whether it still does."""
    found = []
    for place in _writers(folder, type_):
        try:
            names = [name.partition(":") for name in os.listdir(place)]
        except FileNotFoundError:
            continue
        except OSError as error:
            raise ConfigError(
                f"{place}, which names the writers of hashes, cannot be read: {error.strerror}"
            ) from error
        found += [(name, id_) for name, _, id_ in names]
    return sorted(set(found))


def _writers(folder: str, type_: str) -> tuple[str, str]:
    """Folders with an empty file for each worker: whose entries begin with this type, and whose begin with a wildcard."""
    beside = os.path.join(os.path.dirname(folder), "writers")
    return os.path.join(beside, type_), os.path.join(beside, "*")


def _note_writer(path: str, permissions: Permissions) -> None:
    """So that a start finds the workers that may write a type's hashes, without reading every record. None is removed here."""
    folder, name = os.path.split(path.removesuffix(".json"))
    for target in written(permissions):
        head, colon, _ = target.pattern.partition(":")
        of_type, of_all = _writers(folder, head)
        if set(head) & set("*?"):
            _touch(of_all, name)
        elif colon and keys.is_type(head):
            _touch(of_type, name)


def _touch(folder: str, name: str) -> None:
    """Make an empty file. Raises ConfigError."""
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        os.close(os.open(os.path.join(folder, name), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise ConfigError(f"the approval cannot be recorded in {folder}: {error.strerror}") from error


def approve(
    path: str, asked: Asked, *, type_: str, id_: str, yes: bool, terminal: bool = True
) -> tuple[str, tuple[str, ...]]:
    """Approve what the hash asks for, and record it. Returns how ("first", "same", "--yes", "terminal"), and what was added.
    Raises PolicyError."""
    before = load(path)
    grown = growth(before, asked) if before is not None else ()
    manner = "first" if before is None else "same"
    if grown:
        manner = "--yes" if yes else "terminal"
        if not yes:
            _agree(grown, type_, id_, terminal)
    if before is None or _parts(before) != _parts(asked):
        save(path, asked)
    else:
        _note_writer(path, asked.permissions)  # an older version may have made the record
    return manner, grown


def _agree(grown: tuple[str, ...], type_: str, id_: str, terminal: bool) -> None:
    """Ask at the `terminal`, if one may be used. Raises PolicyError unless the answer is yes."""
    key = keys.worker_key(type_, id_)
    shown = [escape(line) for line in grown]
    if len(shown) > QUESTION_MAX_LINES or sum(map(len, shown)) > QUESTION_MAX_CHARS:
        raise PolicyError(
            f"{key} asks for {len(shown)} things more than at its last run, too many to ask here", hint=_agree_hint(key)
        )
    question = "".join(f"  + {line}\n" for line in shown)
    question = f"{key} asks for more than at its last run:\n{question}Allow this? [y/N] "
    answer = ask(question) if terminal else None
    if answer is None:
        first = grown[0][:200]
        raise PolicyError(
            f"{key} asks for more than at its last run ({first}{f', and {len(grown) - 1} more' if len(grown) > 1 else ''}), and "
            "there is no terminal to ask on",
            hint=_agree_hint(key),
        )
    if answer.strip().lower() not in YES:
        raise PolicyError(f"{key} asks for more than at its last run, and this was not approved", hint=_agree_hint(key))


def _agree_hint(key: str) -> str:
    return f"sandboxrun approve {keys.in_words(key)}"


def ask(question: str) -> bytes | None:
    """A line from the controlling terminal, because standard input carries the key; None if there is no terminal, or if another
    program has its foreground."""
    try:
        fd = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return None
    with open(fd, "r+b", buffering=0) as terminal:
        try:
            if os.tcgetpgrp(fd) != os.getpgrp():
                return None
            import termios

            termios.tcflush(fd, termios.TCIFLUSH)  # text that was typed before the question is no answer
            colours = "" if os.environ.get("TERM", "dumb") == "dumb" else PLAIN
            terminal.write((colours + question).encode())
            return terminal.read(ANSWER_MAX_BYTES) or b""
        except OSError:
            return None


def _grown_permissions(before: Permissions, now: Permissions) -> Iterator[str]:
    for kind in Kind:
        allowed = now.allow.get(kind, ())
        for target in allowed:
            if not covered(kind, before.allow.get(kind, ()), target):
                yield f"{kind.flag()} {target}"
        for target in before.deny.get(kind, ()):
            still = covered(kind, now.deny.get(kind, ()), target)
            if not still and any(_may_meet(kind, target, other) for other in allowed):
                yield f"no longer {kind.flag(Verdict.DENY)} {target}"


def _may_meet(kind: Kind, a: Any, b: Any) -> bool:
    """Whether something may be in both. A name and an address may be, and so may two patterns."""
    if isinstance(a, NetTarget):
        return a.network is None or b.network is None or _overlap(a.network, b.network)
    if isinstance(a, RedisTarget):
        return True
    if kind.is_folder and is_own_data(a) != is_own_data(b):
        return True  # where ~data is depends on the host, and the record is to mean the same on each
    return covers(kind, a, b) or covers(kind, b, a)


def _overlap(a: IPNetwork, b: IPNetwork) -> bool:
    return a.version == b.version and a.overlaps(b)


def _grown_limits(before: Mapping[str, int], now: Mapping[str, int]) -> Iterator[str]:
    for name, limit in LIMITS.items():
        old, new = (limits.get(name, limit.default) for limits in (before, now))
        if new != old and (not new or (old and new > old)):
            yield f"{limit.flag} {limit.show(new) if new else '0, no limit'} (was {limit.show(old)})"


def _grown_inspect(before: Asked, now: Asked) -> Iterator[str]:
    if now.inspect is not None and (before.inspect is None or before.inspect.address != now.inspect.address):
        yield str(now.inspect)


def _grown_contents(before: Asked, now: Asked) -> Iterable[str]:
    if now.contents is None:
        return ()
    from sandboxrun.config import contents  # late, because most scripts bring nothing along

    return contents.grown(before.contents, now.contents)


def _plain(asked: Contents) -> dict[str, Any]:
    from sandboxrun.config import contents

    return contents.to_plain(asked)


def _parts(asked: Asked) -> tuple[object, ...]:
    lists = (asked.permissions.allow, asked.permissions.deny)
    return (
        *({kind: targets for kind, targets in part.items() if targets} for part in lists),
        dict(asked.limits),
        str(asked.inspect),
        asked.contents,
    )


def _from_json(data: bytes) -> Asked:
    """Raises ValueError and its like for anything that `save` does not write, so that no record that was cut short counts."""
    record = loads(data)
    allow, deny = (
        {kind: _targets(KINDS[kind], texts) for kind, texts in record[verdict].items()} for verdict in Verdict
    )
    limits = record["limits"]
    if not all(name in LIMITS and type(value) is int and value >= 0 for name, value in limits.items()):
        raise ValueError("not the limits of a worker")
    return Asked(
        Permissions(allow, deny),
        limits,
        inspect=_inspect(record.get("inspect")),
        contents=_contents(record.get("contents")),
    )


def _contents(value: Any) -> Contents | None:
    if value is None:
        return None
    from sandboxrun.config import contents

    return contents.from_plain(value)


def _inspect(text: Any) -> Inspect | None:
    if text is None:
        return None
    from sandboxrun.config.debugger import FLAGS, Inspect

    flag, _, value = text.partition("=")
    if flag not in FLAGS:
        raise ValueError("not a debugger")
    try:
        return Inspect.parse(flag, value, "inspect")
    except ConfigError as error:
        raise ValueError(str(error)) from error


def _targets(kind: Kind, texts: Any) -> tuple[Any, ...]:
    if not isinstance(texts, list):
        raise TypeError("not a list")
    return tuple(kind.parse(text) for text in texts)
