"""Permissions to a SandboxPolicy: what exactly the kernel will be told. Pure but for resolving the operator's paths."""

from __future__ import annotations

import os.path
import resource
from collections.abc import Iterable
from dataclasses import dataclass

from sandboxrun.errors import ConfigError
from sandboxrun.permissions import KINDS, NetTarget, Permissions

# What any Python program reads to start, import and speak TLS. All of it is public on an ordinary system.
_SYSTEM_READ = (
    "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache",
    "/usr/share/zoneinfo", "/etc/localtime", "/usr/share/locale",
    "/etc/ssl/certs", "/etc/ssl/openssl.cnf", "/usr/share/ca-certificates", "/usr/local/share/ca-certificates",
    "/etc/pki/tls/certs", "/etc/pki/tls/openssl.cnf", "/etc/pki/ca-trust/extracted", "/etc/crypto-policies",
    "/etc/mime.types", "/etc/services", "/etc/protocols",
    "/dev/urandom", "/dev/random", "/dev/zero", "/dev/null",
)  # fmt: skip
_SYSTEM_WRITE = ("/dev/null",)
# Where programs, libraries and settings of the machine are: as good as code.
_SYSTEM_CODE = ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc", "/boot", "/proc", "/sys")
_LINKS_MAX = 40  # as the kernel's own limit, path_resolution(7)

SCRATCH_MAX_BYTES = 256 * 1024 * 1024
ADDRESS_SPACE_MAX_BYTES = 4 * 1024 * 1024 * 1024
OPEN_FILES_MAX = 1024


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

    net: Permissions
    read: tuple[str, ...]
    write: tuple[str, ...]
    unix_socket: str | None  # the one Unix socket that may be connected: Redis's
    rlimits: tuple[tuple[int, int], ...]  # (RLIMIT_*, soft and hard value)


def build(
    permissions: Permissions,
    *,
    key: str,
    interpreter: Interpreter,
    scratch: str,
    local_source: str | None,
    redis: NetTarget | str,
    protected: Iterable[str],
) -> SandboxPolicy:
    """The policy of one run. Raises ConfigError naming the field.

    `local_source`: the worker's own folder or file for version local. `redis`: its endpoint, or a socket's path.
    `protected`: what no grant may make writable, because code is taken from there, now or at the next run.
    """
    read = _granted(permissions, "read", key)
    write = _granted(permissions, "write", key)
    for kind, paths in (("read", permissions.allow.get("read", ())), ("write", permissions.allow.get("write", ()))):
        for path in paths:
            _check_not_planted(path, write, f"field {KINDS[kind].field()} of {key}")
    code = [interpreter.prefix, *interpreter.programs, *interpreter.library, *interpreter.site_packages]
    code += [interpreter.package, *_SYSTEM_CODE, *protected]
    if local_source is not None:
        code.append(local_source)
    for path in write:
        for place in map(os.path.realpath, code):
            if _within(place, path) or _within(path, place):
                raise ConfigError(
                    f"field allowWrite of {key} has {path}, which would let the worker change code that is run later "
                    f"({place}): grant a folder that holds data only"
                )
    own = [*interpreter.library, *interpreter.site_packages, interpreter.package]
    if local_source is not None:
        own.append(local_source)
    net = permissions
    if isinstance(redis, NetTarget):
        net = permissions.union(Permissions(allow={"net": (redis,)}))
    return SandboxPolicy(
        net=net,
        read=_existing((*_SYSTEM_READ, *own, *read, scratch)),
        write=_existing((*_SYSTEM_WRITE, *write, scratch)),
        unix_socket=redis if isinstance(redis, str) else None,
        rlimits=(
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_FSIZE, SCRATCH_MAX_BYTES),
            (resource.RLIMIT_AS, ADDRESS_SPACE_MAX_BYTES),
            (resource.RLIMIT_NOFILE, OPEN_FILES_MAX),
            (resource.RLIMIT_MSGQUEUE, 0),
        ),
    )


def _granted(permissions: Permissions, kind: str, key: str) -> list[str]:
    """The real paths granted, less those denied."""
    field = KINDS[kind].field()
    denied = [os.path.realpath(path) for path in permissions.deny.get(kind, ())]
    granted = []
    for path in permissions.allow.get(kind, ()):
        real = os.path.realpath(path)
        if any(_within(real, place) for place in denied):
            continue
        inside = next((place for place in denied if _within(place, real)), None)
        if inside is not None:
            # Landlock can only add rights below a folder, never take them away again.
            raise ConfigError(
                f"field {KINDS[kind].field('deny')} of {key} has {inside}, inside {path} of {field}: the kernel cannot take "
                f"a part out of a granted folder; list the folders to grant instead"
            )
        if not os.path.exists(real):
            raise ConfigError(
                f"field {field} of {key} has {path}, which does not exist: make it first, or grant its folder"
            )
        granted.append(real)
    return granted


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
