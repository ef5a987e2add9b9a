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
from sandboxrun.config.script import Block
from sandboxrun.digests import hex_digest
from sandboxrun.errors import ConfigError
from sandboxrun.fetch import Artifact, bundle
from sandboxrun.fetch.cache import Cache
from sandboxrun.fetch.resolve import ImportList, LocalSource, Source
from sandboxrun.records import record

_PLAIN_MINIMUM = re.compile(r">=\s*([0-9]+)\.([0-9]+)(?:\.([0-9]+))?")


@record
class Gathered:
    """What was found of it. `tree`: the folder of the files, if the script is fetched; None if it is not here yet."""

    block: Block
    contents: Contents  # for the approval, and to be shown
    tree: str | None
    script: str  # the script's own name in the tree
    warnings: tuple[str, ...] = ()


def gather(
    artifact: Artifact,
    source: Source | LocalSource,
    cache: Cache,
    *,
    allowed: ImportList,
    fetch: bool,
    cached_only: bool,
    progress: Callable[[str], None] = lambda message: None,
) -> Gathered | None:
    """None if the script has no block. `fetch`: what is not here is fetched. Raises ScriptError, ConfigError, FetchError,
    IntegrityError."""
    block = bundle.block_of(artifact.source, artifact.sha256, artifact.origin, cache)
    if block is None:
        return None
    check_python(block.requires_python, artifact.origin)
    if isinstance(source, LocalSource):
        return Gathered(block, Contents.of(block), None, "", tuple(_stale(block, source)))
    bundled = bundle.bundled(source, artifact.source, artifact.sha256, block)
    tree = None
    if block.files:
        tree = bundle.existing_tree(bundled, cache)
        if tree is None and fetch:
            tree = bundle.make_tree(bundled, cache, allowed=allowed, cached_only=cached_only, progress=progress)
    return Gathered(block, Contents.of(block), tree, bundled.name)


def check_python(requires: str, origin: str) -> None:
    """Raise ConfigError if this interpreter is none that the script takes (PEP 440)."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}"
    if not requires:
        return
    plain = _PLAIN_MINIMUM.fullmatch(requires)
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
    """Which listed files of a local folder are others by now: it runs as it is, and somebody else would not get them."""
    folder = source.folder or os.path.dirname(source.script)
    stale = [path for path, digest in block.files if _digest(os.path.join(folder, path)) != digest]
    if stale:
        more = f" and {len(stale) - 3} more" if len(stale) > 3 else ""
        yield (
            f"{source.script}:{block.first_line} lists other contents of {', '.join(stale[:3])}{more} than {folder} has, which "
            f"runs as it is; where it is fetched it would be refused"
        )


def _digest(path: str) -> str:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(fd, "rb") as file:
            return hex_digest(file.read(16 << 20))
    except OSError:
        return ""
