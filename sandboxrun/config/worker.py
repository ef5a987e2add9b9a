"""A worker's hashes to a WorkerConfig: pure; with settings.py, the only place that knows the names of fields."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from sandboxrun.config import fields as settings
from sandboxrun.config import keys
from sandboxrun.config.fields import (
    ALIASES,
    LOOP_NAMES,
    LOOP_NUMBERS,
    SECRET_FIELDS,
    Loop,
    parse_loop,
    too_long,
    value_limit,
)
from sandboxrun.config.limits import LIMITS, Limits
from sandboxrun.config.permissions import KINDS, VERDICTS, Kind, Permissions, Verdict, parse_list
from sandboxrun.errors import ConfigError, NotConfigured
from sandboxrun.records import field, record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sandboxrun.config.debugger import Inspect

__all__ = [
    "FIELDS_MAX",
    "LOOP_NAMES",
    "LOOP_NUMBERS",
    "WorkerConfig",
    "parse_worker",
    "too_long",
    "value_limit",
    "wanted_fields",
]

FIELDS_MAX = 512  # per hash
URL_MAX_CHARS = 2048
VERSION_MAX_CHARS = 200

OPTION_FIELDS = ("denoOptions", "options")

_PERMISSION_FIELD = re.compile(
    r"(allow|deny)[A-Z][A-Za-z]*"
)  # also one that does not exist, which must not pass unseen
_PERMISSION_FLAG = r"--(allow|deny)-([a-z-]+)(?:=(.*))?"
_PERMISSION_FIELDS = {kind.field(verdict): (verdict, kind) for kind in Kind for verdict in Verdict}
_LIMIT_FIELDS = {limit.field: limit for limit in LIMITS.values()}
# However somebody may write them: a denial that is misspelt must not pass unseen.
_SPELT_MAX_CHARS = 40
_SPELLINGS = {name.lower(): name for name in (*_PERMISSION_FIELDS, *_LIMIT_FIELDS)}
_LIMIT_FLAG = r"--limit-([a-z]+)=(.*)"
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+/-]*")
_SHA256 = r"[0-9a-fA-F]{64}"
# Flags of the original runtime that neither grant nor mean anything here, so that existing hashes go on working.
_IGNORED_FLAGS = frozenset({"--no-prompt", "--quiet", "-q", "--no-check", "--no-lock", "--no-remote", "--no-config"})
_INSPECT_FLAGS = frozenset({"--inspect", "--inspect-brk", "--inspect-wait"})


# The fields that decide how the worker is run.
READ_FIELDS = (
    "type",
    "url",
    "version",
    "sha256",
    *ALIASES,
    *OPTION_FIELDS,
    *SECRET_FIELDS,
    *LOOP_NUMBERS,
    *LOOP_NAMES,
    *_PERMISSION_FIELDS,
    *_LIMIT_FIELDS,
)


def too_many(key: str, count: int) -> str:
    """What is wrong with a hash of so many fields."""
    return f"{key} has {count} fields: at most {FIELDS_MAX} are read"


def not_a_hash(key: str, kind: str) -> str:
    """What is wrong with a key of this type."""
    return f"{key} is a {kind}, not a hash: remove it with DEL {key} and make it with HSET"


def wanted_fields(names: Iterable[str]) -> list[str]:
    """Those of a hash's fields that have to be looked at: READ_FIELDS, and what looks like one and is none."""
    return [
        name
        for name in names
        if name in READ_FIELDS or _PERMISSION_FIELD.fullmatch(name) or _is_limit(name) or _spelling(name) is not None
    ]


def _spelling(name: str) -> str | None:
    """The right name of a field that decides what is granted, where this is that but for case, - and _."""
    if len(name) > _SPELT_MAX_CHARS:
        return None
    right = _SPELLINGS.get(name.lower().replace("_", "").replace("-", ""))
    return None if right == name else right


def _is_limit(name: str) -> bool:
    """Also one that does not exist, which must not pass unseen."""
    return re.fullmatch(r"limit[A-Z][A-Za-z]*", name) is not None


@record
class Asked:
    """What the hash itself asks for, before the operator's command line adds to it."""

    permissions: Permissions = field(default_factory=Permissions)
    limits: Mapping[str, int] = field(default_factory=dict)  # those that it sets, by name
    lists: tuple[tuple[str, str, str, str], ...] = ()  # as it writes them: verdict, kind, text, where
    inspect: Inspect | None = None

    def where(self, kind: str, target: object) -> str:
        """The field that allows this target, for an error."""
        for verdict, name, text, where in self.lists:
            if (verdict, name) == (Verdict.ALLOW, kind) and target in parse_list(KINDS[kind], text, where):
                return where
        raise KeyError(kind)


@record
class WorkerConfig:
    """All that a run needs to know of a worker's hash. Made once, passed inward."""

    key: str
    type: str
    id: str
    url: str
    version: str
    sha256: str | None
    permissions: Permissions
    limits: Limits
    loop: Loop
    has_secrets: bool
    asked: Asked = field(default_factory=Asked)
    inspect: Inspect | None = None  # where the debugger listens
    warnings: tuple[str, ...] = ()


def parse_worker(
    type_: str,
    id_: str,
    shared: Mapping[bytes, bytes],
    own: Mapping[bytes, bytes],
    *,
    extra: Permissions | None = None,
    limits: Mapping[str, int] | None = None,
    inspect: Inspect | None = None,
) -> WorkerConfig:
    """From the raw hashes `TYPE:h` (defaults) and `TYPE:ID:h` (wins field by field). Raises ConfigError.

    `extra` is what the operator's own command line grants and denies on top, `limits` and `inspect` what it sets instead.
    """
    key = keys.worker_key(keys.check_type(type_), keys.check_id(id_))
    fields = {**read_fields(shared, keys.type_key(type_)), **read_fields(own, key)}
    if not fields:
        raise NotConfigured(f"{key} does not exist: make it with HSET {key} url URL version VERSION")
    if fields.get("type", type_) != type_:
        raise ConfigError(
            f"field type of {key} is {fields['type'][:80]!r}, but the key says {type_!r}: make them the same"
        )
    for name in ("url", "version"):
        if not fields.get(name):
            raise NotConfigured(f"{key} has no {name}: set it with HSET {key} {name} VALUE")
    asked, warnings = _permissions(fields, key)
    permissions = asked.permissions.union(extra) if extra is not None else asked.permissions
    inspect = inspect or asked.inspect
    if inspect is not None:
        permissions = permissions.union(Permissions({str(Kind.LISTEN): (inspect.address,)}))
    return WorkerConfig(
        key=key,
        type=type_,
        id=id_,
        url=_url(fields["url"], key),
        version=check_version(fields["version"], key),
        sha256=_sha256(fields.get("sha256"), key),
        permissions=permissions,
        limits=Limits(**{**asked.limits, **(limits or {})}),
        loop=parse_loop(fields, type_, id_),
        has_secrets=bool(fields.get("encryptedJson")),
        asked=asked,
        inspect=inspect,
        warnings=warnings,
    )


def read_fields(raw: Mapping[bytes, bytes], key: str) -> dict[str, str]:
    """Raw fields to text under their first spelling; only the fields that `wanted_fields` names. Raises ConfigError."""
    return settings.read_fields(raw, key, wanted=lambda name: bool(wanted_fields([name])))


def check_version(version: str, key: str) -> str:
    if len(version) > VERSION_MAX_CHARS or not _VERSION.fullmatch(version) or ".." in version or "//" in version:
        raise ConfigError(
            f"field version of {key} is {version[:80]!r}: expected local, a branch (main), a tag (v1.2.3) or a full commit"
        )
    return version


def _permissions(fields: Mapping[str, str], key: str) -> tuple[Asked, tuple[str, ...]]:
    """What is asked for, and warnings."""
    lists: list[tuple[str, str, str, str]] = []
    limits: dict[str, int] = {}
    warnings: list[str] = []
    inspect: list[Inspect] = []
    options = {name: fields[name] for name in OPTION_FIELDS if fields.get(name)}
    if len(set(options.values())) > 1:
        raise ConfigError(
            f"{key} has both denoOptions and options and they differ: remove one with HDEL {key} denoOptions"
        )
    for name, value in list(options.items())[:1]:
        _parse_options(value, f"field {name} of {key}", lists, limits, inspect, warnings)
    for name, value in fields.items():
        where = f"field {name[:80]} of {key}"
        right = _spelling(name)
        if right is not None:
            raise ConfigError(f"{where} is spelt {right}: rename it")
        match = _PERMISSION_FIELD.fullmatch(name)
        if match:
            if name not in _PERMISSION_FIELDS:
                raise ConfigError(
                    f"{where} is not a permission of sandboxrun: expected one of {', '.join(_PERMISSION_FIELDS)}"
                )
            lists.append((*_PERMISSION_FIELDS[name], value, where))
        elif _is_limit(name):
            if name not in _LIMIT_FIELDS:
                raise ConfigError(f"{where} is not a limit of sandboxrun: expected one of {', '.join(_LIMIT_FIELDS)}")
            if value:
                limits[_LIMIT_FIELDS[name].name] = _LIMIT_FIELDS[name].read(value, where)
    return Asked(Permissions.parse(lists), limits, tuple(lists), *inspect[-1:]), tuple(warnings)


def _parse_options(
    text: str,
    where: str,
    lists: list[tuple[str, str, str, str]],
    limits: dict[str, int],
    inspect: list[Inspect],
    warnings: list[str],
) -> None:
    import shlex

    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"{where} cannot be split into flags: {error}") from error
    for word in words:
        match = re.fullmatch(_PERMISSION_FLAG, word, re.DOTALL)
        limit = re.fullmatch(_LIMIT_FLAG, word, re.DOTALL)
        if match:
            verdict, kind, value = match[1], match[2], match[3]
            if kind != "all":
                _check_kind(kind, f"{word[:80]!r} in {where}")
            if kind == "all" or value is None:
                raise ConfigError(
                    f"{word[:80]!r} in {where} would {verdict} everything: list what is meant, as in --{verdict}-net=HOST:PORT"
                )
            lists.append((verdict, kind, value, f"--{verdict}-{kind} in {where}"))
        elif limit and limit[1] in LIMITS:
            limits[limit[1]] = LIMITS[limit[1]].read(limit[2], f"--limit-{limit[1]} in {where}")
        elif word.partition("=")[0] in _INSPECT_FLAGS:
            from sandboxrun.config.debugger import Inspect

            flag, equals, value = word.partition("=")
            inspect.append(Inspect.parse(flag, value if equals else None, f"{flag} in {where}"))
            if flag == "--inspect-brk":
                warnings.append(f"{flag} in {where} waits for the debugger, but does not stop in the first line")
        elif word == "-A":
            raise ConfigError(
                f"'-A' in {where} would allow everything: list what is meant, as in --allow-net=HOST:PORT"
            )
        elif word not in _IGNORED_FLAGS:
            raise ConfigError(
                f"{where} has {word[:80]!r}: expected --allow-KIND=LIST or --deny-KIND=LIST with KIND one of {', '.join(KINDS)}, "
                f"or --limit-NAME=VALUE with NAME one of {', '.join(LIMITS)}"
            )


def _check_kind(kind: str, where: str) -> None:
    if kind not in KINDS:
        raise ConfigError(
            f"{where} is not a permission of sandboxrun: expected {' or '.join(VERDICTS)} with one of {', '.join(KINDS)}"
        )


def _url(url: str, key: str) -> str:
    if len(url) > URL_MAX_CHARS:
        raise ConfigError(f"field url of {key} has {len(url)} characters: at most {URL_MAX_CHARS} are read")
    if not url.isprintable() or " " in url or (not url.isascii() and "://" in url):
        raise ConfigError(f"field url of {key} has a space, a control or a non-ASCII character: percent-encode it")
    return url


def _sha256(value: str | None, key: str) -> str | None:
    if not value:
        return None
    value = value.removeprefix("sha256:").removeprefix("sha256-")
    if not re.fullmatch(_SHA256, value):
        raise ConfigError(
            f"field sha256 of {key} is {value[:80]!r}: expected 64 hexadecimal digits, as sha256sum prints them"
        )
    return value.lower()
