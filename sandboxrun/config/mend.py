"""What may be meant by a wrong field of a hash, as a command to paste. Imported for an error only. Pure, but for `~`."""

from __future__ import annotations

import difflib
import os
import re
import shlex
from collections.abc import Iterable

from sandboxrun.config import keys
from sandboxrun.config.limits import LIMITS
from sandboxrun.config.permissions import KINDS, Kind, Verdict
from sandboxrun.errors import ConfigError

_NEAR = 0.8  # difflib's ratio: one letter of five, so that no other kind is granted


def near_hint(key: str, name: str, value: str, known: Iterable[str]) -> str:
    """To give the field the known name that it may be meant for; to remove it if there is none."""
    near = difflib.get_close_matches(name[:80], list(known), 1, _NEAR)
    return keys.set_hint(key, *([f"{near[0]}={value}"] if near else []), "--delete", name)


def options_hint(key: str, field: str, words: list[str], wrong: str) -> str:
    """To write the flag that the wrong one may be meant for; to leave it out if there is none."""
    known = [*(kind.flag(verdict) for verdict in Verdict for kind in Kind), *(limit.flag for limit in LIMITS.values())]
    flag, equals, value = wrong.partition("=")
    near = difflib.get_close_matches(flag[:80], known, 1, _NEAR) if value and flag not in known else []
    right = [f"{near[0]}{equals}{value}"] if near else []
    mended = [part for word in words for part in (right if word == wrong else [word])]
    return keys.set_hint(key, f"{field}={shlex.join(mended)}")


def list_hint(key: str, lists: Iterable[tuple[str, str, str, str]]) -> str:
    """To write the entries that are meant by those of the first list that is wrong; empty if that cannot be told.

    `lists`: verdict, kind, text and where it stands. A list of options has no hint, because it stands among other flags.
    """
    for verdict, kind, text, place in lists:
        field = KINDS[kind].field(Verdict(verdict))
        entries = [_meant(KINDS[kind], entry.strip()) for entry in text.split(",") if entry.strip()]
        if entries == [entry.strip() for entry in text.split(",") if entry.strip()]:
            continue
        if None in entries or place != f"field {field} of {key}":
            return ""
        return keys.set_hint(key, f"{field}={','.join(filter(None, entries))}")
    return ""


def _meant(kind: Kind, entry: str) -> str | None:
    """The entry itself if it is valid; else a valid one that grants what it names, or None."""
    for candidate in (entry, _reshaped(kind, entry)):
        try:
            kind.parse(candidate)
        except (ValueError, ConfigError):
            continue
        return candidate
    return None


def _reshaped(kind: Kind, entry: str) -> str:
    match kind:
        case Kind.NET:  # a URL for its host and port
            url = re.fullmatch(r"(https?)://([^/?#@]+)([/?#].*)?", entry)
            if url is None:
                return re.sub(r"/.*", "", entry)
            has_port = re.search(r":[0-9]+$", url[2])
            return url[2] if has_port else f"{url[2]}:{443 if url[1] == 'https' else 80}"
        case Kind.READ | Kind.WRITE:
            return os.path.expanduser(entry) if entry.startswith("~/") else entry
        case Kind.LISTEN:
            return re.sub(r"^(localhost)?:?([0-9]+)$", r"127.0.0.1:\2", entry)
        case Kind.ENV:
            return entry.removeprefix("$").partition("=")[0]
        case Kind.CALL:  # TYPE, of its stream TYPE:req:x too
            return entry.partition(":")[0].lower()
        case _:
            return entry
