"""Permissions to a SandboxPolicy: what exactly the kernel will be told. Pure but for resolving the operator's paths."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from sandboxrun.errors import ConfigError
from sandboxrun.limits import Limits
from sandboxrun.permissions import KINDS, PROGRAM_FOLDERS, NetTarget, Permissions
from sandboxrun.sandbox import landlock, program
from sandboxrun.sandbox.features import Feature, Features
from sandboxrun.sandbox.landlock import Access
from sandboxrun.sandbox.seccomp import Grants

# What any Python program reads to start, import and speak TLS. All of it is public on an ordinary system.
_SYSTEM_READ = (
    "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache",
    "/usr/share/zoneinfo", "/etc/localtime", "/usr/share/locale",
    "/etc/ssl/certs", "/etc/ssl/openssl.cnf", "/usr/share/ca-certificates", "/usr/local/share/ca-certificates",
    "/etc/pki/tls/certs", "/etc/pki/tls/openssl.cnf", "/etc/pki/ca-trust/extracted", "/etc/crypto-policies",
    "/etc/mime.types", "/etc/services", "/etc/protocols",
    "/dev/urandom", "/dev/random", "/dev/zero", "/dev/null",
)  # fmt: skip
_DEVICES = ("/dev/null",)
# Where programs, libraries and settings of the machine are: as good as code.
_SYSTEM_CODE = ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc", "/boot", "/proc", "/sys")
_LINKS_MAX = 40  # as the kernel's own limit, path_resolution(7)
_ENTRIES_MAX = 4096  # granted one by one where a part of a folder is denied
_UNLIMITED = resource.RLIM_INFINITY


@dataclass(frozen=True, slots=True)
class Interpreter:
    """Where the child's Python finds its own code; see launch.this_interpreter."""

    prefix: str
    programs: tuple[str, ...]  # folders of the interpreter and of the command itself
    library: tuple[str, ...]  # standard library folders
    site_packages: tuple[str, ...]
    package: str  # the folder sandboxrun/ itself


@dataclass(frozen=True, slots=True)
class SandboxPolicy:
    """Everything the boundary is made from. Paths are real paths; `read` and `write` hold folders and files."""

    net: Permissions  # of which `net` and `listen` are decided call by call
    read: tuple[str, ...]
    write: tuple[str, ...]  # scratch and what was granted: mode and times can be changed there too
    devices: tuple[str, ...]  # written to, and nothing else
    execute: tuple[str, ...]
    unix_socket: str | None  # the one Unix socket that may be connected: Redis's
    limits: Limits

    @property
    def rlimits(self) -> tuple[tuple[int, int, int], ...]:
        """(RLIMIT_*, soft, hard), setrlimit(2); all hold for each process."""
        limits = self.limits
        file, memory, files, cpu = (
            value or _UNLIMITED for value in (limits.scratch, limits.memory, limits.files, limits.cpu)
        )
        return (
            (resource.RLIMIT_CORE, 0, 0),
            (resource.RLIMIT_FSIZE, file, file),
            (resource.RLIMIT_AS, memory, memory),
            (resource.RLIMIT_NOFILE, files, files),
            # SIGXCPU at the first, which can be handled; SIGKILL at the second.
            (resource.RLIMIT_CPU, cpu, cpu if cpu == _UNLIMITED else cpu + 1),
            (resource.RLIMIT_MSGQUEUE, 0, 0),
        )

    def grants(self, features: Features) -> Grants:
        """What the filter allows."""
        run = bool(self.execute)
        return Grants(
            unix_sockets=self.unix_socket is not None,
            listen=bool(self.net.allow.get("listen")),
            run=run,
            signals=run and Feature.LANDLOCK_SCOPE in features,
        )

    def rules(self) -> list[tuple[str, Access]]:
        """Landlock's: what is allowed below which real path."""
        return [
            *((path, landlock.READ) for path in self.read),
            *((path, landlock.WRITE) for path in self.write),
            *((path, Access.WRITE_FILE) for path in self.devices),
            *((path, landlock.RUN) for path in self.execute),
        ]


def build(
    permissions: Permissions,
    *,
    key: str,
    interpreter: Interpreter,
    scratch: str,
    local_source: str | None,
    redis: NetTarget | str,
    protected: Iterable[str],
    limits: Limits,
    check_path: Callable[[str, str, str], None] = lambda kind, path, real: None,
) -> SandboxPolicy:
    """The policy of one run. Raises ConfigError naming the field.

    `local_source`: the worker's own folder or file for version local. `redis`: its endpoint, or a socket's path.
    `protected`: what no grant may make writable, because code is taken from there, now or at the next run. `check_path` is
    given each path with the real one that is granted for it, and may refuse.
    """
    read = _granted(permissions, "read", key, check_path)
    write = _granted(permissions, "write", key, check_path)
    for kind, paths in (("read", permissions.allow.get("read", ())), ("write", permissions.allow.get("write", ()))):
        for path in paths:
            _check_not_planted(path, write, f"field {KINDS[kind].field()} of {key}")
    execute = list(_programs(permissions, key))
    code = [interpreter.prefix, *interpreter.programs, *interpreter.library, *interpreter.site_packages]
    code += [interpreter.package, *_SYSTEM_CODE, *execute, *protected]
    if local_source is not None:
        code.append(local_source)
    if isinstance(redis, str):
        code.append(redis)  # or the worker could put another socket in its place
    for path in write:
        for place in map(os.path.realpath, code):
            if _within(place, path) or _within(path, place):
                raise ConfigError(
                    f"field allowWrite of {key} has {path}, which would let the worker change code that is run later, "
                    f"or take Redis's place ({place}): grant a folder that holds data only"
                )
    own = [*interpreter.library, *interpreter.site_packages, interpreter.package]
    own.append(os.path.join(interpreter.prefix, "pyvenv.cfg"))  # which Python reads where it is run once more
    if local_source is not None:
        own.append(local_source)
    net = permissions
    if isinstance(redis, NetTarget):
        net = permissions.union(Permissions(allow={"net": (redis,)}))
    return SandboxPolicy(
        net=net,
        read=_existing((*_SYSTEM_READ, *own, *read, scratch)),
        write=_existing((*write, scratch)),
        devices=_existing(_DEVICES),
        execute=_existing(execute),
        unix_socket=redis if isinstance(redis, str) else None,
        limits=limits,
    )


def _granted(permissions: Permissions, kind: str, key: str, check: Callable[[str, str, str], None]) -> list[str]:
    """The real paths granted, less those denied."""
    field = KINDS[kind].field()
    denied = [os.path.realpath(path) for path in permissions.deny.get(kind, ())]
    granted: list[str] = []
    for path in permissions.allow.get(kind, ()):
        real = os.path.realpath(path)
        if any(_within(real, place) for place in denied):
            continue
        check(kind, path, real)
        if not os.path.exists(real):
            raise ConfigError(
                f"field {field} of {key} has {path}, which does not exist: make it first, or grant its folder"
            )
        try:
            for part in _without(real, denied):
                granted.append(part)
                if len(granted) > _ENTRIES_MAX:
                    raise ConfigError(
                        f"field {KINDS[kind].field('deny')} of {key} takes a part out of {path}, which leaves more than "
                        f"{_ENTRIES_MAX} entries to be granted one by one: grant fewer folders"
                    )
        except OSError as error:
            raise ConfigError(
                f"field {field} of {key} has {path}: cannot list {error.filename}, {error.strerror}"
            ) from error
    return granted


def _without(path: str, denied: list[str]) -> Iterator[str]:
    """`path`, or what is in it now but for the denied: Landlock can only add rights below a folder, never take them away.

    Neither the folder itself nor what is made in it later is granted then.
    """
    if path in denied:
        return
    if not any(_within(place, path) for place in denied):
        yield path
        return
    with os.scandir(path) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if not entry.is_symlink():  # where it leads is granted where that is
                yield from _without(entry.path, denied)


def _programs(permissions: Permissions, key: str) -> Iterator[str]:
    """The real paths of the programs that may be run, and of what the kernel loads to run them."""
    field = f"field {KINDS['run'].field()} of {key}"
    denied = {os.path.realpath(path) for name in permissions.deny.get("run", ()) for path in _candidates(name)}
    for name in permissions.allow.get("run", ()):
        path = next((path for path in _candidates(name) if os.path.isfile(path) and os.access(path, os.X_OK)), None)
        if path is None:
            raise ConfigError(f"{field} has {name}, which is no program here: give the path of one")
        if os.path.realpath(path) not in denied:
            try:
                yield from program.loaded_with(os.path.realpath(path))
            except (OSError, ValueError) as error:
                raise ConfigError(f"{field} has {name}, which cannot be run: {error}") from error


def _candidates(name: str) -> list[str]:
    return [name] if "/" in name else [os.path.join(folder, name) for folder in PROGRAM_FOLDERS]


def _check_not_planted(path: str, writable: Iterable[str], where: str) -> None:
    """Raise ConfigError where `path` leads through a symlink that lies in a writable folder.

    An earlier run may have put it there, to be granted what it points to.
    """
    place, rest, links = "/", [part for part in path.split("/") if part], 0
    while rest and links <= _LINKS_MAX:
        part = rest.pop(0)
        if part == "..":
            place = os.path.dirname(place)
            continue
        step = os.path.join(place, part)
        if not os.path.islink(step):
            place = step
            continue
        if any(_within(place, folder) for folder in writable):
            raise ConfigError(
                f"{where} has {path}, but {step} is a symlink in a folder that the worker can write: remove it"
            )
        links += 1
        target = os.readlink(step)
        rest = [word for word in target.split("/") if word not in ("", ".")] + rest
        place = "/" if target.startswith("/") else place


def _existing(paths: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(real for real in map(os.path.realpath, paths) if os.path.exists(real)))


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")
