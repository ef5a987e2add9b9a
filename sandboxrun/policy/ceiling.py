"""The most that a hash may be granted, whoever wrote it. Pure, but for resolving paths and making the worker's data folder.

file.py reads the operator's policy files. Each file bounds by itself: a grant must lie within every file that sets its kind. The
default policy bounds the kinds that no file sets for a worker.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping

from sandboxrun.config import keys
from sandboxrun.config.covers import covered, glob_covers, is_below
from sandboxrun.config.limits import LIMITS, Limits
from sandboxrun.config.permissions import KINDS, Kind, NetTarget, RedisTarget, below_data, endpoint, is_own_data
from sandboxrun.config.targets import block
from sandboxrun.config.worker import WorkerConfig
from sandboxrun.errors import ConfigError, PolicyError
from sandboxrun.records import asdict, field, never, record, replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sandboxrun.policy.packages import PackagesLimits  # which imports this file

# Link-local addresses, and others at which clouds give the machine's credentials to every client.
_METADATA = (
    "169.254.0.0/16", "fe80::/10", "fd00:ec2::254/128", "fd20:ce::254/128", "168.63.129.16/32", "100.100.100.200/32", "192.0.0.192/32",
)  # fmt: skip
# IPv6 addresses with an IPv4 address inside, which a router may unpack; of ::/96, loopback is excepted.
_CARRIERS = ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32", "::ffff:0:0:0/96", "::/96")
_LOOPBACK = ipaddress.ip_address("::1")


@record
class Section:
    """One section of a policy file. A key that it does not set is in none of the mappings."""

    pattern: str
    place: str  # FILE:LINE
    allow: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)  # by kind
    limits: Mapping[str, int] = field(default_factory=dict)  # by name; 0 is no limit
    imports: tuple[tuple[str, int], ...] | None = None  # hosts and ports that scripts may come from
    pinned: bool = False
    local: bool | None = None
    inspect: bool | None = None  # whether a hash may ask for a debugger
    open_redis: bool | None = None  # whether a worker may run beside a Redis that requires no password
    share_memory: bool | None = None  # whether an agent may fork a worker from a zygote
    sha256: frozenset[str] | None = None
    index: str | None = None  # URL of the package index
    package_hosts: tuple[tuple[str, int], ...] | None = None  # of wheels that a lock names by URL
    packages: tuple[str, ...] | None = None  # names and patterns with *
    packages_size: int | None = None  # bytes, unpacked
    unlocked: bool | None = None  # whether a fetched script may have dependencies without a lock
    places: Mapping[str, str] = field(default_factory=dict)  # FILE:LINE by key


@record
class Server:
    """What one policy file says of one Redis server, in a section [redis."URL"]."""

    url: str  # without a login, as Address.shown
    open_redis: bool | None
    place: str  # FILE:LINE of the key, or of the section


@record
class Ceiling:
    """The sections for one worker, at most one of each file, and those for Redis servers.

    `data`: the worker's own data folder. `hint`: the user's file, there or not.
    """

    worker: WorkerConfig
    sections: tuple[Section, ...]
    data: str
    hint: str
    servers: tuple[Server, ...] = ()

    def check(self, flags: Mapping[str, int]) -> WorkerConfig:
        """The configuration, with the ceiling's limits if the hash sets none. Raises PolicyError for the first thing that the hash
        asks beyond the ceiling.

        `flags`: limits of the command line. Like its grants, they are not bounded, because the operator gives them.
        """
        for kind, targets in self.worker.asked.permissions.allow.items():
            for target in targets:
                self._check_target(KINDS[kind], target, os.path.realpath)
        for section in self.sections:
            if section.sha256 is not None and self.worker.sha256 is not None:
                self._check_digest(section, self.worker.sha256, f"field sha256 of {self.worker.key}")
        self._check_inspect()
        bounds = self._bounds(flags)
        limits = asdict(self.worker.limits) | {name: most for name, most in bounds.items() if name not in flags}
        asked = replace(self.worker.asked, limits={**self.worker.asked.limits, **bounds})
        return replace(self.worker, limits=Limits(**limits), asked=asked)

    def check_path(self, kind: str, path: str, real: str) -> None:
        """Raise PolicyError if a path of the hash now leads out of the ceiling. Those of the command line are not bounded."""
        for listed, target in self._entries_for(kind, path):
            self._check_target(
                listed, target, lambda looked_at: real if looked_at == path else os.path.realpath(looked_at)
            )

    def _entries_for(self, kind: str, path: str) -> Iterator[tuple[Kind, Any]]:
        """The entries of the hash by which a path is granted; `~data` is readable because it is writable."""
        for listed in {KINDS[kind], Kind.WRITE}:
            for target in self.worker.asked.permissions.allow.get(listed, ()):
                if below_data(target, self.data) == path and (listed == kind or is_own_data(target)):
                    yield listed, target

    def check_source(self, *, host: tuple[str, int] | None, path: str | None, branch: bool) -> None:
        """Raise PolicyError unless the script may come from `host` and port, or from the real `path`. `branch`: it is not pinned."""
        key = self.worker.key
        if path is not None and is_below(path, os.path.realpath(self._root)):
            raise PolicyError(
                f"field url of {key} is {path[:200]!r}, in {self._root}, where workers may write: what is there is never run"
            )
        for section in self.sections:
            if path is not None and (section.local is False or (section.pinned and section.local is None)):
                place = section.places["local" if section.local is False else "pinned"]
                raise PolicyError(
                    f"field version of {key} is 'local', which {place} does not allow",
                    hint=self.value_hint(section, "local", "true"),
                )
            if branch and section.pinned:
                raise PolicyError(
                    f"field version of {key} is {self.worker.version!r}, which may be a branch, and {section.places['pinned']} "
                    "allows pinned versions only: expected a full commit, a release such as v1.2.3, or refs/tags/TAG",
                    hint=f"sandboxrun set {keys.in_words(key)} version=refs/tags/TAG",
                )
            if host is not None and section.imports is not None and host not in section.imports:
                raise PolicyError(
                    f"field url of {key} is on {host[0]}:{host[1]}, which is not among the hosts of {section.places['import']}",
                    hint=self.list_hint(section, "import", [endpoint(*host)]),
                )

    def check_digest(self, sha256: str) -> None:
        """Raise PolicyError unless a script with this digest may run."""
        for section in self.sections:
            if section.sha256 is not None:
                self._check_digest(section, sha256, f"the script of {self.worker.key}")

    def check_packages(self, names: Iterable[str]) -> None:
        """Raise PolicyError unless the script may have these packages. `names`: canonical, of those that this host installs."""
        from sandboxrun.policy import packages  # late, as below: most scripts have none

        packages.check(self, tuple(names))

    def check_unlocked(self, origin: str) -> None:
        """Raise PolicyError unless a script fetched from `origin` may have dependencies without a lock."""
        from sandboxrun.policy import packages

        packages.check_unlocked(self, origin)

    @property
    def allows_unlocked(self) -> bool:
        from sandboxrun.policy import packages

        return packages.allows_unlocked(self)

    @property
    def index(self) -> str | None:
        """The URL of the package index; None for that of the operator's own pip configuration. Raises PolicyError."""
        from sandboxrun.policy import packages

        return packages.index(self)

    @property
    def package_hosts(self) -> tuple[tuple[str, int], ...] | None:
        """The hosts from which wheels may come that a lock names by URL; None for all public https hosts."""
        from sandboxrun.policy import packages

        return packages.hosts(self)

    def check_urls(self, lock: str, urls: Iterable[tuple[str, int]]) -> None:
        """Raise PolicyError unless a lock may name wheels by URL. `urls`: their hosts and ports."""
        from sandboxrun.policy import packages

        packages.check_urls(self, lock, urls)

    @property
    def packages_limits(self) -> PackagesLimits:
        from sandboxrun.policy import packages

        return packages.limits(self)

    @property
    def imports(self) -> tuple[tuple[str, int], ...] | None:
        """The hosts from which every file lets scripts come; None if no file sets them."""
        lists = [section.imports for section in self.sections if section.imports is not None]
        return tuple(host for host in lists[0] if all(host in other for other in lists)) if lists else None

    def make_data(self) -> None:
        """Make the worker's own data folder, for us alone, if the worker is granted something in it. Raises ConfigError."""
        if not self.grants_data:
            return
        try:
            os.makedirs(os.path.dirname(self._root), exist_ok=True)
            for folder in (self._root, os.path.dirname(self.data), self.data):
                with contextlib.suppress(FileExistsError):
                    os.mkdir(folder, 0o700)
                found = os.stat(folder)
                if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o022:
                    raise _not_private(folder, found)
        except OSError as error:
            raise ConfigError(f"the data folder {self.data} cannot be made: {error.strerror}") from error

    @property
    def grants_data(self) -> bool:
        """Whether the worker is granted something in its own data folder, by the hash or by the command line."""
        allow = self.worker.permissions.with_data(self.data).allow
        return any(is_below(path, self.data) for kind in Kind if kind.is_folder for path in allow.get(kind, ()))

    @property
    def _root(self) -> str:
        """The folder of all workers' data folders."""
        return os.path.dirname(os.path.dirname(self.data))

    def _check_target(self, kind: Kind, target: Any, real: Callable[[str], str]) -> None:
        """Raise PolicyError unless the ceiling has this entry of the hash."""
        placed = below_data(target, self.data)
        if kind is Kind.RUN and "/" in target and is_below(real(target), real(self._root)):
            raise PolicyError(
                f"{self._named(kind, target)}, which is in {self._root}, where workers may write: what is there is never run"
            )
        setting = [section for section in self.sections if kind in section.allow]
        for section in setting:
            entries = [below_data(entry, self.data) for entry in section.allow[kind]]
            if not _covered(kind, entries, placed, real):
                raise PolicyError(
                    f"{self._named(kind, target)}, which {section.places[f'allow-{kind}']} does not allow",
                    hint=self.list_hint(section, f"allow-{kind}", [str(target)]),
                )
        if not setting:
            why = self._beyond_default(kind, placed, real)
            if why:
                # A list takes the place of the default policy, so it has to have the hash's other entries, too.
                asked = self.worker.asked.permissions.allow[kind]
                raise PolicyError(
                    f"{self._named(kind, target)}, which the default policy does not allow ({why})",
                    hint=self.list_hint(None, f"allow-{kind}", [str(entry) for entry in asked]),
                )

    def _named(self, kind: Kind, target: Any) -> str:
        """An entry of the hash, and where it stands."""
        return f"{self.worker.asked.where(kind, target)} has {str(target)[:200]!r}"

    @property
    def users_section(self) -> Section | None:
        """The one of the user's own file."""
        return next((section for section in self.sections if section.place.rpartition(":")[0] == self.hint), None)

    def list_hint(self, section: Section | None, key: str, entries: list[str]) -> tuple[str, ...] | str:
        from sandboxrun.policy.amend import list_hint

        return list_hint(self, section, key, entries)

    def value_hint(self, section: Section | None, key: str, value: str) -> tuple[str, ...] | str:
        from sandboxrun.policy.amend import value_hint

        return value_hint(self, section, key, value)

    def _beyond_default(self, kind: Kind, target: Any, real: Callable[[str], str]) -> str:
        """Why the default policy refuses a target; empty if it does not."""
        match kind:
            case Kind.NET:
                return _beyond_default_net(target)
            case Kind.REDIS:
                return _beyond_default_redis(target, self.worker)
            case Kind.CALL:  # less than the default policy allows of Redis, and it has no wildcards
                return ""
            case Kind.READ | Kind.WRITE:
                return "" if _covered(kind, [self.data], target, real) else f"only what is in {self.data}"
            case Kind.RUN | Kind.LISTEN | Kind.ENV:
                return f"nothing of {kind.field()}"
            case _:
                raise never(kind)

    def _bounds(self, flags: Mapping[str, int]) -> dict[str, int]:
        """The ceiling's limits that take the place of larger defaults, by name. Raises PolicyError if the hash asks for more."""
        bounds: dict[str, int] = {}
        asked = self.worker.asked.limits
        for section in self.sections:
            for name, most in section.limits.items():
                limit = LIMITS[name]
                value = asked.get(name, bounds.get(name, limit.default if name != "output" else 0))
                if not most or 0 < value <= most:
                    continue
                if name not in asked:
                    bounds[name] = most
                elif name not in flags:
                    raise PolicyError(
                        f"field {limit.field} of {self.worker.key} is {limit.show(value) if value else '0, no limit'}, and "
                        f"{section.places['limit-' + name]} allows at most {limit.show(most)}",
                        hint=f"sandboxrun set {keys.in_words(self.worker.key)} {limit.field}={limit.show(most)}",
                    )
        return bounds

    @property
    def shares_memory(self) -> bool:
        """Whether an agent may fork this worker from a zygote: if one section says so, and none says no."""
        return {each.share_memory for each in self.sections if each.share_memory is not None} == {True}

    def accepts_open_redis(self, url: str) -> bool:
        """Whether this Redis is accepted although it requires no password: if one section says so, and none says no."""
        return {said for said, _ in self._open_redis(url)} == {True}

    def forbids_open_redis(self, url: str) -> str:
        """FILE:LINE that says no, or ""."""
        return next((place for said, place in self._open_redis(url) if not said), "")

    def _open_redis(self, url: str) -> list[tuple[bool, str]]:
        workers = [(each.open_redis, each.places.get("open-redis", each.place)) for each in self.sections]
        servers = [(each.open_redis, each.place) for each in self.servers if each.url == url]
        return [(said, place) for said, place in (*workers, *servers) if said is not None]

    def _check_inspect(self) -> None:
        """Raise PolicyError for a debugger that is not allowed: its client runs code with the worker's secrets and grants."""
        inspect = self.worker.asked.inspect
        if inspect is None:
            return
        for section in self.sections:
            if section.inspect is False:
                raise PolicyError(
                    f"{inspect.where} asks for a debugger, which {section.places['inspect']} does not allow",
                    hint=self.value_hint(section, "inspect", "true"),
                )
        if not any(section.inspect for section in self.sections):
            raise PolicyError(
                f"{inspect.where} asks for a debugger, which the default policy does not allow",
                hint=self.value_hint(None, "inspect", "true"),
            )
        if not inspect.is_local:
            raise PolicyError(
                f"{inspect.where} has {str(inspect.address)!r}, where other machines could reach the debugger: expected 127.0.0.1 "
                "or [::1] in a hash"
            )

    def _check_digest(self, section: Section, sha256: str, what: str) -> None:
        if section.sha256 is not None and sha256 not in section.sha256:
            raise PolicyError(
                f"{what} has sha256 {sha256}, which is not among those that {section.places['sha256']} requires",
                hint=self.list_hint(section, "sha256", [sha256]),
            )


def _not_private(folder: str, found: os.stat_result) -> ConfigError:
    """Of workers' data: whoever else could write there could put something in a worker's way."""
    import shlex

    if found.st_uid != os.geteuid():
        return ConfigError(
            f"the folder {folder} of workers' data belongs to user {found.st_uid}, not to {os.geteuid()}"
        )
    return ConfigError(
        f"the folder {folder} of workers' data can be written by others (mode {found.st_mode & 0o777:o})",
        hint=f"chmod 700 {shlex.quote(folder)}",
    )


def _covered(kind: Kind, entries: list[Any], target: Any, real: Callable[[str], str]) -> bool:
    """Whether entries of a ceiling cover a target. Both sides are real paths: no symlink may lead out of a folder of the ceiling."""
    if kind is Kind.RUN:
        # A name stands for a program in the system's folders, even if that is a symlink to elsewhere.
        if covered(kind, [entry for entry in entries if "/" not in entry], target):
            return True
        if "/" not in target:
            return False
    if kind.is_path:
        return covered(kind, [real(entry) if entry.startswith("/") else entry for entry in entries], real(target))
    return covered(kind, entries, target)


def _beyond_default_net(target: NetTarget) -> str:
    network = target.network
    if network is None:
        return "" if target.host is not None else "no wildcards"
    address = network.network_address
    if network.num_addresses > 1:
        return "no blocks of addresses"
    if any(address in block(text) for text in _METADATA):
        return "no link-local address, and none where a cloud keeps credentials"
    if address != _LOOPBACK and any(address in block(text) for text in _CARRIERS):
        return "no IPv6 address that carries an IPv4 address"
    return ""


def _beyond_default_redis(target: RedisTarget, worker: WorkerConfig) -> str:
    if target.access == "command":
        return "no commands"
    if any(wildcard in target.pattern.partition(":")[0] for wildcard in "*?"):
        return "no wildcard in front of the first colon"
    if target.access in ("rw", "w"):
        for key in (worker.key, keys.type_key(worker.type)):
            if glob_covers(target.pattern, key):
                return f"not to write {key}, where its own permissions stand"
    return ""
