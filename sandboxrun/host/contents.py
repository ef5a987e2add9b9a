"""What a script's block names: its files, its lock of packages, and the environment that those are installed in.

Imported for a script with a block alone. `gather` needs no approval, because it only reads what the script pins; `install`
comes after it.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator

from sandboxrun.config.contents import Contents
from sandboxrun.config.script import FILE_MAX_BYTES, Block
from sandboxrun.digests import hex_digest
from sandboxrun.errors import ConfigError
from sandboxrun.fetch import Artifact, bundle
from sandboxrun.fetch.cache import Cache
from sandboxrun.fetch.resolve import ImportList, LocalSource, Source
from sandboxrun.files import read_at_most
from sandboxrun.records import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sandboxrun.host.folders import Folders
    from sandboxrun.packages.lock import Lock
    from sandboxrun.policy.ceiling import Ceiling

_PLAIN_MINIMUM = r">=\s*([0-9]+)\.([0-9]+)(?:\.([0-9]+))?"


@record
class Gathered:
    """The files and packages that a script's block names, as far as the cache has them."""

    block: Block
    contents: Contents  # for the approval, and to be shown
    tree: str | None = (
        None  # the folder with its files; None for a local script, without files, or if they are not here
    )
    script: str = ""  # the script's own name in the tree
    lock: Lock | None = None  # of its packages; None without dependencies, or if it is not here
    environment: str | None = None  # where the packages are installed, if they are
    warnings: tuple[str, ...] = ()

    @property
    def has_packages(self) -> bool:
        return bool(self.block.dependencies or self.block.lock)

    @property
    def lacks_lock(self) -> bool:
        """Whether it is not known here which packages it has."""
        return self.has_packages and self.lock is None

    @property
    def lacks(self) -> str:
        """The missing part, to complete "… of KEY"; empty if nothing is missing."""
        if self.block.files and self.script and self.tree is None:
            return "the files"
        return "the packages" if self.has_packages and self.environment is None else ""


@record
class Means:
    """The context of a `gather`. `fetch`: fetch or resolve what the cache lacks. `say` is told what takes time."""

    cache: Cache
    folders: Folders
    allowed: ImportList
    ceiling: Ceiling
    fetch: bool
    cached_only: bool = False
    say: Callable[[str], None] = lambda message: None
    progress: Callable[[str], None] = lambda message: None


def gather(artifact: Artifact, source: Source | LocalSource, means: Means) -> Gathered | None:
    """None if the script has no block. Raises ScriptError, ConfigError, FetchError, IntegrityError, PolicyError."""
    block = bundle.block_of(artifact.source, artifact.sha256, artifact.origin, means.cache)
    if block is None:
        return None
    check_python(block.requires_python, artifact.origin)
    tree, name = None, ""
    warnings: list[str] = []
    if isinstance(source, LocalSource):
        warnings += _stale(block, source)
    elif block.files:
        bundled = bundle.bundled(source, artifact.source, artifact.sha256, block)
        name, tree = bundled.name, bundle.existing_tree(bundled, means.cache)
        if tree is None and means.fetch:
            tree = bundle.make_tree(
                bundled, means.cache, allowed=means.allowed, cached_only=means.cached_only, progress=means.progress
            )
    if not block.dependencies and block.lock is None:
        return Gathered(block, Contents.of(block), tree, name, warnings=tuple(warnings))
    from sandboxrun.host import locks

    locked = locks.lock_of(block, artifact, source, means)
    if locked is None:
        return Gathered(block, Contents.of(block), tree, name, warnings=tuple(warnings))
    contents = Contents.of(block, locked.packages)
    return Gathered(
        block, contents, tree, name, locked.lock, locked.environment, warnings=(*warnings, *locked.warnings)
    )


def install(gathered: Gathered, means: Means, degraded: tuple[str, ...]) -> str | None:
    """The environment of the packages, made if it is missing; None without packages. Raises SandboxrunError."""
    if gathered.lock is None or gathered.environment is not None:
        return gathered.environment
    from sandboxrun.packages.environment import Options, environment

    limits, hosts = means.ceiling.packages_limits, means.ceiling.package_hosts
    options = Options(
        index=means.ceiling.index,
        hosts=None if hosts is None else ImportList(hosts, loopback=False),
        packed_max=limits.packed_max,
        unpacked_max=limits.unpacked_max,
        files_max=limits.files_max,
        cached_only=means.cached_only,
        degraded=degraded,
    )
    return environment(gathered.lock, cache=means.folders.cache, key=means.folders.key, options=options, say=means.say)


def check_python(requires: str, origin: str) -> None:
    """Raise ConfigError if the script does not support this interpreter (PEP 440)."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}"
    if not requires:
        return
    plain = re.fullmatch(_PLAIN_MINIMUM, requires)
    if plain is not None:  # what most scripts say; the package takes longer to be imported than all else of a start
        fits = sys.version_info[:3] >= tuple(int(number or 0) for number in plain.groups())
    else:
        from packaging.specifiers import InvalidSpecifier, SpecifierSet

        try:
            fits = SpecifierSet(requires).contains(version, prereleases=True)
        except InvalidSpecifier as error:
            raise ConfigError(
                f'{origin} has requires-python = {requires[:80]!r}: expected versions as in ">=3.11"'
            ) from error
    if not fits:
        raise ConfigError(
            f"{origin} requires Python {requires}, and sandboxrun runs it with {version}, its own ({sys.executable})"
        )


def _stale(block: Block, source: LocalSource) -> Iterator[str]:
    """Warn of listed files that have other contents now: the local folder runs as it is, but a fetched one would be refused."""
    folder = source.folder or os.path.dirname(source.script)
    stale = [path for path, digest in block.files if not _has_digest(os.path.join(folder, path), digest)]
    if stale:
        more = f" and {len(stale) - 3} more" if len(stale) > 3 else ""
        yield (
            f"{source.script}:{block.first_line} lists other contents of {', '.join(stale[:3])}{more} than {folder} has, which "
            f"runs as it is; where it is fetched it would be refused"
        )


def _has_digest(path: str, digest: str) -> bool:
    data = read_at_most(path, FILE_MAX_BYTES + 1)
    return data is not None and hex_digest(data) == digest
