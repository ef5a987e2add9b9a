"""The operator's policy files, read strictly: a mistake is an error with its line, and never widens the ceiling."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable

from sandboxrun.config.covers import ANY, ANY_PORT, glob_covers
from sandboxrun.config.limits import LIMITS
from sandboxrun.config.permissions import KINDS, Kind, ListenTarget, NetTarget, RedisTarget, Verdict
from sandboxrun.config.worker import WorkerConfig
from sandboxrun.errors import ConfigError
from sandboxrun.policy.ceiling import Ceiling, Section, Server
from sandboxrun.records import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

FILE_MAX_BYTES = 256 * 1024
_PATTERN = r"[a-z*?][-a-z0-9_*?]{0,63}(:[A-Za-z0-9*?][-A-Za-z0-9_.*?]{0,127})?"
_SHA256 = r"[0-9a-f]{64}"
_HEADER = r"\s*\[[^,=]*\]\s*(#.*)?$"
_EXAMPLE = '[worker."demo-*"]'
_KEYS = (
    *(kind.flag().removeprefix("--") for kind in Kind),
    *(f"limit-{limit}" for limit in LIMITS),
    *("import", "pinned", "local", "inspect", "open-redis", "sha256", "share-memory"),
    *("index", "package-hosts", "packages", "packages-size", "unlocked"),
)
_URL = r"rediss?://[^/@?#\s]+:[0-9]{1,5}|unix:///[^?#]+"
_URL_EXAMPLE = '[redis."redis://127.0.0.1:6379"]'


@record
class Policy:
    """One policy file: its sections for workers, and those for Redis servers."""

    workers: tuple[Section, ...]
    servers: tuple[Server, ...]


def ceiling_for(worker: WorkerConfig, *, system: Iterable[str], user: str, required: bool, data: str) -> Ceiling:
    """The ceiling for a worker, by the `user`'s file and those of the `system`. `required`: the user's must exist.

    `data`: the worker's own data folder. Raises ConfigError for any mistake in a file, also in a section for other workers.
    """
    files = [(path, read_text(path, required and path == user)) for path in (*system, user)]
    policies = [parse_policy(text, path) for path, text in files if text is not None]
    sections = [section_for(policy.workers, worker.type, worker.id) for policy in policies]
    servers = tuple(server for policy in policies for server in policy.servers)
    return Ceiling(worker, tuple(section for section in sections if section is not None), data, user, servers)


def policy_of(path: str) -> Policy | None:
    """The policy in a file; None if there is no file. Raises ConfigError."""
    text = read_text(path, False)
    return None if text is None else parse_policy(text, path)


def sections_of(path: str) -> tuple[Section, ...] | None:
    """The sections for workers of a file; None if there is no file. Raises ConfigError."""
    policy = policy_of(path)
    return None if policy is None else policy.workers


def parse(text: str, path: str) -> tuple[Section, ...]:
    """The sections for workers in the text of a policy file. Raises ConfigError."""
    return parse_policy(text, path).workers


def parse_policy(text: str, path: str) -> Policy:
    """From the text of a policy file; `path` is how it is named in errors. Raises ConfigError."""
    import re
    import tomllib  # late, because most users have no file

    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # TOMLDecodeError is a ValueError
        match = re.search(r"at line ([0-9]+)", str(error))
        line = int(match[1]) if match else text.rstrip("\n").count("\n") + 1
        reason = re.sub(r" \(at .*\)$", "", str(error))[:200] if isinstance(error, ValueError) else "nested too deep"
        raise ConfigError(f"{path}:{line} is not TOML: {reason}") from error
    lines = _Lines(text, path)
    for name, value in document.items():
        if name not in ("worker", "redis") or not isinstance(value, dict):
            raise ConfigError(
                f"{lines.key(None, name)} has {name[:80]!r}: expected sections as {_EXAMPLE} or {_URL_EXAMPLE} and nothing else",
                hint=_top_hint(lines.key(None, name), name, document),
            )
    return Policy(
        tuple(_section(pattern, table, lines) for pattern, table in document.get("worker", {}).items()),
        tuple(_server(url, table, lines) for url, table in document.get("redis", {}).items()),
    )


def section_for(sections: Iterable[Section], type_: str, id_: str) -> Section | None:
    """The most specific section of a file for a worker: TYPE:ID, then TYPE with a pattern of ids, then TYPE, then a pattern of
    types. Of two patterns, the one with more characters besides wildcards wins. Raises ConfigError for two that are equal."""
    best: list[Section] = []
    for section in sections:
        if _matches(section.pattern, type_, id_):
            rank = _rank(section.pattern)
            if not best or rank > _rank(best[0].pattern):
                best = [section]
            elif rank == _rank(best[0].pattern):
                best.append(section)
    if len(best) > 1:
        raise ConfigError(
            f"{best[0].place} and {best[1].place} both match {type_}:{id_} and are equally specific "
            f"({best[0].pattern!r}, {best[1].pattern!r}): expected that one is more specific"
        )
    return best[0] if best else None


def _matches(pattern: str, type_: str, id_: str) -> bool:
    return glob_covers(pattern, f"{type_}:{id_}" if ":" in pattern else type_)


def _rank(pattern: str) -> tuple[int, int, int]:
    type_, colon, id_ = pattern.partition(":")
    exact = not set(type_) & set("*?")
    return (2 * exact + (exact and bool(colon)), _literal(type_), _literal(id_) if colon else -1)


def _literal(part: str) -> int:
    """The number of its characters besides wildcards; more than any pattern can have if it has no wildcard."""
    wildcards = part.count("*") + part.count("?")
    return len(part) - wildcards if wildcards else 1000


@record
class _Lines:
    """The line of a key or header in the text, because tomllib does not tell: the nearest line with its name."""

    text: str
    path: str

    def header(self, pattern: str) -> str:
        return f"{self.path}:{self._header(pattern)}"

    def key(self, pattern: str | None, key: str) -> str:
        """FILE:LINE of a key in a section, or at the top."""
        import re

        start = 0 if pattern is None else self._header(pattern)
        word = re.compile(rf"""\s*\[*\s*["']?{re.escape(key)}["']?\s*[].=]""")
        for number, line in enumerate(self.text.split("\n")[start:], start + 1):
            if word.match(line):
                return f"{self.path}:{number}"
            if pattern is not None and re.match(_HEADER, line):
                break
        return f"{self.path}:{max(start, 1)}"

    def _header(self, pattern: str) -> int:
        import re

        quoted = re.escape(pattern)
        header = re.compile(rf"""\s*\[\s*["']?(?:worker|redis)["']?\s*\.\s*(?:"{quoted}"|'{quoted}'|{quoted})\s*\]""")
        lines = self.text.split("\n")
        named = [number for number, line in enumerate(lines, 1) if pattern in line]
        return next((number for number in named if header.match(lines[number - 1])), (named or [1])[0])


def _section(pattern: str, table: Any, lines: _Lines) -> Section:
    import re

    place = lines.header(pattern)
    if not re.fullmatch(_PATTERN, pattern) or not isinstance(table, dict):
        raise ConfigError(
            f"{place} has {pattern[:80]!r} for a worker: expected a section as {_EXAMPLE}, with TYPE or TYPE:ID and wildcards * and ?"
        )
    places = {key: lines.key(pattern, key) for key in table}
    arguments: dict[str, Any] = {"allow": {}, "limits": {}}
    for key, value in table.items():
        _read_key(key, value, places[key], arguments)
    return Section(pattern, place, places=places, **arguments)


def _server(url: str, table: Any, lines: _Lines) -> Server:
    import re

    place = lines.header(url)
    if not re.fullmatch(_URL, url) or not isinstance(table, dict):
        raise ConfigError(
            f"{place} has {url.rpartition('@')[2][:80]!r} for a Redis: expected a section as {_URL_EXAMPLE}, with the scheme and "
            "the port, and without a login"
        )
    for key, value in table.items():
        place = lines.key(url, key)
        if key != "open-redis":
            raise ConfigError(
                f"{place} has {key[:80]!r}: expected open-redis", hint=_key_hint(place, key, ("open-redis",))
            )
        if not isinstance(value, bool):
            raise ConfigError(f"{place} has {key} = {str(value)[:80]!r}: expected true or false")
    return Server(url, table.get("open-redis"), place)


def _read_key(key: str, value: Any, place: str, arguments: dict[str, Any]) -> None:
    """Add one key to the arguments of a Section."""

    def wrong(expected: str) -> NoReturn:
        if key == "index":
            from sandboxrun.policy.packages import shown_index

            shown = shown_index(value)  # it may have a password
        else:
            shown = str(value)[:80]
        raise ConfigError(f"{place} has {key} = {shown!r}: expected {expected}")

    verdict, _, name = key.partition("-")
    if verdict == Verdict.ALLOW and name in KINDS:
        kind = KINDS[name]
        arguments["allow"][name] = _list(value, wrong, lambda text: _entry(kind, text), kind.expected)
    elif verdict == "limit" and name in LIMITS:
        if isinstance(value, bool) or not isinstance(value, int | str):
            wrong(f"{LIMITS[name].expected} or 0 for no limit")
        arguments["limits"][name] = LIMITS[name].read(str(value), f"{place} {key}")
    elif key == "import":
        arguments["imports"] = _list(value, wrong, _host, "hosts, as in git.example.com or git.example.com:8443")
    elif key == "sha256":
        arguments["sha256"] = frozenset(_list(value, wrong, _digest, "digests of 64 hexadecimal digits"))
    elif key in ("pinned", "local", "inspect", "open-redis", "share-memory", "unlocked"):
        arguments[key.replace("-", "_")] = value if isinstance(value, bool) else wrong("true or false")
    elif key in ("index", "package-hosts", "packages", "packages-size"):
        arguments[key.replace("-", "_")] = _package_key(key, value, wrong)
    else:
        raise ConfigError(
            f"{place} has {key[:80]!r}: expected one of {', '.join(_KEYS)}", hint=_key_hint(place, key, _KEYS)
        )


def _package_key(key: str, value: Any, wrong: Callable[[str], NoReturn]) -> Any:
    from sandboxrun.policy import packages  # late, because most files have none of these keys

    if key == "index":
        return packages.read_index(value, wrong)
    if key == "packages-size":
        return packages.read_size(value, wrong)
    if key == "packages":
        return _list(value, wrong, packages.read_name, "names of packages, as in requests or types-*")
    return _list(value, wrong, _host, "hosts, as in files.example.com or files.example.com:8443")


def _top_hint(place: str, name: str, document: dict[str, Any]) -> str:
    """To put a key at the top of a file into a section for all workers; to write a section's name that may be meant."""
    import shlex

    path, _, line = place.rpartition(":")
    if name not in _KEYS:
        return _key_hint(place, name, {"worker", "redis"} - document.keys())
    workers = document.get("worker", {})
    return (
        ""
        if not isinstance(workers, dict) or "*" in workers
        else f"sed -i '{line}i [worker.\"*\"]' {shlex.quote(path)}"
    )


def _key_hint(place: str, key: str, known: Iterable[str]) -> str:
    """To write the key that this one may be meant for."""
    import difflib
    import re
    import shlex

    meant = difflib.get_close_matches(key[:80], list(known), 1, 0.8)
    path, _, line = place.rpartition(":")
    if not meant or not re.fullmatch(r"[\w-]+", key):
        return ""
    return f"sed -i {line}s/{key}/{meant[0]}/ {shlex.quote(path)}"


def _list(value: Any, wrong: Callable[[str], NoReturn], parse: Callable[[str], Any], expected: str) -> tuple[Any, ...]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        wrong("a list of strings")
    parsed = []
    for text in value:
        try:
            parsed.append(parse(text))
        except ValueError as error:
            wrong(f"{expected}; {text[:80]!r} is wrong: {error}")
    return tuple(parsed)


def _entry(kind: Kind, text: str) -> Any:
    """An entry as in a hash, or one that only a policy may have. Raises ValueError."""
    if text == ANY and not kind.has_wildcards:
        return ANY
    if kind is Kind.LISTEN and text.endswith(":*"):
        return ListenTarget(ListenTarget.parse(text.removesuffix("*") + "0").address, ANY_PORT)
    if kind is Kind.REDIS and text == "+*":
        return RedisTarget("command", ANY)
    return kind.parse(text)


def _host(text: str) -> tuple[str, int]:
    target = NetTarget.parse(text)
    if target.host is not None:
        return target.host, target.port or 443
    if target.network is None or target.network.num_addresses > 1:
        raise ValueError("one host is meant")
    return str(target.network.network_address), target.port or 443


def _digest(text: str) -> str:
    import re

    digest = text.removeprefix("sha256:").removeprefix("sha256-").lower()
    if not re.fullmatch(_SHA256, digest):
        raise ValueError("not a sha256")
    return digest


def read_text(path: str, required: bool) -> str | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        with open(fd, "rb") as file:
            folder = os.path.dirname(os.path.realpath(path))
            if stat.S_ISDIR(os.fstat(fd).st_mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            _check_ours(path, os.fstat(fd))
            _check_ours(folder, os.stat(folder))
            data = file.read(FILE_MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        if not required:
            return None
        raise ConfigError(f"the policy file {path} does not exist", hint=_missing_hint(path)) from error
    except OSError as error:
        raise ConfigError(f"the policy file {path} cannot be read: {error.strerror}") from error
    if len(data) > FILE_MAX_BYTES:
        raise ConfigError(f"the policy file {path} has more than {FILE_MAX_BYTES >> 10} KiB")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}:{line} is not UTF-8 text") from error


def _missing_hint(path: str) -> str:
    import shlex

    return f"( umask 077 && mkdir -p {shlex.quote(os.path.dirname(path))} && touch {shlex.quote(path)} )"


def _check_ours(path: str, status: os.stat_result) -> None:
    """Refuse what others can write, because they could choose the ceiling. A sticky folder such as /tmp is as good as ours."""
    folder = stat.S_ISDIR(status.st_mode)
    if folder and status.st_mode & stat.S_ISVTX:
        return
    if not folder and not stat.S_ISREG(status.st_mode):
        raise ConfigError(f"the policy file {path} is not a file")
    name = f"the policy {'folder' if folder else 'file'} {path}"
    if status.st_uid not in (0, os.geteuid()):
        raise ConfigError(
            f"{name} belongs to user {status.st_uid}: expected root or user {os.geteuid()}", hint=_owner_hint(path)
        )
    if stat.S_IMODE(status.st_mode) & 0o022:
        mode = stat.S_IMODE(status.st_mode)
        raise ConfigError(f"{name} can be written by others (mode {mode:o})", hint=_mode_hint(path))


def _owner_hint(path: str) -> str:
    import shlex

    return f"sudo chown {os.geteuid()} {shlex.quote(path)}"


def _mode_hint(path: str) -> str:
    import shlex

    return f"chmod go-w {shlex.quote(path)}"
