"""The fields of a hash as people may see them: which are known, which are secret, which are misspelt. Pure."""

from __future__ import annotations

import re

from sandboxrun.config.fields import ALIASES, SECRET_FIELDS, TYPE_ONLY_FIELDS
from sandboxrun.config.worker import READ_FIELDS
from sandboxrun.redis.lease import AGENT_FIELDS, PID_FIELDS

SHOWN_MAX_CHARS = 200
MASKED = "set"  # instead of a secret
_RESEMBLES = 0.8  # difflib's ratio: one letter of five
_NAMES_OF_SECRETS = re.compile(r"secret|passw|passphrase|token|credential|api_?key|private_?key|auth(?!or)", re.I)
_LOGIN = re.compile(r"(://)[^/\s@]+@")
_QUERY = re.compile(r"([?&][\w-]*(?:token|key|secret|sig|signature|password|auth)[\w-]*=)[^&\s#]+", re.I)
_KEY_LINE = re.compile(r"worker-v\d+\s+[0-9a-fA-F]{16,}")


def is_known(name: str) -> bool:
    """Whether sandboxrun itself reads it; all others are the script's own configuration."""
    return name in READ_FIELDS or name in PID_FIELDS or name in AGENT_FIELDS or name in TYPE_ONLY_FIELDS


def is_secret(name: str) -> bool:
    """Whether its value is never shown: encrypted fields, and fields of the script with the name of a secret."""
    return name in SECRET_FIELDS or (not is_known(name) and _NAMES_OF_SECRETS.search(name) is not None)


def spellings(name: str) -> tuple[str, ...]:
    """All names of a field, the usual one first: some have two."""
    first = ALIASES.get(name, name)
    return (first, *(second for second, other in ALIASES.items() if other == first))


def resembles(name: str) -> str | None:
    """The known field that an unknown name probably means."""
    if is_known(name):
        return None
    import difflib

    lower = {known.lower(): known for known in READ_FIELDS}
    found = difflib.get_close_matches(name.lower()[:80], lower, 1, _RESEMBLES)
    return lower[found[0]] if found else None


def mask(text: str) -> str:
    """Without the logins and tokens of URLs, and without a worker's key."""
    return _KEY_LINE.sub("worker-v0 ***", _QUERY.sub(r"\1***", _LOGIN.sub(r"\1***@", text)))


def masked_hint(hint: tuple[str, ...]) -> tuple[str, ...]:
    """The hint, or nothing if it has a login or token: without it, it would be another command, with its quotes broken."""
    return hint if all(mask(line) == line for line in hint) else ()


def shown(name: str, value: bytes | str | None, size: int = 0) -> str:
    """A value for people, bounded; None for a value of `size` bytes that was not read. Not escaped."""
    if is_secret(name):
        return MASKED
    if value is None:
        return f"({size} bytes, more than is read)"
    text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value
    text = mask(text)
    return text if len(text) <= SHOWN_MAX_CHARS else f"{text[:SHOWN_MAX_CHARS]}... ({len(text)} characters)"
