"""The script that a changed hash names, fetched and verified as a run does it, before the hash is written."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable

from sandboxrun.config.worker import WorkerConfig
from sandboxrun.fetch import Artifact, obtain
from sandboxrun.fetch.cache import Cache
from sandboxrun.fetch.cached import from_cache
from sandboxrun.fetch.resolve import ImportList, LocalSource, Source
from sandboxrun.host.folders import Folders
from sandboxrun.host.plan import Get

Needed = Callable[[WorkerConfig], bool]


def bringer(
    folders: Folders,
    *,
    needed: Needed,
    keep: bool,
    reload: bool,
    cached_only: bool,
    warn: Callable[[str], None],
) -> Get:
    """Fetches the script if it is `needed`, else takes it from the cache. Without `keep` nothing is cached or pinned."""
    cache = Cache(folders.cache, folders.state)

    def get(config: WorkerConfig, source: Source | LocalSource, allowed: ImportList) -> Artifact | None:
        def fetched(into: Cache) -> Artifact:
            return obtain(
                source,
                cache=into,
                allowed=allowed,
                expected_sha256=config.sha256,
                reload=reload,
                cached_only=cached_only,
                warn=warn,
                progress=lambda message: None,
            )

        if not needed(config):
            return from_cache(cache)(config, source, allowed)
        if keep or isinstance(source, LocalSource):
            return fetched(cache)
        with tempfile.TemporaryDirectory(prefix="sandboxrun-") as folder:
            return fetched(_copy(cache, source, folder))

    return get


def _copy(cache: Cache, source: Source, folder: str) -> Cache:
    """A cache in a temporary folder, with the same pins and the cached script of this source."""
    made = Cache(os.path.join(folder, "cache"), os.path.join(folder, "state"))
    shutil.copytree(
        cache.pins, made.pins, ignore=lambda _, names: [n for n in names if n.endswith(".lock")], dirs_exist_ok=True
    )
    pin = cache.pin(source)
    data = cache.read(pin.sha256) if pin is not None else None
    if pin is not None and data is not None:
        with open(os.path.join(made.blobs, pin.sha256), "wb") as file:
            file.write(data)
    return made
