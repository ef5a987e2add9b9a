"""Permissions to a SandboxPolicy: what exactly the kernel will be told.

Pure but for resolving the operator's paths, and counting the machine's threads.
"""

from __future__ import annotations

import itertools
import os
import resource
from collections.abc import Callable, Iterable, Iterator, Sequence

from sandboxrun.config.limits import Limits
from sandboxrun.config.permissions import KINDS, PROGRAM_FOLDERS, NetTarget, Permissions
from sandboxrun.errors import ConfigError
from sandboxrun.records import record
from sandboxrun.sandbox.compile import code_paths, elf, landlock
from sandboxrun.sandbox.compile.features import Feature, Features
from sandboxrun.sandbox.compile.grants import Grants
from sandboxrun.sandbox.compile.landlock import Access
from sandboxrun.sandbox.compile.paths import Ground, follow, within, without

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

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
_SYSTEM_CODE = ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc", "/boot", "/proc", "/sys", "/nix/store", "/gnu/store")
_ENTRIES_MAX = 4096  # granted one by one where a part of a folder is denied
_USERS_MAX = 4096  # how many more threads and processes a user may have when the worker forks, see backstop()
_UNLIMITED = resource.RLIM_INFINITY


@record
class Interpreter:
    """Where the child's Python finds its own code; see child.this_interpreter."""

    prefix: str
    programs: tuple[str, ...]  # the interpreter and the command itself, and their folders
    library: tuple[str, ...]  # standard library folders
    site_packages: tuple[str, ...]
    package: str  # the folder sandboxrun/ itself
    searched: tuple[str, ...]  # folders on PATH and Python's path, there or not
    mixed: tuple[str, ...]  # those of them that hold data too, where only what has a module's name is code


@record
class SandboxPolicy:
    """Everything the boundary is made from. Paths are real paths; `read` and `write` hold folders and files."""

    net: Permissions  # of which `net` and `listen` are decided call by call
    read: tuple[str, ...]
    write: tuple[str, ...]  # scratch and what was granted: mode and times can be changed there too
    devices: tuple[str, ...]  # written to, and nothing else
    execute: tuple[str, ...]
    unix_socket: tuple[str, str] | None  # the one that may be connected, Redis's: as REDIS_URL has it, and really
    limits: Limits

    @property
    def rlimits(self) -> tuple[tuple[int, int, int], ...]:
        """(RLIMIT_*, soft, hard), setrlimit(2); all hold for each process."""
        limits = self.limits
        most = 0
        if self.execute and limits.threads:
            most = backstop(limits.threads)
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
            *(((resource.RLIMIT_NPROC, most, most),) if most else ()),
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

    def rules(self) -> list[tuple[str, int]]:
        """Landlock's: what is allowed below which real path."""
        return [
            *((path, landlock.READ) for path in self.read),
            *((path, landlock.WRITE) for path in self.write),
            *((path, Access.WRITE_FILE) for path in self.devices),
            *((path, landlock.RUN) for path in self.execute),
        ]


def backstop(limit: int) -> int:
    """A value of RLIMIT_NPROC that a fork bomb reaches before it has taken the machine. Root is exempt (setrlimit(2)).

    The kernel compares it with all threads of the user, of which there may be thousands more when the worker forks than
    there are now: so it is no limit of the worker's own.
    """
    with open("/proc/loadavg", "rb") as file:
        return int(file.read().split()[3].partition(b"/")[2]) + limit + _USERS_MAX


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
    certificates: str = "",
    hidden: Iterable[str] = (),
    check_path: Callable[[str, str, str], None] = lambda kind, path, real: None,
) -> SandboxPolicy:
    """The policy of one run. Raises ConfigError naming the field.

    `local_source`: the worker's own folder or file for version local. `redis`: its endpoint, or a socket's path.
    `certificates`: the file by which Redis's certificate is checked, where it is not the system's.
    `protected`: what no grant may make writable, because code is taken from there, now or at the next run. `hidden`: folders
    that no grant makes readable; one that contains them is given without, as by denyRead. `check_path` is given each path with the real one that is granted for it, and may refuse.
    """
    libraries = (*interpreter.library, *interpreter.site_packages, interpreter.package)
    code = [interpreter.prefix, *interpreter.programs, *libraries, *_SYSTEM_CODE, *protected]
    real = _Real(key, tuple(code))
    unseen = [follow(path)[0] for path in hidden]
    read = _granted(permissions, "read", real, check_path, unseen)
    write = _granted(permissions, "write", real, check_path)
    execute = list(_programs(permissions, real))
    own = [*libraries, os.path.join(interpreter.prefix, "pyvenv.cfg")]  # which Python reads where it is run once more
    code += [*interpreter.searched, *execute]
    if local_source is not None:
        local_source = real(local_source, f"field url of {key}")
        read += _parts(local_source, unseen, (), f"field url of {key}", local_source)
        code.append(local_source)
    if isinstance(redis, str):
        code.append(redis)  # or the worker could put another socket in its place
    if certificates:
        code.append(certificates)  # or another server
    _check_no_code(write, code, interpreter, key)
    net = permissions
    if isinstance(redis, NetTarget):
        net = permissions.union(Permissions(allow={"net": (redis,)}))
    return SandboxPolicy(
        net=net,
        # Those that were granted are real already. To resolve them once more would be to follow what was put there meanwhile.
        read=tuple(
            dict.fromkeys(
                (
                    *_existing((*_SYSTEM_READ, *own)),
                    *_existing(filter(None, (certificates,))),
                    *read,
                    *_existing((scratch,)),
                )
            )
        ),
        write=tuple(dict.fromkeys((*write, *_existing((scratch,))))),
        devices=_existing(_DEVICES),
        execute=tuple(path for path in dict.fromkeys(execute) if os.path.lexists(path)),
        unix_socket=(redis, follow(redis)[0]) if isinstance(redis, str) else None,
        limits=limits,
    )


@record
class _Real:
    """The real path of what a hash names, if no worker can have chosen it."""

    key: str
    code: tuple[str, ...]  # where no worker ever writes

    def __call__(self, path: str, where: str) -> str:
        real, links = follow(path)
        ground = Ground(tuple(follow(place)[0] for place in self.code)) if links else None
        planted = ground.planted(links) if ground is not None else None
        if planted is not None:
            raise ConfigError(
                f"{where} has {path}, but {planted} is a symlink in a folder that workers may be given for writing: "
                f"one may have put it there. Remove it, or write what it leads to, {real}"
            )
        return real


def _check_no_code(write: Sequence[str], code: Iterable[str], interpreter: Interpreter, key: str) -> None:
    """Raise ConfigError where something of `code`, or a symlink that leads to it, can be written or replaced."""
    if not write:
        return
    ways = [(place, *follow(place)) for place in dict.fromkeys((*code, *interpreter.mixed))]
    mixed = {follow(place)[0] for place in interpreter.mixed} - {follow(place)[0] for place in code}
    is_mixed = any(within(path, folder) for path in write for folder in mixed)
    modules = code_paths.module_names((*interpreter.site_packages, *mixed)) if is_mixed else frozenset()
    for path in write:
        for place, real, links in ways:
            link = next((link for link in links if within(os.path.dirname(link), path)), None)
            if link is not None:
                _refuse_write(path, f"{place}, which is found through the symlink {link}", key)
            if within(real, path) or (within(path, real) and real not in mixed):
                _refuse_write(path, real, key)
            name = path[len(real) :].lstrip("/").partition("/")[0]
            if within(path, real) and code_paths.is_importable(name, real, modules):
                _refuse_write(path, f"module {name} of {real}, which is on Python's path", key)


def _refuse_write(path: str, place: str, key: str) -> NoReturn:
    raise ConfigError(
        f"field allowWrite of {key} has {path}, which would let the worker change code that is run later, "
        f"or take Redis's place ({place}): grant a folder that holds data only"
    )


def _granted(
    permissions: Permissions,
    kind: str,
    real: _Real,
    check: Callable[[str, str, str], None],
    hidden: Sequence[str] = (),
) -> list[str]:
    """The real paths granted, less those denied. What is denied for reading is not moved by who may write, either."""
    field = f"field {KINDS[kind].field()} of {real.key}"
    denied = _denied(permissions, kind, real)
    fixed = _denied(permissions, "read", real) if kind == "write" else []
    granted: list[str] = []
    for path in permissions.allow.get(kind, ()):
        found = real(path, field)
        if any(within(found, place) for place in denied):
            continue
        check(kind, path, found)
        if any(within(found, place) for place in hidden):
            raise ConfigError(
                f"{field} has {path}, where what workers print is kept, which no worker reads: take it out"
            )
        if not os.path.exists(found):
            raise ConfigError(f"{field} has {path}, which does not exist: make it first, or grant its folder")
        granted += _parts(found, [*denied, *hidden], fixed, field, path)
        if len(granted) > _ENTRIES_MAX:
            raise _too_many_parts(field, path)
    return granted


def _parts(found: str, denied: Sequence[str], fixed: Sequence[str], field: str, path: str) -> list[str]:
    """What is granted of the real path `found`. Raises ConfigError."""
    try:
        parts = list(itertools.islice(without(found, denied, fixed), _ENTRIES_MAX + 1))
    except OSError as error:
        raise ConfigError(f"{field} has {path}: cannot list {error.filename}, {error.strerror}") from error
    if len(parts) > _ENTRIES_MAX:
        raise _too_many_parts(field, path)
    return parts


def _too_many_parts(field: str, path: str) -> ConfigError:
    return ConfigError(
        f"{field} has {path}, out of which a part is taken (by a deny field, or because what workers print is kept there), "
        f"which leaves more than {_ENTRIES_MAX} entries to be granted one by one: grant fewer folders"
    )


def _denied(permissions: Permissions, kind: str, real: _Real) -> list[str]:
    field = f"field {KINDS[kind].field('deny')} of {real.key}"
    return [real(path, field) for path in permissions.deny.get(kind, ())]


def _programs(permissions: Permissions, real: _Real) -> Iterator[str]:
    """The real paths of the programs that may be run, and of what the kernel loads to run them."""
    field = f"field {KINDS['run'].field()} of {real.key}"
    deny = f"field {KINDS['run'].field('deny')} of {real.key}"
    denied = {real(path, deny) for name in permissions.deny.get("run", ()) for path in _candidates(name)}
    for name in permissions.allow.get("run", ()):
        path = next((path for path in _candidates(name) if os.path.isfile(path) and os.access(path, os.X_OK)), None)
        if path is None:
            raise ConfigError(f"{field} has {name}, which is no program here: give the path of one")
        found = real(path, field)
        if found not in denied:
            try:
                for loaded in elf.loaded_with(found):
                    yield real(loaded, f"{field} has {name}: its interpreter")
            except (OSError, ValueError) as error:
                raise ConfigError(f"{field} has {name}, which cannot be run: {error}") from error


def _candidates(name: str) -> Sequence[str]:
    return [name] if "/" in name else [os.path.join(folder, name) for folder in PROGRAM_FOLDERS]


def _existing(paths: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(real for real in map(os.path.realpath, paths) if os.path.exists(real)))
