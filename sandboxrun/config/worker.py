"""From a worker's hashes to a WorkerConfig. Pure. Only this file and fields.py know the names of fields."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sandboxrun.config import fields as settings
from sandboxrun.config import keys
from sandboxrun.config.fields import (
    ALIASES,
    LOOP_NAMES,
    LOOP_NUMBERS,
    SECRET_FIELDS,
    SERVICES,
    Loop,
    parse_loop,
    too_long,
    value_limit,
)
from sandboxrun.config.limits import LIMITS, Limit, Limits
from sandboxrun.config.permissions import KINDS, VERDICTS, Kind, Permissions, Verdict, parse_list
from sandboxrun.errors import ConfigError, NotConfigured
from sandboxrun.records import field, record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sandboxrun.config.contents import Contents
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

_PERMISSION_FLAG = r"--(allow|deny)-([a-z-]+)(?:=(.*))?"
_PERMISSION_FIELDS = {kind.field(verdict): (verdict, kind) for kind in Kind for verdict in Verdict}
_LIMIT_FIELDS = {limit.field: limit for limit in LIMITS.values()}
# Other spellings of these names are refused, because a misspelt denial must not be ignored.
_SPELT_MAX_CHARS = 40
_SPELLINGS = {name.lower(): name for name in (*_PERMISSION_FIELDS, *_LIMIT_FIELDS)}
_LIMIT_FLAG = r"--limit-([a-z]+)=(.*)"
_VERSION_CHARS = keys.LETTERS + keys.DIGITS + "._+/-"
_HEX_DIGITS = keys.DIGITS + "abcdefABCDEF"
# Flags of the original runtime that grant nothing and have no meaning here. Existing hashes have them.
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
    SERVICES,
    *_PERMISSION_FIELDS,
    *_LIMIT_FIELDS,
)


def too_many(key: str, count: int) -> str:
    """The message about a hash of `count` fields."""
    return f"{key} has {count} fields: at most {FIELDS_MAX} are read"


def not_a_hash(key: str, kind: str) -> ConfigError:
    """The error about a key of this type of Redis."""
    return ConfigError(f"{key} is a {kind}, not a hash", hint=_remove_hint(key))


def _remove_hint(key: str) -> str:
    import shlex

    return f'redis-cli -u "$REDIS_URL" DEL {shlex.quote(key)}'


def wanted_fields(names: Iterable[str]) -> list[str]:
    """Those of a hash's fields that must be read: READ_FIELDS, and names that look like one of them."""
    return [
        name
        for name in names
        if name in READ_FIELDS or _is_permission(name) or _is_limit(name) or _spelling(name) is not None
    ]


def _spelling(name: str) -> str | None:
    """The known permission or limit from which this name differs in case, - and _ only; None if there is none."""
    if len(name) > _SPELT_MAX_CHARS:
        return None
    right = _SPELLINGS.get(name.lower().replace("_", "").replace("-", ""))
    return None if right == name else right


def _is_permission(name: str) -> bool:
    """Whether a name is that of a permission, or of an unknown one, which must be refused."""
    return any(_is_word_after(str(verdict), name) for verdict in Verdict)


def _is_word_after(prefix: str, name: str) -> bool:
    """Whether a name is the prefix and a capitalized word of ASCII letters."""
    word = name.removeprefix(prefix)
    return word != name and word[:1] in keys.UPPER and keys.consists_of(keys.LETTERS, word)


def _is_limit(name: str) -> bool:
    """Whether a name is that of a limit, or of an unknown one, which must be refused."""
    return _is_word_after("limit", name)


@record
class Asked:
    """What the hash itself asks for, without the operator's command line."""

    permissions: Permissions = field(default_factory=Permissions)
    limits: Mapping[str, int] = field(default_factory=dict)  # by name; only those that it sets
    lists: tuple[tuple[str, str, str, str], ...] = ()  # verdict, kind, text as it stands, and where
    inspect: Inspect | None = None
    contents: Contents | None = None  # what its script brings along, once that was read; None: nothing

    def where(self, kind: str, target: object) -> str:
        """The field or flag that allows this target, for an error."""
        for verdict, name, text, where in self.lists:
            if (verdict, name) == (Verdict.ALLOW, kind) and target in parse_list(KINDS[kind], text, where):
                return where
        raise KeyError(kind)


@record
class WorkerConfig:
    """The hash of a worker, parsed, with the additions of the command line."""

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

    `extra`, `limits` and `inspect` are the command line's: permissions to add, and values that replace those of the hash.
    """
    key = keys.worker_key(keys.check_type(type_), keys.check_id(id_))
    fields = {**read_fields(shared, keys.type_key(type_)), **read_fields(own, key)}
    if not fields:
        raise NotConfigured(f"{key} does not exist", hint=keys.set_hint(key, "url=URL", "version=VERSION"))
    if fields.get("type", type_) != type_:
        raise ConfigError(
            f"field type of {key} is {fields['type'][:80]!r}, but the key says {type_!r}",
            hint=keys.set_hint(key, f"type={type_}"),
        )
    for name in ("url", "version"):
        if not fields.get(name):
            raise NotConfigured(f"{key} has no {name}", hint=keys.set_hint(key, f"{name}={name.upper()}"))
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
    """Raw fields as text, each under its first name; only those of `wanted_fields`. Raises ConfigError."""
    return settings.read_fields(raw, key, wanted=lambda name: bool(wanted_fields([name])))


def check_version(version: str, key: str) -> str:
    odd = version[:1] in ("", ".", "_", "+", "/", "-") or ".." in version or "//" in version or version.endswith("/")
    if len(version) > VERSION_MAX_CHARS or not keys.consists_of(_VERSION_CHARS, version) or odd:
        raise ConfigError(
            f"field version of {key} is {version[:80]!r}: expected local, a branch (main), a tag (v1.2.3) or a full commit",
            hint=keys.set_hint(key, "version=VERSION"),
        )
    return version


def _permissions(fields: Mapping[str, str], key: str) -> tuple[Asked, tuple[str, ...]]:
    """The permissions, limits and debugger that the fields ask for, and warnings."""
    lists: list[tuple[str, str, str, str]] = []
    limits: dict[str, int] = {}
    warnings: list[str] = []
    inspect: list[Inspect] = []
    options = {name: fields[name] for name in OPTION_FIELDS if fields.get(name)}
    if len(set(options.values())) > 1:
        raise ConfigError(
            f"{key} has both denoOptions and options, and they differ", hint=keys.set_hint(key, "denoOptions=")
        )
    for name, value in list(options.items())[:1]:
        _parse_options(value, _Place(key, name), lists, limits, inspect, warnings)
    for name, value in fields.items():
        where = f"field {name[:80]} of {key}"
        right = _spelling(name)
        if right is not None:
            raise ConfigError(
                f"{where} is spelt {right}", hint=keys.set_hint(key, f"{right}={value}", "--delete", name)
            )
        if _is_permission(name):
            if name not in _PERMISSION_FIELDS:
                from sandboxrun.config.mend import near_hint

                raise ConfigError(
                    f"{where} is not a permission of sandboxrun: expected one of {', '.join(_PERMISSION_FIELDS)}",
                    hint=near_hint(key, name, value, _PERMISSION_FIELDS),
                )
            lists.append((*_PERMISSION_FIELDS[name], value, where))
        elif _is_limit(name):
            if name not in _LIMIT_FIELDS:
                from sandboxrun.config.mend import near_hint

                raise ConfigError(
                    f"{where} is not a limit of sandboxrun: expected one of {', '.join(_LIMIT_FIELDS)}",
                    hint=near_hint(key, name, value, _LIMIT_FIELDS),
                )
            if value:
                limits[_LIMIT_FIELDS[name].name] = _read_limit(_LIMIT_FIELDS[name], value, where, key)
    last = inspect[-1] if inspect else None
    return Asked(_read_lists(lists, key), limits, tuple(lists), last), tuple(warnings)


def _read_limit(limit: Limit, value: str, where: str, key: str) -> int:
    try:
        return limit.read(value, where)
    except ConfigError as error:
        default = limit.show(limit.default) if limit.default else "0"
        raise ConfigError(str(error), hint=keys.set_hint(key, f"{limit.field}={default}")) from error


def _read_lists(lists: list[tuple[str, str, str, str]], key: str) -> Permissions:
    try:
        return Permissions.parse(lists)
    except ConfigError as error:
        from sandboxrun.config.mend import list_hint

        raise ConfigError(str(error), hint=list_hint(key, lists)) from error


@record
class _Place:
    """A field of options in the hash `key`."""

    key: str
    name: str

    def __str__(self) -> str:
        return f"field {self.name} of {self.key}"


def _parse_options(
    text: str,
    where: _Place,
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
    import re

    for word in words:
        match = re.fullmatch(_PERMISSION_FLAG, word, re.DOTALL)
        limit = re.fullmatch(_LIMIT_FLAG, word, re.DOTALL)
        if match:
            verdict, kind, value = match[1], match[2], match[3]
            if kind != "all" and kind not in KINDS:
                raise ConfigError(
                    f"{word[:80]!r} in {where} is not a permission of sandboxrun: expected {' or '.join(VERDICTS)} with one of "
                    f"{', '.join(KINDS)}",
                    hint=_options_hint(where, words, word),
                )
            if kind == "all" or value is None:
                raise ConfigError(
                    f"{word[:80]!r} in {where} would {verdict} everything: expected a list, as in --{verdict}-net=HOST:PORT",
                    hint=_options_hint(where, words, word),
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
                f"'-A' in {where} would allow everything: expected lists, as in --allow-net=HOST:PORT",
                hint=_options_hint(where, words, word),
            )
        elif word not in _IGNORED_FLAGS:
            raise ConfigError(
                f"{where} has {word[:80]!r}: expected --allow-KIND=LIST or --deny-KIND=LIST with KIND one of {', '.join(KINDS)}, "
                f"or --limit-NAME=VALUE with NAME one of {', '.join(LIMITS)}",
                hint=_options_hint(where, words, word),
            )


def _options_hint(where: _Place, words: list[str], wrong: str) -> str:
    from sandboxrun.config.mend import options_hint

    return options_hint(where.key, where.name, words, wrong)


def _url(url: str, key: str) -> str:
    if len(url) > URL_MAX_CHARS:
        raise ConfigError(f"field url of {key} has {len(url)} characters: at most {URL_MAX_CHARS} are read")
    if "://" not in url:  # a folder or file here, which may have a space
        if not url.isprintable():
            raise ConfigError(f"field url of {key} is {url[:80]!r}, which has a control character")
    elif not url.isprintable() or not url.isascii() or " " in url:
        from urllib.parse import quote

        encoded = quote(url, safe="%/:=&?~#+!$,;'@()*[]{}")
        raise ConfigError(
            f"field url of {key} has a space, a control or a non-ASCII character: expected it percent-encoded",
            hint=keys.set_hint(key, f"url={encoded}")
            if not set("@?") & set(url)
            else "",  # which may have a password or token
        )
    return url


def _sha256(value: str | None, key: str) -> str | None:
    if not value:
        return None
    value = value.removeprefix("sha256:").removeprefix("sha256-")
    if len(value) != 64 or not keys.consists_of(_HEX_DIGITS, value):
        raise ConfigError(
            f"field sha256 of {key} is {value[:80]!r}: expected 64 hexadecimal digits, as sha256sum prints them",
            hint=_digest_hint(key),
        )
    return value.lower()


def _digest_hint(key: str) -> str:
    return f"sandboxrun set {keys.in_words(key)} sha256=$(sha256sum FILE | cut -c-64)"
