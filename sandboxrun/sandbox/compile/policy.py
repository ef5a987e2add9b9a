"""From permissions to a SandboxPolicy: exactly what the kernel will be told.

Pure but for resolving the operator's paths, and counting the machine's threads.
"""

from __future__ import annotations

import itertools
import os
import resource
from collections.abc import Callable, Iterable, Iterator, Sequence

from sandboxrun.config.keys import split_worker_key
from sandboxrun.config.limits import Limits
from sandboxrun.config.permissions import PROGRAM_FOLDERS, Kind, NetTarget, Permissions, Verdict, parse_list
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

    from sandboxrun.config.worker import Asked

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
_ENTRIES_MAX = 4096  # granted one by one if a part of a folder is denied
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
    mixed: tuple[str, ...]  # those of them that hold data too: there only an entry with a module's name is code


@record
class SandboxPolicy:
    """Everything the boundary is made from. Paths are real paths; `read` and `write` hold folders and files."""

    net: Permissions  # of which `net` and `listen` are decided call by call
    read: tuple[str, ...]
    write: tuple[str, ...]  # scratch and what was granted: mode and times can be changed there too
    devices: tuple[str, ...]  # written to, and nothing else
    execute: tuple[str, ...]
    unix_socket: tuple[str, str] | None  # of Redis, the only one to connect to: as REDIS_URL has it, and the real one
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
            listen=bool(self.net.allow.get(Kind.LISTEN)),
            run=run,
            signals=run and Feature.LANDLOCK_SCOPE in features,
        )

    def rules(self) -> list[tuple[str, int]]:
        """For Landlock: real paths, with the rights below them."""
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
    asked: Asked | None = None,
    own_folders: Iterable[str] = (),
) -> SandboxPolicy:
    """The policy of one run. Raises ConfigError naming the field.

    `local_source`: the worker's own folder or file for version local. `redis`: its endpoint, or a socket's path.
    `certificates`: the file that the certificate of Redis is checked against, if it is not the system's.
    `protected`: paths that no grant may make writable, because code is taken from there, now or at the next run.
    `hidden`: folders that no grant makes readable; a folder that contains them is granted without them, as by denyRead.
    `check_path` is called with each path and the real path that is granted for it, and may refuse.
    `asked`: what the hash itself asks for, for the hints of errors. `own_folders`: the script's files and packages.
    """
    libraries = (*interpreter.library, *interpreter.site_packages, interpreter.package)
    code = [interpreter.prefix, *interpreter.programs, *libraries, *_SYSTEM_CODE, *protected]
    real = _Real(key, tuple(code))
    unseen = [follow(path)[0] for path in hidden]
    read = _granted(permissions, Kind.READ, real, check_path, asked, unseen)
    write = _granted(permissions, Kind.WRITE, real, check_path, asked)
    execute = list(_programs(permissions, real, asked))
    # Without a grant. Python reads pyvenv.cfg if it is run once more.
    own = [*own_folders, *_SYSTEM_READ, *libraries, os.path.join(interpreter.prefix, "pyvenv.cfg")]
    own += filter(None, (certificates,))
    code += [*interpreter.searched, *execute]
    if local_source is not None:
        local_source = real(local_source, f"field url of {key}")
        read += _parts(local_source, unseen, (), f"field url of {key}", local_source)
        code.append(local_source)
    if isinstance(redis, str):
        code.append(redis)  # or the worker could put another socket in its place
    if certificates:
        code.append(certificates)  # or another server
    _check_no_code(write, code, interpreter, key, asked)
    net = permissions
    if isinstance(redis, NetTarget):
        net = permissions.union(Permissions(allow={str(Kind.NET): (redis,)}))
    return SandboxPolicy(
        net=net,
        # The granted paths are real already. Resolving them once more would follow a symlink that was put there meanwhile.
        read=tuple(dict.fromkeys((*_existing(own), *read, *_existing((scratch,))))),
        write=tuple(dict.fromkeys((*write, *_existing((scratch,))))),
        devices=_existing(_DEVICES),
        execute=tuple(path for path in dict.fromkeys(execute) if os.path.lexists(path)),
        unix_socket=(redis, follow(redis)[0]) if isinstance(redis, str) else None,
        limits=limits,
    )


@record
class _Real:
    """The real path of a name in a hash, unless a worker can have chosen it."""

    key: str
    code: tuple[str, ...]  # where no worker ever writes

    def __call__(self, path: str, where: str) -> str:
        """`where`: the field, for the error."""
        real, links = follow(path)
        ground = Ground(tuple(follow(place)[0] for place in self.code)) if links else None
        planted = ground.planted(links) if ground is not None else None
        if planted is not None:
            raise ConfigError(
                f"{where} has {path}, but {planted} is a symlink in a folder that workers may be given for writing: "
                f"a worker may have made it. Remove it, or name its target, {real}, if you know why it leads there"
            )
        return real


def _list_hint(asked: Asked | None, kind: Kind, key: str, entry: str, instead: str = "") -> str:
    """The command that takes one entry out of a field of the hash, or puts another in its place.

    Empty if the entry is not of the field alone: a flag may have granted it, which is not to be stored in the hash.
    """
    lists = [row[2:] for row in asked.lists if row[:2] == (Verdict.ALLOW, kind)] if asked is not None else []
    if len(lists) != 1 or not lists[0][1].startswith(f"field {kind.field()} of "):
        return ""
    entries = [str(given) for given in parse_list(kind, *lists[0])]
    if entry not in entries:
        return ""
    import shlex

    kept = [instead if given == entry else given for given in entries]
    type_, id_ = split_worker_key(key)
    return f"sandboxrun set {type_} {id_} {kind.field()}={shlex.quote(','.join(filter(None, kept)))}"


def _missing_hint(path: str) -> str:
    """The command that makes what a grant names: a file if the name has a suffix."""
    import shlex

    quoted = shlex.quote(path)
    return f"install -D -m 600 /dev/null {quoted}" if os.path.splitext(path)[1] else f"mkdir -p {quoted}"


def _check_no_code(
    write: Sequence[str], code: Iterable[str], interpreter: Interpreter, key: str, asked: Asked | None
) -> None:
    """Raise ConfigError if something of `code`, or a symlink that leads to it, can be written or replaced.

    `write`: the real paths that are granted.
    """
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
                _refuse_write(path, f"{place}, which is found through the symlink {link}", key, asked)
            if within(real, path) or (within(path, real) and real not in mixed):
                _refuse_write(path, real, key, asked)
            name = path[len(real) :].lstrip("/").partition("/")[0]
            if within(path, real) and code_paths.is_importable(name, real, modules):
                _refuse_write(path, f"module {name} of {real}, which is on Python's path", key, asked)


def _refuse_write(path: str, place: str, key: str, asked: Asked | None) -> NoReturn:
    entries = asked.permissions.allow.get(Kind.WRITE, ()) if asked is not None else ()
    entry = next((entry for entry in entries if within(path, follow(entry)[0])), path)
    raise ConfigError(
        f"field {Kind.WRITE.field()} of {key} has {path}, which would let the worker change code that is run later, "
        f"or take Redis's place ({place}): grant a folder that holds data only",
        hint=_list_hint(asked, Kind.WRITE, key, entry),
    )


def _granted(
    permissions: Permissions,
    kind: Kind,
    real: _Real,
    check: Callable[[str, str, str], None],
    asked: Asked | None,
    hidden: Sequence[str] = (),
) -> list[str]:
    """The granted real paths without the denied ones. A worker cannot move a path that it is denied for reading, either."""
    field = f"field {kind.field()} of {real.key}"
    denied = _denied(permissions, kind, real)
    fixed = _denied(permissions, Kind.READ, real) if kind is Kind.WRITE else []
    granted: list[str] = []
    for path in permissions.allow.get(kind, ()):
        found = real(path, field)
        if any(within(found, place) for place in denied):
            continue
        check(kind, path, found)
        if any(within(found, place) for place in hidden):
            raise ConfigError(
                f"{field} has {path}, where what workers print is kept, which no worker reads",
                hint=_list_hint(asked, kind, real.key, path),
            )
        if not os.path.exists(found):
            raise ConfigError(f"{field} has {path}, which does not exist", hint=_missing_hint(path))
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


def _denied(permissions: Permissions, kind: Kind, real: _Real) -> list[str]:
    field = f"field {kind.field(Verdict.DENY)} of {real.key}"
    return [real(path, field) for path in permissions.deny.get(kind, ())]


def _programs(permissions: Permissions, real: _Real, asked: Asked | None) -> Iterator[str]:
    """The real paths of the programs that may be run, and of what the kernel loads to run them."""
    field = f"field {Kind.RUN.field()} of {real.key}"
    deny = f"field {Kind.RUN.field(Verdict.DENY)} of {real.key}"
    denied = {real(path, deny) for name in permissions.deny.get(Kind.RUN, ()) for path in _candidates(name)}
    for name in permissions.allow.get(Kind.RUN, ()):
        path = next((path for path in _candidates(name) if os.path.isfile(path) and os.access(path, os.X_OK)), None)
        if path is None:
            raise _no_program(asked, field, name, real.key)
        found = real(path, field)
        if found not in denied:
            try:
                for loaded in elf.loaded_with(found):
                    yield real(loaded, f"{field} has {name}: its interpreter")
            except (OSError, ValueError) as error:
                raise ConfigError(f"{field} has {name}, which cannot be run: {error}") from error


def _no_program(asked: Asked | None, field: str, name: str, key: str) -> ConfigError:
    import shutil

    elsewhere = shutil.which(name) if "/" not in name else None
    if elsewhere is None or not os.path.isabs(elsewhere):
        return ConfigError(f"{field} has {name}, which is no program here")
    folders = ", ".join(PROGRAM_FOLDERS)
    return ConfigError(
        f"{field} has {name}, which is in none of {folders}; on your PATH there is {elsewhere}",
        hint=_list_hint(asked, Kind.RUN, key, name, elsewhere),
    )


def _candidates(name: str) -> Sequence[str]:
    return [name] if "/" in name else [os.path.join(folder, name) for folder in PROGRAM_FOLDERS]


def _existing(paths: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(real for real in map(os.path.realpath, paths) if os.path.exists(real)))
