"""The most that a hash may be granted, whoever wrote it: decisions over what the operator's policy files say, which
policyfile.py reads. Pure, but for resolving paths and making the worker's data folder.

Each of the files bounds by itself. A key that none of them sets for a worker is the default policy's.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import stat
from collections.abc import Callable, Mapping

from sandboxrun.config import keys
from sandboxrun.config.covers import covered, glob_covers, is_below
from sandboxrun.config.limits import LIMITS, Limits
from sandboxrun.config.permissions import KINDS, Kind, NetTarget, RedisTarget
from sandboxrun.config.targets import block
from sandboxrun.config.worker import WorkerConfig
from sandboxrun.errors import ConfigError, PolicyError
from sandboxrun.records import asdict, field, never, record, replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

OWN_DATA = "~data"  # in a policy's lists of paths: the worker's own data folder
# Link-local addresses, and others at which clouds give their machines' credentials to whoever asks.
_METADATA = (
    "169.254.0.0/16", "fe80::/10", "fd00:ec2::254/128", "fd20:ce::254/128", "168.63.129.16/32", "100.100.100.200/32", "192.0.0.192/32",
)  # fmt: skip
# IPv6 addresses that carry an IPv4 address inside, which a router on the way may unpack; all of ::/96 but loopback.
_CARRIERS = ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32", "::ffff:0:0:0/96", "::/96")
_LOOPBACK = ipaddress.ip_address("::1")


@record
class Section:
    """What one section of a policy file says; a key that it does not set is in none of the mappings."""

    pattern: str
    place: str  # FILE:LINE
    allow: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)  # by kind
    limits: Mapping[str, int] = field(default_factory=dict)  # by name; 0 is no limit
    imports: tuple[tuple[str, int], ...] | None = None  # hosts and ports that scripts may come from
    pinned: bool = False
    local: bool | None = None
    inspect: bool | None = None  # whether a hash may ask for a debugger
    open_redis: bool | None = None  # whether it may run beside a Redis that requires no password
    sha256: frozenset[str] | None = None
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

    `data` is the worker's own data folder, `hint` the file to write into.
    """

    worker: WorkerConfig
    sections: tuple[Section, ...]
    data: str
    hint: str
    servers: tuple[Server, ...] = ()

    def check(self, flags: Mapping[str, int]) -> WorkerConfig:
        """Raise PolicyError for the first thing that the hash asks beyond the ceiling; else its configuration, in which the
        ceiling's limits stand where the hash sets none.

        `flags` are limits of the command line, which is the operator's own word, as are grants there.
        """
        for kind, targets in self.worker.asked.permissions.allow.items():
            for target in targets:
                self._check_target(KINDS[kind], target, os.path.realpath)
        for section in self.sections:
            if section.sha256 is not None and self.worker.sha256 is not None:
                self._check_digest(section, self.worker.sha256, f"field sha256 of {self.worker.key}")
        self._check_inspect()
        bounds = self._bounds(flags)
        limits = {**asdict(self.worker.limits), **{name: most for name, most in bounds.items() if name not in flags}}
        asked = replace(self.worker.asked, limits={**self.worker.asked.limits, **bounds})
        return replace(self.worker, limits=Limits(**limits), asked=asked)

    def check_path(self, kind: str, path: str, real: str) -> None:
        """Raise PolicyError where a path of the hash now leads out of the ceiling; of the command line's it is not asked."""
        if path in self.worker.asked.permissions.allow.get(kind, ()):
            self._check_target(
                KINDS[kind], path, lambda looked_at: real if looked_at == path else os.path.realpath(looked_at)
            )

    def check_source(self, *, host: tuple[str, int] | None, path: str | None, branch: bool) -> None:
        """Raise PolicyError unless the script may come from here: `host` and port of its URL, or the real `path`."""
        key = self.worker.key
        if path is not None and is_below(path, os.path.realpath(self._root)):
            raise PolicyError(
                f"field url of {key} is {path[:200]!r}, in {self._root}, which workers may write: what lies there is never run"
            )
        for section in self.sections:
            if path is not None and (section.local is False or (section.pinned and section.local is None)):
                place = section.places["local" if section.local is False else "pinned"]
                raise PolicyError(
                    f"field version of {key} is 'local', which {place} does not allow: pin a version, or set local = true there"
                )
            if branch and section.pinned:
                raise PolicyError(
                    f"field version of {key} is {self.worker.version!r}, a branch, which {section.places['pinned']} does not "
                    "allow: name a tag or a full commit"
                )
            if host is not None and section.imports is not None and host not in section.imports:
                raise PolicyError(
                    f"field url of {key} is on {host[0]}:{host[1]}, from which {section.places['import']} lets no script come: "
                    "use a host that it lists, or add this one"
                )

    def check_digest(self, sha256: str) -> None:
        """Raise PolicyError unless a script with this digest may run."""
        for section in self.sections:
            if section.sha256 is not None:
                self._check_digest(section, sha256, f"the script of {self.worker.key}")

    @property
    def imports(self) -> tuple[tuple[str, int], ...] | None:
        """The hosts that every file lets scripts come from; None where none says."""
        lists = [section.imports for section in self.sections if section.imports is not None]
        return tuple(host for host in lists[0] if all(host in other for other in lists)) if lists else None

    def make_data(self) -> None:
        """The worker's own data folder, for us alone, where the hash is granted something in it. Raises ConfigError."""
        allow = self.worker.asked.permissions.allow
        if not any(is_below(path, self.data) for kind in Kind if kind.is_folder for path in allow.get(kind, ())):
            return
        try:
            os.makedirs(os.path.dirname(self._root), exist_ok=True)
            for folder in (self._root, os.path.dirname(self.data), self.data):
                with contextlib.suppress(FileExistsError):
                    os.mkdir(folder, 0o700)
                found = os.stat(folder)
                if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o022:
                    raise ConfigError(f"{folder} can be written by others: chmod 700 it, and make it yours")
        except OSError as error:
            raise ConfigError(f"the data folder {self.data} cannot be made: {error.strerror}") from error

    @property
    def _root(self) -> str:
        """Where all workers' data folders are."""
        return os.path.dirname(os.path.dirname(self.data))

    def _check_target(self, kind: Kind, target: Any, real: Callable[[str], str]) -> None:
        if kind is Kind.RUN and "/" in target and is_below(real(target), real(self._root)):
            where = f"lies in {self._root}, which workers may write"
            raise self._beyond(kind, target, where, "what is there is never run")
        setting = [section for section in self.sections if kind in section.allow]
        for section in setting:
            entries = [self._expanded(entry) for entry in section.allow[kind]]
            if not _covered(kind, entries, target, real):
                place = section.places["allow-" + kind]
                raise self._beyond(kind, target, f"{place} does not allow", "take it out, or add it there")
        if not setting:
            why = self._beyond_default(kind, target, real)
            if why:
                mend = f'take it out, or add it to allow-{kind} for [worker."{self.worker.type}"] in {self.hint}'
                raise self._beyond(kind, target, f"the default policy does not allow ({why})", mend)

    def _expanded(self, entry: Any) -> Any:
        own = isinstance(entry, str) and (entry + "/").startswith(OWN_DATA + "/")
        return self.data + entry.removeprefix(OWN_DATA) if own else entry

    def _beyond(self, kind: Kind, target: Any, by: str, mend: str) -> PolicyError:
        where = self.worker.asked.where(kind, target)
        return PolicyError(f"{where} has {str(target)[:200]!r}, which {by}: {mend}")

    def _beyond_default(self, kind: Kind, target: Any, real: Callable[[str], str]) -> str:
        """What is wrong with a target where no file sets its kind; empty where nothing is."""
        match kind:
            case Kind.NET:
                return _beyond_default_net(target)
            case Kind.REDIS:
                return _beyond_default_redis(target, self.worker)
            case Kind.READ | Kind.WRITE:
                return "" if _covered(kind, [self.data], target, real) else f"only what is in {self.data}"
            case Kind.RUN | Kind.LISTEN | Kind.ENV:
                return f"nothing of {kind.field()}"
            case _:
                raise never(kind)

    def _bounds(self, flags: Mapping[str, int]) -> dict[str, int]:
        """By limit, what holds instead of a default that is beyond the ceiling. Raises PolicyError where the hash asks for that."""
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
                        f"{section.places['limit-' + name]} allows at most {limit.show(most)}: lower it, or raise that"
                    )
        return bounds

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
        """Whoever reaches a debugger runs code in the worker: what its secrets and grants allow."""
        inspect = self.worker.asked.inspect
        if inspect is None:
            return
        for section in self.sections:
            if section.inspect is False:
                raise PolicyError(
                    f"{inspect.where} asks for a debugger, which {section.places['inspect']} does not allow: take it out"
                )
        if not any(section.inspect for section in self.sections):
            raise PolicyError(
                f"{inspect.where} asks for a debugger, which the default policy does not allow: take it out, give --inspect on "
                f'the command line, or set inspect = true for [worker."{self.worker.type}"] in {self.hint}'
            )
        if not inspect.is_local:
            raise PolicyError(
                f"{inspect.where} has {str(inspect.address)!r}, where other machines could reach the debugger: a hash may name "
                "127.0.0.1 or [::1] only"
            )

    def _check_digest(self, section: Section, sha256: str, what: str) -> None:
        if section.sha256 is not None and sha256 not in section.sha256:
            raise PolicyError(
                f"{what} has sha256 {sha256}, which is not among those that {section.places['sha256']} requires: "
                "add it there once the script was looked at"
            )


def _covered(kind: Kind, entries: list[Any], target: Any, real: Callable[[str], str]) -> bool:
    """Paths by where they lead, on both sides: a symlink in a folder of the ceiling must not lead out of it."""
    if kind is Kind.RUN:
        # A name stands for a program in the system's folders, whatever that is a link to.
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
