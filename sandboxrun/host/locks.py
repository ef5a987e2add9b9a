"""The lock of a script's packages: finds it, reads it for this host, and resolves the dependencies if no lock exists.

The packages of a lock on this host are kept, sealed, and used once the environment is installed: reading a lock takes longer
than the rest of a start.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator

from sandboxrun.config.contents import Package, canonical
from sandboxrun.config.script import Block, lock_names
from sandboxrun.digests import hex_digest
from sandboxrun.errors import FetchError
from sandboxrun.fetch import Artifact, bundle
from sandboxrun.fetch.resolve import LocalSource, Source, origin_of
from sandboxrun.files import read_at_most, write_whole
from sandboxrun.packages import seal
from sandboxrun.packages.environment import check_sizes, sealed
from sandboxrun.packages.lock import LOCK_MAX_BYTES, Lock, read_lock
from sandboxrun.records import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sandboxrun.host.contents import Means

_KEPT_MAX_BYTES = 1 << 20
_PYLOCK = rb"(?m)^lock-version[ \t]*="
_SHOWN_MAX = 12


@record
class HostLock:
    """A lock, and the packages of it that this host installs."""

    lock: Lock  # without its packages, if they are installed
    packages: tuple[Package, ...]
    environment: str | None  # where they are installed, if they are
    warnings: tuple[str, ...] = ()


def lock_of(block: Block, artifact: Artifact, source: Source | LocalSource, means: Means) -> HostLock | None:
    """The lock of a script; None if it is not here and must not be fetched.

    Raises ScriptError, FetchError, IntegrityError, PolicyError.
    """
    if isinstance(source, LocalSource):
        beside = _beside(source, block)
        if beside is None:
            return _resolved(block, artifact, means, None)
        path, data = beside
        found = _host_lock(path, hex_digest(data), lambda: data, means)
        return HostLock(found.lock, found.packages, found.environment, tuple(_stale(block, source, path, found)))
    if block.lock is None:
        means.ceiling.check_unlocked(artifact.origin)
        return _resolved(block, artifact, means, source)
    digest = block.lock
    if not means.fetch and means.cache.read(digest) is None:
        return None
    return _host_lock(f"the lock of {artifact.origin}", digest, lambda: _fetched(digest, source, means), means)


def _host_lock(shown: str, digest: str, get: Callable[[], bytes], means: Means) -> HostLock:
    """Read a lock, or take its packages from the cache. `get` returns its bytes, already verified."""
    bare = Lock(shown, digest, ())
    name = f"packages-{seal.name_of(bare)}"
    found = sealed(bare, cache=means.folders.cache, key=means.folders.key)
    path = None if found is None else found[0]
    if found is not None:
        limits = means.ceiling.packages_limits
        check_sizes(
            found[1],
            shown,
            packed_max=limits.packed_max,
            unpacked_max=limits.unpacked_max,
            files_max=limits.files_max,
        )
    # If its URLs may be refused, they are read.
    is_refused = found is not None and found[1].lock.endswith(".toml") and means.ceiling.package_hosts == ()
    kept = means.cache.blocks.get(name, _KEPT_MAX_BYTES) if path is not None and not is_refused else None
    if kept is not None:
        return HostLock(bare, tuple(Package(*values) for values in json.loads(kept)), path)
    from sandboxrun.packages.wheels import applicable

    data = get()
    lock = read_lock(data, f"{shown}.toml" if re.search(_PYLOCK, data) and not shown.endswith(".toml") else shown)
    if lock.name.endswith(".toml"):
        means.ceiling.check_urls(shown, (origin_of(url) for each in lock.packages for url, _ in each.wheels))
    packages = tuple(Package.of(each.name, each.version, each.digests) for each in applicable(lock))
    plain = [[package.name, package.version, package.wheels] for package in packages]
    means.cache.blocks.put(name, json.dumps(plain).encode())
    return HostLock(lock, packages, path)


def _fetched(digest: str, source: Source, means: Means) -> bytes:
    """From the cache, or from beside the script. Raises FetchError, IntegrityError."""
    missing: FetchError | None = None
    for name in lock_names(source.url.partition("?")[0].rpartition("/")[2]):
        url = bundle.beside(source.url, name)
        try:
            return bundle.file_from_cache_or_origin(
                url, digest, means.cache, allowed=means.allowed, cached_only=means.cached_only, progress=means.progress
            )
        except FetchError as error:
            if " answers 404" not in str(error):
                raise
            missing = missing or error
    assert missing is not None
    raise missing


def _beside(source: LocalSource, block: Block) -> tuple[str, bytes] | None:
    """Path and bytes of the lock in the script's folder: the one that the block names, else the first."""
    folder = source.folder or os.path.dirname(source.script)
    first = None
    for name in lock_names(os.path.basename(source.script)):
        path = os.path.join(folder, name)
        data = read_at_most(path, LOCK_MAX_BYTES + 1)
        if data is None:
            continue
        if hex_digest(data) == block.lock:
            return path, data
        first = first or (path, data)
    return first


def _stale(block: Block, source: LocalSource, path: str, found: HostLock) -> Iterator[str]:
    """Warn of a lock that does not match the block. The script runs with it as it is."""
    here = {package.name for package in found.packages}
    wanted = [canonical(re.split(r"[^A-Za-z0-9._-]", text)[0]) for text in block.dependencies if ";" not in text]
    absent = [name for name in wanted if name not in here]
    if absent:
        yield f"{path} does not have {', '.join(absent[:3])}, which {source.script}:{block.first_line} depends on"
    elif found.lock.sha256 != block.lock:
        yield f"{source.script}:{block.first_line} does not pin {path} as it is, so it would be refused where it is fetched"


def _resolved(block: Block, artifact: Artifact, means: Means, source: Source | None) -> HostLock | None:
    """The lock that was resolved at the first start. For a fetched `source` it is kept beside the pin, so it stays."""
    index = means.ceiling.index
    wanted = repr((block.dependencies, block.requires_python, block.exclude_newer, index))
    name = f"resolved-{hex_digest(wanted.encode())}"
    kept = read_at_most(f"{means.cache.pin_path(source)}.{name}", LOCK_MAX_BYTES + 1) if source is not None else None
    if source is None:
        kept = means.cache.blocks.get(name, LOCK_MAX_BYTES)
    shown = f"the lock of {artifact.origin}"
    if kept is not None:
        data = kept
        return _host_lock(shown, hex_digest(data), lambda: data, means)
    if not means.fetch:
        return None
    if means.cached_only:
        raise FetchError(
            f"the packages of {artifact.origin} were not resolved yet, and --cached-only forbids asking an index",
            hint="sandboxrun TYPE ID",
        )
    from sandboxrun.packages.resolve import Wanted, resolve

    means.say(f"resolving the packages of {artifact.origin}")
    script = os.path.basename(artifact.origin.partition("?")[0])
    fresh = resolve(
        Wanted(script, block.dependencies, block.requires_python, block.exclude_newer), os.environ, index=index
    )
    if source is not None:
        write_whole(f"{means.cache.pin_path(source)}.{name}", fresh, mode=0o400)
    else:
        means.cache.blocks.put(name, fresh)
    found = _host_lock(shown, hex_digest(fresh), lambda: fresh, means)
    return HostLock(found.lock, found.packages, found.environment, (_resolved_now(artifact, found),))


def _resolved_now(artifact: Artifact, found: HostLock) -> str:
    more = len(found.packages) - _SHOWN_MAX
    packages = ", ".join(map(str, found.packages[:_SHOWN_MAX])) + (f" and {more} more" if more > 0 else "")
    return f"{artifact.origin} has dependencies and no lock, so they were resolved now: {packages}"
