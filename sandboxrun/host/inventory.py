"""What lies in the cache, which workers use it, and its removal.

`blobs/HEX` are scripts and single files, `trees/HEX` the files of a script, `env/HEX` the packages of a lock, `wheels/HEX.whl`
what those were made of. All of it can be fetched again, so a removal loses nothing but time; what a running worker may still
import is kept. Symlinks are removed and never followed, and nothing below the data of workers is touched.
"""

from __future__ import annotations

import contextlib
import enum
import fcntl
import json
import os
import re
import stat
import time
from collections.abc import Iterable, Iterator, Mapping

from sandboxrun.config import keys
from sandboxrun.config.covers import is_below
from sandboxrun.errors import ConfigError
from sandboxrun.host.folders import Folders
from sandboxrun.packages import seal
from sandboxrun.records import record
from sandboxrun.redis.lease import start_time, this_host

_HEX = re.compile(r"[0-9a-f]{64}")
_OURS = {
    "trees": r"[0-9a-f]{64}|\.staging-.*",
    "env": r"[0-9a-f]{64}(\.seal|\.files)?|staging",
}  # elsewhere: every name
_RUN_MAX_BYTES = 16 << 20
_DEPTH_MAX = 100


class Kind(enum.StrEnum):
    """What an entry of the cache is. The value is its folder below the cache."""

    SCRIPT = "blobs"
    FILES = "trees"
    ENVIRONMENT = "env"
    WHEEL = "wheels"

    @property
    def noun(self) -> str:
        return {"blobs": "script", "trees": "folder of files", "env": "environment", "wheels": "wheel"}[self.value]


_BESIDE = ("code", "blocks", "tree-records")  # what was made of scripts, without an entry of its own


@record
class User:
    """A worker that was started with an entry of the cache. `runs`: its supervisor still lives."""

    worker: str  # TYPE:ID
    runs: bool


@record
class Holding:
    """One entry. `name`: its digest. `made`: ISO 8601, UTC."""

    kind: Kind
    name: str
    path: str
    files: int
    size: int  # bytes
    made: str
    users: tuple[User, ...] = ()
    packages: tuple[str, ...] = ()  # of an environment: "NAME VERSION"

    @property
    def running(self) -> str:
        """The workers that use it now, as TYPE ID; empty if none does."""
        return ", ".join(user.worker.replace(":", " ") for user in self.users if user.runs)


@record
class Removed:
    """What was removed, by kind, and its size. `kept`: path and reason of what was not."""

    counts: Mapping[Kind, int]
    size: int
    kept: tuple[tuple[str, str], ...]


def holdings(folders: Folders) -> list[Holding]:
    """All entries, in the order of Kind."""
    runs = list(_runs(folders))
    found = []
    for kind in Kind:
        folder = os.path.join(folders.cache, kind)
        for name in _names(folder):
            digest = name.removesuffix(".whl") if kind is Kind.WHEEL else name
            with contextlib.suppress(FileNotFoundError):
                if _HEX.fullmatch(digest):
                    path = os.path.join(folder, name)
                    files, size = _measured(path)
                    made = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(os.lstat(path).st_mtime))
                    using = [run for run in runs if f"{kind}/{name}" in run.uses]
                    packages = _packages(folders, name, using) if kind is Kind.ENVIRONMENT else ()
                    users = tuple(run.user for run in using)
                    found.append(Holding(kind, digest, path, files, size, made, users, packages))
    return found


def _packages(folders: Folders, name: str, using: list[_Run]) -> tuple[str, ...]:
    """Of an environment: by its own record, else by those of the runs that used it."""
    sealed = seal.read(folders.cache, folders.key, name)
    if sealed is not None:
        return tuple(" ".join(package) for package in sealed.packages)
    return using[0].packages if using else ()


def clean(folders: Folders) -> Removed:
    """Remove all entries but those that a running worker uses. Raises ConfigError."""
    return remove(folders, holdings(folders), everything=True)


def remove(folders: Folders, entries: Iterable[Holding], *, everything: bool = False) -> Removed:
    """Remove these. `everything`: with all that belongs to no entry. Raises ConfigError."""
    _check_apart(folders)
    removal = _Removal(folders, list(entries), everything)
    with contextlib.ExitStack() as stack:
        try:
            cache = _opened(stack, folders.cache)
        except FileNotFoundError:
            return removal.result
        for section in (*Kind, *_BESIDE):
            try:
                folder = _opened(stack, section, cache)
            except FileNotFoundError:
                continue
            except OSError:
                removal.keep(section, "it is not a folder of this user")
                continue
            with _unless_busy(folder, section) as is_free:
                removal.clear(section, folder, is_free)
    return removal.result


class _Removal:
    """Removes entries, and counts."""

    def __init__(self, folders: Folders, entries: list[Holding], everything: bool) -> None:
        self._cache, self._everything = folders.cache, everything
        self._parts = {part: entry for entry in entries for part in _parts(entry)}
        self._counts, self._size = dict.fromkeys(Kind, 0), 0
        self._kept = [(entry.path, f"{entry.running} uses it") for entry in entries if entry.running]

    @property
    def result(self) -> Removed:
        return Removed(self._counts, self._size, tuple(self._kept))

    def keep(self, part: str, reason: str) -> None:
        self._kept.append((os.path.join(self._cache, part), reason))

    def clear(self, section: str, folder: int, is_free: bool) -> None:
        """One folder of the cache. The seals go first, because without one nothing is used."""
        for name in sorted(os.listdir(folder), key=lambda name: (not name.endswith(".seal"), name)):
            part = f"{section}/{name}"
            entry = self._parts.get(part)
            if name.endswith(".lock") or (entry is not None and entry.running) or not (entry or self._everything):
                continue
            if not is_free:
                self.keep(part, "something is being made there")
            elif entry is None and not re.fullmatch(_OURS.get(section, ".*"), name, re.DOTALL):
                self.keep(part, "sandboxrun did not make it")
            else:
                reason, freed = _remove(folder, name)
                self._size += freed
                if reason:
                    self.keep(part, reason)
                elif entry is not None and name == os.path.basename(entry.path) and section == entry.kind:
                    self._counts[entry.kind] += 1


def _parts(entry: Holding) -> Iterator[str]:
    """What belongs to an entry, below the cache; the seals first, without which the rest is not used."""
    name = os.path.basename(entry.path)
    if entry.kind is Kind.ENVIRONMENT:
        yield from (f"{entry.kind}/{name}.seal", f"{entry.kind}/{name}.files")
    if entry.kind is Kind.FILES:
        yield f"tree-records/{name}"
    yield f"{entry.kind}/{name}"


@record
class _Run:
    """The record of a worker's last run. `uses`: paths below the cache."""

    user: User
    uses: tuple[str, ...]
    packages: tuple[str, ...]


def _runs(folders: Folders) -> Iterator[_Run]:
    """Those that tell what of the cache was used."""
    for name in _names(folders.runs):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, ConfigError):
            type_, id_ = keys.split_worker_key(f"{name.removesuffix('.json')}:h")
            with open(os.path.join(folders.runs, name), "rb") as file:
                run = json.loads(file.read(_RUN_MAX_BYTES))
            by = run["supervisor"]
            is_alive = by["host"] == this_host() and start_time(int(by["pid"])) == by["started"] is not None
            yield _Run(
                User(f"{type_}:{id_}", is_alive), tuple(map(str, run["uses"])), tuple(map(str, run.get("packages", ())))
            )


def _names(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _measured(path: str) -> tuple[int, int]:
    """Number of files, and their bytes. No symlink is followed."""
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode):
        return 1, status.st_size
    count = size = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                size += os.lstat(os.path.join(folder, name)).st_size
                count += 1
    return count, size


def _check_apart(folders: Folders) -> None:
    """Raise ConfigError if the cache is also where workers keep their data: a worker of the type env would have its own there."""
    cache, data = os.path.realpath(folders.cache), os.path.realpath(folders.data)
    for section in (*Kind, *_BESIDE):
        path = os.path.join(cache, section)  # which is not followed if it is a symlink
        if is_below(path, data) or is_below(data, path):
            raise ConfigError(
                f"the cache {folders.cache} and the workers' data in {folders.data} are not apart, so nothing is removed"
            )


def _opened(stack: contextlib.ExitStack, name: str, parent: int | None = None) -> int:
    """A folder of this user, by descriptor. Below the cache no symlink is followed. Raises OSError."""
    follow = 0 if parent is None else os.O_NOFOLLOW
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | follow, dir_fd=parent)
    stack.callback(os.close, fd)
    if os.fstat(fd).st_uid != os.geteuid():
        raise PermissionError(name)
    return fd


@contextlib.contextmanager
def _unless_busy(folder: int, section: str) -> Iterator[bool]:
    """Whether nobody makes an entry in a folder just now; nobody does until the end of the block."""
    with contextlib.ExitStack() as stack:
        is_free = True
        for name in os.listdir(folder) if section in (Kind.FILES, Kind.ENVIRONMENT) else ():
            if name.endswith(".lock"):
                flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                try:
                    fd = os.open(name, flags, dir_fd=folder)
                    stack.callback(os.close, fd)
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    is_free = False
                except OSError:  # a symlink, a folder
                    continue
        yield is_free


def _remove(parent: int, name: str, depth: int = 0) -> tuple[str, int]:
    """Remove a file, a symlink, or a folder with all below it. Returns why not, and the bytes that were freed."""
    freed = 0
    try:
        status = os.stat(name, dir_fd=parent, follow_symlinks=False)
        if not stat.S_ISDIR(status.st_mode):
            os.unlink(name, dir_fd=parent)
            return "", status.st_size if stat.S_ISREG(status.st_mode) else 0
        if status.st_dev != os.fstat(parent).st_dev:
            return "another file system is mounted there", 0
        if depth >= _DEPTH_MAX:
            return "it is too deep", 0
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            os.fchmod(fd, 0o700)
            for inner in os.listdir(fd):
                reason, size = _remove(fd, inner, depth + 1)
                freed += size
                if reason:
                    return reason, freed
        finally:
            os.close(fd)
        os.rmdir(name, dir_fd=parent)
    except FileNotFoundError:
        pass
    except OSError as error:
        return f"{error.strerror}", freed
    return "", freed
